"""HTML pages from jinja2 templates: one file each, without scripts or other files.

Every value in a template is escaped. Characters that no HTML may hold, or that turn the reading direction around, are replaced. Charts are
inline SVG (templates/charts.html.j2) in the colours of the page's style: they follow light and dark, which matplotlib's SVG cannot.
Their coordinates are rounded to a tenth of a pixel and long series thinned, so that the size of a picture has a bound.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from babylon_rl.reporting.numbers import DASH, MINUS, dollars, moment, number, percent, shortened, ticks_of

TEMPLATES = Path(__file__).with_name("templates")
POINTS = 120  # of a curve
_NON_CHARACTERS = "".join(chr(plane + end) for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF))
# Controls, lone surrogates, marks of direction, and the two non-characters at the end of every plane.
_FORBIDDEN = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069{_NON_CHARACTERS}]")


def render(template: Path, **values: Any) -> str:
    """Render a template with the charts, style and number formats of this room."""
    return _environment(template.parent).get_template(template.name).render(values)


@lru_cache
def _environment(directory: Path) -> Environment:
    """The environment of a directory's templates, which it compiles once."""
    # A name that a template misspells is an error (StrictUndefined), not an empty place on the page.
    environment = Environment(
        loader=FileSystemLoader([directory, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shortened=shortened, pixels=pixels, with_code=with_code)
    environment.globals.update(
        dollars=dollars, percent=percent, number=number, moment=moment, ticks_of=ticks_of, DASH=DASH, MINUS=MINUS,
        Scale=Scale, line_points=line_points, scatter_offset=scatter_offset, thinned=thinned,
        style=Markup((TEMPLATES / "style.css").read_text("utf-8")),
    )  # fmt: skip
    return environment


def with_code(sentence: str) -> Markup:
    """Escaped HTML of a sentence; what it has between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(_clean(sentence)))))


def _clean(value: Any) -> Any:
    """A value without forbidden characters; None becomes nothing."""
    if value is None or isinstance(value, Markup):
        return "" if value is None else value
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(value))


@dataclass(frozen=True)
class MeanCurve:
    """Mean of several runs over time, with their middle 80 %; ``POINTS`` at most.

    ``start`` is the time of its first point, 0..1: a Sharpe ratio does not exist from the beginning.
    """

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    start: float = 0.0

    @property
    def places(self) -> list[float]:
        return [self.start + (1.0 - self.start) * (index / max(1, len(self.mean) - 1)) for index in range(len(self.mean))]


def curve_of(runs: Sequence[Sequence[float | None]]) -> MeanCurve | None:
    """Mean curve of several runs, each a value at its moments, None before the first.

    A run's time is stretched from 0 to 1. None when no run has moments, or none has a value at its end.
    """
    played = [np.asarray(run, dtype=np.float64) for run in runs if len(run) > 1 and run[-1] is not None]
    if not played:
        return None
    points = min(POINTS, max(len(run) for run in played))
    places = np.linspace(0.0, 1.0, points)
    rows = np.stack([np.interp(places, np.linspace(0.0, 1.0, len(run)), run) for run in played])
    first = int(np.argmax(~np.isnan(rows).any(axis=0)))  # from here on every run has a value
    low, high = np.quantile(rows[:, first:], [0.1, 0.9], axis=0)
    return MeanCurve(tuple(rows[:, first:].mean(axis=0).tolist()), tuple(low.tolist()), tuple(high.tolist()), float(places[first]))


def quantiles_of(values: Sequence[float]) -> dict[str, float]:
    """Quantiles of at least one value at 5, 25, 50, 75 and 95 %, by name."""
    names = ("low", "quarter", "median", "three_quarters", "high")
    return dict(zip(names, np.quantile(np.asarray(values, dtype=np.float64), [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(), strict=True))


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Evenly chosen values, first and last included, ``most`` at most."""
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


class Scale:
    """Linear map from values to pixels; a call gives the coordinate as text."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._width, self._start, self._end = low, high - low if high > low else 1.0, start, end

    def __call__(self, value: float, shift: float = 0.0) -> str:
        return pixels(self.at(value) + shift)

    def at(self, value: float) -> float:
        return self._start + (self._end - self._start) * (value - self._low) / self._width

    def first(self, value: float, other: float) -> str:
        """The smaller coordinate of two values."""
        return pixels(min(self.at(value), self.at(other)))

    def length(self, value: float, other: float, least: float = 0.0) -> str:
        """The distance between two values, ``least`` at least."""
        return pixels(max(least, abs(self.at(other) - self.at(value))))


def pixels(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def line_points(x: Scale, y: Scale, places: Sequence[float], values: Sequence[float]) -> str:
    return " ".join(f"{x(place)},{y(value)}" for place, value in zip(places, values, strict=True))


def scatter_offset(index: int) -> float:
    """A vertical offset within 12 pixels that is the same every time: golden-ratio steps."""
    return 12.0 * ((index * 0.618034) % 1.0 - 0.5)
