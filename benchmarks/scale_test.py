"""Several machines on this one: `make scale-test` (`python -m benchmarks.scale_test --hours 720`) prints a table of seconds.

Starts Postgres, Redis, a judge that answers after 300 ms, `babylon-rl dev` and workers; then a judged backfill on 1, 2 and 4 workers, and
the faults. SCENARIO names choose some: `python -m benchmarks.scale_test --hours 96 speed worker-killed`.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from babylon_rl.judge.scripted.judge import ScriptedJudge
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.scale.machines import NO_REDIS, site
from babylon_rl_tests.scale.scenarios import SETTINGS, Row, Scenarios, table

LATENCY_S = 0.3
WORKERS = (1, 2, 4)
FAULT_HOURS = 96


def speed(scenarios: Scenarios, hours: int) -> list[Row]:
    """The same number of hours on 1, 2 and 4 workers."""
    return [scenarios.backfill(f"{workers} workers", hours, workers) for workers in WORKERS]


def main() -> None:
    """Run the scenarios and print a row as each ends, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, default=720, help="hours of each backfill whose speed is measured")
    parser.add_argument("scenarios", nargs="*", help="speed, worker-killed, redis-emptied, redis-cut, postgres-cut, older-code")
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        sys.exit(f"Skipped: {NO_REDIS}.")
    few = min(FAULT_HOURS, options.hours)
    with tempfile.TemporaryDirectory() as name, use_server(Path(name) / "postgres") as url:
        database = Database(url, url)
        migrate(database)
        database.prepare_dagster_schema()
        with site(Path(name), url, ScriptedJudge(latency_s=LATENCY_S), apart=True, **SETTINGS) as (made, redis):
            scenarios = Scenarios(made, redis)
            known: dict[str, Callable[[], list[Row]]] = {
                "speed": lambda: speed(scenarios, options.hours),
                "worker-killed": lambda: [scenarios.worker_killed(few)],
                "redis-emptied": lambda: [scenarios.redis_emptied(few)],
                "redis-cut": lambda: [scenarios.cut_off(few, broker=True)],
                "postgres-cut": lambda: [scenarios.cut_off(few, broker=False)],
                "older-code": lambda: [scenarios.older_code(Path(name), 2)],
            }
            rows = []
            for scenario in options.scenarios or known:
                for row in known[scenario]():
                    print(row, flush=True)
                    rows.append(row)
    print(f"\n{table(rows)}\n\nload {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
