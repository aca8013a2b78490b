"""The pipeline behind pgbouncer in transaction mode, where every transaction may run on another session of the server."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import DatabaseError
from babylon_rl.judge.hindsight import sync_hindsight
from babylon_rl.market.outcomes import sync_outcomes
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.recorder import TrajectoryRecorder
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.store.pgbouncer import pgbouncer, program
from babylon_rl_tests.store.pipeline import content, recorded_hours, run_every_hour, train_once
from babylon_rl_tests.store.test_least_privilege import record
from babylon_rl_tests.training.sample import NOW

pytestmark = pytest.mark.skipif(
    program() is None, reason="pgbouncer is not installed (apt-get install pgbouncer): nothing is tested behind a pooler"
)

LEFT_BEHIND = """
SELECT 'prepared statement', statement FROM pg_prepared_statements
UNION ALL SELECT 'cursor', name FROM pg_cursors
UNION ALL SELECT 'setting', name || ' = ' || setting FROM pg_settings WHERE source = 'session' AND name <> 'application_name'
UNION ALL SELECT 'channel', channel FROM pg_listening_channels() AS channel
UNION ALL SELECT 'temporary table', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
UNION ALL SELECT 'lock', mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
"""


@pytest.fixture
def pooled(sample_database: Database, tmp_path: Path) -> Iterator[Database]:
    """The recorded game behind a pooler with two connections for everybody; migrations and Dagster go past it."""
    with pgbouncer(sample_database.url, tmp_path, pool_size=2) as url:
        yield Database(url, sample_database.url)


def test_clients_of_the_pooler_do_share_sessions(pooled: Database) -> None:
    with ThreadPoolExecutor(6) as threads:

        def backend(_: int) -> int:
            with pooled.connect(autocommit=True) as connection:
                (pid,) = connection.execute("SELECT pg_backend_pid() FROM pg_sleep(0.01)").fetchone() or (0,)
                return int(pid)

        assert len(set(threads.map(backend, range(24)))) <= 2


@pytest.mark.long
def test_every_hour_and_a_training_come_out_the_same(pooled: Database, every_hour: Database, settings: Settings) -> None:
    hours = run_every_hour(pooled, settings)
    assert content(pooled, hours) == content(every_hour, hours)
    batch = train_once(pooled, settings)
    with pooled.connect() as connection:
        assert connection.execute("SELECT state FROM babylon_rl.batch_summary").fetchall() == [("completed",)]
        (marked,) = connection.execute('SELECT count(*) FROM trajectories WHERE "trainedInBatch" = %s', (batch.batch_id,)).fetchone() or (
            0,
        )
        assert marked > 300
    assert_nothing_left_behind(pooled)


@pytest.mark.long
def test_many_runs_on_the_same_hours_at_once_leave_each_hour_once(pooled: Database, every_hour: Database, settings: Settings) -> None:
    hours = recorded_hours(pooled)

    def run(number: int) -> None:
        some = hours[number % 3 :] if number % 2 else hours[: 9 + number % 3]
        with pooled.connect(autocommit=True) as connection:
            run_rooms(connection, some, settings)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(run, range(12)))
    assert content(pooled, hours) == content(every_hour, hours)
    assert_nothing_left_behind(pooled)


@pytest.mark.slow
def test_sessions_in_another_time_zone_shift_nothing(
    sample_database: Database, every_hour: Database, settings: Settings, tmp_path: Path
) -> None:
    name = sample_database.url.rpartition("/")[2]
    with sample_database.connect(autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
        connection.execute(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
    hours = recorded_hours(every_hour)
    with pgbouncer(sample_database.url, tmp_path, pool_size=1) as url, Database(url, url).connect(autocommit=True) as connection:
        assert connection.execute("SELECT current_setting('timezone'), current_setting('datestyle')").fetchone() == (
            "Asia/Tokyo",
            "SQL, DMY",
        )
        run_rooms(connection, hours, settings)
        written = connection.execute('SELECT DISTINCT "createdAt" FROM market_outcomes WHERE "windowId" = %s', (hours[-1],)).fetchall()
        assert written == [(NOW,)]
    assert content(sample_database, hours) == content(every_hour, hours)


def test_what_a_client_leaves_behind_would_be_seen(pooled: Database) -> None:
    with pooled.connect(autocommit=True) as connection:
        connection.execute("SET work_mem = '5MB'")
        connection.execute("SELECT pg_advisory_lock(1)")
    with pytest.raises(AssertionError, match="work_mem = 5120"):
        assert_nothing_left_behind(pooled)


def test_dagsters_storage_needs_the_server_itself_and_says_so(pooled: Database) -> None:
    with pytest.raises(DatabaseError, match="startup parameter.*DIRECT_DATABASE_URL"):
        Database(pooled.url, pooled.url).prepare_dagster_schema()


def test_a_pooler_that_drops_the_search_path_does_not_get_dagsters_tables_into_public(sample_database: Database, tmp_path: Path) -> None:
    said = "does not take the schema.*DIRECT_DATABASE_URL"
    pooler = pgbouncer(sample_database.url, tmp_path, pool_size=1, more="ignore_startup_parameters = options")
    with pooler as url, pytest.raises(DatabaseError, match=said):
        Database(url, url).prepare_dagster_schema()


def test_agents_play_and_record_through_the_pooler(pooled: Database, settings: Settings) -> None:
    with pooled.connect() as connection:
        (hour,) = spawn(connection, SpawnRequest(3, 0, 1, 0, 60, "2025-10-29T14:00"), datetime(2025, 10, 31), None)
    assert hour.trajectories > 0
    with TrajectoryRecorder.connect(pooled.url, settings=settings) as recorder:
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda number: record(recorder, f"test-agent-{number % 3 + 1}"), range(60)))
        recorder.flush()
        assert recorder.report().recorded == 60, recorder.report().sentence
    assert_nothing_left_behind(pooled)


@pytest.mark.long
def test_commands_read_through_the_pooler_and_migrate_past_it(raw_sample_database: Database, tmp_path: Path) -> None:
    with pgbouncer(raw_sample_database.url, tmp_path, pool_size=1) as url:
        given = environment(tmp_path / "home", DATABASE_URL=url, DIRECT_DATABASE_URL=raw_sample_database.url)
        for command in ("migrate", "windows", "sync-outcomes --hours 24", "verify-system"):
            done = run_command(*command.split(), environment=given, directory=tmp_path)
            assert done.returncode == 0, done.stderr + done.stdout


def test_a_migration_also_works_through_the_pooler(empty_database: Database, tmp_path: Path) -> None:
    with pgbouncer(empty_database.url, tmp_path, pool_size=1) as url:
        pooled = Database(url, url)
        assert migrate(pooled).differences == ()
        assert migrate(pooled).applied == ()
        assert_nothing_left_behind(pooled, sessions=1)


def run_rooms(connection: Connection, hours: list[str], settings: Settings) -> None:
    """What the hourly assets do, without Dagster around it."""
    sync_windows(connection, hours, settings, NOW)
    sync_outcomes(connection, hours, settings, NOW)
    sync_hindsight(connection, hours, settings, NOW)
    score_windows(connection, hours, settings, NOW)


def assert_nothing_left_behind(pooled: Database, sessions: int = 2) -> None:
    """Look at each of the pooler's sessions: what is there is what a client before left, as nothing is reset in between."""
    with contextlib.ExitStack() as stack:
        seen = {}
        for _ in range(sessions):
            connection = stack.enter_context(pooled.connect())  # its transaction holds the session, so the next gets another
            (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            seen[pid] = connection.execute(LEFT_BEHIND).fetchall()
    assert [line for found in seen.values() for line in found] == []
    assert len(seen) == sessions
