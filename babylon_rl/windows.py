"""Windows: UTC hours, written ``YYYY-MM-DDTHH:00``, half-open [start, start + 1 h).

The id is the partition key, the value of ``"windowId"`` and the name of an hour in every log line. Datetimes here are naive and mean UTC,
as in the database.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

from babylon_rl.errors import UsageError

WINDOW_FORMAT = "%Y-%m-%dT%H:00"
HOUR = timedelta(hours=1)
# Beside strptime, which takes shorter numbers and other digits as well.
_WINDOW_ID = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:00", re.ASCII)


def utc_now() -> datetime:
    """The wall clock as naive UTC in whole milliseconds, passed on as an argument for tests."""
    return whole_ms(datetime.now(UTC).replace(tzinfo=None))


def whole_ms(moment: datetime) -> datetime:
    """Return ``moment`` as the tables keep it: a column would round 10:59:59.9996 into the next hour."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def clock_from(now: datetime) -> Callable[[], datetime]:
    """Clock that shows ``now`` and advances with the monotonic time, naive UTC."""
    started = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - started)


def window_of(moment: datetime) -> str:
    """The window that contains ``moment`` (naive UTC); a full hour is its start."""
    return moment.isoformat(timespec="hours") + ":00"  # strftime writes the year 500 with three digits


def is_window_id(text: str | None) -> bool:
    """True for a canonical id of a real date and hour."""
    if text is None or not _WINDOW_ID.fullmatch(text):
        return False
    try:
        datetime.strptime(text, WINDOW_FORMAT)
    except ValueError:
        return False
    return True


def window_start(window: str) -> datetime:
    """The first moment of a window. Raises UsageError: ``window`` is not a canonical window id."""
    if not is_window_id(window):
        raise UsageError(f"{window!r} is not a window: write an hour in UTC as YYYY-MM-DDTHH:00, such as 2025-10-29T14:00.")
    return datetime.strptime(window, WINDOW_FORMAT)


def window_end(window: str) -> datetime:
    return window_start(window) + HOUR


def next_window(window: str) -> str:
    return window_of(window_end(window))


def window_range(first: str, end: str) -> Iterator[str]:
    """The windows from ``first`` (inclusive) to ``end`` (exclusive). Raises UsageError: a malformed id, or ``end`` before ``first``."""
    at, stop = window_start(first), window_start(end)
    if stop < at:
        raise UsageError(f"The range runs backwards: --from {first} is after --to {end}. Swap them.")
    while at < stop:
        yield window_of(at)
        at += HOUR


def window_stretches(windows: Iterable[str], longest: int) -> Iterator[tuple[str, str]]:
    """Stretches of consecutive windows as (first, last), both inclusive, of at most ``longest`` hours."""
    stretch: list[str] = []
    for window in sorted(set(windows)):
        if stretch and (next_window(stretch[-1]) != window or len(stretch) == longest):
            yield stretch[0], stretch[-1]
            stretch = []
        stretch.append(window)
    if stretch:
        yield stretch[0], stretch[-1]


def newest_complete(now: datetime, settle: timedelta = timedelta(0)) -> str:
    """The newest window that ended at least ``settle`` before ``now``."""
    return window_of(now - settle - HOUR)


def is_complete(window: str, now: datetime) -> bool:
    """True once the window's end has passed."""
    return window_end(window) <= now


def moment(at: datetime | None) -> str | None:
    """A naive UTC time as JSON shows it."""
    return None if at is None else at.isoformat(timespec="milliseconds") + "Z"
