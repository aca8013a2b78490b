"""Formats of numbers, texts and tables for people.

Dollars are without cents from ten on, with a real minus sign; a missing value is a dash.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

DASH = "–"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        value: where a row has it: a key, a position, an attribute, or a function of the row.
        digits: to which a number is rounded.
        wide: only shown in a terminal where the whole table fits.
        meaning: a few words for the legend under the table, and for the head of a column on a page.
    """

    title: str
    value: str | int | Callable[[Any], Any]
    digits: int | None = None
    wide: bool = False
    meaning: str = ""

    def cell(self, row: Any) -> Any:
        """The value of this column in a row, rounded."""
        value: Any
        if callable(self.value):
            value = self.value(row)
        elif isinstance(row, Mapping | Sequence):
            value = row[self.value]  # type: ignore[index] # a key of a mapping, a position of a sequence
        else:
            value = getattr(row, str(self.value))
        return round(value, self.digits) if self.digits is not None and value is not None else value


def legend(columns: Iterable[Column]) -> str:
    """Meanings of columns for the end of their table; empty where no column has one."""
    return "; ".join(f"{column.title}: {column.meaning}" for column in columns if column.meaning)


def dollars(usd: float | None, sign: bool = True) -> str:
    """``+$1,234``, ``−$5.20``; ``sign`` False leaves the plus out."""
    if usd is None or not math.isfinite(usd):
        return DASH
    # From what would round to 10.00 on.
    amount = f"${abs(usd):,.0f}" if abs(usd) >= 9.995 else f"${abs(usd):,.2f}"
    if amount == "$0.00":
        return "$0"
    return f"{MINUS if usd < 0 else '+' if sign else ''}{amount}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share (0.25) as ``25 %``."""
    if share is None or not math.isfinite(share):
        return DASH
    return _signed(share, f"{abs(share):.{digits}%}".replace("%", " %"))


def number(value: float | None, digits: int = 2) -> str:
    """``−1.25``."""
    if value is None or not math.isfinite(value):
        return DASH
    return _signed(value, f"{abs(value):,.{digits}f}")


def _signed(value: float, text: str) -> str:
    # what rounds to 0 has no minus
    return f"{MINUS if value < 0 and any(digit in text for digit in '123456789') else ''}{text}"


def moment(seconds: float) -> str:
    """Time since a market's start: ``0:05:00``, with days where there are any."""
    days, rest = divmod(int(seconds), 86_400)
    clock = timedelta(seconds=rest)
    return f"day {days + 1}, {clock}" if days else str(clock)


def duration(seconds: float) -> str:
    """``30 minutes``, ``7 days``."""
    for name, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:,.0f} {name}{'' if seconds == length else 's'}"
    return f"{seconds:,.0f} seconds"


def about(seconds: float) -> str:
    """A duration to one unit: ``45 s``, ``12 minutes``, ``3 hours``, ``9 days``."""
    for name, length, least in (("days", 86_400, 172_800), ("hours", 3600, 7200), ("minutes", 60, 120)):
        if seconds >= least:
            return f"{seconds / length:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, most: int) -> str:
    """Shorten a text to ``most`` characters on one line, with an ellipsis."""
    # The beginning is enough, and texts may be long.
    return cut(" ".join(text[: 4 * most].split()), most)


def cut(text: str, most: int) -> str:
    """The first ``most`` characters of a text, to the end of a word, with an ellipsis."""
    if len(text) <= most:
        return text
    words = re.sub(r"\s+\S*$", "", text[:most])
    # One word that is as long as a line is cut in the middle.
    return f"{words if len(words) > most // 2 and len(words) < most else text[: most - 1]}…"


def ticks_of(low: float, high: float, most: int = 5) -> list[float]:
    """Round tick values between two numbers, for an axis."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    # An end that is a multiple of the step but for rounding counts.
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; cells are texts that hold no bar and no line break."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows))


def markdown_rows(columns: Sequence[Column], rows: Iterable[Any]) -> str:
    """A table in Markdown of rows by their columns; None is a hyphen."""
    cells = ([column.cell(row) for column in columns] for row in rows)
    return markdown_table([column.title for column in columns], [["-" if cell is None else str(cell) for cell in row] for row in cells])
