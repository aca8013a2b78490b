"""The token loss by hand, and against the loss of openpipe-art where both say the same."""

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from babylon_rl.models.scoring import divergence
from babylon_rl.training.loss import RATIO_LIMIT, STALE_PROBABILITY, LossWeights, token_loss

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


def test_the_guard_holds_for_recorded_tokens_too_and_never_gives_nan() -> None:
    loss, gradient = loss_of([-8.0], [-1.0], [-0.01])
    assert (loss, gradient) == ([0.0], [0.0])
    assert all(math.isfinite(value) for value in loss_of([-80.0], [1.0], [-0.01])[1])


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


ORACLE = """
import json, sys, torch
from art.loss import loss_fn
def row(values, first): return torch.tensor([[first, *values]])
def answer(asked):
    new = torch.tensor([[*asked["logprobs"], 0.0]], requires_grad=True)
    inputs = {
        "logprobs": row(asked["served"], float("nan")), "advantages": row(asked["advantages"], 0.0),
        "assistant_mask": row([True] * len(asked["served"]), False), "weights": row([1.0] * len(asked["served"]), 0.0),
    }
    loss = loss_fn(inputs, new, None, None, {}, reduction="sum").policy_loss
    loss.backward()
    return {"loss": loss.item(), "gradient": new.grad[0, :-1].tolist()}
print(json.dumps([answer(asked) for asked in json.load(sys.stdin)]))
"""


@pytest.mark.slow
def test_it_agrees_with_arts_loss_with_and_without_recorded_log_probabilities() -> None:
    logprobs, advantages = [-0.3, -1.2, -2.0, -0.7], [1.0, -0.5, 0.8, -1.3]
    cases = [[NAN] * 4, [-0.4, -1.0, -4.5, -0.9]]
    theirs = ask_art([{"logprobs": logprobs, "advantages": advantages, "served": served} for served in cases])
    for served, answer in zip(cases, theirs, strict=True):
        loss, gradient = loss_of(logprobs, advantages, served)
        assert sum(loss) == pytest.approx(answer["loss"], rel=1e-5)
        assert gradient == pytest.approx(answer["gradient"], rel=1e-5)


def ask_art(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In a process of its own: importing art loads .env and changes logging."""
    ran = subprocess.run(
        [sys.executable, "-c", ORACLE],
        input=json.dumps(cases), capture_output=True, text=True, env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}, check=False,
    )  # fmt: skip
    if "ModuleNotFoundError" in ran.stderr or "ImportError" in ran.stderr:
        pytest.skip(f"art cannot be imported: {ran.stderr.splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr
    return list(json.loads(ran.stdout.splitlines()[-1]))
