"""What an hourly asset costs over an empty Dagster asset: `python benchmarks/hourly_overhead.py WINDOW` prints seconds as JSON.

Runs on the database of the settings, which must hold WINDOW. The instance is the project's, its storage on an embedded server of its own,
so that no run of this benchmark is in the history of that database. The exit code is 1 when an asset is above the bound of 0.5 s.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.jobs import HOURLY
from babylon_rl.automation.launch import QUIET, hours_part, job_definition
from babylon_rl.serving.dagster_client import HOURS_JOB
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.embedded import use_server

RUNS = 5
BOUND_SECONDS = 0.5


@dg.asset(partitions_def=hours)
def nothing() -> None:
    """Costs what Dagster costs."""


def best(run: Callable[[], object]) -> float:
    """The fastest of RUNS runs after one that warms up, in seconds."""
    run()
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@contextmanager
def own_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The project's instance in an empty state directory, with a Postgres of its own."""
    with tempfile.TemporaryDirectory(prefix="babylon-rl-overhead-") as home, use_server(Path(home)) as url:
        storage = Database(url, url)
        storage.prepare_dagster_schema()
        with open_instance(storage, settings.model_copy(update={"babylon_rl_home": Path(home)})) as instance:
            yield instance


def main(window: str) -> int:
    """Measure every hourly asset alone; the exit code."""
    settings = load_settings()
    with open_database(settings) as database, own_instance(settings) as instance:
        job = job_definition(HOURS_JOB, Babylon(settings, database))
        empty_job = dg.Definitions([nothing], executor=dg.in_process_executor).resolve_implicit_global_asset_job_def()

        def run(asset: str) -> object:
            return hours_part(job, [asset]).execute_in_process(instance=instance, partition_key=window, run_config=QUIET)

        empty = best(lambda: empty_job.execute_in_process(instance=instance, partition_key=window, run_config=QUIET))
        over = {asset: round(best(lambda asset=asset: run(asset)) - empty, 3) for asset in HOURLY}
    print(json.dumps({"empty_asset_seconds": round(empty, 3), "seconds_over_it": over, "bound_seconds": BOUND_SECONDS}, indent=2))
    return int(max(over.values()) > BOUND_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
