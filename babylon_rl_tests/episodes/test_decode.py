"""The six rejection reasons, in their order, with details that a person can act on."""

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.episodes.decode import Fault, Step, decode, decode_facts, decode_steps, end_pnl
from babylon_rl.store.trajectories import TrajectoryRow
from babylon_rl_tests.rows import WINDOW, make_call, make_step


def row(text: str, **changes: Any) -> TrajectoryRow:
    columns = {
        "trajectory_id": "t1", "agent_id": "a", "start_time": datetime(2025, 11, 15, 10),
        "end_time": datetime(2025, 11, 15, 11), "window_id": WINDOW, "window_hours": 1, "scenario_id": WINDOW, "final_pnl": None,
        "is_training_data": True, "is_evaluation": False, "used_in_training": False, "metrics_json": b"{}", "steps_json": text.encode(),
    }  # fmt: skip
    return TrajectoryRow(**(columns | changes))


def fault(text: str, **changes: Any) -> Fault:
    found = decode(row(text, **changes))
    assert isinstance(found, Fault)
    return found


def step_with(path: str, value: str) -> str:
    """A stepsJson of one good step but for the JSON text ``value`` at environmentState.``path`` or action.actionType."""
    step = make_step()
    if path == "actionType":
        step["action"]["actionType"] = "MARK"
    elif path == "elsewhere":
        step["observation"] = "MARK"
    else:
        step["environmentState"][path] = "MARK"
    return json.dumps([step]).replace('"MARK"', value)


GOOD = json.dumps([make_step(0), make_step(1)])


def test_good_row_gives_its_steps() -> None:
    found = decode(row(GOOD))
    assert not isinstance(found, Fault)
    steps = found.completed
    assert [step.number for step in steps] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"is_evaluation": True, "is_training_data": False, "scenario_id": "benchmark-1"}, "evaluation", "isEvaluation"),
        ({"is_training_data": False, "scenario_id": "benchmark-1"}, "not_training_data", "isTrainingData"),
        ({"scenario_id": "benchmark-1"}, "benchmark", "benchmark-1"),
        ({"window_id": "benchmark-2"}, "benchmark", "windowId"),
    ],
)
def test_flags_are_tested_before_the_steps_and_in_order(changes: dict[str, Any], reason: str, words: str) -> None:
    found = fault("not json", **changes)
    assert found.reason == reason
    assert words in found.detail


@pytest.mark.parametrize(
    "text",
    [
        "", "[", GOOD + "x", step_with("elsewhere", "NaN"), step_with("elsewhere", "[Infinity]"), step_with("elsewhere", "-Infinity"),
        step_with("elsewhere", '"\\ud800"'), step_with("elsewhere", '{"\\udfff": 1}'), step_with("agentPnL", "NaN"), "[{},]",
        step_with("elsewhere", '"\t"'), step_with("elsewhere", "01"), "[" * 100_000, step_with("elsewhere", "[" * 100_000 + "]" * 100_000),
        '[1, {"x": "\\ud800"}]', '{"x": NaN}', '\ufeff[]',
    ],
)  # fmt: skip
def test_what_is_not_strict_json_is_malformed_json(text: str) -> None:
    assert fault(text).reason == "malformed_json"


def test_syntax_error_wins_over_a_wrong_shape_before_it() -> None:
    assert fault('[{"environmentState": null}, {').reason == "malformed_json"


def test_lone_surrogate_is_named_with_its_path() -> None:
    assert "$[0].observation" in fault(step_with("elsewhere", '"\\ud83d"')).detail


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "$ is {}"),
        ("null", "$ is null"),
        ("[1]", "$[0] is 1"),
        (step_with("agentPnL", "true"), "$[0].environmentState.agentPnL is true"),
        (step_with("agentPnL", '"5"'), 'agentPnL is "5"'),
        (step_with("agentPnL", "null"), "agentPnL is null"),
        (step_with("agentBalance", "1e400"), "agentBalance"),
        (step_with("agentBalance", "9" * 400), "agentBalance"),
        (step_with("agentBalance", "9" * 5000), "agentBalance"),
        (step_with("openPositions", "[]"), "openPositions is []"),
        (step_with("actionType", '""'), 'actionType is ""'),
        (step_with("actionType", "5"), "actionType is 5"),
        (json.dumps([make_step(), make_step(1, action="x", environmentState=None)]), "$[1].environmentState is null"),
        (json.dumps([{"environmentState": make_step()["environmentState"]}]), "$[0].action is missing"),
        (json.dumps([make_step(environmentState={"agentBalance": 1, "agentPnL": 1})]), "openPositions is missing"),
    ],
)
def test_wrong_shape_is_named_with_path_and_value(text: str, words: str) -> None:
    found = fault(text)
    assert found.reason == "malformed_shape"
    assert words in found.detail


@pytest.mark.parametrize("text", ["[]", json.dumps([make_step(action="pending")])])
def test_no_completed_step_is_no_steps(text: str) -> None:
    assert fault(text).reason == "no_steps"


@pytest.mark.parametrize(
    "value", ["1e400", "[1e999, {}]", '{"llmCalls": 5}', '"\\ud83d\\ude00"', "null", "123456789012345678901234567890", '"\\u0000"']
)
def test_no_other_field_rejects_a_row(value: str) -> None:
    assert not isinstance(decode(row(step_with("elsewhere", value))), Fault)


@pytest.mark.parametrize("calls", [5, "x", {}, [1], [{"temperature": {}}], None])
def test_odd_calls_reject_nothing(calls: Any) -> None:
    assert not isinstance(decode(row(json.dumps([make_step(calls=calls)]))), Fault)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (step_with("elsewhere", '["ok", {"deep": "\\ud83d"}]'), "$[0].observation[1].deep"),
        (step_with("elsewhere", '{"a": 1, "\\udfff": 2}'), "a key of $[0].observation"),
        ('["\\ud83d\\ude00", "\\ude00"]', "$[1]"),
        ('[123456789012345678901234567890, "\\ude00"]', "$[1]"),
        (GOOD + "x", f"at character {len(GOOD)}: Extra data"),
        (step_with("elsewhere", "-Infinity"), "-Infinity"),
    ],
)
def test_what_is_not_json_is_named_with_its_place(text: str, words: str) -> None:
    assert words in fault(text).detail


def test_the_first_wrong_step_is_named_however_odd_the_others_are() -> None:
    steps = [make_step(0, calls="odd"), make_step(1, environmentState=5), make_step(2, action="")]
    assert fault(json.dumps(steps)).detail == "$[1].environmentState is 5, not an object"


def test_steps_without_a_whole_number_are_numbered_by_their_place() -> None:
    recorded = [make_step(stepNumber="x"), make_step(action="pending"), make_step(stepNumber=None), make_step(stepNumber=7.0)]
    found = decode(row(json.dumps(recorded)))
    assert not isinstance(found, Fault)
    steps = found.completed
    assert [step.number for step in steps] == [0, 2, 7]


def test_repeated_key_counts_as_its_last_value() -> None:
    text = step_with("agentPnL", 'true, "agentPnL": 7')
    found = decode(row(text))
    assert not isinstance(found, Fault)
    steps = found.completed
    assert steps[0].environment_state.agent_pnl == 7


def test_success_is_only_true() -> None:
    texts = [make_step(success=value) for value in (True, 1, "true", None)]
    found = decode(row(json.dumps(texts)))
    assert not isinstance(found, Fault)
    steps = found.completed
    assert [step.action.succeeded for step in steps] == [True, False, False, False]


def steps_of(*pnls: float) -> list[Step]:
    steps = decode_steps(json.dumps([make_step(pnl=pnl) for pnl in pnls]).encode())
    assert not isinstance(steps, Fault)
    return steps


@pytest.mark.parametrize(
    ("final", "metrics", "end"),
    [
        (5.0, '{"finalPnL": 6}', 5.0),
        (None, '{"finalPnL": 6}', 6.0),
        (float("nan"), '{"finalPnL": 6}', 6.0),
        (None, "broken", 2.0),
        (None, '{"finalPnL": true}', 2.0),
        (None, '{"finalPnL": NaN}', 2.0),
        (None, "[]", 2.0),
        (0.0, "{}", 0.0),
    ],
)
def test_end_pnl_falls_back_in_order(final: float | None, metrics: str, end: float) -> None:
    assert end_pnl(final, metrics.encode(), steps_of(1, 2)[-1]) == end


_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None), max_size=5) | st.just("pending"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["agentPnL", "actionType", "x"]), inner, max_size=3),
    max_leaves=6,
)


@given(_values, st.sampled_from(["agentPnL", "agentBalance", "openPositions", "actionType", "elsewhere"]), st.booleans())
def test_fast_and_strict_decoding_agree(value: Any, path: str, cut: bool) -> None:
    """Whatever is recorded, a row is either decoded or one rejection, and by the rules spelled out here."""
    text = step_with(path, json.dumps(value))
    text = text[: len(text) - 3] if cut else text
    found = decode_steps(text.encode("utf-8", "surrogatepass"))
    facts = decode_facts(text.encode("utf-8", "surrogatepass"))
    assert facts == found if isinstance(found, Fault) else not isinstance(facts, Fault) and len(facts) == len(found)
    whole = json.dumps(value, ensure_ascii=False)
    strict = (
        not cut and "NaN" not in whole and "Infinity" not in whole and not any("\ud800" <= character <= "\udfff" for character in whole)
    )
    if not strict:
        assert isinstance(found, Fault) and found.reason == "malformed_json"
    elif path == "actionType":
        assert isinstance(found, Fault) != (isinstance(value, str) and value != "")
    elif path != "elsewhere":
        assert isinstance(found, Fault) != (isinstance(value, int | float) and not isinstance(value, bool))
    else:
        assert not isinstance(found, Fault)


def test_call_builder_is_what_the_recorder_writes() -> None:
    assert "temperature" in make_call() and "reasoning" not in make_call(reasoning=...)
