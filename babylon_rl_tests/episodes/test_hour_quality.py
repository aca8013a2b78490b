"""What of an hour's eligible rows a person should look at: prompts, duplicates, clocks, impossible P&L, other lengths."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from babylon_rl.episodes.reading import read_window, read_windows, sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_call, make_log, make_step, make_trajectory

LONG = {"systemPrompt": "s" * 51, "userPrompt": "u" * 101}


def quality(connection: Connection, settings: Settings, rows: list[dict[str, Any]], logs: list[dict[str, Any]] | None = None) -> Any:
    insert(connection, "trajectories", rows)
    insert(connection, "llm_call_logs", logs or [])
    return msgspec.json.decode(msgspec.json.encode(read_window(connection, WINDOW, settings, texts=False).quality))


def timed(trajectory_id: str, agent: str = "agent-1", *, steps: Any = None, **columns: Any) -> dict[str, Any]:
    """A row whose times agree with its steps', which begin with WINDOW."""
    return make_trajectory(trajectory_id, agent, steps=[make_step(calls=[make_call()])] if steps is None else steps, minute=0, **columns)


def test_a_plain_hour_has_nothing_to_look_at(connection: Connection, settings: Settings) -> None:
    rows = [timed("t1", steps=[make_step(calls=[make_call(**LONG)]), make_step(1)]), timed("t2", steps=[make_step(1)])]
    assert quality(connection, settings, rows) == {
        "shortPrompts": 0, "prompts": 1, "duplicates": [], "duplicateRows": 0, "clockSkew": [], "skewedRows": 0,
        "pnlJumps": [], "jumpingAgents": 0, "otherLengths": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "short"),
    [
        (LONG, 0),
        (LONG | {"systemPrompt": "s" * 50}, 1),
        (LONG | {"userPrompt": "u" * 100}, 1),
        (LONG | {"systemPrompt": ...}, 1),
        (LONG | {"userPrompt": 5}, 1),
    ],
)
def test_prompts_of_the_first_call_are_short_by_their_characters(
    connection: Connection, settings: Settings, changes: dict[str, Any], short: int
) -> None:
    steps = [make_step(0), make_step(1, calls=[make_call(**changes), make_call()])]
    logs = [make_log("t2", **{name: value if isinstance(value, str) else "" for name, value in changes.items()})]
    found = quality(connection, settings, [timed("t1", steps=steps), timed("t2", steps=[make_step(0)])], logs)
    assert (found["prompts"], found["shortPrompts"]) == (2, 2 * short)


def test_duplicates_are_an_agents_rows_with_equal_steps_but_for_the_first(connection: Connection, settings: Settings) -> None:
    steps = [make_step(pnl=7)]
    rows = [
        timed("b", steps=steps),
        timed("a", steps=steps),
        timed("later", steps=steps, startTime=START + timedelta(seconds=1)),
        timed("other agent", "agent-2", steps=steps),
        timed("other steps"),
        timed("not eligible", steps=steps, isTrainingData=False),
    ]
    found = quality(connection, settings, rows, [make_log("later")])
    assert (found["duplicates"], found["duplicateRows"]) == (["b", "later"], 2)


@pytest.mark.parametrize(
    ("columns", "first_ms", "skewed"),
    [
        ({}, 0, False),
        ({}, -299_000, False),
        ({}, -301_000, True),
        ({}, 329_000, False),
        ({}, 331_000, True),
        ({}, "soon", False),
        ({}, True, False),
        ({}, None, False),
        ({"endTime": START - timedelta(seconds=1)}, 0, True),
        ({"endTime": START}, 0, False),
        ({"windowId": None}, 0, False),
        ({"startTime": START - timedelta(seconds=9)}, 0, False),
        ({"startTime": START + timedelta(hours=1), "endTime": START + timedelta(hours=1)}, 3_600_000, True),
        ({"startTime": START - timedelta(seconds=9), "endTime": START - timedelta(seconds=8)}, 0, True),
        ({"endTime": "infinity"}, 0, False),
    ],
)
def test_clock_skew_is_times_that_contradict_each_other(
    connection: Connection, settings: Settings, columns: dict[str, Any], first_ms: Any, skewed: bool
) -> None:
    plain = make_step()["timestamp"]
    odd = plain + first_ms if isinstance(first_ms, int) and not isinstance(first_ms, bool) else first_ms
    steps = [make_step(timestamp=odd), make_step(timestamp=max(plain, odd) if isinstance(odd, int) else odd)]
    found = quality(connection, settings, [timed("t1", steps=steps, **columns)])
    assert (found["clockSkew"], found["skewedRows"]) == ((["t1"], 1) if skewed else ([], 0))


def state(pnl: float, balance: float) -> dict[str, Any]:
    return make_step(environmentState={"agentBalance": balance, "agentPnL": pnl, "openPositions": 1})


@pytest.mark.parametrize(
    ("steps", "final", "jumps"),
    [
        ([(0, 1000), (10_000, 1000)], None, False),
        ([(0, 1000), (10_001, 1000)], None, True),
        ([(0, 10_000), (-100_000, 0)], None, False),
        ([(0, 10_000), (1e6, 10_000)], None, True),
        ([(0, 0), (5000, 0)], None, False),
        ([(0, 1000), (1e6, 1e6), (0, 1e6)], None, True),
        ([(0, 1e6), (0, 0), (1e6, 0)], None, False),
        ([(500, 1000)], 1e6, True),
        ([(500, 1000)], 600, False),
        ([(-1e12, 1000), (1e12, 1000)], None, True),
    ],
)
def test_pnl_jumps_are_more_than_ten_times_what_was_at_stake(
    connection: Connection, settings: Settings, steps: list[tuple[float, float]], final: float | None, jumps: bool
) -> None:
    found = quality(connection, settings, [timed("t1", steps=[state(*step) for step in steps], finalPnL=final)])
    assert (found["pnlJumps"], found["jumpingAgents"]) == ((["agent-1"], 1) if jumps else ([], 0))


def test_pnl_jumps_are_found_between_the_rows_of_an_agent(connection: Connection, settings: Settings) -> None:
    rows = [
        timed("t1", steps=[state(0, 1000)]),
        timed("t2", steps=[state(20_000, 1000)], startTime=START + timedelta(seconds=1)),
        timed("t3", "agent-2", steps=[state(0, 1000)]),
        timed("t4", "agent-2", steps=[state(900, 1000)], startTime=START + timedelta(seconds=1)),
    ]
    assert quality(connection, settings, rows)["pnlJumps"] == ["agent-1"]


def test_at_most_twenty_are_named_and_all_are_counted(connection: Connection, settings: Settings) -> None:
    rows = [timed(f"t{number:02}", endTime=START - timedelta(days=1), windowHours=4) for number in range(30)]
    found = quality(connection, settings, rows)
    assert found["clockSkew"] == [f"t{number:02}" for number in range(20)]
    assert (found["skewedRows"], found["duplicateRows"], found["otherLengths"]) == (30, 29, 30)


def test_quality_is_kept_with_the_hour_and_a_change_of_it_is_written(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [timed("t1")])
    first = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW]
    connection.execute("""UPDATE trajectories SET "endTime" = "startTime" - interval '1 hour'""")
    second = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW]
    held = connection.execute('SELECT "quality" FROM babylon_rl.windows').fetchone()
    assert held == (msgspec.json.decode(msgspec.json.encode(second.quality)),)
    assert (second.quality.clock_skew, second.changed, second.data_version) == (("t1",), True, first.data_version)


def test_the_recorded_game_has_no_impossible_pnl(sample_database: Database, settings: Settings) -> None:
    with sample_database.connect() as connection:
        windows = windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)
        readings = read_windows(connection, windows, settings)
    assert [reading.quality.pnl_jumps for reading in readings.values()] == [()] * len(windows)
