"""What a range of hours costs through Dagster: `python benchmarks/hour_range.py [--hours 720] [--rows 40] [--kilobytes 5]` prints JSON.

In one run, on an embedded server of its own and on Dagster's stock Postgres storage: an empty asset over the range, and each hourly asset
as runs and commands of this project execute it. The bound is 1.5 times the empty asset; the exit code is 1 when an asset is
above it, or `window_groups` asks more than one query for the rows of a portion of the range (`store/windows.py`).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.jobs import HOURLY
from babylon_rl.automation.launch import QUIET, hours_part, job_definition
from babylon_rl.serving.dagster_client import HOURS_JOB, RANGE_END, RANGE_START
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.store.windows import reading_chunks
from babylon_rl.windows import window_of, window_range, window_stretches
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.plans import RecordedDatabase

START = datetime(2025, 9, 1)
BOUND = 1.5


@dg.asset(partitions_def=hours, backfill_policy=dg.BackfillPolicy.single_run())
def nothing() -> None:
    """Costs what Dagster costs."""


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def fill(database: Database, many: ManyRows) -> None:
    """The rows, and what the planner has to know of them."""
    with database.connect(autocommit=True) as connection:
        insert_many(connection, many)
        connection.execute("VACUUM (ANALYZE, FREEZE)")


def portions(database: Database, many: ManyRows) -> int:
    """Number of portions in which readers take the hours."""
    with database.connect() as connection:
        return len(reading_chunks(connection, window_range(window_of(many.start), window_of(many.end))))


def measure(database: RecordedDatabase, settings: Settings, many: ManyRows, names: Sequence[str]) -> dict[str, Any]:
    """Seconds of everything, in one run; the empty asset is measured after each of ours."""
    windows = list(window_range(window_of(many.start), window_of(many.end)))
    babylon = Babylon(settings, database, lambda: many.end + timedelta(hours=1))
    with open_instance(database, settings) as instance:
        empty_job = dg.Definitions([nothing], executor=dg.in_process_executor).resolve_implicit_global_asset_job_def()
        job = job_definition(HOURS_JOB, babylon)

        def run(of: dg.JobDefinition) -> None:
            for first, last in window_stretches(windows, len(windows)):
                tags = {RANGE_START: first, RANGE_END: last}
                of.execute_in_process(instance=instance, tags=tags, run_config=QUIET)

        assets = {}
        run(empty_job)
        for asset in names:
            del database.sent[:]
            asset_s = timed(partial(run, hours_part(job, [asset])))
            empty_s = timed(lambda: run(empty_job))
            reads = [statement for statement in database.sent if statement.text.lstrip().startswith("COPY (")]
            assets[asset] = {
                "seconds": round(asset_s, 2), "empty_asset": round(empty_s, 2), "ratio": round(asset_s / empty_s, 2),
                "queries_for_rows": sum('"windowId" = ANY' in read.text for read in reads),
            }  # fmt: skip
            print(json.dumps({asset: assets[asset]}), file=sys.stderr)
    return {"assets": assets}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=int, default=720)
    parser.add_argument("--rows", type=int, default=40, help="per hour")
    parser.add_argument("--kilobytes", type=float, default=5, help="of stepsJson per row")
    parser.add_argument("--assets", nargs="+", choices=HOURLY, default=list(HOURLY))
    given = parser.parse_args()
    many = ManyRows(
        given.hours * given.rows, START, START + timedelta(hours=given.hours), agents=max(1, given.rows // 2), steps=5,
        prompt_characters=round(given.kilobytes * 1000 / 5 - 420),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="babylon-rl-range-") as home, use_server(Path(home)) as url:
        database = RecordedDatabase(url)
        migrate(database)
        database.prepare_dagster_schema()
        fill(database, many)
        settings = Settings(_env_file=None, babylon_rl_home=Path(home))
        report = {
            "hours": given.hours, "rows": many.rows, "bound": BOUND, "portions": portions(database, many),
            **measure(database, settings, many, given.assets),
        }  # fmt: skip
    print(json.dumps(report, indent=2))
    measured = report["assets"]
    queries = measured.get("window_groups", {}).get("queries_for_rows", 0)
    return int(queries > report["portions"] or any(asset["ratio"] > BOUND for asset in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
