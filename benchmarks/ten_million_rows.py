"""What runs on a tick or for an hour, on ten million slim rows: `python benchmarks/ten_million_rows.py [--rows N] [--days N] [--keep DIR]`.

Fills an embedded server of its own (under DIR, where it is found again and measured without filling; else in a temporary directory), or an
empty database of another server with that server's settings (`--database URL`). Says what the ticks of a minute cost in which nothing was
written, then runs every caller twice and prints each of its statements that reads trajectories or llm_call_logs: milliseconds the first and
the second time, rows, how often it was sent, and how the plan reads the table. The exit code is 1 when a plan scans one.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from babylon_rl.automation.sensors import SWEPT, observe_changes, start_training
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.scoring import score_windows
from babylon_rl.market.outcomes import sync_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.training.batches import fail_batch, pending_batches
from babylon_rl.windows import HOUR, window_of, window_range
from babylon_rl_tests.callers import CALLERS, World
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.plans import BIG, Read, RecordedDatabase, Statement, explainable, reads_of

END = datetime(2025, 11, 1)
RANGE_HOURS = 24
# Longer than a tick or an hour by nature.
LEFT_OUT = ("a training",)
_PACE = ("fsync = off", "maintenance_work_mem = '1GB'", "max_wal_size = '4GB'", "checkpoint_timeout = '1h'", "autovacuum = off")
_INDEXES = """
    SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i
    WHERE i.indrelid = ANY(%s::regclass[]) AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
"""


def say(text: str) -> None:
    """A line at once."""
    print(text, flush=True)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Say how long something took."""
    started = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - started:.1f} s")


def fill(connection: Connection, many: ManyRows) -> None:
    """The rows, then the game's indexes as they were; foreign keys are not checked row by row."""
    indexes = connection.execute(_INDEXES, [[f"public.{table}" for table in BIG]]).fetchall()
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        insert_many(connection, many)
    with told("indexes"):
        for _, definition in indexes:
            connection.execute(definition)
    with told("vacuum and analyze"):
        connection.execute("VACUUM (ANALYZE, FREEZE)")


def fill_empty(url: str, many: ManyRows) -> None:
    """Migrate, and write the rows where there are none."""
    migrate(Database(url, url))
    with Connection.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT NOT EXISTS (SELECT FROM public.trajectories)").fetchone() == (True,):
            with told(f"{many.rows:,} rows over {many.hours} hours by {many.agents} agents, in all"):
                fill(connection, many)
        (size,) = connection.execute("SELECT pg_size_pretty(pg_total_relation_size('public.trajectories'))").fetchone() or ("",)
        say(f"trajectories with its indexes: {size}")


@contextlib.contextmanager
def prepared_server(home: Path, many: ManyRows) -> Iterator[str]:
    """The address of an embedded server under ``home`` that holds the rows, filled where nothing is filled yet."""
    with use_server(home) as url:
        with Connection.connect(url, autocommit=True) as connection:
            for setting in _PACE:
                connection.execute(f"ALTER SYSTEM SET {setting}")
            connection.execute("SELECT pg_reload_conf()")
        fill_empty(url, many)
        yield url


def read_hours(database: Database, settings: Settings, windows: list[str], now: datetime) -> None:
    """What automation has done by then: the look-back's hours are read, their outcomes written, their groups scored."""
    with database.connect(autocommit=True) as connection:
        sync_windows(connection, windows, settings, now)
        sync_outcomes(connection, windows, settings, now)
        score_windows(connection, windows, settings, now)
        connection.execute("ANALYZE")


def release(database: Database, now: datetime) -> None:
    """Give back what a caller froze, so that the next one finds it."""
    with database.connect(autocommit=True) as connection:
        for batch in pending_batches(connection):
            fail_batch(connection, batch.batch_id, "measured", now)


def sent_by(caller: str, world: World, database: RecordedDatabase) -> tuple[float, dict[str, list[Statement]]]:
    """Run a caller: seconds, and by text its statements that read a big table."""
    del database.sent[:]
    started = time.perf_counter()
    CALLERS[caller](world)
    seconds = time.perf_counter() - started
    by_text: dict[str, list[Statement]] = {}
    for statement in database.sent:
        if explainable(statement) and any(f"public.{table}" in statement.text for table in BIG):
            by_text.setdefault(statement.text, []).append(statement)
    release(database, world.now)
    return seconds, by_text


def measured(caller: str, world: World, database: RecordedDatabase) -> list[Read]:
    """Run a caller twice, print its statements, and give how they read the big tables."""
    (first_s, first), (again_s, again) = (sent_by(caller, world, database) for _ in range(2))
    say(f"\n{caller}: {first_s * 1000:.0f} ms, again {again_s * 1000:.0f} ms")
    found: list[Read] = []
    with database.connect(autocommit=True) as connection:
        for text, statements in first.items():
            ms = [sum(statement.seconds for statement in sent) * 1000 for sent in (statements, again.get(text, []))]
            rows = sum(statement.rows for statement in statements)
            say(f"  {ms[0]:8.1f} {ms[1]:8.1f} ms {rows:7} rows {len(statements):3} x {' '.join(text.split())[:70]}")
            reads = reads_of(connection, statements[0])
            for read in reads:
                say(f"{'':31}{read}")
            found += reads
    return found


def quiet_ticks(world: World) -> None:
    """Print what the ticks of every minute cost while nothing is written: the first, which looks, and those after it."""
    waiting = replace(world.babylon, settings=world.babylon.settings.model_copy(update={"training_min_trajectories": 10**9}))
    for sensor, cursor in ((observe_changes, SWEPT), (start_training, None)):
        spent = []
        for _ in range(6):
            context = dg.build_sensor_context(instance=world.instance, cursor=cursor, resources={"babylon": waiting})
            started = time.perf_counter()
            said = sensor(context)
            spent.append(time.perf_counter() - started)
            for event in said.asset_events if isinstance(said, dg.SensorResult) else ():
                world.instance.report_runless_asset_event(event)
            cursor = (said.cursor if isinstance(said, dg.SensorResult) else None) or context.cursor
        say(f"{sensor.name}: {spent[0] * 1000:.0f} ms, then {', '.join(f'{s * 1000:.1f}' for s in spent[1:])} ms while nothing is written")


def measure(url: str, home: Path, many: ManyRows) -> int:
    """Every caller; 1 when one scans."""
    database = RecordedDatabase(url)
    settings = Settings(_env_file=None, babylon_rl_home=home)
    last = many.newest_window
    now = many.end + timedelta(minutes=10)
    first = window_of(many.end - RANGE_HOURS * HOUR)
    with told(f"reading {settings.lookback_hours} hours"):
        read_hours(database, settings, list(window_range(window_of(many.end - settings.lookback_hours * HOUR), window_of(many.end))), now)
    scans = 0
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(database, settings, instance, now, first, last)
        quiet_ticks(world)
        for caller in CALLERS:
            if caller not in LEFT_OUT:
                scans += sum(read.scans for read in measured(caller, world, database))
    say(f"\n{scans} scans.")
    return min(scans, 1)


@contextlib.contextmanager
def asked_rows(description: str | None) -> Iterator[tuple[str, Path, ManyRows]]:
    """The server's address, its home and its rows, as the command line asks for them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=365, help="days that the rows are spread over")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the server's directory, and use it again")
    parser.add_argument("--database", metavar="URL", help="an empty database, or one that this benchmark filled; it is kept")
    given = parser.parse_args()
    # Six rows of an agent in an hour: a usable episode.
    agents = max(8, min(400, given.rows // (given.days * 24 * 6)))
    many = ManyRows(given.rows, END - timedelta(days=given.days), END, agents=agents, unnamed_agents=max(1, agents // 20), organizations=5)
    with contextlib.ExitStack() as stack:
        home = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="babylon-rl-rows-")))
        if given.database is not None:
            fill_empty(given.database, many)
        yield given.database or stack.enter_context(prepared_server(home, many)), home, many


def main() -> int:
    """Fill where nothing is filled yet, and measure."""
    with asked_rows(__doc__) as (url, home, many):
        return measure(url, home, many)


if __name__ == "__main__":
    sys.exit(main())
