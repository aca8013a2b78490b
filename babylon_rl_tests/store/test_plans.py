"""What is sent on a tick or for an hour never scans trajectories or llm_call_logs: the plans on statistics of up to ten million rows.

Every caller runs for real on a small copy, which records what it sends; the plans are asked for in others, whose statistics are
set by hand. Only the nightly sweep may scan.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import dagster as dg
import psycopg
import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.market.outcomes import sync_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import newest_window_with_rows
from babylon_rl.windows import window_end, window_of, window_range
from babylon_rl_tests.callers import CALLERS, World
from babylon_rl_tests.many_rows import ManyRows, insert_many, pretend_rows
from babylon_rl_tests.plans import RecordedDatabase, Statement, explainable, plan_text, reads_of
from babylon_rl_tests.rows import insert, make_trajectory
from babylon_rl_tests.scored import score_windows

NOW = datetime(2025, 10, 31, 12)
TEN_MILLION = 10_000_000
# Rows of trajectories, rows of "User": the planner's choices differ between them.
SIZES = ((1_000_000, 400), (TEN_MILLION, 400), (TEN_MILLION, 20_000))
# The recorded game comes after them, with rows of every producer.
MANY = ManyRows(20_000, datetime(2025, 5, 1), datetime(2025, 10, 29, 4))
FIRST, LAST = "2025-10-29T13:00", "2025-10-29T17:00"
HOURS = list(window_range(FIRST, window_of(window_end(LAST))))
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Copies:
    """``template`` is the game with many rows; ``big`` are copies of it whose statistics are those of SIZES, the biggest last."""

    server: str
    template: str
    big: list[str]

    def copy(self) -> str:
        """A new database like the template."""
        name = f"plans_{next(_numbers)}"
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        return self.url(name)

    def url(self, name: str) -> str:
        """The address of a database on the server."""
        return self.server.rpartition("/")[0] + f"/{name}"

    def drop(self, url: str) -> None:
        """Forget a database."""
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


@pytest.fixture(scope="module")
def copies(server: str, template: Callable[[str], str]) -> Iterator[Copies]:
    """The databases, for the length of the module."""
    sample = template("sample")
    copies = Copies(server, "plans_template", [])
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {copies.template} TEMPLATE {sample}")
    url = copies.url(copies.template)
    settings = Settings(_env_file=None)
    with Database(url, url).connect(autocommit=True) as connection:
        insert_many(connection, MANY)
        sync_windows(connection, HOURS, settings, NOW)
        sync_outcomes(connection, HOURS, settings, NOW)
        score_windows(connection, HOURS, settings, NOW)
    for rows, users in SIZES:
        copies.big.append(copies.copy())
        with psycopg.connect(copies.big[-1], autocommit=True) as connection:
            pretend(connection, rows, users)
    yield copies
    for url in [*copies.big, copies.url(copies.template)]:
        copies.drop(url)


def pretend(connection: Connection, rows: int, users: int) -> None:
    """Statistics of a game with so many trajectories, half as many logged calls, and every hour of it read."""
    pretend_rows(connection, "public.trajectories", rows, windowId=MANY.hours, agentId=MANY.agents, startTime=-1)
    pretend_rows(connection, "public.llm_call_logs", rows // 2, trajectoryId=-0.2)
    pretend_rows(connection, 'public."User"', users)
    pretend_rows(connection, "babylon_rl.episodes", MANY.hours * MANY.agents, window=MANY.hours)
    pretend_rows(connection, "babylon_rl.windows", MANY.hours)


# Those that ask about batches or the market alone.
ELSEWHERE = {"finish_evidence", "an hour of market_outcomes", "a range of market_outcomes"}


@pytest.fixture
def world(copies: Copies, settings: Settings) -> Iterator[World]:
    """A copy of its own, recorded."""
    url = copies.copy()
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(RecordedDatabase(url), settings, instance, NOW, FIRST, LAST)
    copies.drop(url)


@pytest.mark.long
@pytest.mark.parametrize("caller", CALLERS)
def test_no_tick_and_no_hour_scans_ten_million_rows(caller: str, world: World, copies: Copies):
    CALLERS[caller](world)
    assert isinstance(world.database, RecordedDatabase)
    sent = [statement for statement in world.database.sent if explainable(statement)]
    told, reads = [], 0
    for size, url in zip(SIZES, copies.big, strict=True):
        with psycopg.connect(url) as connection:
            for statement in sent:
                read = reads_of(connection, statement)
                reads += len(read)
                if any(entry.scans for entry in read):
                    told.append(f"of {size}:\n{statement.text.strip()}\n{plan_text(connection, statement)}")
    assert reads or caller in ELSEWHERE, "no statement read a big table: the caller has stopped doing its work"
    assert not told, f"{caller} scans\n" + "\n\n".join(told)


@pytest.mark.parametrize(
    ("query", "scans"),
    [
        ('SELECT max("updatedAt") FROM trajectories', True),
        ('SELECT "windowId", count(*) FROM trajectories GROUP BY 1', True),
        ("""SELECT count(*) FROM trajectories WHERE "startTime" >= '2025-10-01' AND "startTime" < '2025-10-01 01:00'""", True),
        ("""SELECT count(*) FROM trajectories WHERE coalesce("windowId", '') = '2025-10-01T00:00'""", True),
        ("""SELECT count(*) FROM trajectories WHERE "windowId" = '2025-10-01T00:00'""", False),
        ("""SELECT "windowId" FROM trajectories WHERE "windowId" <= '2025-10-01T00:00' ORDER BY 1 DESC LIMIT 1""", False),
        ("""SELECT count(*) FROM trajectories t JOIN llm_call_logs USING ("trajectoryId") WHERE "windowId" = '2025-10-01T00:00'""", False),
        ("""SELECT count(*) FROM llm_call_logs WHERE "stepId" = 'x'""", True),
        ("""DELETE FROM trajectories WHERE "updatedAt" < '2025-06-01'""", True),
        ("""COPY (SELECT "stepsJson" FROM trajectories WHERE "isTrainingData") TO STDOUT (FORMAT BINARY)""", True),
    ],
)
def test_a_scan_is_recognised(query: str, scans: bool, copies: Copies):
    statement = Statement(query)
    with psycopg.connect(copies.big[1]) as connection:
        assert any(read.scans for read in reads_of(connection, statement)) == scans, plan_text(connection, statement)


def test_the_planner_sees_ten_million_rows_on_a_disk_that_holds_few(copies: Copies):
    with psycopg.connect(copies.big[-1]) as connection:
        ((documents,),) = connection.execute("EXPLAIN (FORMAT JSON) SELECT * FROM trajectories").fetchall()
        pages = connection.execute("SELECT pg_relation_size('trajectories') / 8192").fetchone()
    assert documents[0]["Plan"]["Plan Rows"] == pytest.approx(TEN_MILLION, rel=0.01)
    assert pages is not None and documents[0]["Plan"]["Total Cost"] > pages[0] > 100_000


def test_look_backs_count_from_the_newest_hour_by_name_or_by_time(database: Database):
    rows = [
        make_trajectory("named", windowId="2025-11-15T10:00"),
        make_trajectory("impossible", windowId="2025-11-31T10:00"),
        make_trajectory("unnamed", windowId=None, minute=70),
    ]
    with database.connect(autocommit=True) as connection:
        insert(connection, "trajectories", rows[:2])
        assert newest_window_with_rows(connection, "2025-12-31T23:00") == "2025-11-15T10:00"
        insert(connection, "trajectories", rows[2:])
        assert newest_window_with_rows(connection, "2025-12-31T23:00") == "2025-11-15T11:00"
        assert newest_window_with_rows(connection, "2025-11-15T10:00") == "2025-11-15T10:00"
        assert newest_window_with_rows(connection, "2025-11-15T09:00") is None
