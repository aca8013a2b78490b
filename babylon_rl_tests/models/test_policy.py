from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from babylon_rl.errors import CheckpointError, ModelUnavailable, UsageError
from babylon_rl.models import generation, row_attention
from babylon_rl.models.device import BatchSizes, best_dtype
from babylon_rl.models.grammar import compile_grammar
from babylon_rl.models.policy import Completion, CompletionRequest, Policy
from babylon_rl.models.row_attention import Reading, Unread, attend
from babylon_rl.models.scoring import EncodedSequence, encode_sequence
from babylon_rl_tests.models.conftest import fresh, make_adapter
from babylon_rl_tests.unpacked import branch_logprobs

pytestmark = pytest.mark.slow  # torch is imported


def ask(text: str, **changes: Any) -> CompletionRequest:
    return CompletionRequest([{"role": "system", "content": "You are a trader."}, {"role": "user", "content": text}], **changes)


def requests(trade_format: dict[str, Any], count: int, **changes: Any) -> list[CompletionRequest]:
    return [ask(f"Decision {n}. " + "The price rose. " * (n % 5), response_format=trade_format, seed=n, **changes) for n in range(count)]


def same(left: Completion, right: Completion) -> bool:
    return left.token_ids == right.token_ids and left.logprobs == pytest.approx(right.logprobs, abs=1e-4)


def test_every_answer_is_in_the_language_and_forced_tokens_have_logprob_zero(policy: Policy, trade_format: dict[str, Any]) -> None:
    grammar = compile_grammar(trade_format, policy.tokenizer)
    answers = policy.complete(requests(trade_format, 40))
    assert len({answer.text for answer in answers}) > 3
    for answer in answers:
        assert answer.finish_reason == "stop"
        assert answer.token_ids == grammar.tokens[answer.text]
        for legal, logprob in zip(grammar.legal_t(answer.token_ids), answer.logprobs, strict=True):
            assert logprob < 0 if len(legal) > 1 else logprob == 0.0


def test_scoring_gives_the_log_probabilities_that_were_served(policy: Policy, trade_format: dict[str, Any]) -> None:
    asked = requests(trade_format, 12) + [ask(f"Say something {n}.", seed=n, max_tokens=6) for n in range(3)]
    answers = policy.complete(asked)
    encoded = [
        encode_sequence(policy.tokenizer, one.messages, answer.text, trade_format) for one, answer in zip(asked[:12], answers, strict=False)
    ]
    prompts = [policy.tokenizer.apply_chat_template(list(one.messages), tokenize=False, add_generation_prompt=True) for one in asked[12:]]
    for prompt, answer in zip(prompts, answers[12:], strict=True):
        ids = tuple(policy.tokenizer.encode(prompt, add_special_tokens=False))
        free = len(answer.token_ids)
        encoded.append(EncodedSequence(ids, answer.token_ids, (None,) * free, (True,) * free))
    with torch.no_grad(), policy.model.disable_adapter():
        scored = branch_logprobs(policy.model, encoded)  # type: ignore[arg-type]
    for row, answer in zip(scored.logprobs.tolist(), answers, strict=True):
        assert row[: len(answer.logprobs)] == pytest.approx(answer.logprobs, abs=1e-4)
        assert not any(row[len(answer.logprobs) :])


def test_an_answer_depends_on_its_seed_and_not_on_its_company(policy: Policy, trade_format: dict[str, Any]) -> None:
    asked = requests(trade_format, BatchSizes.rows + 5)
    together = policy.complete(asked)
    alone = [fresh(policy).complete([one])[0] for one in asked[:6]]
    backwards = fresh(policy).complete(asked[::-1])[::-1]
    assert all(same(a, b) for a, b in zip(alone, together, strict=False))
    assert all(same(a, b) for a, b in zip(backwards, together, strict=True))
    assert policy.complete(asked) == together


@pytest.mark.long
def test_nothing_beside_an_answer_moves_a_bit_of_it(packaged_base: Path, trade_format: dict[str, Any]) -> None:
    if best_dtype() != torch.bfloat16:
        pytest.skip("float32 here: products of matrices may sum in another order for other numbers of rows")
    packaged = Policy.load(packaged_base)
    texts = [ask(f"Speak of {n}. " + "Prices rose. " * 60 * n, seed=n, max_tokens=8) for n in range(4)]
    asked = [*requests(trade_format, 12), *requests(trade_format, 2), *texts]
    together = packaged.complete(asked)
    # Without what earlier prompts left, and with it.
    assert [fresh(packaged).complete([one])[0] for one in asked] == together
    assert fresh(packaged).complete(asked[::-1])[::-1] == together
    assert [packaged.complete([one])[0] for one in asked] == together


def test_a_grammar_that_is_read_ahead_gives_the_same_as_token_by_token(
    policy: Policy, trade_format: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(trade_format, 8)
    with monkeypatch.context() as one_by_one:
        one_by_one.setattr(generation, "AHEAD_TOKENS", -1)
        expected = fresh(policy).complete(asked)
    assert all(same(a, b) for a, b in zip(policy.complete(asked), expected, strict=True))


@pytest.mark.parametrize(
    ("feature", "says"),
    [({"softcap": 50.0}, "caps attention scores"), ({"sliding_window": 2}, "attends to 2 tokens"), ({"s_aux": 1}, "sinks")],
)
def test_attention_that_would_come_out_wrong_is_refused(feature: dict[str, Any], says: str) -> None:
    tokens = torch.zeros(1, 2, 3, 4)  # [batch, heads, tokens, width]
    with pytest.raises(UsageError, match=says):
        attend(SimpleNamespace(layer_idx=0), tokens, tokens, tokens, None, 1.0, Reading([Unread.text([5, 6, 7])]), **feature)


def test_fused_attention_gives_the_same_as_plain_products(
    policy: Policy, trade_format: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*requests(trade_format, 6), *(ask(f"Speak of {n}. " + "Prices rose. " * n, seed=n, max_tokens=6) for n in range(3))]
    with monkeypatch.context() as fused:
        fused.setattr(row_attention, "FEW_SCORES", 0)
        expected = fresh(policy).complete(asked)
    assert all(same(a, b) for a, b in zip(policy.complete(asked), expected, strict=True))


def test_equal_prompts_are_read_once_and_drawn_apart(policy: Policy, trade_format: dict[str, Any]) -> None:
    asked = [ask("The same.", response_format=trade_format, seed=n) for n in range(10)]
    together = policy.complete(asked)
    assert len({answer.text for answer in together}) > 1
    assert all(same(policy.complete([one])[0], answer) for one, answer in zip(asked, together, strict=True))


def test_draws_follow_the_served_distribution(policy: Policy, trade_format: dict[str, Any]) -> None:
    answers = policy.complete([ask("Draw.", response_format=trade_format, seed=n) for n in range(400)])
    counts = Counter(answer.text for answer in answers)
    probability = {answer.text: torch.tensor(answer.logprobs).sum().exp().item() for answer in answers}
    for text, count in counts.items():
        p = probability[text]
        assert abs(count / 400 - p) < 4 * (p * (1 - p) / 400) ** 0.5 + 1e-9


def test_temperature_zero_takes_the_likeliest_of_each_choice(policy: Policy, trade_format: dict[str, Any]) -> None:
    greedy = policy.complete([ask("Choose.", response_format=trade_format, temperature=0, seed=n) for n in range(3)])
    assert len({answer.text for answer in greedy}) == 1
    drawn = policy.complete([ask("Choose.", response_format=trade_format, seed=n) for n in range(200)])
    first = greedy[0].logprobs[next(n for n, value in enumerate(greedy[0].logprobs) if value)]
    assert first >= max(next(value for value in answer.logprobs if value) for answer in drawn) - 1e-5


def test_an_adapter_changes_the_answers_and_leaves_the_base_alone(policy: Policy, tiny_base: Path, trade_format: dict[str, Any]) -> None:
    bare = Policy.load(tiny_base, dtype=torch.float32)
    base = policy.complete(requests(trade_format, 10))
    adapted = policy.complete(requests(trade_format, 10, adapter="v1.0.0"))
    mixed = policy.complete(
        [one for pair in zip(requests(trade_format, 10), requests(trade_format, 10, adapter="v1.0.0"), strict=True) for one in pair]
    )
    assert all(same(a, b) for a, b in zip(base, bare.complete(requests(trade_format, 10)), strict=True))
    assert not all(same(a, b) for a, b in zip(base, adapted, strict=True))
    assert all(same(a, b) for a, b in zip(mixed[::2], base, strict=True))
    assert all(same(a, b) for a, b in zip(mixed[1::2], adapted, strict=True))


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "v_proj", "gate_proj", "down_proj"), ("up_proj",)])
def test_two_adapters_stand_side_by_side(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, trade_format: dict[str, Any], policy: Policy, targets: tuple[str, ...]
) -> None:

    both = Policy.load(tiny_base, tiny_adapter, dtype=torch.float32, adapter_name="v1.0.0")
    other = make_adapter(tiny_base, tmp_path / "second", seed=7, targets=targets)
    both.add_adapter("v1.0.1", other)
    alone = Policy.load(tiny_base, other, dtype=torch.float32, adapter_name="v1.0.1")
    first = both.complete(requests(trade_format, 8, adapter="v1.0.0"))
    second = both.complete(requests(trade_format, 8, adapter="v1.0.1"))
    assert all(same(a, b) for a, b in zip(first, policy.complete(requests(trade_format, 8, adapter="v1.0.0")), strict=True))
    assert all(same(a, b) for a, b in zip(second, alone.complete(requests(trade_format, 8, adapter="v1.0.1")), strict=True))
    assert not all(same(a, b) for a, b in zip(first, second, strict=True))


def test_free_text_ends_at_max_tokens_or_the_end_token(policy: Policy) -> None:
    answers = policy.complete([ask("Speak.", seed=n, max_tokens=5) for n in range(8)])
    for answer in answers:
        assert len(answer.token_ids) == len(answer.logprobs) <= 5
        assert (answer.finish_reason == "stop") == (answer.token_ids[-1] == policy.tokenizer.eos_token_id)


@pytest.mark.parametrize("adapter", [None, "v1.0.0"])
def test_a_text_that_joins_a_running_batch_is_the_one_that_it_would_be_alone(policy: Policy, adapter: str | None) -> None:
    asked = [ask(f"Speak of {n}. " + "Prices rose. " * n, seed=n, max_tokens=4 + 3 * n, adapter=adapter) for n in range(5)]
    rows, running = [policy.row(one) for one in asked], policy.generation(adapter)
    for joining in (rows[:2], [], [], rows[2:3], rows[3:], []):
        policy.advance(running, joining)
    while running.unfinished():
        policy.advance(running, [])
    assert all(same(policy.completion(row), policy.complete([one])[0]) for row, one in zip(rows, asked, strict=True))


def test_a_model_in_training_is_left_in_training(policy: Policy, trade_format: dict[str, Any]) -> None:
    policy.model.base_model.set_adapter(policy.model.active_adapter)  # its weights are trained
    before = {name: weight.requires_grad for name, weight in policy.model.named_parameters()}
    assert any(before.values())
    policy.model.train()
    try:
        policy.complete(requests(trade_format, 2))
        policy.complete(requests(trade_format, 2, adapter="v1.0.0"))
        assert policy.model.training
        assert {name: weight.requires_grad for name, weight in policy.model.named_parameters()} == before
    finally:
        policy.model.eval()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": "v9"}, "Unknown adapter 'v9'; loaded: v1.0.0"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_an_unusable_request_is_refused_in_words(policy: Policy, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        policy.complete([ask("x", **changes)])


def test_a_directory_that_is_no_model_is_said_to_be_none(tmp_path: Path, policy: Policy) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be loaded as a model"):
        Policy.load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be loaded as an adapter"):
        policy.add_adapter("broken", tmp_path)
    assert "broken" not in policy.adapters
