from pathlib import Path
from typing import Any

import pytest
import torch

from babylon_rl.errors import NothingToTrain
from babylon_rl.models.policy import Policy
from babylon_rl.models.scoring import (
    EMPTY,
    NOT_IN_GRAMMAR,
    OPEN_ROWS,
    EncodedSequence,
    divergence,
    encode_sequence,
    spot_values,
)
from babylon_rl_tests.unpacked import branch_logprobs

pytestmark = pytest.mark.slow  # torch is imported

MESSAGES = [{"role": "user", "content": "The price of TESLAI rose."}]


def encode(tokenizer: Any, response: str, response_format: dict[str, Any] | None) -> EncodedSequence:
    encoded = encode_sequence(tokenizer, MESSAGES, response, response_format)
    assert isinstance(encoded, EncodedSequence)
    return encoded


def test_a_response_outside_its_schema_is_a_reason_and_not_an_error(tokenizer: Any, trade_format: dict[str, Any]) -> None:
    assert encode_sequence(tokenizer, MESSAGES, '{"action":"hold"}', trade_format) == NOT_IN_GRAMMAR
    assert encode_sequence(tokenizer, MESSAGES, "", None) == EMPTY


def test_without_a_schema_every_response_token_trains_the_end_token_too(tokenizer: Any) -> None:
    encoded = encode(tokenizer, "Buy it.", None)
    assert all(encoded.trainable_t)
    assert encoded.response_ids[-1] == tokenizer.eos_token_id
    assert encoded.trainable_tokens == len(encoded.response_ids)


def test_free_scores_equal_those_of_a_plain_forward_pass(policy: Policy, tokenizer: Any) -> None:
    sequences = [encode(tokenizer, "Buy it.", None), encode(tokenizer, "Hold, and wait for another day.", None)]
    with torch.no_grad(), policy.model.disable_adapter():
        scored = branch_logprobs(policy.model, sequences)
        for row, one in enumerate(sequences):
            ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
            plain = torch.log_softmax(policy.model(input_ids=ids).logits[0].float(), -1)[len(one.prompt_ids) - 1 : -1]
            picked = plain.gather(-1, torch.tensor(one.response_ids)[:, None])[:, 0]
            entropy = -(plain.exp() * plain).sum(-1)
            length = len(one.response_ids)
            torch.testing.assert_close(scored.logprobs[row, :length], picked, atol=1e-4, rtol=0)
            torch.testing.assert_close(scored.entropy[row, :length], entropy, atol=1e-4, rtol=0)
            assert not scored.mask[row, length:].any()


def test_probabilities_over_the_language_sum_to_one(policy: Policy, tokenizer: Any, trade_format: dict[str, Any]) -> None:
    from babylon_rl.models.grammar import compile_grammar

    texts = compile_grammar(trade_format, tokenizer).texts
    with torch.no_grad():
        scored = branch_logprobs(policy.model, [encode(tokenizer, text, trade_format) for text in texts])
    assert scored.logprobs.sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(scored.entropy).all()


def test_one_step_up_the_gradient_makes_the_answer_likelier(tiny_base: Path, tokenizer: Any, trade_format: dict[str, Any]) -> None:
    policy = Policy.load(tiny_base, dtype=torch.float32)
    batch = [encode(tokenizer, text, trade_format) for text in ('{"action": "hold"}', '{"action": "sell", "market": "TESLAI"}')]
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.001)
    before = branch_logprobs(policy.model, batch)
    (-(before.logprobs.sum() + 0.01 * before.entropy.sum())).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in policy.model.parameters() if weight.grad is not None)
    optimizer.step()
    assert branch_logprobs(policy.model, batch).logprobs.sum() > before.logprobs.sum()


def test_a_batch_without_a_choice_has_nothing_to_train(policy: Policy, tokenizer: Any) -> None:
    only = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "hold"}}}
    with pytest.raises(NothingToTrain, match="nothing to train"):
        branch_logprobs(policy.model, [encode(tokenizer, '"hold"', only)])


VOCABULARY = 5000


def whole_values(hidden: Any, head: Any, taken: list[int]) -> tuple[Any, Any]:
    logprobs = torch.log_softmax(hidden @ head.T, -1)
    return logprobs.gather(-1, torch.tensor(taken)[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def whole_divergence(hidden: Any, reference: Any, head: Any) -> Any:
    policy, base = torch.log_softmax(hidden @ head.T, -1), torch.log_softmax(reference @ head.T, -1)
    return (policy.exp() * (policy - base)).sum(-1)


@pytest.mark.parametrize("number", [OPEN_ROWS - 1, 2 * OPEN_ROWS + 3])
def test_free_texts_in_parts_have_the_values_and_gradients_of_the_whole(number: int) -> None:
    torch.manual_seed(0)
    hidden, reference, head = (torch.randn(rows, 16) / 2 for rows in (number, number, VOCABULARY))
    taken, push = list(range(number)), torch.randn(3, number)
    found = []
    for parts in (True, False):
        given = hidden.clone().requires_grad_()
        if parts:
            values = (*spot_values(given, head, [(None, token) for token in taken]), divergence(given, reference, head, [None] * number))
        else:
            values = (*whole_values(given, head, taken), whole_divergence(given, reference, head))
        (torch.stack(values) * push).sum().backward()
        found.append((*values, given.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_nothing_as_wide_as_the_vocabulary_is_kept_for_the_backward_pass_of_a_long_free_text() -> None:
    number, kept = 8 * OPEN_ROWS, []

    def keep(tensor: Any) -> Any:
        kept.append(tensor.numel())
        return tensor

    hidden, head = torch.randn(number, 16, requires_grad=True), torch.randn(VOCABULARY, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values, _ = spot_values(hidden, head, [(None, 0)] * number)
        far = divergence(hidden, torch.randn(number, 16), head, [None] * number)
    assert sum(kept) < number * VOCABULARY // 4
    (values.sum() + far.sum()).backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()
