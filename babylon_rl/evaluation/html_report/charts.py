"""Charts as inline SVG, coloured by the page's style, so that they follow light and dark.

Coordinates are rounded to a tenth of a pixel and long series thinned, so that a picture's size does not grow with what it shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.compare_results import Bounds
from babylon_rl.evaluation.html_report.markup import Html, dollars, element, percent, ticks_of

POINTS = 120


@dataclass(frozen=True)
class Curve:
    """A value over a market's time, ``POINTS`` at most, of all runs of an agent: mean, and where the middle 80 % lie.

    ``start`` is where its first point lies, 0..1: a Sharpe ratio is not there from the beginning.
    """

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    start: float = 0.0


@dataclass(frozen=True)
class Quantiles:
    """5, 25, 50, 75 and 95 % of values lie below these."""

    low: float
    quarter: float
    median: float
    three_quarters: float
    high: float


def curve_of(runs: Sequence[Sequence[float | None]]) -> Curve | None:
    """The curve of runs, each given as a value at its moments, None before there is one; a run's time is stretched from 0 to 1.

    None when no run has moments, or none has a value at its end.
    """
    played = [np.asarray(run, dtype=np.float64) for run in runs if len(run) > 1 and run[-1] is not None]
    if not played:
        return None
    points = min(POINTS, max(len(run) for run in played))
    places = np.linspace(0.0, 1.0, points)
    rows = np.stack([np.interp(places, np.linspace(0.0, 1.0, len(run)), run) for run in played])
    first = int(np.argmax(~np.isnan(rows).any(axis=0)))  # from here on every run has a value
    low, high = np.quantile(rows[:, first:], [0.1, 0.9], axis=0)
    return Curve(tuple(rows[:, first:].mean(axis=0).tolist()), tuple(low.tolist()), tuple(high.tolist()), float(places[first]))


def spread_of(values: Sequence[float]) -> Quantiles:
    """The quantiles of at least one value."""
    return Quantiles(*(float(value) for value in np.quantile(np.asarray(values, dtype=np.float64), [0.05, 0.25, 0.5, 0.75, 0.95])))


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Evenly chosen values, first and last included, ``most`` at most."""
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


Scale = Callable[[float], float]
MOST_DOTS = 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 8.0, 24.0


def curve_panel(
    curve: Curve,
    low: float,
    high: float,
    ends: str,
    colour: int,
    *,
    label: str,
    told: Callable[[float], str] = dollars,
    width: float = 360.0,
    height: float = 170.0,
) -> Html:
    """A mean so far as a line, the middle 80 % of runs as a band; ``ends`` labels the end of time. All panels share ``low``..``high``."""
    x, y = _scale(0.0, 1.0, _LEFT, width - _RIGHT), _scale(low, high, height - _BOTTOM, _TOP)
    places = [curve.start + (1.0 - curve.start) * (index / max(1, len(curve.mean) - 1)) for index in range(len(curve.mean))]
    upper = [(x(place), y(value)) for place, value in zip(places, curve.high, strict=True)]
    lower = [(x(place), y(value)) for place, value in zip(places, curve.low, strict=True)]
    line = [(x(place), y(value)) for place, value in zip(places, curve.mean, strict=True)]
    marks = [
        *_rows(low, high, y, width, told=told),
        element("polygon", points=_points([*upper, *reversed(lower)]), class_=f"band c{colour}"),
        element("polyline", points=_points(line), class_=f"line c{colour}"),
        element("text", "start", x=_f(_LEFT), y=_f(height - 7), class_="tick"),
        element("text", ends, x=_f(width - _RIGHT), y=_f(height - 7), class_="tick end"),
    ]
    return _svg(width, height, marks, label)


def dots_row(values: Sequence[float], spread: Quantiles, low: float, high: float, colour: int, width: float = 640.0) -> Html:
    """Every value as a dot on one line, thinned by rank where there are many, over a box of the middle half and a tick at the median."""
    height, middle = 34.0, 17.0
    x = _scale(low, high, 6.0, width - 6.0)
    ordered, median = thinned(sorted(values), MOST_DOTS), _f(x(spread.median))
    left, right = x(spread.quarter), max(x(spread.three_quarters), x(spread.quarter) + 1.0)
    marks = [
        element("line", x1=_f(x(0.0)), x2=_f(x(0.0)), y1="0", y2=_f(height), class_="zero") if low <= 0 <= high else None,
        element("line", x1=_f(x(spread.low)), x2=_f(x(spread.high)), y1=_f(middle), y2=_f(middle), class_=f"whisker c{colour}"),
        element("rect", x=_f(left), y=_f(middle - 9), width=_f(right - left), height="18", class_=f"box c{colour}"),
        [element("path", d=f"M{_f(x(v))} {_f(middle + _jitter(i))}h0", class_=f"dot c{colour}") for i, v in enumerate(ordered)],
        element("line", x1=median, x2=median, y1=_f(middle - 11), y2=_f(middle + 11), class_=f"median c{colour}"),
    ]  # fmt: skip
    return _svg(width, height, marks, f"median {dollars(spread.median)}", stretch=True)


def axis(low: float, high: float) -> Html:
    """The dollars under rows of dots, as texts that stay readable at any width."""
    x = _scale(low, high, 1.0, 99.0)
    labels = [element("span", dollars(value), style=f"left: {_f(x(value))}%") for value in ticks_of(low, high, 5) if 6.0 < x(value) < 94.0]
    return element("div", *labels, class_="axis")


def interval_bar(interval: Bounds, floor: float, ceiling: float, colour: int, width: float = 150.0) -> Html:
    """An estimate and its interval on one line, for a cell of a table; without bounds there is only the estimate."""
    x, middle = _scale(floor, ceiling, 4.0, width - 4.0), 9.0
    low, high = _bounds(interval)
    marks = [
        element("line", x1=_f(x(0.0)), x2=_f(x(0.0)), y1="0", y2="18", class_="zero") if floor <= 0 <= ceiling else None,
        element("line", x1=_f(x(low)), x2=_f(x(high)), y1=_f(middle), y2=_f(middle), class_=f"line c{colour}"),
        element("circle", cx=_f(x(interval.mean)), cy=_f(middle), r="3.6", class_=f"dot c{colour}"),
    ]
    return _svg(width, 18.0, marks, f"{dollars(interval.mean)}, from {dollars(low)} to {dollars(high)}", kind="small")


def difference_bars(values: Sequence[float], interval: Bounds, width: float = 360.0, height: float = 130.0) -> Html:
    """Paired differences, worst to best, as bars from zero; mean and interval across all of them."""
    mean, (low, high) = interval.mean, _bounds(interval)
    ordered = thinned(sorted(values), MOST_DOTS)
    bottom, top = min(0.0, *ordered, low), max(0.0, *ordered, high)
    x, y = _scale(0.0, len(ordered), _LEFT, width - _RIGHT), _scale(bottom, top if top > bottom else bottom + 1.0, height - 8.0, 8.0)
    thick = max(1.0, min(9.0, (width - _LEFT - _RIGHT) / len(ordered) - 1.0))
    bars = [
        _bar(x(index + 0.5) - thick / 2, thick, y(0.0), y(value), "bar gain" if value > 0 else "bar loss")
        for index, value in enumerate(ordered)
    ]
    marks = [
        *_rows(bottom, top, y, width, 4),
        bars,
        element(
            "rect", x=_f(_LEFT), width=_f(width - _LEFT - _RIGHT), y=_f(y(high)), height=_f(max(1.0, y(low) - y(high))), class_="interval"
        ),
        element("line", x1=_f(_LEFT), x2=_f(width - _RIGHT), y1=_f(y(mean)), y2=_f(y(mean)), class_="mean"),
    ]
    return _svg(width, height, marks, f"mean difference {dollars(mean)}")


def share_bar(shares: Sequence[tuple[str, float]], width: float = 640.0) -> Html:
    """Shares of a whole beside each other; each has the class ``s-<name>`` and, on hover, its name and percentage."""
    marks, at = [], 0.0
    for name, share in shares:
        if share > 0:
            title = element("title", f"{name.replace('-', ' ')}: {percent(share, 1)}")
            marks.append(
                element("g", title, element("rect", x=_f(at * width), y="0", width=_f(share * width), height="20", class_=f"s-{name}"))
            )
        at += share
    told = ", ".join(f"{name} {percent(share)}" for name, share in shares if share > 0)
    return _svg(width, 20.0, marks, told, stretch=True, kind="shares")


def sparkline(values: Sequence[float], width: float = 420.0, height: float = 76.0) -> Html:
    """P&L of one run over time."""
    shown = thinned(values, 240) if values else [0.0]
    low, high = min(0.0, *shown), max(0.0, *shown)
    high = high if high > low else low + 1.0
    x, y = _scale(0.0, max(1, len(shown) - 1), _LEFT, width - _RIGHT), _scale(low, high, height - 8.0, 8.0)
    line = _points([(x(index), y(value)) for index, value in enumerate(shown)])
    return _svg(
        width, height, [*_rows(low, high, y, width, 3), element("polyline", points=line, class_="line c0")], "P&L over time", kind="spark"
    )


def _rows(low: float, high: float, y: Scale, width: float, most: int = 5, told: Callable[[float], str] = dollars) -> list[Html]:
    """Lines across a picture at round values, with their labels."""
    found = []
    for value in ticks_of(low, high, most):
        found.append(
            element("line", x1=_f(_LEFT), x2=_f(width - _RIGHT), y1=_f(y(value)), y2=_f(y(value)), class_="zero" if value == 0 else "grid")
        )
        found.append(element("text", told(value), x=_f(_LEFT - 6), y=_f(y(value) + 3.5), class_="tick end"))
    return found


def _bounds(interval: Bounds) -> tuple[float, float]:
    """Where there is no bound, the mean."""
    low, high = interval.low, interval.high
    return interval.mean if low is None else low, interval.mean if high is None else high


def _bar(x: float, width: float, base: float, end: float, kind: str) -> Html:
    return element("rect", x=_f(x), width=_f(width), y=_f(min(base, end)), height=_f(max(0.6, abs(end - base))), class_=kind)


def _svg(width: float, height: float, marks: Sequence[object], label: str, *, stretch: bool = False, kind: str | None = None) -> Html:
    return element(
        "svg", *marks, viewBox=f"0 0 {_f(width)} {_f(height)}", role="img", aria_label=label,
        class_=kind, preserveAspectRatio="none" if stretch else None,
    )  # fmt: skip


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    width = high - low if high > low else 1.0
    return lambda value: start + (end - start) * (value - low) / width


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_f(x)},{_f(y)}" for x, y in places)


def _jitter(index: int) -> float:
    """The same scatter every time: golden-ratio steps within 12 pixels."""
    return 12.0 * ((index * 0.618034) % 1.0 - 0.5)


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
