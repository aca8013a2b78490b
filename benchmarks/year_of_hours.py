"""A year of hours on one database: `python -m benchmarks.year_of_hours [--rows N] [--keep DIR] [--steps NAME ...]`.

On the rows of ten_million_rows.py (8,760 hours), found again under DIR. Every step is a process of its own, for which seconds by the
clock, its own processor seconds, its peak memory and the load average are printed. The steps follow one another: the first ones read the
hours that later ones need.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path

import dagster as dg

from babylon_rl.assets.resources import Babylon
from babylon_rl.assets.sources import observe
from babylon_rl.automation.checks_hours import ROWS
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.launch import QUIET, hours_part, job_definition, run_hours
from babylon_rl.serving.admin_page.views import page_view
from babylon_rl.serving.dagster_client import HOURS_JOB, RANGE_END, RANGE_START
from babylon_rl.serving.status import status_document
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.indexes import INDEXES, build_indexes
from babylon_rl.training.batches import fail_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.readiness import keep_counts
from babylon_rl.windows import HOUR, window_of
from babylon_rl_tests.e2e.browser import browser_page, find_browser
from babylon_rl_tests.e2e.dev import running_dev
from benchmarks.judged_hour import BOUND_MB, report
from benchmarks.ten_million_rows import END, asked_rows

BACKFILL_HOURS, YEAR_HOURS = 240, 8760
NOW = END + timedelta(minutes=10)
DRY = {"train_rl_local": True, "local_base_model": "dry", "iterations": 1000}


def settings_of(home: Path) -> Settings:
    """Settings of a year's game, with a trainer that needs nothing."""
    return Settings(_env_file=None, babylon_rl_home=home, **DRY)  # type: ignore[arg-type]


class Step:
    """Database, settings and clock of a measured step."""

    def __init__(self, url: str, home: Path) -> None:
        self.url, self.home = url, home
        self.database, self.settings = Database(url, url), settings_of(home)

    @property
    def babylon(self) -> Babylon:
        """The resource of assets, at the end of the recorded year."""
        return Babylon(self.settings, self.database, lambda: NOW)

    def observe(self, *, full: bool) -> str:
        """Versions of hours, compared with an instance that knows none."""
        with dg.DagsterInstance.ephemeral() as instance:
            return f"{len({change.window for change in observe(instance, self.babylon, full=full).changes})} hours"

    def hours(self, asset: str, first: str, last: str) -> str:
        """Materialize a range."""
        with dg.DagsterInstance.ephemeral() as instance:
            tags = {RANGE_START: first, RANGE_END: last} if first != last else {"dagster/partition": first}
            job = hours_part(job_definition(HOURS_JOB, self.babylon), [asset])
            job.execute_in_process(instance=instance, tags=tags, run_config=QUIET)
        return ""

    def year(self) -> str:
        """window_groups of every hour, in Dagster's storage of the database, as a backfill leaves them."""
        self.database.prepare_dagster_schema()
        windows = [hour(before) for before in range(YEAR_HOURS, 0, -1)]
        return f"{len(run_hours(self.database, self.settings, windows, ['window_groups'], now=lambda: NOW))} runs"

    def checks(self) -> str:
        """Verdicts of the checks of window_groups, one for every hour of the year, as a year of automation leaves them."""
        with open_instance(self.database, self.settings) as instance:
            for _ in range(YEAR_HOURS):
                for rule in ROWS.rules:
                    verdict = dg.AssetCheckEvaluation(
                        asset_key=dg.AssetKey(ROWS.asset),
                        check_name=rule.name,
                        passed=True,
                        metadata={"looked_at": dg.MetadataValue.text("24")},
                    )
                    instance.report_runless_asset_event(verdict)
        return f"{YEAR_HOURS * len(ROWS.rules)} verdicts"

    def command(self, *words: str) -> str:
        """A command of babylon-rl in this process, its output thrown away."""
        from babylon_rl.cli import main

        os.environ |= {"DATABASE_URL": self.url, "BABYLON_RL_HOME": str(self.home)}
        sys.argv = ["babylon-rl", *words]
        printed = StringIO()
        try:
            with redirect_stdout(printed):
                main()
        except SystemExit:
            pass
        return f"{len(printed.getvalue().splitlines())} lines"

    def frozen(self, most: int | None) -> str:
        """Freeze a batch and cancel it."""
        with connect(self.url, autocommit=True) as connection:
            found = freeze(connection, self.settings, NOW, max_trajectories=most, windows=None if most else (hour(BACKFILL_HOURS), hour(0)))
            if found.batch is None:
                return found.reason
            said = f"{found.batch.trajectories} trajectories, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB"
            fail_batch(connection, found.batch.batch_id, "measured", NOW)
            for table in ("dropped_episodes", "batch_episodes", "batch_items"):
                connection.execute(f'DELETE FROM babylon_rl.{table} WHERE "batchId" = %s', [found.batch.batch_id])
        return said

    def page(self, build: Callable[[], object]) -> str:
        """A page three times; the best."""
        spent = []
        for _ in range(3):
            started = time.perf_counter()
            build()
            spent.append(time.perf_counter() - started)
        return f"best of three {min(spent) * 1000:.0f} ms"

    def admin_page(self) -> None:
        """Values of the first page."""
        with self.database.connect() as connection:
            page_view(connection, self.settings, NOW)

    def status(self) -> None:
        """The status document."""
        with self.database.connect() as connection:
            status_document(connection, self.settings, NOW)

    def counts(self) -> str:
        """Counts that automation keeps for status."""
        with connect(self.url, autocommit=True) as connection:
            return keep_counts(connection, self.settings, NOW)

    def user_interface(self) -> str:
        """Seconds until Dagster's pages show what they are opened for, twice each, in Chromium."""
        said = []
        with (
            tempfile.TemporaryDirectory() as profile,
            running_dev(self.home, FIRST_WINDOW=hour(YEAR_HOURS), AUTOMATION_STATUS="stopped") as dev,
            browser_page(find_browser() or "chromium", Path(profile) / "browser") as page,
        ):
            address = dev.url()
            page.open(address)
            page.wait_for("Overview", "Catalog")  # the UI's code is loaded
            for name, (path, words) in UI_PAGES.items():
                spent = []
                for _ in range(2):
                    page.open(f"{address}/{path}")
                    started = time.perf_counter()
                    page.wait_for(*words, timeout_s=120)
                    spent.append(f"{time.perf_counter() - started:.1f}")
                said.append(f"{name} {' and '.join(spent)} s")
        return ", ".join(said)

    def indexes(self) -> str:
        """The optional indexes."""
        return ", ".join(f"{built.index.name} {(built.size_bytes or 0) / 1e6:.0f} MB" for built in build_indexes(self.database))

    def no_indexes(self) -> str:
        """Drop the optional indexes."""
        with connect(self.url, autocommit=True) as connection:
            for index in INDEXES:
                connection.execute(f"DROP INDEX IF EXISTS public.{index.name}")
        return ""


def hour(before_end: int) -> str:
    """The hour that begins so many hours before the end."""
    return window_of(END - before_end * HOUR)


# Only where asked for: half an hour each, and the pages that need what both leave.
LONG, CHECKS, USER_INTERFACE = "backfill of the year", "checks of the year", "pages of the UI"
UI_PAGES = {
    "partitions": ("assets/window_groups?view=partitions", ("Materialized",)),
    "checks": ("assets/window_groups?view=checks", ("clocks_agree", "Latest execution")),
    "overview": ("assets/window_groups?view=overview", ("Latest materialization", "ago", "Latest check results")),
    "runs": ("runs", ("hours",)),
}
EVERYTHING = "a batch of everything"
STEPS: dict[str, Callable[[Step], str]] = {
    "no indexes": Step.no_indexes,
    "first observation": lambda step: step.observe(full=True),
    "observation of a week": lambda step: step.observe(full=False),
    f"backfill of {BACKFILL_HOURS} hours": lambda step: step.hours("window_groups", hour(BACKFILL_HOURS), hour(1)),
    LONG: Step.year,
    CHECKS: Step.checks,
    USER_INTERFACE: Step.user_interface,
    "one changed hour": lambda step: step.hours("window_groups", hour(1), hour(1)),
    f"scored_groups of {BACKFILL_HOURS} hours": lambda step: step.hours("scored_groups", hour(BACKFILL_HOURS), hour(1)),
    "windows of a week": lambda step: step.command("windows", "--lookback-hours", "168"),
    "windows of the backfill": lambda step: step.command("windows", "--lookback-hours", str(BACKFILL_HOURS)),
    "windows of the year": lambda step: step.command("windows"),
    "a batch of 1,000": lambda step: step.frozen(1000),
    EVERYTHING: lambda step: step.frozen(None),
    "keep_counts": Step.counts,
    "status": lambda step: step.page(step.status),
    "admin page": lambda step: step.page(step.admin_page),
    "indexes": Step.indexes,
}
# Steps of fat_hour.py.
FAT = "fat "
FAT_STEPS: dict[str, Callable[[Step], str]] = {
    f"{FAT}window_groups": lambda step: step.hours("window_groups", hour(1), hour(1)),
    f"{FAT}market_outcomes": lambda step: step.hours("market_outcomes", hour(1), hour(1)),
    f"{FAT}hindsight": lambda step: step.hours("hindsight", hour(1), hour(1)),
    **dict.fromkeys((f"{FAT}scored_groups", f"{FAT}scored_groups by a model"), lambda step: step.hours("scored_groups", hour(1), hour(1))),
}
# Steps that may hold BOUND_MB, however many rows there are.
BOUNDED = (FAT, EVERYTHING)


def work(name: str, url: str, home: Path) -> int:
    """One step, and its line; 1 when it holds more than its bound."""
    started = time.perf_counter()
    said = (STEPS | FAT_STEPS)[name](Step(url, home))
    return int(report(name, started, said) > BOUND_MB and name.startswith(BOUNDED))


def main() -> int:
    """Each step in a process of its own."""
    if sys.argv[1:2] == ["--work"]:
        return work(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[step for step in STEPS if step not in (LONG, CHECKS, USER_INTERFACE)])
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    with asked_rows(__doc__) as (url, home, _):
        words = [sys.executable, "-m", "benchmarks.year_of_hours", "--work"]
        # Read when the partitions are imported: all of the year's hours are observed.
        environment = os.environ | {"FIRST_WINDOW": hour(YEAR_HOURS)}
        return max(subprocess.run([*words, step, url, str(home)], check=False, env=environment).returncode for step in given.steps)


if __name__ == "__main__":
    sys.exit(main())
