"""Command ``verify-data``: checks whether recorded rows are fit for training.

Rows are checked one by one as they stream in; only their ids are kept.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from babylon_rl.cli.output import JsonOption, emit
from babylon_rl.episodes.decode import not_for_training
from babylon_rl.episodes.quality import named, row_faults, summarize, unmatched_sentence
from babylon_rl.episodes.reading import read_windows
from babylon_rl.errors import CheckFailed
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.training_status import clock_of
from babylon_rl.store.trajectories import (
    first_logged_calls,
    newest_window_with_rows,
    rows_of_no_hour,
    scored_ids,
    trajectory_rows,
    with_logged_accesses,
)
from babylon_rl.store.windows import reading_chunks
from babylon_rl.types import Check, WindowReading
from babylon_rl.windows import HOUR, newest_complete, next_window, window_end, window_of, window_range, window_start

app = typer.Typer()
HOURS = 24

# Oddities of eligible rows that stop nothing: the check's name, the count and the ids in an hour's quality, and the words.
_ODDITIES = (
    ("duplicates", "duplicate_rows", "duplicates", "rows repeat the steps of another row of their agent in the hour"),
    ("clocks", "skewed_rows", "clock_skew", "rows have times that contradict each other"),
    ("P&L jumps", "jumping_agents", "pnl_jumps", "agents have a P&L that jumps by more than could be won or lost"),
    ("window hours", "other_lengths", None, "rows say windowHours other than 1 and count in their own hour only"),
)


@app.command("verify-data")
def verify_data(
    as_of: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M", "%Y-%m-%d"], help="Check as of this time (UTC). Default: now.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the rows of the newest 24 hours with data. Each check is PASS, WARN or FAIL. Exit code 1 when a check fails."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        checks = data_checks(connection, settings, as_of or clock_of(connection))
    rows = [asdict(check) for check in checks]
    emit({"checks": rows}, [f"{check.status:<5} {check.name}: {check.detail}" for check in checks], as_json)
    failed = [check.name for check in checks if check.status == "FAIL"]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")


def data_checks(connection: Connection, settings: Settings, now: datetime) -> list[Check]:
    """Checks of the rows of the newest 24 hours, and of rows without an hour.

    The 24 hours end with the newest complete hour that holds rows; the line fails when that ended more than 24 hours before ``now``. Rows
    that are not meant to train (evaluation, benchmarks, isTrainingData false) are left out.
    """
    lost = rows_of_no_hour(connection)
    sentence = f"{len(lost)} rows have neither a window id nor a start time that names an hour, and count nowhere{named(lost, len(lost))}"
    hours = [Check("hours", "FAIL", sentence)] if lost else []
    newest = newest_window_with_rows(connection, newest_complete(now))
    end = next_window(newest or newest_complete(now))
    first = window_of(window_start(end) - HOURS * HOUR)
    unmatched = unmatched_sentence(connection, first, now)
    logged = [Check("logged calls", "WARN", unmatched)] if unmatched else []
    if newest is None:
        return [Check("rows", "FAIL", "no complete hour holds a trajectory"), *hours, *logged]
    windows = list(window_range(first, end))
    ids, faults = _row_faults(connection, windows)
    if not ids:
        return [Check("rows", "FAIL", f"nothing but evaluation and benchmark rows in the {HOURS} hours up to {end}"), *hours, *logged]
    age = now - window_end(newest)
    ago = f"{age / HOUR:.0f} hours" if age < 2 * HOURS * HOUR else f"{age / HOUR / HOURS:.0f} days"
    counted = f"{len(ids)} rows in the {HOURS} hours up to {end}, {ago} ago"
    recent = Check("rows", "FAIL" if age > HOURS * HOUR else "PASS", counted)
    readings = [reading for some in reading_chunks(connection, windows) for reading in read_windows(connection, some, settings).values()]
    return [recent, *hours, *summarize(len(ids), faults), *logged, *_oddities(readings, settings)]


def _row_faults(connection: Connection, windows: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Ids of rows that are meant to train, and (id, check) per failed check."""
    ids: list[str] = []
    faults: list[tuple[str, str]] = []
    # Calls and provider accesses may stand in the log instead of the steps: rows without them are looked up together below.
    for row in trajectory_rows(connection, windows):
        if not_for_training(row) is None:
            ids.append(row.trajectory_id)
            faults += [(row.trajectory_id, name) for name in row_faults(row)]
    silent, blind = ([row for row, name in faults if name == looked_up] for looked_up in ("LLM calls", "provider accesses"))
    faults = [(row, name) for row, name in faults if name not in ("LLM calls", "provider accesses")]
    logged = first_logged_calls(connection, silent)
    faults += [(row, "LLM calls") for row in silent if row not in logged]
    faults += [(row, "first LLM call") for row, whole in logged.items() if not whole]
    accessed = with_logged_accesses(connection, blind)
    faults += [(row, "provider accesses") for row in blind if row not in accessed]
    scored = scored_ids(connection, ids)
    return ids, faults + [(row, "scores") for row in ids if row not in scored]


def _oddities(readings: Sequence[WindowReading], settings: Settings) -> list[Check]:
    eligible = sum(reading.eligible for reading in readings)
    prompts = sum(reading.quality.prompts for reading in readings)
    short = sum(reading.quality.short_prompts for reading in readings)
    sentence = f"{short} of {prompts} rows with a call have a short prompt (system up to 50 or user up to 100 characters)"
    checks = [Check("prompt lengths", "WARN" if short > (1 - settings.data_quality_threshold) * prompts else "PASS", sentence)]
    for name, count, ids, description in _ODDITIES:
        total = sum(getattr(reading.quality, count) for reading in readings)
        listed = [odd for reading in readings for odd in (getattr(reading.quality, ids) if ids else ())]
        detail = f"{total} {description}{named(listed, total)}" if total else f"{eligible} eligible rows"
        checks.append(Check(name, "WARN" if total else "PASS", detail))
    return checks
