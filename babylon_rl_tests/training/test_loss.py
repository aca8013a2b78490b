"""The token loss by hand; test_loss_art.py holds it against that of openpipe-art."""

import math

import pytest
import torch

from babylon_rl.models.scoring import divergence
from babylon_rl.training.backends.cpu import RATIO_LIMIT
from babylon_rl.training.backends.cpu.loss import ART_WEIGHTS, STALE_PROBABILITY, LossWeights, clipped, token_loss

pytestmark = pytest.mark.slow  # torch is imported

PLAIN = LossWeights(entropy=0.0, kl=0.0)
NAN = math.nan


def loss_of(
    logprobs: list[float], advantages: list[float], served: list[float], weights: LossWeights = PLAIN, *,
    entropy: list[float] | None = None, kl: list[float] | None = None,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Losses by token and the gradient of their sum by log-probability."""
    current = torch.tensor(logprobs, requires_grad=True)
    entropies = torch.tensor(entropy or [0.0] * len(logprobs))
    kl_n = None if kl is None else torch.tensor(kl)
    loss = token_loss(current, entropies, torch.tensor(advantages), torch.tensor(served), kl_n, weights)
    loss.sum().backward()
    assert current.grad is not None
    return loss.tolist(), current.grad.tolist()


def test_without_recorded_log_probabilities_it_is_reinforce() -> None:
    loss, gradient = loss_of([-1.0, -0.5], [2.0, -1.0], [NAN, NAN])
    assert loss == pytest.approx([2.0, -0.5])
    assert gradient == pytest.approx([-2.0, 1.0])


def test_the_ratio_weighs_the_push_and_has_no_gradient_of_its_own() -> None:
    loss, gradient = loss_of([-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0 - math.log(2)])
    assert loss == pytest.approx([1.0, 2.0])
    assert gradient == pytest.approx([-1.0, -2.0])


def test_the_ratio_is_limited() -> None:
    assert loss_of([-0.1], [1.0], [-9.0])[1] == pytest.approx([-RATIO_LIMIT])


def test_a_negative_advantage_stops_pushing_once_its_token_is_rare() -> None:
    rare, common = math.log(STALE_PROBABILITY * 0.9), math.log(STALE_PROBABILITY * 1.1)
    loss, gradient = loss_of([rare, common, rare], [-1.0, -1.0, 1.0], [NAN] * 3)
    assert (loss[0], gradient[0]) == (0.0, 0.0)
    assert gradient[1:] == pytest.approx([1.0, -1.0])


def test_the_guard_leaves_recorded_tokens_to_their_ratio_and_never_gives_nan() -> None:
    rare = math.log(STALE_PROBABILITY / 2)
    assert loss_of([rare], [-1.0], [rare])[1] == pytest.approx([1.0])
    assert loss_of([-8.0], [-1.0], [-0.01])[1] == pytest.approx([math.exp(-7.99)])  # served often, rare by now: next to no push
    assert all(math.isfinite(value) for value in loss_of([-80.0], [1.0], [-0.01])[1])


@pytest.mark.parametrize(("recorded", "sign"), [(True, 1), (False, -1)])
def test_a_right_answer_above_95_percent_is_still_pushed_up_where_answers_are_recorded(recorded: bool, sign: int) -> None:
    likely, pushed = 0.96, 0.0
    # Two answers, weighed by the policy; the right one wins 88 % of the prompts.
    for share, scores in ((0.88, (1.0, 0.0)), (0.12, (0.0, 1.0))):
        logits = torch.tensor([likely, 1 - likely]).log().requires_grad_()
        logprobs = torch.log_softmax(logits, -1)
        weight, won = logprobs.detach().exp(), torch.tensor(scores)
        served = logprobs.detach() if recorded else torch.full((2,), NAN)
        losses = token_loss(logprobs, torch.zeros(2), won - (weight * won).sum(), served, None, PLAIN)
        (weight * losses).sum().backward()
        assert logits.grad is not None
        pushed -= share * float(logits.grad[0])
    assert pushed * sign > 0
    assert not recorded or pushed == pytest.approx(likely * (1 - likely) * 0.76, rel=1e-3)


def test_every_guard_can_be_switched_off() -> None:
    rare = math.log(STALE_PROBABILITY / 2)
    assert loss_of([rare], [-1.0], [NAN], ART_WEIGHTS, entropy=[1.5])[1] == pytest.approx([1.0])


def test_what_is_clipped_is_told() -> None:
    tokens = torch.tensor([-0.1, -0.1, -8.0, -8.0]), torch.tensor([1.0, 1.0, -1.0, 1.0]), torch.tensor([-9.0, -0.2, NAN, NAN])
    assert clipped(*tokens, PLAIN).tolist() == [True, False, True, False]
    assert clipped(*tokens, LossWeights(0.0, 0.0, 0.0, epsilon=0.2, epsilon_high=0.05)).tolist() == [True, True, False, False]


def test_entropy_is_a_bonus() -> None:
    assert loss_of([-1.0], [0.0], [NAN], LossWeights(0.5, 0.0), entropy=[1.5])[0] == pytest.approx([-0.75])


def test_the_divergence_from_the_base_is_a_penalty() -> None:
    assert loss_of([-1.0], [0.0], [NAN], LossWeights(0.0, 0.2), kl=[1.5])[0] == pytest.approx([0.3])


def test_the_divergence_is_exact_over_what_was_legal_and_its_gradient_is_finite() -> None:
    torch.manual_seed(0)
    head, policy, base = torch.randn(7, 4), torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    legal: list[tuple[int, ...] | None] = [(1, 4), (0, 2, 6), None]
    found = divergence(policy, base, head, legal)
    for n, tokens in enumerate(legal):
        rows = head if tokens is None else head[list(tokens)]
        ours, theirs = (torch.log_softmax(rows @ hidden[n], -1) for hidden in (policy, base))
        assert found[n].item() == pytest.approx((ours.exp() * (ours - theirs)).sum().item(), abs=1e-5)
    found.sum().backward()
    assert policy.grad is not None and bool(torch.isfinite(policy.grad).all())
    assert divergence(base, base, head, legal).tolist() == [0.0] * 3
