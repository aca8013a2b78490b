"""What cannot be recorded is refused at its own call, in a sentence, and costs that call alone."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy
import pydantic
import pytest

from babylon_rl.errors import UsageError
from babylon_rl_tests.recorder.builders import ASKED, Recorded

NAN = float("nan")


class Quote(pydantic.BaseModel):
    """An object as client libraries hold one."""

    price: float


Call = Callable[[Any, str], object]


def state(recorder: Any, begun: str, **changes: Any) -> None:
    recorder.start_step(begun, **({"balance": 1.0, "pnl": 0.0, "open_positions": 0} | changes))


def call(recorder: Any, begun: str, **changes: Any) -> None:
    recorder.llm_call(begun, **(ASKED | changes))


def complete(recorder: Any, begun: str, **changes: Any) -> None:
    recorder.complete_step(begun, **({"action_type": "HOLD", "parameters": {}, "success": True, "reward": 0.0} | changes))


BEFORE_A_STEP: dict[str, Call] = {
    "agentBalance is nan, not a finite number": lambda recorder, begun: state(recorder, begun, balance=NAN),
    "agentPnL is inf": lambda recorder, begun: state(recorder, begun, pnl=float("inf")),
    "agentBalance is True": lambda recorder, begun: state(recorder, begun, balance=True),
    "openPositions is None": lambda recorder, begun: state(recorder, begun, open_positions=None),
    "agentBalance is 1000": lambda recorder, begun: state(recorder, begun, balance=10**400),
    "agentBalance is a int too long": lambda recorder, begun: state(recorder, begun, balance=10**5000),
    "the state is not JSON": lambda recorder, begun: state(recorder, begun, spread=NAN),
}
IN_A_STEP: dict[str, Call] = {
    "the action is not JSON": lambda recorder, begun: complete(recorder, begun, parameters={"when": object()}),
    "reward is nan": lambda recorder, begun: complete(recorder, begun, reward=NAN),
    "success is 1, not True or False": lambda recorder, begun: complete(recorder, begun, success=1),
    "action_type is ''": lambda recorder, begun: complete(recorder, begun, action_type=""),
    "response is 7, not a text": lambda recorder, begun: call(recorder, begun, response=7),
    "response holds tool_calls": lambda recorder, begun: call(
        recorder, begun, response={"role": "assistant", "content": "I look.", "tool_calls": [{"id": "c"}]}
    ),
    "messages is None": lambda recorder, begun: call(recorder, begun, messages=None),
    "messages is 'Buy": lambda recorder, begun: call(recorder, begun, messages="Buy?"),
    "messages\\[0\\] is no message": lambda recorder, begun: call(recorder, begun, messages=[object()]),
    "tokens is 7": lambda recorder, begun: call(recorder, begun, tokens=7),
    "response_format is <class": lambda recorder, begun: call(recorder, begun, response_format=Quote),
    "parameters is None: give a dict": lambda recorder, begun: complete(recorder, begun, parameters=None),
    "result is 'ok'": lambda recorder, begun: complete(recorder, begun, result="ok"),
    "payload is 7": lambda recorder, begun: recorder.provider_access(begun, "MARKETS", 7, "prices"),
    "payload is not JSON .*compliant": lambda recorder, begun: recorder.provider_access(begun, "M", {"p": numpy.float32("nan")}, "p"),
    "temperature is nan": lambda recorder, begun: call(recorder, begun, temperature=NAN),
    "max_tokens is 3000000000": lambda recorder, begun: call(recorder, begun, max_tokens=3_000_000_000),
    "model is 'a.x00b'": lambda recorder, begun: call(recorder, begun, model="a\x00b"),
    "purpose is 'actions'": lambda recorder, begun: call(recorder, begun, purpose="actions"),
    "must end with the user's": lambda recorder, begun: call(recorder, begun, messages=[{"role": "system", "content": "You trade."}]),
    "the role 'tool'": lambda recorder, begun: call(recorder, begun, messages=[{"role": "tool", "content": "7"}]),
    "logprobs\\[0\\].logprob is nan": lambda recorder, begun: call(recorder, begun, logprobs=[{"token": "a", "logprob": NAN}]),
    "logprobs\\[0\\].token is None": lambda recorder, begun: call(recorder, begun, logprobs=[{"logprob": -1.0}]),
    "logprobs is 'abc'": lambda recorder, begun: call(recorder, begun, logprobs="abc"),
    "payload is not JSON": lambda recorder, begun: recorder.provider_access(begun, "MARKETS", {"price": NAN}, "prices"),
}


@pytest.mark.parametrize("words", BEFORE_A_STEP)
def test_a_state_that_cannot_be_recorded_begins_no_step(words: str) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun)
    with pytest.raises(UsageError, match=words):
        BEFORE_A_STEP[words](recorded.recorder, begun)
    recorded.step(begun)
    recorded.recorder.end_trajectory(begun)
    assert [step["stepNumber"] for step in recorded.steps] == [0, 1]


@pytest.mark.parametrize("words", IN_A_STEP)
def test_what_cannot_be_recorded_costs_its_own_call_alone(words: str) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    state(recorded.recorder, begun)
    call(recorded.recorder, begun)
    with pytest.raises(UsageError, match=words):
        IN_A_STEP[words](recorded.recorder, begun)
    complete(recorded.recorder, begun)
    recorded.recorder.end_trajectory(begun)
    (step,) = recorded.steps
    assert (len(step["llmCalls"]), step["action"]["actionType"], len(recorded.kept[0].calls)) == (1, "HOLD", 1)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ({"pnl": NAN}, "pnl is nan"),
        ({"status": "done"}, "status is 'done'"),
        ({"game_knowledge": {"p": NAN}}, "game_knowledge is not JSON"),
        ({"game_knowledge": [1]}, r"game_knowledge is \[1\]: give a dict"),
    ],
)
def test_an_ending_that_cannot_be_recorded_leaves_the_trajectory_open(ending: dict[str, Any], words: str) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun)
    with pytest.raises(UsageError, match=words):
        recorded.recorder.end_trajectory(begun, **ending)
    assert recorded.kept == []
    recorded.recorder.end_trajectory(begun, pnl=1.0)
    assert recorded.columns["finalPnL"] == 1.0


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        ({"agent_id": ""}, "agent_id is ''"),
        ({"agent_id": "a\ud800"}, "agent_id is"),
        ({"agent_id": "a", "window": "2025-13-45T99:00"}, "'2025-13-45T99:00' is not a window"),
        ({"agent_id": "a", "scenario": "s" * 101}, "1 to 100 characters"),
    ],
)
def test_a_beginning_that_the_columns_cannot_hold_is_refused(beginning: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Recorded().recorder.start_trajectory(**beginning)


def test_rewards_whose_sum_overflows_are_refused() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, reward=1e308)
    with pytest.raises(UsageError, match="sum"):
        recorded.step(begun, reward=1e308)


def test_money_of_a_database_is_taken_as_a_number() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    state(recorded.recorder, begun, balance=Decimal("12.50"))
    complete(recorded.recorder, begun, reward=Decimal("0.25"))
    recorded.recorder.end_trajectory(begun, balance=Decimal("12.75"))
    assert recorded.steps[0]["environmentState"]["agentBalance"] == 12.5
    assert (recorded.columns["totalReward"], recorded.columns["finalBalance"]) == (0.25, 12.75)


def test_numbers_of_numpy_and_objects_are_recorded_as_what_they_mean() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    seen = {"prices": numpy.array([1, 2]), "quote": Quote(price=7)}
    state(recorded.recorder, begun, balance=numpy.float32(12.5), open_positions=numpy.int64(2), **seen)
    recorded.recorder.provider_access(begun, "MARKETS", Quote(price=8), "price\x00s")
    call(
        recorded.recorder, begun, max_tokens=numpy.int64(9), temperature=numpy.float32(0.5), latency_ms=numpy.int32(3),
        tokens=(numpy.int64(4), numpy.int16(5)), logprobs=[{"token": "a", "logprob": numpy.float32(-0.5), "tokenId": numpy.int64(17)}],
    )  # fmt: skip
    complete(recorded.recorder, begun, parameters={"shares": numpy.int64(3), "note\x00": numpy.str_("a\x00")}, success=numpy.bool_(True))
    recorded.recorder.end_trajectory(begun, balance=numpy.int64(13))
    (step,) = recorded.steps
    assert {name: step["environmentState"][name] for name in ("agentBalance", "openPositions", "prices", "quote")} == {
        "agentBalance": 12.5, "openPositions": 2, "prices": [1, 2], "quote": {"price": 7.0},
    }  # fmt: skip
    assert step["providerAccesses"][0]["data"] == {"price": 8.0}
    assert step["action"] == {"actionType": "HOLD", "parameters": {"shares": 3, "note\ufffd": "a\ufffd"}, "success": True}
    (asked,) = step["llmCalls"]
    assert [asked[name] for name in ("maxTokens", "temperature", "latencyMs", "promptTokens", "completionTokens")] == [9, 0.5, 3, 4, 5]
    assert asked["logprobs"] == [{"token": "a", "logprob": -0.5, "tokenId": 17}]
    columns = recorded.kept[0].calls[0]
    assert (type(columns["maxTokens"]), type(columns["totalTokens"]), type(recorded.columns["finalBalance"])) == (int, int, int)


def test_texts_and_payloads_are_kept_without_what_postgres_cannot_hold() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    state(recorded.recorder, begun, note="a\x00b", path="C:\\u0000")
    recorded.recorder.provider_access(begun, "CHAT", {"posts": ["x\ud800y", {"k\x00": ("\x00",)}]}, "read\x00")
    call(recorded.recorder, begun, response="r\x00", reasoning="\udc00", logprobs=[{"token": "\ud83d", "logprob": -1.0}])
    complete(recorded.recorder, begun, error="e\x00")
    recorded.recorder.end_trajectory(begun)
    (step,) = recorded.steps
    assert (step["environmentState"]["note"], step["environmentState"]["path"]) == ("a\ufffdb", "C:\\u0000")
    assert step["providerAccesses"][0] == {
        "providerName": "CHAT", "data": {"posts": ["x\ufffdy", {"k\ufffd": ["\ufffd"]}]}, "purpose": "read\ufffd"}  # fmt: skip
    (asked,) = step["llmCalls"]
    assert (asked["response"], asked["reasoning"], asked["logprobs"][0]["token"]) == ("r\ufffd", "\ufffd", "\ufffd")
    assert step["action"]["error"] == "e\ufffd"
    row, log = recorded.columns, recorded.kept[0].calls[0]
    assert not any("\x00" in value or "\\u0000" in value.replace("\\\\u0000", "") for value in (row["stepsJson"], log["metadata"]))


def test_what_an_agent_changes_afterwards_is_not_recorded() -> None:
    recorded, parameters, seen = Recorded(), {"side": "YES"}, {"price": [1]}
    begun = recorded.recorder.start_trajectory("agent-1")
    state(recorded.recorder, begun)
    recorded.recorder.provider_access(begun, "MARKETS", seen, "prices")
    complete(recorded.recorder, begun, parameters=parameters)
    parameters["side"] = "NO"
    seen["price"].append(2)
    recorded.recorder.end_trajectory(begun)
    assert recorded.steps[0]["action"]["parameters"] == {"side": "YES"}
    assert recorded.steps[0]["providerAccesses"][0]["data"] == {"price": [1]}


def test_times_are_whole_milliseconds_so_that_no_database_rounds_them_into_the_next_hour() -> None:
    recorded = Recorded()
    recorded.now = recorded.now.replace(minute=59, second=59, microsecond=999_900)
    recorded.trajectory(steps=0)
    assert recorded.columns["startTime"] == recorded.now.replace(microsecond=999_000)
    assert recorded.columns["windowId"] == recorded.columns["scenarioId"] == "2025-11-15T10:00"
    assert json.loads(recorded.columns["metricsJson"])["finalPnL"] == 125.5
