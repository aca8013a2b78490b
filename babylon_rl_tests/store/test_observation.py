"""Which hours a late change of trajectories and of their logged calls touches."""

from datetime import timedelta
from typing import Any

import pytest

from babylon_rl.episodes.reading import data_version, read_windows
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.observation import trajectory_versions
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows
from babylon_rl.versions import change_in_words
from babylon_rl.windows import HOUR, window_of, window_range
from babylon_rl_tests.rows import START, insert, make_log, make_step, make_trajectory
from babylon_rl_tests.scratch import connection, scratch_url

__all__ = ["connection", "scratch_url"]

FIRST, END = window_of(START - HOUR), window_of(START + 4 * HOUR)
WINDOWS = list(window_range(FIRST, END))
SILENT = [make_step(0)]


def hour(number: int) -> str:
    return window_of(START + number * HOUR)


def row(name: str, number: int, **columns: Any) -> dict[str, Any]:
    """A row of an hour whose steps recorded no call."""
    columns = {"windowId": hour(number), "steps": SILENT} | columns
    return make_trajectory(name, f"agent-{name}", minute=60 * number + 5, **columns)


@pytest.fixture
def game(connection: Connection) -> Connection:
    """Two rows an hour from hour 0 to 2: one with its window id and logged calls, one without either."""
    rows = [row(f"named-{number}", number) for number in range(3)] + [row(f"null-{number}", number, windowId=None) for number in range(3)]
    insert(connection, "trajectories", rows)
    insert(connection, "llm_call_logs", [make_log(f"named-{number}", call) for number in range(3) for call in range(2)])
    insert(connection, "llm_call_logs", [make_log("nobody")])
    return connection


def add(*rows: dict[str, Any]) -> Any:
    return lambda connection: insert(connection, "trajectories", rows)


def log(*rows: dict[str, Any]) -> Any:
    return lambda connection: insert(connection, "llm_call_logs", rows)


def run(statement: str) -> Any:
    return lambda connection: connection.execute(statement)


def edit(columns: str, name: str) -> Any:
    return run(f"""UPDATE trajectories SET {columns}, "updatedAt" = '2025-11-20' WHERE "trajectoryId" = '{name}'""")


MOVED = (START + 2 * HOUR + timedelta(minutes=30)).isoformat()
CASES = {
    "a row": (add(row("late", 1)), {1}),
    "a row without a window id": (add(row("late", 1, windowId=None)), {1}),
    "a row whose id names no hour": (add(row("late", 1, windowId="2025-13-45T99:00")), {1}),
    "a row whose id names another hour than its start": (add(row("late", 1, windowId=hour(2))), {2}),
    "a row of an hour that held none": (add(row("late", 3)), {3}),
    "a row that does not count": (add(row("late", 1, isEvaluation=True)), {1}),
    "a row gone": (run("""DELETE FROM trajectories WHERE "trajectoryId" = 'named-1'"""), {1}),
    "a row gone that had no window id": (run("""DELETE FROM trajectories WHERE "trajectoryId" = 'null-1'"""), {1}),
    "an hour's rows gone": (run("""DELETE FROM trajectories WHERE "trajectoryId" IN ('named-1', 'null-1')"""), {1}),
    "an agent gone with all that it did": (run("""DELETE FROM "User" WHERE id = 'agent-named-2'"""), {2}),
    "a row edited": (edit('"finalPnL" = 7', "named-0"), {0}),
    "a row edited long ago": (run("""UPDATE trajectories SET "finalPnL" = 7, "updatedAt" = '2025-01-01' WHERE id = 'row-null-2'"""), {2}),
    "a row moved by its id": (edit(f"\"windowId\" = '{hour(2)}'", "named-0"), {0, 2}),
    "a row moved by its start": (edit(f"\"startTime\" = '{MOVED}'", "null-1"), {1, 2}),
    "a row named that was not": (edit(f"\"windowId\" = '{hour(0)}'", "null-1"), {0, 1}),
    "a row replaced by another of the same moment": (
        run("""UPDATE trajectories SET "trajectoryId" = 'other', "finalPnL" = 3 WHERE "trajectoryId" = 'null-0'"""), {0},
    ),
    "a logged call": (log(make_log("named-1", 9)), {1}),
    "a first logged call": (log(make_log("null-1")), {1}),
    "a logged call of nobody": (log(make_log("nobody", 9)), set()),
    "a logged call edited": (run("""UPDATE llm_call_logs SET response = 'sell' WHERE id = 'log-named-2-0-1'"""), {2}),
    "a logged call gone": (run("""DELETE FROM llm_call_logs WHERE id = 'log-named-2-0-1'"""), {2}),
    "a logged call moved": (run("""UPDATE llm_call_logs SET "trajectoryId" = 'named-0' WHERE id = 'log-named-2-0-1'"""), {0, 2}),
    "what this pipeline writes": (
        run("""UPDATE trajectories SET "usedInTraining" = true, "trainedInBatch" = 'b', "aiJudgeReward" = 1, "judgedAt" = '2026-01-01'"""),
        set(),
    ),
}  # fmt: skip


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {window for window in before | after if before.get(window) != after.get(window)}


def contents(connection: Connection, settings: Settings) -> dict[str, str]:
    return {window: data_version(reading) for window, reading in read_windows(connection, WINDOWS, settings).items()}


@pytest.mark.parametrize("name", CASES)
def test_a_late_change_touches_exactly_its_hours(game: Connection, settings: Settings, name: str):
    change, expected = CASES[name]
    versions, read = trajectory_versions(game, FIRST, END), contents(game, settings)
    with game.transaction():
        change(game)
    after = trajectory_versions(game, FIRST, END)
    assert changed(versions, after) == {hour(number) for number in expected}
    assert changed(read, contents(game, settings)) <= changed(versions, after)


def test_a_look_at_the_last_hours_sees_what_a_look_at_all_sees(game: Connection):
    everything = trajectory_versions(game, FIRST, END)
    assert list(everything) == [hour(0), hour(1), hour(2)]
    for window in WINDOWS:
        assert trajectory_versions(game, window, END) == {key: version for key, version in everything.items() if key >= window}


def test_a_change_is_said_in_words(game: Connection):
    def words(change: Any) -> str:
        before = trajectory_versions(game, FIRST, END)[hour(1)]
        with game.transaction():
            change(game)
        return change_in_words(before, trajectory_versions(game, FIRST, END)[hour(1)])

    assert words(add(row("x", 1), row("y", 1))) == "rows: 2 more"
    assert words(log(make_log("x"))) == "logged calls: 1 more"
    assert words(edit('"finalPnL" = 1', "x")) == "rows: changed"
    assert words(run("""DELETE FROM trajectories WHERE "trajectoryId" = 'x'""")) == "rows: 1 fewer; logged calls: 1 fewer"
    assert change_in_words(None, "1 rows #0") == "seen for the first time"
    assert change_in_words("1 rows #0", "no rows") == "1 rows #0; now no rows"


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "20000-01-01", "0500-01-01"])
def test_a_time_beyond_the_calendar_loses_no_hour_to_the_others(game: Connection, moment: str, settings: Settings):
    before = trajectory_versions(game, FIRST, END)
    game.execute(f"""UPDATE trajectories SET "windowId" = '2025-11-15T99:00', "startTime" = '{moment}', "updatedAt" = '{moment}'
        WHERE "trajectoryId" = 'null-0'""")
    game.execute(f"""UPDATE trajectories SET "updatedAt" = '{moment}' WHERE "trajectoryId" = 'null-1'""")
    after = trajectory_versions(game, FIRST, END)
    assert after.keys() == before.keys() and after[hour(1)] != before[hour(1)] and after[hour(2)] == before[hour(2)]
    listed = windows_with_rows(game, FIRST_POSSIBLE, LAST_POSSIBLE)
    assert set(before) <= set(listed)
    assert all(reading.rows for reading in read_windows(game, listed, settings).values())
