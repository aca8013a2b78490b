"""Moves of many series summed by tick, and what can be said of them: persistence, correlation, and the response to events.

A ``Grid`` holds for each series a list of moves for each session, one move a tick.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, pairwise
from typing import TypeVar

from benchmarks.market_fit.rows import Clock, EventRow

CURVE_TICKS = 10
HORIZONS_MINUTES = (5, 15, 30, 60)
_SHUFFLES = 41
_EDGE = 0.001
Grid = Mapping[str, list[list[float]]]
V = TypeVar("V")


@dataclass(frozen=True)
class Persistence:
    """Variance of moves over some minutes over that of as many ticks, 1 where moves have no memory: above is momentum, below reversion.

    ``low`` to ``high`` is where 95 % of shuffled moves lie.
    """

    minutes: int
    ratio: float
    low: float
    high: float


def response(clock: Clock, grid: Grid, about: Sequence[tuple[EventRow, str]]) -> tuple[tuple[float, ...], float | None]:
    """The mean signed move from just before a pointed event to 1, 2, ... ticks later, and the standard error of the last.

    Beyond the series' own drift: where all events of a question point one way, drift would pass for an effect.
    """
    curves: list[list[float]] = []
    drift = {name: statistics.fmean(move for session in sessions for move in session) for name, sessions in grid.items()}
    for event, name in about:
        for session, moves in zip(clock.sessions, grid[name], strict=True):
            first = clock.tick(event.at) - clock.tick(session[0])
            if event.points and first >= 0 and first + CURVE_TICKS <= len(session):
                path = accumulate(move - drift[name] for move in moves[first : first + CURVE_TICKS])
                curves.append([event.points * move for move in path])
    if len(curves) < 2:
        return (), None
    last = [curve[-1] for curve in curves]
    return tuple(statistics.mean(column) for column in zip(*curves, strict=True)), statistics.stdev(last) / math.sqrt(len(last))


def lag_one(grid: Grid) -> float | None:
    """The correlation of each tick's move with the next one's, all series together, each around its own mean."""
    together = squares = 0.0
    for sessions in grid.values():
        mean = statistics.fmean(move for session in sessions for move in session)
        for session in sessions:
            together += sum((one - mean) * (two - mean) for one, two in pairwise(session))
            squares += sum((move - mean) ** 2 for move in session)
    return together / squares if squares else None


def persistence(grid: Grid, tick_s: float) -> tuple[Persistence, ...]:
    """Against shuffled moves rather than against 1, as drift and short sessions bias the ratio of what has no memory at all."""
    rng = random.Random(0)
    horizons = [minutes for minutes in HORIZONS_MINUTES if round(minutes * 60 / tick_s) >= 2]
    lengths = {minutes: round(minutes * 60 / tick_s) for minutes in horizons}
    real = {minutes: _variance_ratio(grid, lengths[minutes]) for minutes in horizons}
    shuffled: dict[int, list[float]] = {minutes: [] for minutes in horizons}
    for _ in range(_SHUFFLES):
        mixed = {name: _shuffled(sessions, rng) for name, sessions in grid.items()}
        for minutes in horizons:
            if (ratio := _variance_ratio(mixed, lengths[minutes])) is not None:
                shuffled[minutes].append(ratio)
    found = []
    for minutes in horizons:
        ratio, others = real[minutes], sorted(shuffled[minutes])
        if ratio is not None and others:
            middle = statistics.median(others)
            found.append(Persistence(minutes, ratio / middle, others[1] / middle, others[-2] / middle))
    return tuple(found)


def _variance_ratio(grid: Grid, ticks: int) -> float | None:
    """Variance of moves over ``ticks`` ticks over that of as many single ones (Lo and MacKinlay, 1988); None in too short sessions."""
    longer = single = 0.0
    stretches = moments = 0
    for sessions in grid.values():
        scale = rms([move for session in sessions for move in session])
        for session in sessions:
            if scale and len(session) >= ticks:
                path = [0.0, *accumulate(session)]
                longer += sum((end - begin) ** 2 for begin, end in zip(path, path[ticks:], strict=False)) / scale**2
                single += sum(move * move for move in session) / scale**2
                stretches, moments = stretches + len(path) - ticks, moments + len(session)
    return longer / stretches / ticks / (single / moments) if single else None


def _shuffled(sessions: Sequence[Sequence[float]], rng: random.Random) -> list[list[float]]:
    """The same moves in another order, the sessions as long as they were."""
    moves = [move for session in sessions for move in session]
    rng.shuffle(moves)
    left = iter(moves)
    return [[next(left) for _ in session] for session in sessions]


def correlation(series: Sequence[Sequence[float]]) -> float | None:
    """The mean correlation of two stocks' moves in the same tick: from the variance of the sum of standardized series."""
    count = len(series)
    if count < 2:
        return None
    scaled = [[move / rms(values) for move in values] for values in series]
    together = statistics.fmean(sum(column) ** 2 for column in zip(*scaled, strict=True))
    return (together / count - 1) / (count - 1)


def kurtosis(values: Sequence[float]) -> float | None:
    spread = rms(values)
    return statistics.fmean((value / spread) ** 4 for value in values) - 3 if spread else None


def rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else 0.0


def numbered(sessions: Sequence[Sequence[float]]) -> list[tuple[int, float]]:
    return list(enumerate(move for session in sessions for move in session))


def logit(probability: float) -> float:
    inside = min(1 - _EDGE, max(_EDGE, probability))
    return math.log(inside / (1 - inside))


def grouped(rows: Sequence[tuple[str, datetime, float, V]]) -> dict[str, list[tuple[datetime, float, V]]]:
    grouped: dict[str, list[tuple[datetime, float, V]]] = {}
    for name, at, value, more in sorted(rows, key=lambda row: row[1]):
        grouped.setdefault(name, []).append((at, value, more))
    return grouped


def share(part: float, whole: float) -> float | None:
    """None of nothing."""
    return part / whole if whole else None
