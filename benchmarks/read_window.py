"""What reading an hour costs beside a plain COPY of its rows: `python benchmarks/read_window.py` prints medians, ratios and peaks as JSON.

Makes a database of its own on the embedded server and drops it. Three hours of 26 KB rows with 5 % of each malformed kind
(read_window_rows.py says which). Side by side in one run: plain binary COPY of the same columns, discarded; read_window; the
straightforward reader; and the floor of any reader in one process: the rows, one msgspec pass over each that checks no more than the fields
that can reject it, and its hash. Seconds of CPU tell what a busy machine's clock does not. Memory is that of a process that only reads.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from babylon_rl.settings import load_settings
from babylon_rl.store.connection import Connection, connect
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate

if TYPE_CHECKING:
    from read_window_rows import Kind

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = {"of_plain_copy": 2.7, "times_faster_than_straightforward": 4, "peak_mb": 200}
KINDS: tuple["Kind", ...] = ("mixture", "test agents", "logged")
WINDOW = "2025-11-15T10:00"


@contextlib.contextmanager
def own_database(good: int, kilobytes: float, kind: "Kind") -> Iterator[str]:
    """The address of a migrated database with one hour of rows, dropped at the end."""
    import read_window_rows

    with use_server(load_settings().home) as server, psycopg.connect(server, autocommit=True) as administrator:
        name = f"benchmark_read_{os.getpid()}"
        administrator.execute(f"CREATE DATABASE {name}")
        try:
            url = f"{server.rpartition('/')[0]}/{name}"
            migrate(Database(url, url))
            with connect(url) as connection:
                read_window_rows.fill(connection, good, kilobytes, kind)
            yield url
        finally:
            administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


def plain_copy(connection: Connection) -> int:
    """Bytes of the same columns of the same rows (and of the log rows of those without calls), read and discarded."""
    from babylon_rl.store import trajectories

    silent = [name for (name,) in connection.execute('SELECT DISTINCT "trajectoryId" FROM public.llm_call_logs').fetchall()]
    read = 0
    statements: list[tuple[str, dict[str, Any]]] = [(trajectories.BY_WINDOW_ID, {"windows": [WINDOW]})]
    if silent:
        statements.append((trajectories.CALL_LOGS, {"ids": silent}))
    for statement, parameters in statements:
        with connection.cursor().copy(statement, parameters) as copy:
            read += sum(len(block) for block in copy)
    return read


def read_hour(connection: Connection) -> Any:
    """The hour by the public path, without texts."""
    from babylon_rl.episodes.reading import read_window

    settings = load_settings().model_copy(update={"train_purposes": "action"})
    return read_window(connection, WINDOW, settings, texts=False)


def cheapest(connection: Connection) -> int:
    """The rows, each decoded by the fields that can reject it and hashed, with nothing kept: rows that a pass refuses."""
    import msgspec

    from babylon_rl.episodes.decode import ActionFacts, EnvironmentState
    from babylon_rl.episodes.trajectories import digest
    from babylon_rl.store.trajectories import trajectory_rows

    least = msgspec.defstruct("least", [("environmentState", EnvironmentState), ("action", ActionFacts)], gc=False)
    decode = msgspec.json.Decoder(list[least]).decode  # type: ignore[valid-type] # made at run time
    refused = 0
    for row in trajectory_rows(connection, [WINDOW]):
        try:
            decode(row.steps_json)
            digest(row.steps_json)
        except msgspec.DecodeError:
            refused += 1
    return refused


def straightforward(connection: Connection) -> dict[str, int]:
    """The hour by the rival."""
    import straightforward_reader

    return straightforward_reader.read(connection, WINDOW)


def median_seconds(runs: dict[str, tuple[Callable[[Connection], Any], int]], url: str) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of all ``runs`` (function, repetitions) by the clock and by this process's CPU, in turn after one read that warms up."""
    clock: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    with connect(url, autocommit=True) as connection:
        plain_copy(connection)
        for turn in range(max(times for _, times in runs.values())):
            for name, (run, times) in runs.items():
                if turn < times:
                    began, cpu_began = time.perf_counter(), time.process_time()
                    run(connection)
                    cpu[name].append(time.process_time() - cpu_began)
                    clock[name].append(time.perf_counter() - began)
    return tuple({name: statistics.median(taken) for name, taken in kind.items()} for kind in (clock, cpu))  # type: ignore[return-value]


def peak_mb(url: str) -> float:
    """The largest resident set of a fresh process that reads the hour."""
    command = [sys.executable, __file__, "--peak-of", url]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def print_peak(url: str) -> None:
    """Read the hour and print this process's largest resident set in MB."""
    with connect(url, autocommit=True) as connection:
        read_hour(connection)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(found.group(1)) / 1000 if found else float("nan"))


def measured(rows: int, kilobytes: float, repetitions: int, kind: "Kind", *, rival: bool) -> dict[str, Any]:
    """Seconds, ratios and peak of one hour."""
    with own_database(rows, kilobytes, kind) as url:
        peak = peak_mb(url)
        if not repetitions:
            return {"good_rows": rows, "peak_mb": round(peak)}
        runs: dict[str, tuple[Callable[[Connection], Any], int]] = {
            "plain_copy": (plain_copy, repetitions),
            "read_window": (read_hour, repetitions),
            "cheapest": (cheapest, repetitions),
        }
        if rival:
            runs["straightforward"] = (straightforward, 1)
        seconds, cpu = median_seconds(runs, url)
        with connect(url, autocommit=True) as connection:
            reading = read_hour(connection)
            theirs = straightforward(connection) if rival else None
    own = {"rows": reading.rows, "eligible": reading.eligible, "sequences": sum(e.trainable_sequences for e in reading.episodes)}
    if theirs is not None and any(theirs[name] != number for name, number in own.items()):
        raise SystemExit(f"The two readers disagree: {own} and {theirs}")
    ratios = {
        "of_plain_copy": round(seconds["read_window"] / seconds["plain_copy"], 2),
        "cheapest_of_plain_copy": round(seconds["cheapest"] / seconds["plain_copy"], 2),
    }
    if rival:
        ratios["times_faster_than_straightforward"] = round(seconds["straightforward"] / seconds["read_window"], 1)
    shown = {name: {key: round(taken, 3) for key, taken in one.items()} for name, one in (("seconds", seconds), ("cpu_seconds", cpu))}
    return {**own, **shown, **ratios, "peak_mb": round(peak)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="good rows of the timed hours")
    parser.add_argument("--large", type=int, default=40_000, help="good rows of the hours of which only memory is measured; 0 for none")
    parser.add_argument("--kilobytes", type=float, default=26, help="about the size of stepsJson")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--without-rival", action="store_true", help="leave the straightforward reader out; it needs gigabytes")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    if given.peak_of:
        return print_peak(given.peak_of)
    found = {}
    for kind in given.kinds:
        found[kind] = measured(given.rows, given.kilobytes, given.repetitions, kind, rival=not given.without_rival)
        if given.large:
            found[f"{kind}, large"] = measured(given.large, given.kilobytes, 0, kind, rival=False)
    print(json.dumps(found | {"bounds": BOUNDS}, indent=2))


if __name__ == "__main__":
    main()
