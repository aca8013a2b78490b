"""Kept prompts: the longest beginning is found, bytes are bounded, and agents with their own system prompts are read from it on."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.models.policy import CompletionRequest, Policy
from babylon_rl.models.prompt_cache import LONGEST_KEPT, PromptCache
from babylon_rl.models.row_attention import Cache, shared_length
from babylon_rl.models.scoring import causal_model
from babylon_rl_tests.models.conftest import fresh
from babylon_rl_tests.models.test_policy import ask, same

pytestmark = pytest.mark.slow  # torch is imported

PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


def cache_of(prompt: Sequence[int]) -> Cache:
    """Keys and values that name their tokens, as after reading the prompt and two tokens more."""
    read = torch.tensor([*prompt, -1, -1], dtype=torch.float32)[None, :, None]
    return [(read, -read)]


@given(st.lists(st.tuples(st.sampled_from((None, "v1", "v2")), PROMPTS), max_size=20), st.sampled_from((None, "v1")), PROMPTS)
def test_the_longest_beginning_of_the_same_adapter_is_found(kept, adapter, asked):
    prompts = PromptCache()
    for name, prompt in kept:
        prompts.keep(name, prompt, cache_of(prompt))
    known, cache = prompts.begin(adapter, asked)
    lengths = [shared_length(prompt, asked) for name, prompt in kept if name == adapter]
    assert known == min(max(lengths, default=0), len(asked) - 1)
    if max(lengths, default=0):
        ((keys, values),) = cache
        assert keys[0, :, 0].tolist() == list(asked[:known])
        assert values[0, :, 0].tolist() == [-token for token in asked[:known]]


def test_bytes_are_bounded_and_what_was_asked_last_stays():
    kept = PromptCache(3 * 4 * 2 * 4)  # of three prompts of four tokens: keys and values, four bytes each
    for first in range(3):
        kept.keep(None, (first, 0, 0, 0), cache_of((first, 0, 0, 0)))
    kept.keep(None, (0, 0, 0, 0), cache_of((0, 0, 0, 0)))
    kept.keep("v1", (3, 0, 0, 0), cache_of((3, 0, 0, 0)))
    assert [kept.begin(None, (first, 0, 0, 1))[0] for first in range(3)] == [3, 0, 3]
    kept.keep(None, (9,) * (LONGEST_KEPT + 1), [])
    assert kept.begin(None, (9, 9)) == (0, [])


@pytest.mark.parametrize("together", [True, False])
def test_agents_with_their_own_system_prompts_are_read_from_there_on(policy: Policy, trade_format: dict[str, Any], together: bool) -> None:
    def asked(tick: int) -> list[CompletionRequest]:
        texts = [f"{name * 12} {tick} of 9" for name in ("abc ", "def ", "ghi ")]
        return [ask(text, response_format=trade_format, seed=tick) for text in texts]

    for batch in [asked(1)] if together else [[one] for one in asked(1)]:
        policy.complete(batch)
    # By another thread: what is kept is shared.
    other, read = policy.twin(), list[int]()
    causal_model(other.model).get_input_embeddings().register_forward_hook(lambda _, ids, states: read.append(ids[0].numel()))
    second = other.complete(asked(2))
    assert sum(read) < sum(answer.prompt_tokens for answer in second) / 2
    alone = [fresh(policy).complete([one])[0] for one in asked(2)]
    assert all(same(a, b) for a, b in zip(second, alone, strict=True))
