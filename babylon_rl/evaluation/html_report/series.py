"""Numbers behind the pictures: curves of many runs brought to one length, quantiles, and the few rows that stand for many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POINTS = 120


@dataclass(frozen=True)
class Curve:
    """P&L over a market's time, ``POINTS`` at most, of all runs of an agent: mean, and where the middle 80 % lie."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Spread:
    """5, 25, 50, 75 and 95 % of values lie below these."""

    low: float
    quarter: float
    median: float
    three_quarters: float
    high: float


def curve_of(runs: Sequence[Sequence[float]]) -> Curve | None:
    """The curve of runs, each given as P&L at its moments; a run's time is stretched from 0 to 1. None when no run has moments."""
    played = [np.asarray(run, dtype=np.float64) for run in runs if len(run) > 1]
    if not played:
        return None
    points = min(POINTS, max(len(run) for run in played))
    places = np.linspace(0.0, 1.0, points)
    rows = np.stack([np.interp(places, np.linspace(0.0, 1.0, len(run)), run) for run in played])
    low, high = np.quantile(rows, [0.1, 0.9], axis=0)
    return Curve(tuple(rows.mean(axis=0).tolist()), tuple(low.tolist()), tuple(high.tolist()))


def spread_of(values: Sequence[float]) -> Spread:
    """The quantiles of at least one value."""
    return Spread(*(float(value) for value in np.quantile(np.asarray(values, dtype=np.float64), [0.05, 0.25, 0.5, 0.75, 0.95])))


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Evenly chosen values, first and last included, ``most`` at most."""
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]
