"""``babylon-rl verify-data``: is what the game records fit to be trained on?"""

from datetime import datetime
from typing import TYPE_CHECKING

from babylon_rl.cli.output import JsonOption, emit
from babylon_rl.errors import CheckFailed
from babylon_rl.settings import load_settings
from babylon_rl.windows import HOUR, newest_complete, utc_now, window_end, window_of, window_range

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.episodes.quality import Check
    from babylon_rl.store.trajectories import Connection

HOURS = 24


def verify_data(as_json: JsonOption = False) -> None:
    """Check the trajectories of the newest 24 hours that hold any: PASS, WARN and FAIL lines; exit code 1 when one fails."""
    from babylon_rl.store.database import open_database

    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        checks = data_checks(connection, utc_now())

    def render(out: "Console") -> None:
        for check in checks:
            out.print(f"{check.status:<5} {check.name}: {check.detail}", markup=False)

    emit({"checks": [{"name": check.name, "status": check.status, "detail": check.detail} for check in checks]}, render, as_json)
    failed = [check.name for check in checks if check.status == "FAIL"]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")


def data_checks(connection: "Connection", now: datetime) -> "list[Check]":
    """The checks over the rows of the newest 24 hours, counted from the newest complete hour that holds any.

    Rows that no training is meant to see (evaluation, benchmarks, isTrainingData false) are left out.
    """
    from babylon_rl.episodes.decode import flagged
    from babylon_rl.episodes.quality import Check, row_faults, summarize
    from babylon_rl.store.trajectories import logged_ids, newest_window_with_rows, scored_ids, trajectory_rows

    newest = newest_window_with_rows(connection, newest_complete(now))
    if newest is None:
        return [Check("rows", "FAIL", "no complete hour holds a trajectory")]
    end = window_of(window_end(newest))
    wanted = list(window_range(window_of(window_end(newest) - HOURS * HOUR), end))
    found = {row.trajectory_id: list(row_faults(row)) for row in trajectory_rows(connection, wanted) if flagged(row) is None}
    logged, scored = logged_ids(connection, list(found)), scored_ids(connection, list(found))
    faults = [(row, name) for row, names in found.items() for name in names if not (name == "LLM calls" and row in logged)]
    faults += [(row, "scores") for row in found if row not in scored]
    age = now - window_end(newest)
    recent = Check(
        "rows", "WARN" if age > HOURS * HOUR else "PASS", f"{len(found)} rows in the {HOURS} hours up to {end}, {_hours(age / HOUR)} ago"
    )
    if not found:
        recent = Check("rows", "FAIL", f"nothing but evaluation and benchmark rows in the {HOURS} hours up to {end}")
    return [recent, *summarize(len(found), faults)]


def _hours(count: float) -> str:
    return f"{count:.0f} hours" if count < 2 * HOURS else f"{count / HOURS:.0f} days"
