from pathlib import Path
from typing import Any

import pytest
import torch

from babylon_rl.errors import NothingToTrain
from babylon_rl.models.policy import Policy
from babylon_rl.models.scoring import EMPTY, NOT_IN_GRAMMAR, EncodedSequence, NotEncodable, branch_logprobs, encode_sequence

MESSAGES = [{"role": "user", "content": "The price of TESLAI rose."}]


def encode(tokenizer: Any, response: str, response_format: dict[str, Any] | None) -> EncodedSequence:
    encoded = encode_sequence(tokenizer, MESSAGES, response, response_format)
    assert isinstance(encoded, EncodedSequence)
    return encoded


def test_a_response_outside_its_schema_is_a_reason_and_not_an_error(tokenizer: Any, trade_format: dict[str, Any]) -> None:
    refused = encode_sequence(tokenizer, MESSAGES, '{"action":"hold"}', trade_format)
    assert isinstance(refused, NotEncodable)
    assert refused.reason == NOT_IN_GRAMMAR
    empty = encode_sequence(tokenizer, MESSAGES, "", None)
    assert isinstance(empty, NotEncodable)
    assert empty.reason == EMPTY


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
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.01)
    before = branch_logprobs(policy.model, batch)
    (-(before.logprobs.sum() + 0.01 * before.entropy.sum())).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in policy.model.parameters() if weight.grad is not None)
    optimizer.step()
    assert branch_logprobs(policy.model, batch).logprobs.sum() > before.logprobs.sum()


def test_a_batch_without_a_choice_has_nothing_to_train(policy: Policy, tokenizer: Any) -> None:
    only = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "hold"}}}
    with pytest.raises(NothingToTrain, match="nothing to train"):
        branch_logprobs(policy.model, [encode(tokenizer, '"hold"', only)])
