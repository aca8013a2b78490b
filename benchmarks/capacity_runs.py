"""Measurement of the capacity model's parameters, and of the runs that it is checked against; benchmarks/capacity.py --check calls it.

An embedded server holds hours that were read; each measured run works on a copy. Costs of hours and trajectories come from runs whose judge
takes no time, the server's part of them from the processor time of its processes. Two such runs at once say how much slower two cores
are than one, and a run of one request at a time how long a request keeps its place after the answer.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg

from babylon_rl.automation.launch import run_hours
from babylon_rl.judge.scoring import score_windows
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.windows import window_of, window_range
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.scripted_judge.server import running
from benchmarks.read_window_rows import fill

LATENCY_S, ROUNDS = 0.3, 3
ONE_PLACE_LATENCY_S = 0.05  # of the run that says how long a request keeps its place: more than what an hour computes between two of them
HOURS, HOURS_PER_RUN, ORDERS = 48, 24, 2
AGENTS, ROWS = 12, 24  # of a small hour
BIG_AGENTS, BIG_ROWS = 250, 2000
POINTS = [(concurrency, processes) for concurrency in (4, 8, 16) for processes in (1, 2)]
START, NOW = datetime(2025, 9, 1), datetime(2025, 11, 1)
READING, SCORING = ("window_groups", "market_outcomes", "hindsight"), ("scored_groups",)
ROW_BYTES, WRITTEN = 26_000, 1_000  # of a trajectory that an agent writes (the rows of benchmarks/read_window.py), and how many
_work: dict[str, Any] = {}


def _start(home: str, judge: str | None, concurrency: int) -> None:
    """Make the settings of a worker process; importing this file did its imports."""
    chosen = {"judge_model": "openai/scripted", "judge_base_url": judge} if judge else {}
    _work["settings"] = Settings(_env_file=None, babylon_rl_home=Path(home), judge_concurrency=concurrency, **chosen)


def _ready(_: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def _run(url: str, windows: Sequence[str], selection: Sequence[str]) -> None:
    run_hours(Database(url, url), _work["settings"], windows, selection, now=lambda: NOW)


@contextmanager
def workers(home: Path, judge: str | None, concurrency: int, processes: int) -> Iterator[Pool]:
    """Processes that have imported everything."""
    with multiprocessing.get_context("spawn").Pool(processes, _start, (str(home), judge, concurrency)) as pool:
        while len(set(pool.map(_ready, range(2 * processes), 1))) < processes:
            pass
        yield pool
        pool.close()
        pool.join()


def _score(url: str, windows: Sequence[str]) -> float:
    """Seconds of the scores alone, without the run around them."""
    with Database(url, url).connect() as connection:
        began = time.perf_counter()
        score_windows(connection, windows, _work["settings"], NOW)
        return time.perf_counter() - began


class Seconds(NamedTuple):
    """Seconds of some work by the clock, and of the server's processor for it."""

    clock: float
    server: float


class Bench:
    """An embedded server with hours that were read, copied for every measured run."""

    def __init__(self, url: str, home: Path) -> None:
        self.url, self.home, self._copies = url, home, 0
        with psycopg.connect(url) as connection:
            server = psutil.Process(connection.info.backend_pid).parent()
        assert server is not None
        self._server = server

    def address(self, name: str) -> str:
        """The address of a database of the server."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def server_s(self) -> float:
        """Processor time of the server's processes so far, in seconds; that of ended ones is counted at their parent."""
        time.sleep(0.1)  # which a process takes to end after its client
        live_s = 0.0
        for process in self._server.children():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                live_s += sum(process.cpu_times()[:2])
        return live_s + sum(self._server.cpu_times()[:4])  # user and system, its own and of ended children

    def create(self, name: str) -> Database:
        """A migrated database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        database = Database(self.address(name), self.address(name))
        migrate(database)
        return database

    def fill(self, name: str, many: ManyRows) -> list[str]:
        """A migrated database with rows; its hours."""
        database = self.create(name)
        database.prepare_dagster_schema()
        with database.connect(autocommit=True) as connection:
            insert_many(connection, many)
            connection.execute("VACUUM (ANALYZE)")
        return list(window_range(window_of(many.start), window_of(many.end)))

    def copy(self, name: str) -> str:
        """The address of a copy of a database, which goes with the server."""
        self._copies += 1
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE copy_{self._copies} TEMPLATE {name}")
        return self.address(f"copy_{self._copies}")

    def warm(self, pool: Pool, windows: Sequence[str], processes: int) -> None:
        """Let each process import what its first run needs, some seconds that a worker that lives on pays once."""
        copies = [self.copy("small") for _ in range(processes)]
        pool.starmap(_run, [(url, windows, SCORING) for url in copies], 1)

    def seconds(self, pool: Pool, name: str, windows: Sequence[str], selection: Sequence[str], *, keep: bool = False) -> Seconds:
        """Runs of 24 hours each on the pool's processes, on a copy unless its results are to be kept."""
        runs = [windows[start : start + HOURS_PER_RUN] for start in range(0, len(windows), HOURS_PER_RUN)]
        url = self.address(name) if keep else self.copy(name)
        before_s, began = self.server_s(), time.perf_counter()
        pool.starmap(_run, [(url, run, selection) for run in runs], 1)
        return Seconds(time.perf_counter() - began, self.server_s() - before_s)

    def judged_s(self, windows: Sequence[str], latency_s: float, concurrency: int, processes: int) -> float:
        """Seconds of small hours by the clock, judged by so many processes with so many requests at once."""
        with running(ScriptedJudge(latency_s=latency_s)) as judge, workers(self.home, judge, concurrency, processes) as pool:
            self.warm(pool, windows[:1], processes)
            return self.seconds(pool, "small", windows, SCORING).clock

    def scoring(self, pool: Pool, windows: Sequence[str]) -> Seconds:
        """The scores alone, without the run around them."""
        url, before_s = self.copy("small"), self.server_s()
        return Seconds(pool.apply(_score, (url, windows)), self.server_s() - before_s)

    def write_row_s(self) -> float:
        """Server's seconds for a trajectory of ROW_BYTES that an agent writes, each in a transaction of its own."""
        with self.create("game").connect() as connection:
            fill(connection, WRITTEN, ROW_BYTES / 1000, "mixture")
            rows = connection.execute("SELECT * FROM public.trajectories").fetchall()
            connection.execute("TRUNCATE public.trajectories CASCADE")
            before_s = self.server_s()
            for row in rows:
                connection.execute(f"INSERT INTO public.trajectories VALUES ({', '.join(['%s'] * len(row))})", row)
            return (self.server_s() - before_s) / len(rows)


def _parts(hours: Sequence[str], big: str) -> list[tuple[str, Sequence[str]]]:
    """The runs that costs are fitted on."""
    return [("small", hours[:1]), ("small", hours[:HOURS_PER_RUN]), ("large", [big])]


def fitted(one: float, many: float, big: float, one_alone: float = 0.0, many_alone: float = 0.0) -> dict[str, float]:
    """Seconds of a run, a small hour and a trajectory more, from runs of ``_parts``.

    ``report_s`` is the part of an hour outside its scores, from runs of these alone.
    """
    hour = (many - one) / (HOURS_PER_RUN - 1)
    run = max(0.0, one - hour)
    return {
        "run_s": run,
        "hour_s": hour,
        "row_s": max(0.0, (big - run - hour) / (BIG_ROWS - ROWS)),
        "report_s": max(0.0, hour - (many_alone - one_alone) / (HOURS_PER_RUN - 1)),
    }


def costs_of(parts: Sequence[Seconds]) -> dict[str, Any]:
    """Costs by the clock, and the part of them that the server's processor takes."""
    clock, server = zip(*parts, strict=True)
    return {**fitted(*clock), "database": fitted(*server)}


def measure() -> dict[str, Any]:
    """Costs and real runs of this machine, in rounds; medians over the rounds."""
    small = ManyRows(HOURS * ROWS, START, START + timedelta(hours=HOURS), AGENTS, 0, steps=5, prompt_characters=600)
    large = ManyRows(BIG_ROWS, START, START + timedelta(hours=1), BIG_AGENTS, 0, steps=5, prompt_characters=600)
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="babylon-rl-capacity-") as directory, use_server(Path(directory)) as url:
        bench = Bench(url, Path(directory))
        hours, (big, *_) = bench.fill("small", small), bench.fill("large", large)
        with workers(bench.home, None, 16, 1) as pool:
            bench.seconds(pool, "small", hours[:1], READING)  # which imports the rest
            reading = [bench.seconds(pool, name, windows, READING) for name, windows in _parts(hours, big)]
            for name, windows in (("small", hours), ("large", [big])):
                bench.seconds(pool, name, windows, READING, keep=True)
        scoring: list[list[Seconds]] = []
        crowded_s, one_place_s = list[float](), list[float]()
        runs: dict[tuple[int, int], list[float]] = {point: [] for point in POINTS}
        for _ in range(ROUNDS):
            with running(ScriptedJudge()) as judge, workers(bench.home, judge, 16, 1) as pool:
                bench.warm(pool, hours[:1], 1)
                whole = [bench.seconds(pool, name, windows, SCORING) for name, windows in _parts(hours, big)]
                alone = [bench.scoring(pool, hours[:count]) for count in (1, HOURS_PER_RUN)]
                scoring.append([*whole, *alone])
            crowded_s.append(bench.judged_s(hours, 0.0, 16, 2))
            one_place_s.append(bench.judged_s(hours[:HOURS_PER_RUN], ONE_PLACE_LATENCY_S, 1, 1))
            for concurrency, processes in POINTS:
                seconds = bench.judged_s(hours, LATENCY_S, concurrency, processes)
                runs[concurrency, processes].append(seconds)
                print(json.dumps({"concurrency": concurrency, "processes": processes, "s": seconds}), file=sys.stderr)
        events, write_row_s = _events(bench.address("small"), len(hours)), bench.write_row_s()
    return {
        "measured_on": f"{began:%Y-%m-%d}", "load_average": [round(value, 1) for value in os.getloadavg()], "cores": os.cpu_count(),
        "hours": HOURS, "rows_of_an_hour": ROWS, "latency_s": LATENCY_S,
        "reading": costs_of(reading),
        "scoring": costs_of([Seconds(*map(median, zip(*part, strict=True))) for part in zip(*scoring, strict=True)]),
        "crowded": {"processes": 2, "seconds": crowded_s}, "one_place": {"latency_s": ONE_PLACE_LATENCY_S, "seconds": one_place_s},
        "write_row_s": write_row_s,
        "runs": [{"concurrency": c, "processes": p, "seconds": values} for (c, p), values in runs.items()],
        "events_of_an_hour": events,
    }  # fmt: skip


def _events(url: str, hours: int) -> dict[str, float]:
    """Rows and bytes that reading an hour adds to Dagster's event log."""
    with closing(psycopg.connect(url)) as connection:
        row = connection.execute(
            "SELECT count(*), pg_total_relation_size('babylon_dagster.event_logs') + "
            "pg_total_relation_size('babylon_dagster.asset_check_executions') FROM babylon_dagster.event_logs"
        ).fetchone()
    assert row is not None
    return {"rows": row[0] / hours, "bytes": row[1] / hours}
