"""The recorder against a row of the game's own: the same keys in the same order, and nothing half written."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.episodes.reading import read_window
from babylon_rl.errors import UsageError
from babylon_rl.recorder import milliseconds
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl_tests.recorder.builders import ASKED, LOGPROBS, MESSAGES, SCHEMA, Recorded, store
from babylon_rl_tests.rows import WINDOW, make_log

GAME_ROW: dict[str, Any] = json.loads((Path(__file__).parent.parent / "data" / "recorder_row.json").read_text())


def record_the_games_row() -> Recorded:
    """The trajectory of recorder_row.json, recorded by ours."""
    recorded = Recorded()
    recorder, steps = recorded.recorder, json.loads(GAME_ROW["stepsJson"])
    recorded.now = moment(GAME_ROW["startTime"])
    begun = recorder.start_trajectory(GAME_ROW["agentId"])
    for step in steps:
        recorded.now = datetime(1970, 1, 1) + timedelta(milliseconds=step["timestamp"])
        state = step["environmentState"]
        extra = {name: state[name] for name in state if name not in ("agentBalance", "agentPnL", "openPositions", "timestamp")}
        recorder.start_step(begun, balance=state["agentBalance"], pnl=state["agentPnL"], open_positions=state["openPositions"], **extra)
        for access in step["providerAccesses"]:
            recorder.provider_access(begun, access["providerName"], access["data"], access["purpose"])
        for call in step["llmCalls"]:
            recorder.llm_call(
                begun, model=call["model"], model_version=call["modelVersion"], response=call["response"], reasoning=call["reasoning"],
                messages=[{"role": "system", "content": call["systemPrompt"]}, {"role": "user", "content": call["userPrompt"]}],
                temperature=call["temperature"], max_tokens=call["maxTokens"], latency_ms=call["latencyMs"], purpose=call["purpose"],
                action_type=call["actionType"],
            )  # fmt: skip
        action = step["action"]
        recorder.complete_step(begun, action["actionType"], action["parameters"], success=action["success"], reward=step["reward"])
    recorded.now = moment(GAME_ROW["endTime"])
    recorder.end_trajectory(begun, balance=GAME_ROW["finalBalance"], pnl=GAME_ROW["finalPnL"])
    return recorded


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.removesuffix("Z"))


def test_a_row_has_the_games_columns_in_the_games_order() -> None:
    assert list(record_the_games_row().columns) == [*GAME_ROW, "createdAt", "updatedAt"]


def test_a_row_derives_what_the_game_derives_but_for_its_two_miscounts() -> None:
    row = record_the_games_row().columns
    ours = {key: value for key, value in row.items() if key not in ("id", "trajectoryId", "createdAt", "updatedAt", "metricsJson")}
    theirs = {key: value for key, value in GAME_ROW.items() if key in ours}
    for name in ("startTime", "endTime"):
        theirs[name] = moment(theirs[name])
    # the game does not count a TRADING_DECISION as a trade and counts a post that failed
    assert ours == theirs | {"tradesExecuted": 1, "postsCreated": 0}
    metrics, game_metrics = json.loads(row["metricsJson"]), json.loads(GAME_ROW["metricsJson"])
    assert list(metrics) == list(game_metrics)
    assert metrics == game_metrics | {"tradesExecuted": 1, "postsCreated": 0}


def test_the_steps_are_the_games_bytes() -> None:
    assert record_the_games_row().columns["stepsJson"] == GAME_ROW["stepsJson"]


def test_what_was_not_said_is_left_out_and_not_null() -> None:
    recorded = Recorded()
    recorded.trajectory()
    (call,) = recorded.steps[0]["llmCalls"]
    assert not {"modelVersion", "reasoning", "latencyMs", "actionType", "responseFormat", "logprobs"} & set(call)
    assert not {"result", "error"} & set(recorded.steps[0]["action"])


def test_an_agent_that_dies_leaves_nothing() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun)
    recorded.recorder.start_step(begun, balance=1.0, pnl=0.0, open_positions=0)
    assert recorded.kept == []


def test_a_step_that_was_not_completed_is_left_out() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun)
    recorded.recorder.start_step(begun, balance=1.0, pnl=0.0, open_positions=0)
    recorded.recorder.llm_call(begun, **ASKED)
    recorded.recorder.end_trajectory(begun, balance=1.0, pnl=0.0, status="terminated")
    assert recorded.columns["episodeLength"] == len(recorded.steps) == len(recorded.kept[0].calls) == 1
    assert recorded.columns["finalStatus"] == "terminated"


def test_many_trajectories_at_once_are_kept_apart() -> None:
    recorded = Recorded()
    first, second = (recorded.recorder.start_trajectory(agent) for agent in ("a", "b"))
    recorded.step(first, reward=1.0)
    recorded.step(second, reward=2.0)
    recorded.step(second, reward=4.0)
    for begun in (second, first):
        recorded.recorder.end_trajectory(begun, balance=1.0, pnl=0.0)
    assert [(one.columns["agentId"], one.columns["totalReward"]) for one in recorded.kept] == [("b", 6.0), ("a", 1.0)]


def test_failed_steps_are_counted_and_change_the_status() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    for action, success in (("BUY_SHARES", True), ("SELL_SHARES", False), ("CREATE_POST", True), ("HOLD", True)):
        recorded.step(begun, action, success=success)
    recorded.recorder.end_trajectory(begun, balance=1.0, pnl=0.0)
    columns = recorded.columns
    assert (columns["tradesExecuted"], columns["postsCreated"], columns["episodeLength"]) == (1, 1, 4)
    assert json.loads(columns["metricsJson"])["errorCount"] == 1
    assert columns["finalStatus"] == "completed_with_errors"


@pytest.mark.parametrize("misuse", ["ended", "unknown", "no step"])
def test_misuse_is_told_in_a_sentence(misuse: str) -> None:
    recorded = Recorded()
    begun = recorded.trajectory() if misuse == "ended" else recorded.recorder.start_trajectory("agent-1")
    with pytest.raises(UsageError, match="call start_step first" if misuse == "no step" else "is not open"):
        recorded.recorder.llm_call("nothing" if misuse == "unknown" else begun, **ASKED)


def test_sampling_keeps_a_share_that_the_ids_decide() -> None:
    kept = []
    for _ in range(2):
        recorded = Recorded(sampling_rate=0.3)
        for _ in range(400):
            recorded.trajectory(steps=0)
        kept.append([one.columns["trajectoryId"] for one in recorded.kept])
    assert kept[0] == kept[1]
    assert 0.2 < len(kept[0]) / 400 < 0.4


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (1.0, 50)])
def test_sampling_none_or_all_is_exact(rate: float, count: int) -> None:
    recorded = Recorded(sampling_rate=rate)
    for _ in range(50):
        recorded.trajectory(steps=0)
    assert len(recorded.kept) == count


def test_a_recorded_call_is_read_back_as_it_was_served(connection: Connection, settings: Settings) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, model_version="v1.0.0", response_format=SCHEMA, logprobs=LOGPROBS, tokens=(170, 2))
    recorded.recorder.end_trajectory(begun, balance=9_950.0, pnl=131.5)
    store(connection, recorded)
    reading = read_window(connection, WINDOW, settings)
    assert (reading.rows, reading.eligible, len(reading.rejections)) == (1, 1, 0)
    (episode,) = reading.episodes
    (sequence,) = episode.sequences
    assert (episode.window_pnl, episode.trades) == (6.0, 1)
    assert (sequence.messages, sequence.response, sequence.source) == (MESSAGES, '{"action": "hold"}', "embedded")
    assert (sequence.response_format, sequence.logprobs) == (SCHEMA, LOGPROBS)
    assert (sequence.model, sequence.model_version, sequence.scripted) == ("v1.0.0", "v1.0.0", False)


def test_the_log_alone_tells_the_same_as_the_steps(connection: Connection, settings: Settings) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, model_version="v1.0.0", response_format=SCHEMA, logprobs=LOGPROBS)
    recorded.step(begun, response="two")
    recorded.recorder.end_trajectory(begun, balance=9_950.0, pnl=131.5)
    store(connection, recorded)
    embedded = [sequence for episode in read_window(connection, WINDOW, settings).episodes for sequence in episode.sequences]
    without = json.dumps([{**step, "llmCalls": []} for step in recorded.steps])
    connection.execute('UPDATE trajectories SET "stepsJson" = %s', (without,))
    logged = [sequence for episode in read_window(connection, WINDOW, settings).episodes for sequence in episode.sequences]
    assert {sequence.source for sequence in logged} == {"llm_call_logs"}
    for one, other in zip(embedded, logged, strict=True):
        for name in ("call_id", "step", "messages", "response", "purpose", "model", "model_version", "response_format", "logprobs"):
            assert getattr(one, name) == getattr(other, name)


def test_a_log_row_is_the_games_in_every_column(connection: Connection) -> None:
    recorded = Recorded()
    begun = recorded.trajectory()
    (call,) = recorded.kept[0].calls
    names = {
        name for (name,) in connection.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'llm_call_logs'")
    }
    assert set(call) == names
    assert {name: call[name] for name in ("stepId", "callId")} == {name: make_log(begun)[name] for name in ("stepId", "callId")}
    assert milliseconds(call["timestamp"]) == recorded.steps[0]["timestamp"]


def test_texts_that_postgres_cannot_hold_are_kept_as_far_as_it_can(connection: Connection, settings: Settings) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, response="a\x00b\ud800c 😀")
    recorded.recorder.end_trajectory(begun, balance=1.0, pnl=0.0)
    store(connection, recorded)
    (episode,) = read_window(connection, WINDOW, settings).episodes
    assert episode.sequences[0].response == "a\ufffdb\ufffdc 😀"
    assert recorded.kept[0].calls[0]["response"] == "a\ufffdb\ufffdc 😀"


def test_an_evaluation_is_marked_so_that_nothing_trains_on_it(connection: Connection, settings: Settings) -> None:
    recorded = Recorded()
    recorded.trajectory(evaluation=True)
    assert json.loads(recorded.columns["metadataJson"])["isTrainingData"] is False
    store(connection, recorded)
    assert [rejection.reason for rejection in read_window(connection, WINDOW, settings).rejections] == ["evaluation"]


def test_window_and_scenario_are_the_current_hour_unless_named() -> None:
    recorded = Recorded()
    recorded.trajectory()
    begun = recorded.recorder.start_trajectory("agent-1", window="2025-11-15T09:00", scenario="benchmark-3")
    recorded.recorder.end_trajectory(begun, balance=1.0, pnl=0.0)
    assert [(one.columns["windowId"], one.columns["scenarioId"]) for one in recorded.kept] == [
        (WINDOW, WINDOW), ("2025-11-15T09:00", "benchmark-3")]  # fmt: skip
    assert recorded.columns["episodeId"] == f"2025-11-15T09:00-{milliseconds(recorded.now)}"


@pytest.mark.parametrize("sampling_rate", [1.0, 0.0])
def test_an_id_that_is_open_cannot_begin_another_trajectory(sampling_rate: float) -> None:
    recorded = Recorded(sampling_rate)
    begun = recorded.recorder.start_trajectory("agent-1", trajectory_id="mine")
    recorded.step(begun)
    with pytest.raises(UsageError, match="Trajectory mine is open already"):
        recorded.recorder.start_trajectory("agent-1", trajectory_id="mine")
    recorded.recorder.end_trajectory(begun)
    assert [kept.columns["episodeLength"] for kept in recorded.kept] == ([1] if sampling_rate else [])
    assert recorded.recorder.start_trajectory("agent-1", trajectory_id="mine") == "mine"
