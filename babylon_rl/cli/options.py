"""Options and arguments that several commands take, and the hours that they name."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings
from babylon_rl.windows import next_window, utc_now, window_of, window_range, window_start

FromOption = Annotated[str | None, typer.Option("--from", metavar="WINDOW", help="First hour (inclusive).")]
ToOption = Annotated[str | None, typer.Option("--to", metavar="WINDOW", help="Where to stop (exclusive).")]
WindowArgument = Annotated[str, typer.Argument(metavar="WINDOW", help="An hour in UTC, YYYY-MM-DDTHH:00.")]
WindowsArgument = Annotated[list[str] | None, typer.Argument(metavar="WINDOW...", help="Hours in UTC, YYYY-MM-DDTHH:00.")]
ReportOption = Annotated[Path | None, typer.Option("--report", help="A directory for index.html, runs.csv and actions.csv.")]
GameOfVersionOption = Annotated[
    str | None, typer.Option("--game", help="What they play: one-tick, posts, amounts or positions. Default: as trained.")
]
GameOption = Annotated[str, typer.Option("--game", help="What agents play: one-tick, posts, amounts or positions.")]


def refuse_future(window: str, now: datetime) -> None:
    """Raise UsageError for an hour that has not begun."""
    if window_start(window) > now:
        raise UsageError(f"{window} lies in the future: it is {window_of(now)} now, in UTC.")


def named_range(first: str | None, end: str | None) -> tuple[str, str] | None:
    """The hours of --from and --to; None without them.

    Raises:
        UsageError: one of the two is missing, or the hours are malformed or empty.
    """
    if first is None and end is None:
        return None
    if first is None or end is None:
        raise UsageError("--from and --to belong together.")
    # Refuses malformed ids and a range that runs backwards.
    next(window_range(first, end), None)
    return first, end


def pinned_windows(settings: Settings, first: str | None, end: str | None) -> tuple[str, str] | None:
    """The hours named by options or settings, as (from, to); None for the look-back.

    Raises:
        UsageError: one of --from and --to is missing, or the hours are malformed or in the future.
    """
    span = named_range(first, end)
    if span is not None:
        refuse_future(span[0], utc_now())
    elif settings.window_id is not None:
        return settings.window_id, next_window(settings.window_id)
    return span
