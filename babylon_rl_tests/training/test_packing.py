"""Packed rows give the numbers of separate rows, and every sequence stands where the pack says it does."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.models.policy import Policy
from babylon_rl.models.row_attention import Reading, Unread, attention_by_row, read_rows, shared_length, shared_trunk
from babylon_rl.models.scoring import EncodedSequence, causal_model, encode_sequence, spot_values
from babylon_rl.training.backends.cpu.policy import SHORTEST_PREFIX, Pack, as_pack, needed_ids, pack
from babylon_rl_tests.training.sequences import BAD, BUY, GOOD, HOLD, SCHEMA, SELL, make_messages
from babylon_rl_tests.unpacked import branch_logprobs

pytestmark = pytest.mark.slow  # torch is imported


def make_encoded(prompt: list[int], response: int = 3, choices: int = 3) -> EncodedSequence:
    trains = tuple(t < choices for t in range(response))
    return EncodedSequence(tuple(prompt), tuple(range(900, 900 + response)), tuple((900, 1) for _ in trains), trains)


def row_of(*texts: tuple[int, ...]) -> Pack:
    return as_pack([(text, n) for n, text in enumerate(sorted(texts))])


prompts = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 80), st.lists(st.integers(0, 2), max_size=6)), min_size=1, max_size=12)


@given(prompts, st.integers(40, 400))
def test_every_sequence_is_in_one_pack_and_whole(described: list[tuple[int, int, list[int]]], most: int) -> None:
    batch = [make_encoded([kind + 10] * length + tail) for kind, length, tail in described]
    packs = pack(batch, most_tokens=most)
    assert sorted(member for one in packs for member in one.members) == list(range(len(batch)))
    for one in packs:
        assert one.tokens <= most or len(one.members) == 1
        assert len(one.members) == 1 or one.unread.trunk >= SHORTEST_PREFIX
        needed = [needed_ids(batch[n]) for n in one.members]
        assert one.tokens == len({ids[:length] for ids in needed for length in range(1, len(ids) + 1)})
        for ids, path in zip(needed, one.paths, strict=True):
            assert tuple(one.unread.tokens[place] for place in path) == ids
            assert [one.unread.before[place] for place in path] == [-1, *path[:-1]]
            assert [one.unread.depths()[place] for place in path] == list(range(len(ids)))


def test_the_order_of_the_sequences_changes_nothing_but_their_numbers() -> None:
    batch = [make_encoded([7] * 50 + [agent]) for agent in range(6)] + [make_encoded([8] * 40 + [agent]) for agent in range(3)]
    shuffled = random.Random(0).sample(range(len(batch)), len(batch))
    one, other = pack(batch), pack([batch[n] for n in shuffled])
    assert [[batch[n] for n in row.members] for row in one] == [[batch[shuffled[n]] for n in row.members] for row in other]
    assert [len(row.members) for row in one] == [6, 3]


def test_prompts_that_share_too_little_stand_alone() -> None:
    packs = pack([make_encoded([1] * (SHORTEST_PREFIX - 1) + [agent] * 9) for agent in (2, 3)])
    assert [row.members for row in packs] == [(0,), (1,)]


def test_equal_sequences_share_everything_and_a_prefix_of_another_is_packed_with_it() -> None:
    short, long = make_encoded([1] * 40, choices=1), make_encoded([1] * 40, choices=3)
    (row,) = pack([short, short, long])
    assert row.unread == Unread(needed_ids(long), tuple(range(-1, 41)))
    assert sorted(map(len, row.paths)) == [40, 40, 42]


def test_tokens_after_the_last_choice_are_not_computed() -> None:
    assert needed_ids(make_encoded([1, 2], response=5, choices=2)) == (1, 2, 900)
    assert needed_ids(make_encoded([1, 2], response=5, choices=1)) == (1, 2)


def test_a_token_sees_its_own_sequences_alone_at_its_own_position() -> None:
    row = row_of((5, 6, 7, 8), (5, 6, 7, 9), (5, 6, 9)).unread
    assert row.tokens == (5, 6, 7, 8, 9, 9)
    assert row.depths() == [0, 1, 2, 3, 3, 2]
    mask = Reading([row]).mask(0, 0, 8, torch.zeros(1))
    assert (mask == 0).tolist() == [
        [True, False, False, False, False, False, False, False],
        [True, True, False, False, False, False, False, False],
        [True, True, True, False, False, False, False, False],
        [True, True, True, True, False, False, False, False],
        [True, True, True, False, True, False, False, False],
        [True, True, False, False, False, True, False, False],
    ]


def test_the_shared_length_of_lists() -> None:
    assert [shared_length([1, 2, 3], other) for other in ([1, 2, 4], [1, 2], [], [1, 2, 3, 4])] == [2, 2, 0, 3]


def test_one_pass_computes_once_what_its_rows_begin_with() -> None:
    first, second = row_of((*[1] * 30, 5, 6, 7, 8), (*[1] * 30, 5, 6, 9)).unread, Unread.text([1] * 30 + [3])
    reading = Reading([first, second])
    assert [list(row.tokens) for row in reading.rows] == [[1] * 30, [5, 6, 7, 8, 9], [3]]
    assert reading.rows[1].before == [-1, 0, 1, 2, 1]
    assert reading.positions == [*range(30), 30, 31, 32, 33, 32, 30]
    # All of a row cannot be trunk, nor what a branch does not see; a few tokens are not worth it, and a row alone has nothing to share.
    assert shared_trunk([second, Unread.text([1] * 30)]) == 29
    branching = row_of((1,) * 23, (*[1] * 20, 2)).unread
    assert shared_trunk([branching, Unread.text([1] * 30)]) == 20
    assert shared_trunk([Unread.text([1] * 11 + [2]), Unread.text([1] * 11 + [3])]) == 0
    assert shared_trunk([first]) == 0


@pytest.fixture(scope="module")
def trained_policy(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Base and adapter in float32, the adapter's weights with gradients."""
    from babylon_rl_tests.tiny_model import make_adapter

    policy = Policy.load(tiny_base, make_adapter(tiny_base, tmp_path_factory.mktemp("adapter")), dtype=torch.float32)
    for name, weight in policy.model.named_parameters():
        weight.requires_grad_("lora_" in name)
    return policy


def encoded_ticks(tokenizer: Any) -> list[EncodedSequence]:
    """Two ticks of four agents under the grammar, and one answer in free text."""
    answers = (BUY, SELL, HOLD, '{"action": "buy", "market": "TESLAI"}')
    asked = [(make_messages(news, f"agent-{n}"), answer, SCHEMA) for news in (GOOD, BAD) for n, answer in enumerate(answers)]
    asked.append((make_messages(GOOD, "agent-1"), "I would rather wait.", None))
    found = [encode_sequence(tokenizer, *one) for one in asked]
    assert all(isinstance(one, EncodedSequence) for one in found)
    return [one for one in found if isinstance(one, EncodedSequence)]


def packed_values(
    policy: Policy, batch: list[EncodedSequence], together: bool
) -> tuple[dict[tuple[int, int], Any], dict[tuple[int, int], Any], int]:
    """(log-probability, entropy) by (sequence, response token), and the number of rows, each alone or all in one pass."""
    causal = causal_model(policy.model)
    head, values, entropies = causal.get_output_embeddings().weight, {}, {}
    packs = pack(batch)
    with attention_by_row(causal):
        passes = [packs] if together else [[one] for one in packs]
        states = [hidden for rows in passes for hidden in read_rows(causal, [one.unread for one in rows])]
    for one, hidden in zip(packs, states, strict=True):
        spots = [(m, n, t) for m, n in enumerate(one.members) for t, trains in enumerate(batch[n].trainable_t) if trains]
        where = [one.paths[m][len(batch[n].prompt_ids) + t - 1] for m, n, t in spots]
        wanted = [(batch[n].legal_t[t], batch[n].response_ids[t]) for _, n, t in spots]
        for (_, n, t), value, entropy in zip(spots, *spot_values(hidden[where], head, wanted), strict=True):
            values[n, t], entropies[n, t] = value, entropy
    return values, entropies, len(packs)


def test_states_of_some_tokens_are_those_among_all(trained_policy: Policy) -> None:
    causal = causal_model(trained_policy.model)
    rows = [Unread.text([7] * 20 + [1, 2, 3]), Unread.text([7] * 20 + [4, 5])]
    with torch.no_grad(), attention_by_row(causal), attention_by_row(causal):
        every, nothing = read_rows(causal, rows), read_rows(causal, rows, wanted=[[], []])
        for wanted in ([[22], [19, 0]], [[], [21]]):
            for states, all_states, tokens in zip(read_rows(causal, rows, wanted=wanted), every, wanted, strict=True):
                torch.testing.assert_close(states, all_states[tokens])
    assert [len(states) for states in every + nothing] == [23, 22, 0, 0]
    # Outside of the block the model is as it was.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in causal.base_model.layers[-1].modules())
    assert causal.config._attn_implementation != "rows"


@pytest.mark.parametrize("together", [False, True])
def test_packed_log_probabilities_equal_those_of_separate_rows(trained_policy: Policy, together: bool) -> None:
    batch = encoded_ticks(trained_policy.tokenizer)
    with torch.no_grad():
        values, entropies, rows = packed_values(trained_policy, batch, together)
        for n, one in enumerate(batch):
            alone = branch_logprobs(trained_policy.model, [one])
            for t, trains in enumerate(one.trainable_t):
                assert trains == ((n, t) in values)
                if trains:
                    assert float(values[n, t]) == pytest.approx(float(alone.logprobs[0, t]), abs=1e-4)
                    assert float(entropies[n, t]) == pytest.approx(float(alone.entropy[0, t]), abs=1e-4)
    assert rows < len(batch)


@pytest.mark.parametrize("together", [False, True])
def test_packed_gradients_equal_those_of_separate_rows(trained_policy: Policy, together: bool) -> None:
    batch = encoded_ticks(trained_policy.tokenizer)
    weights = {name: weight for name, weight in trained_policy.model.named_parameters() if weight.requires_grad}

    def gradients(total: Any) -> dict[str, Any]:
        found = torch.autograd.grad(total, list(weights.values()))
        return dict(zip(weights, found, strict=True))

    push = {n: 1.0 if n % 2 else -0.7 for n in range(len(batch))}
    values, entropies, _ = packed_values(trained_policy, batch, together)
    packed = gradients(sum(push[n] * values[n, t] + 0.1 * entropies[n, t] for n, t in values))
    separate = [branch_logprobs(trained_policy.model, [one]) for one in batch]
    alone = gradients(sum(push[n] * one.logprobs.sum() + 0.1 * one.entropy.sum() for n, one in enumerate(separate)))
    assert max(float(gradient.abs().max()) for gradient in alone.values()) > 1e-3
    for name in weights:
        torch.testing.assert_close(packed[name], alone[name], atol=1e-4, rtol=1e-3)
