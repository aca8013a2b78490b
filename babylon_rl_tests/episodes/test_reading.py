"""Hours out of the database: the samples' answers, which window a row belongs to, stitching, and what is kept of it."""

import random
from collections import Counter
from datetime import timedelta
from threading import Thread
from typing import Any

import msgspec
import pytest

from babylon_rl.episodes.reading import by_agent, read_window, read_windows, sync_windows
from babylon_rl.episodes.reading import episode as stitched
from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, newest_window_with_rows, windows_with_rows
from babylon_rl.types import Trajectory
from babylon_rl_tests.expected import SAMPLES, expected
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_group, make_step, make_trajectory

NAMES = {
    "steps": "n_steps", "start_pnl": "start_pnl", "end_pnl": "end_pnl", "window_pnl": "window_pnl", "wins": "wins", "losses": "losses",
    "win_rate": "win_rate", "trades": "trades_executed", "posts": "posts_created", "actions": "action_types",
}  # fmt: skip


@pytest.mark.parametrize("fixture", SAMPLES)
def test_samples_are_read_as_expected(request: pytest.FixtureRequest, settings: Settings, fixture: str) -> None:
    answers = expected(fixture)
    with request.getfixturevalue(fixture).connect() as connection:
        windows = windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)
        readings = read_windows(connection, windows, settings)
    assert windows == sorted(answers["windows"])
    for window, answer in answers["windows"].items():
        reading = readings[window]
        assert reading.rows == answer["n_rows_any"]
        assert reading.eligible == answer["n_eligible"]
        assert reading.new_trainable == answer["n_new_trainable"]
        assert len(reading.episodes) == answer["n_episodes"]
        assert reading.ready == answer["ready"]["5"]
        assert [episode.agent_id for episode in reading.usable_episodes] == sorted(answer["agents_min5"])
        for episode in reading.episodes:
            theirs = answer["episodes"][episode.agent_id]
            assert list(episode.trajectory_ids) == theirs["trajectory_ids"]
            assert {source: n for source, n in episode.message_sources.items() if n} == theirs["message_source"]
            assert len(episode.used_ids) == theirs["used_in_training"]
            for ours, name in NAMES.items():
                assert getattr(episode, ours) == pytest.approx(theirs[name], abs=1e-6), (window, episode.agent_id, ours)
    rejections = [rejection for reading in readings.values() for rejection in reading.rejections]
    assert {rejection.trajectory_id: rejection.reason for rejection in rejections} == answers["trajectories"]["excluded_ids"]
    assert Counter(rejection.reason for rejection in rejections) == answers["trajectories"]["excluded"]


@pytest.mark.parametrize(
    ("window_id", "minute", "belongs"),
    [
        (WINDOW, 75, WINDOW),
        (None, 0, WINDOW),
        (None, 59.999, WINDOW),
        (None, 60, "2025-11-15T11:00"),
        ("2025-13-45T99:00", 5, WINDOW),
        ("2025-02-30T10:00", 5, WINDOW),
        ("2025-11-15T10:30", 5, WINDOW),
        ("a scenario", 5, WINDOW),
        ("", 5, WINDOW),
    ],
)
def test_window_is_the_canonical_id_else_the_hour_of_the_start(
    connection: Connection, settings: Settings, window_id: str | None, minute: float, belongs: str
) -> None:
    insert(connection, "trajectories", [make_trajectory(windowId=window_id, minute=minute, scenarioId="2020-01-01T00:00")])
    assert windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE) == [belongs]
    assert windows_with_rows(connection, WINDOW, WINDOW) == []
    assert read_window(connection, belongs, settings).rows == 1
    assert newest_window_with_rows(connection, "2025-11-15T09:00") is None


def test_newest_window_counts_rows_without_an_id(connection: Connection) -> None:
    insert(connection, "trajectories", [make_trajectory("t1"), make_trajectory("t2", windowId=None, minute=70)])
    assert newest_window_with_rows(connection, "2025-11-15T12:00") == "2025-11-15T11:00"
    assert newest_window_with_rows(connection, WINDOW) == WINDOW


def test_rows_of_other_window_lengths_are_counted_apart(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [make_trajectory(windowHours=4)])
    reading = read_window(connection, WINDOW, settings)
    assert (reading.rows, reading.quality.other_lengths) == (1, 1)


def test_wrong_window_is_refused(connection: Connection, settings: Settings) -> None:
    with pytest.raises(UsageError, match="is not a window"):
        read_window(connection, "2025-11-15T25:00", settings)


def test_stitching_does_not_depend_on_order() -> None:
    rows = [
        Trajectory(
            trajectory_id=f"t{number}", agent_id=f"a{number % 3}", window=WINDOW, start_time=START + timedelta(minutes=number // 6),
            used=number == 4, steps=number % 4, start_pnl=float(number), end_pnl=number * 1.5 - 3,
            actions={"HOLD": 1, f"X{number % 2}": 1}, trades=1, posts=0,
            message_source="embedded", trainable_sequences=1, content=str(number),
        )
        for number in range(30)
    ]  # fmt: skip
    straight = [stitched(own, 5) for own in by_agent(rows)]
    for seed in range(5):
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)
        assert [stitched(own, 5) for own in by_agent(shuffled)] == straight
    assert [one.agent_id for one in straight] == ["a0", "a1", "a2"]


def test_episode_takes_first_start_and_last_end_and_counts_single_deltas(connection: Connection, settings: Settings) -> None:
    rows = [
        make_trajectory("b", steps=[make_step(pnl=100)], minute=1, finalPnL=90),
        make_trajectory("c", steps=[make_step(pnl=90)], minute=2, finalPnL=95),
        make_trajectory("a", steps=[make_step(pnl=95), make_step(pnl=97)], minute=2),
    ]
    insert(connection, "trajectories", rows)
    (episode,) = read_window(connection, WINDOW, settings).episodes
    assert episode.trajectory_ids == ("b", "a", "c")
    assert (episode.start_pnl, episode.end_pnl, episode.window_pnl) == (100, 95, -5)
    assert (episode.wins, episode.losses, episode.win_rate) == (2, 1, 2 / 3)
    assert (episode.steps, episode.usable) == (4, False)


def test_nul_characters_lose_nothing(connection: Connection, settings: Settings) -> None:
    rows = [make_trajectory("t1", steps=[make_step(action="A\0B")]), make_trajectory("t2", steps='[{"\\u0000": {"a": "\\ud800"}}]')]
    insert(connection, "trajectories", rows)
    assert sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW].rows == 2


def stored(database: Database) -> list[Any]:
    tables = ('windows ORDER BY "window"', 'episodes ORDER BY "window", "agentId"', 'rejections ORDER BY "window", "trajectoryId"')
    with database.connect() as connection:
        return [connection.execute(f"SELECT xmin::text, * FROM babylon_rl.{table}").fetchall() for table in tables]


def test_sync_writes_what_was_read_once(sample_database: Database, settings: Settings) -> None:
    with sample_database.connect() as connection:
        windows = windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)
        first = sync_windows(connection, windows, settings, AFTER)
    before = stored(sample_database)
    assert [len(table) for table in before] == [12, sum(facts.episodes for facts in first.values()), 59]
    with sample_database.connect() as connection:
        again = sync_windows(connection, reversed(windows), settings, AFTER + timedelta(days=1))
    assert stored(sample_database) == before
    assert all(facts.changed for facts in first.values())
    assert again == {window: msgspec.structs.replace(facts, changed=False) for window, facts in first.items()}


def test_marking_rows_as_used_changes_counts_but_no_data_version(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    before = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW]
    connection.execute("""UPDATE trajectories SET "usedInTraining" = true WHERE "trajectoryId" = 't1'""")
    after = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW]
    states = connection.execute('SELECT "state", "newTrainable" FROM babylon_rl.windows').fetchall()
    assert (after.new_trainable, after.changed, after.data_version) == (4, True, before.data_version)
    assert states == [("trained", 4)]


def test_late_changed_and_vanished_rows_change_their_hour(connection: Connection, settings: Settings) -> None:
    versions = []
    for statement in (
        None,
        """UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'What now', 'And now')""",
        """DELETE FROM trajectories WHERE "trajectoryId" = 't1'""",
    ):
        if statement is None:
            insert(connection, "trajectories", make_group())
        else:
            connection.execute(statement)
        versions.append(sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW].data_version)
    connection.execute("DELETE FROM trajectories")
    gone = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW]
    left = connection.execute("SELECT count(*) FROM babylon_rl.windows").fetchone()
    assert len(set(versions)) == 3
    assert (gone.rows, gone.changed, left) == (0, True, (0,))


def test_quarantine_outlasts_a_sync(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    sync_windows(connection, [WINDOW], settings, AFTER)
    connection.execute("""UPDATE babylon_rl.windows SET "state" = 'quarantined'""")
    connection.execute("""DELETE FROM trajectories WHERE "trajectoryId" = 't1'""")
    sync_windows(connection, [WINDOW], settings, AFTER)
    assert connection.execute('SELECT "state", "rows" FROM babylon_rl.windows').fetchall() == [("quarantined", 4)]


def test_two_writers_at_once_end_as_one(sample_database: Database, settings: Settings) -> None:
    with sample_database.connect() as connection:
        windows = windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)
    failures: list[BaseException] = []

    def write(order: list[str]) -> None:
        try:
            with sample_database.connect() as connection:
                sync_windows(connection, order, settings, AFTER)
        except BaseException as failure:
            failures.append(failure)

    threads = [Thread(target=write, args=(order,)) for order in (windows, windows[::-1], windows[3:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [len(table) for table in stored(sample_database)][::2] == [12, 59]
