"""Several machines on this one: `make scale-test` (`python -m benchmarks.scale_test --hours 720`) prints a table of seconds and ratios.

Starts Postgres, Redis, a judge that answers after 300 ms, `babylon-rl dev` and workers; then a judged backfill in one process, on
1, 2 and 4 workers, the faults, a version that one machine trains, another decides on and a third serves, and three machines
that nobody touches. Names of scenarios choose some: `python -m benchmarks.scale_test --hours 96 speed worker-killed`. With
`--broker rabbitmq` RabbitMQ takes the place of Redis. The exit code is 1 where a ratio of 48, 720 or more hours misses its bound. `--write`
puts the seconds of `speed` into benchmarks/scale_test.json, which the capacity model is compared with.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from babylon_rl.judge.scoring import HOURS_PER_RUN
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.scale.machines import BROKERS, Redis, can_be_apart, site
from babylon_rl_tests.scale.results import ONE_PROCESS, SHORT_HOURS, SPEED, Row, ratios, table
from babylon_rl_tests.scale.scenarios import SETTINGS, Scenarios
from babylon_rl_tests.scale.three_machines import alone, three_machines
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.trace_receiver import trace_receiver

LATENCY_S = 0.3
WORKERS = (1, 2, 4)
FAULT_HOURS = 96
WAITING_HOURS = 72  # three runs: one waits in the broker when two are executed
# Each with a database of its own, which is empty.
APART: dict[str, Callable[[Path, Database], Row]] = {"three-machines": three_machines, "alone": alone}
# Minutes each, of waiting: CI leaves them out.
LONG = ("broker-emptied", "broker-cut", "postgres-cut", "three-machines")
OWN_IDS = "each worker had process ids of its own"
SHARED_IDS = "workers shared process ids (unshare is not allowed here), so that one that was killed was noticed at once, not by its silence"


def speed(scenarios: Scenarios, hours: int) -> Iterator[Row]:
    """The same number of hours in one process, then on 1, 2 and 4 workers."""
    yield scenarios.one_process(hours)
    for workers in WORKERS:
        yield scenarios.backfill(on_workers(workers), hours, workers)


def on_workers(workers: int) -> str:
    """Name of the row of so many workers."""
    return f"{workers} worker{'s' * (workers > 1)}"


def kept_speed(rows: Sequence[Row], hours: int, machine: str) -> dict[str, Any]:
    """Content of the file of ``--write``: seconds of ``speed`` from the first scores to the last."""
    seconds = {row.scenario: round(row.seconds, 1) for row in rows}
    return {
        "measured_on": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine, "cores": os.cpu_count(), "hours": hours, "latency_s": LATENCY_S,
        "one_process_s": seconds[ONE_PROCESS], "seconds_by_workers": {workers: seconds[on_workers(workers)] for workers in WORKERS},
    }  # fmt: skip


# By the name on the command line; each is given the hours to measure.
SCENARIOS: dict[str, Callable[[Scenarios, int], Iterable[Row]]] = {
    "speed": speed,
    "worker-killed": lambda scenarios, hours: [scenarios.worker_killed(min(FAULT_HOURS, hours))],
    "process-killed": lambda scenarios, hours: [scenarios.process_killed(min(FAULT_HOURS, hours))],
    "worker-ended": lambda scenarios, hours: [scenarios.worker_ended(WAITING_HOURS)],
    "run-terminated": lambda scenarios, hours: [scenarios.run_terminated(HOURS_PER_RUN)],
    "broker-emptied": lambda scenarios, hours: [scenarios.broker_emptied(max(WAITING_HOURS, min(FAULT_HOURS, hours)))],
    "broker-cut": lambda scenarios, hours: [scenarios.cut_off(min(FAULT_HOURS, hours), broker=True)],
    "postgres-cut": lambda scenarios, hours: [scenarios.cut_off(min(FAULT_HOURS, hours), broker=False)],
    "older-code": lambda scenarios, hours: [scenarios.older_code(2)],
}


def main() -> None:
    """Run the scenarios and print a row as each ends, then the table."""
    names = [*SCENARIOS, *APART]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, default=720, help="hours of each backfill whose speed is measured")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(names)}; by default all, of few hours the short ones")
    parser.add_argument("--broker", choices=BROKERS, default="redis", help="through which runs go in all scenarios but the last two")
    parser.add_argument("--write", action="store_true", help=f"put the seconds of speed into benchmarks/{SPEED.name}")
    options = parser.parse_args()
    chosen = options.scenarios or [name for name in names if options.hours > SHORT_HOURS or name not in LONG]
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"{unknown[0]} is not a scenario. Choose from {', '.join(names)}.")
    if options.write and "speed" not in chosen:
        parser.error("--write needs the scenario speed.")
    broker = BROKERS[options.broker]
    if shutil.which(broker.program) is None:
        print(f"scale-test: skipped: {broker.missing()}")
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for row in measured(Path(name), chosen, options.hours, broker):
            print(row, flush=True)
            rows.append(row)
    machine = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
    print(f"\n{table(rows)}\n\n{machine}; {OWN_IDS if can_be_apart() else SHARED_IDS}")
    if options.write:
        SPEED.write_text(json.dumps(kept_speed(rows, options.hours, machine), indent=1) + "\n")
    if not print_ratios(rows):
        sys.exit(1)


def print_ratios(rows: Sequence[Row]) -> bool:
    """Print the ratios of speed with their bounds; False where one is missed."""
    found = ratios(rows)
    for ratio in found:
        print(ratio.line)
    return all(ratio.kept for ratio in found)


def measured(directory: Path, chosen: Sequence[str], hours: int, kind: type[Redis]) -> Iterator[Row]:
    """The rows of scenarios, each as it ends; those of judged hours share a site."""
    if several := [name for name in chosen if name in SCENARIOS]:
        (directory / "several").mkdir()
        judge = ScriptedJudge(latency_s=LATENCY_S)
        with prepared(directory / "postgres") as database, trace_receiver() as receiver:
            traced = SETTINGS | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
            with site(directory / "several", database.url, judge, apart=True, kind=kind, **traced) as (made, broker):
                scenarios = Scenarios(made, broker, receiver)
                for name in several:
                    yield from SCENARIOS[name](scenarios, hours)
    for name in chosen:
        if name in APART:
            (directory / name).mkdir()
            with use_server(directory / name / "postgres") as url:
                yield APART[name](directory / name / "machines", Database(url, url))


@contextmanager
def prepared(home: Path) -> Iterator[Database]:
    """A migrated database on a server of its own."""
    with use_server(home) as url:
        database = Database(url, url)
        migrate(database)
        database.prepare_dagster_schema()
        yield database


if __name__ == "__main__":
    main()
