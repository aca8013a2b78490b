"""Whatever texts and payloads are recorded, the rows are strict JSON that Postgres can hold, and give back what was recorded."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.episodes.decode import Step, decode_steps, strict_json
from babylon_rl.episodes.trajectories import sequence, valid_messages
from babylon_rl_tests.recorder.builders import ASKED, Recorded

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
PAYLOADS = st.dictionaries(TEXTS, st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5), max_size=3)
CALLS = st.tuples(TEXTS, TEXTS.filter(len), TEXTS.filter(len))


def kept(text: str) -> str:
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def steps_of(recorded: Recorded) -> list[Step]:
    steps = decode_steps(recorded.columns["stepsJson"].encode())
    assert isinstance(steps, list)
    return steps


@given(st.lists(st.lists(CALLS, max_size=3), min_size=1, max_size=4))
def test_calls_come_back_as_they_were_recorded(steps: list[list[tuple[str, str, str]]]) -> None:
    recorded = Recorded()
    with recorded.recorder.trajectory("agent-1") as begun:
        for calls in steps:
            recorded.recorder.start_step(begun, balance=1.0, pnl=0.0, open_positions=0)
            for system, user, response in calls:
                messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
                recorded.recorder.llm_call(begun, **(ASKED | {"messages": messages, "response": response}))
            recorded.recorder.complete_step(begun, "HOLD", {}, success=True, reward=0.0)
    expected = [
        (f"{begun}-call-{step}-{index}", ([kept(system)] if system else []) + [kept(user)], kept(response))
        for step, calls in enumerate(steps)
        for index, (system, user, response) in enumerate(calls)
    ]
    found = [
        sequence(call, begun, number, index, "embedded")
        for number, step in enumerate(steps_of(recorded))
        for index, call in enumerate(step.llm_calls or ())
    ]
    assert [(one.call_id, [part["content"] for part in one.messages], one.response) for one in found if one is not None] == expected
    logged = list(recorded.kept[0].calls)
    for row, (call_id, contents, response) in zip(logged, expected, strict=True):
        messages = valid_messages(row["messagesJson"].encode())
        assert messages is not None
        assert (row["callId"], [part["content"] for part in messages], row["response"]) == (call_id, contents, response)


@pytest.mark.slow
@given(PAYLOADS, PAYLOADS, PAYLOADS)
def test_any_payload_is_recorded_as_strict_json(state: dict[str, Any], seen: dict[str, Any], parameters: dict[str, Any]) -> None:
    recorded = Recorded()
    given_names = {"environment_state": {**state, "balance": 1, "pnl": 2}, "action": {"type": "HOLD", "params": parameters}}
    with recorded.recorder.trajectory("agent-1") as begun:
        recorded.recorder.record_step(
            begun, **given_names, reward=0, provider_accesses=[{"provider": "P", "payload": seen, "purpose": "look"}]
        )
    assert len(steps_of(recorded)) == 1
    for name in ("stepsJson", "metricsJson", "metadataJson", "rewardComponentsJson"):
        text = recorded.columns[name]
        strict_json(text.encode())
        assert not re.search(r"(?<!\\)(\\\\)*\\u0000", text)
