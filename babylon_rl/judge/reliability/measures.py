"""Estimates with 95 % intervals, and sums over judged groups.

Groups are the independent draws, episodes are not. Only small sums of each group are kept, so a long range takes little memory.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from babylon_rl.judge.consensus import FEWEST_RANKED, centred_ranks, spearman
from babylon_rl.store.judge_report import HourVerdicts
from babylon_rl.types import NO_SPREAD, EpisodeScore

CONFIDENCE = 0.95
_NEARLY = 1 - 1e-9  # the largest correlation on Fisher's scale, where 1 is infinite
_TINY = 1e-9  # share of a sum of squares that may be rounding

Moments = npt.NDArray[np.float64]  # 5 by 5
PLACES = 5  # from the first fifth of a request to the last
PNL_RANKS = 5
MOST_POINTS = 2_000
MOST_USD = 1e9  # larger amounts are clipped: they cannot be squared or drawn
Bins = list[list[tuple[float, float]]]  # of each bin (place, value), the means of one group each


@dataclass(frozen=True)
class Estimate:
    """A number over some groups; ``low`` and ``high`` are None for a single group."""

    value: float
    low: float | None
    high: float | None
    groups: int

    def document(self, name: str = "mean", **others: Any) -> dict[str, Any]:
        """This estimate as JSON; ``name`` is that of its value."""
        return {name: self.value, "low": self.low, "high": self.high, "groups": self.groups, **others}


def mean_estimate(by_group: Iterable[float | None]) -> Estimate | None:
    """Mean of one value (-1..1) per group that has one, with Student's interval clipped to -1..1; None without values."""
    values = [value for value in by_group if value is not None]
    if not values:
        return None
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = _quantile(len(values) - 1) * math.sqrt(variance / len(values))
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half), len(values))


def slope_estimate(parts: Sequence[tuple[float, float]]) -> Estimate | None:
    """Slope of one least-squares line within groups, each given as (sum of xy, sum of xx) of its centred values.

    The interval is that of the cluster-robust variance (Liang and Zeger, 1986) with G/(G - 1), and G - 1 degrees of freedom.
    """
    weight = math.fsum(sxx for _, sxx in parts)
    if weight <= 0:
        return None
    slope = math.fsum(sxy for sxy, _ in parts) / weight
    groups = sum(sxx > 0 for _, sxx in parts)
    if groups < 2:
        return Estimate(slope, None, None, groups)
    variance = groups / (groups - 1) * math.fsum((sxy - slope * sxx) ** 2 for sxy, sxx in parts) / weight**2
    half = _quantile(groups - 1) * math.sqrt(variance)
    return Estimate(slope, slope - half, slope + half, groups)


def length_moments(scores: Sequence[float], lengths: Sequence[float], pnls: Sequence[float]) -> Moments:
    """Sums of products within a group, from which correlation and slope over length follow.

    The columns, centred: score, rank of length, and the controls: rank of P&L, its square, P&L over its deviation. Ranks of P&L alone
    are too weak a control: an unbiased judge whose scores are a curve of P&L would then seem to depend on length.
    """
    ranks, earned = np.array(centred_ranks(pnls)), np.array(pnls)
    columns = [np.array(scores), np.array(centred_ranks(lengths)), ranks, ranks**2, earned / (earned.std() or 1.0)]
    centred = np.stack([column - column.mean() for column in columns])
    products: Moments = centred @ centred.T
    return products


def length_correlation(groups: Sequence[Moments]) -> Estimate | None:
    """Partial correlation of score and length given P&L, -1..1; interval on Fisher's scale."""

    def correlation(moments: Moments) -> float | None:
        left = _less_money(moments)
        if left is None:
            return None
        if left[0, 0] <= _TINY * moments[0, 0] or left[1, 1] <= _TINY * moments[1, 1]:
            return 0.0  # P&L explains one of them wholly
        return float(np.clip(left[0, 1] / math.sqrt(left[0, 0] * left[1, 1]), -1, 1))

    return _jackknifed(groups, correlation, lambda value: math.atanh(max(-_NEARLY, min(_NEARLY, value))), math.tanh)


def length_points(groups: Sequence[Moments]) -> Estimate | None:
    """Score of a group's longest transcript less that of the shortest, at equal P&L."""

    def points(moments: Moments) -> float | None:
        left = _less_money(moments)
        if left is None or left[1, 1] <= _TINY * moments[1, 1]:
            return None
        return float(left[0, 1] / left[1, 1])  # ranks of length run over one unit

    return _jackknifed(groups, points, float, float)


def _less_money(moments: Moments) -> Moments | None:
    """Products of score and length after regression on P&L; None where one does not vary."""
    judged, money = moments[:2, :2], moments[2:, 2:]
    if min(judged[0, 0], judged[1, 1]) <= _TINY:
        return None
    left: Moments = judged - moments[:2, 2:] @ np.linalg.pinv(money, rcond=_TINY, hermitian=True) @ moments[2:, :2]
    return left


def _jackknifed(
    groups: Sequence[Moments],
    measure: Callable[[Moments], float | None],
    scaled: Callable[[float], float],
    unscaled: Callable[[float], float],
) -> Estimate | None:
    """Estimate of ``measure`` with a jackknife interval over groups, computed on the scale of ``scaled``."""
    whole: Moments = np.sum(groups, axis=0)
    if not groups or (value := measure(whole)) is None:
        return None
    # the measure with each group left out in turn; sums make that a subtraction
    left_out = [scaled(estimate) for group in groups if (estimate := measure(whole - group)) is not None]
    if len(left_out) < 2:
        return Estimate(value, None, None, len(groups))
    count, middle = len(left_out), fmean(left_out)
    error = math.sqrt((count - 1) / count * math.fsum((estimate - middle) ** 2 for estimate in left_out))
    half = _quantile(count - 1) * error
    return Estimate(value, unscaled(scaled(value) - half), unscaled(scaled(value) + half), len(groups))


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats, which has the same, takes four times as long to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class HourPoint:
    """Points of one hour in the plots: disagreement, tau, rank correlation with P&L. None where orders or scores do not rank."""

    window: str
    disagreement: float | None
    tau: float | None
    pnl_correlation: float | None


@dataclass
class GroupSums:
    """Sums over the groups so far. Every ``every``-th hour leaves its episodes as points (P&L in dollars, score) for a plot."""

    every: int = 1
    versions: set[str] = field(default_factory=set)
    orders: list[int] = field(default_factory=list)
    without_spread: int = 0
    episodes: int = 0
    flagged: int = 0
    masked: int = 0
    gains: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    followed: int = 0
    without_pnl_ranks: int = 0
    hours: list[HourPoint] = field(default_factory=list)
    slopes: list[tuple[float, float]] = field(default_factory=list)
    by_place: Bins = field(default_factory=lambda: [[] for _ in range(PLACES)])
    by_pnl_rank: Bins = field(default_factory=lambda: [[] for _ in range(PNL_RANKS)])
    mean_places: list[float] = field(default_factory=list)
    lengths: list[Moments] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, hour: HourVerdicts) -> None:
        group, judgement = hour.group, hour.group.judgement
        played = [(score, hour.played[score.agent_id][0]) for score in hour.scores if score.agent_id in hour.played]
        with_pnl = [(score, max(-MOST_USD, min(MOST_USD, pnl))) for score, pnl in played if math.isfinite(pnl)]
        pnls, scores = [pnl for _, pnl in with_pnl], [score.score for score, _ in with_pnl]
        correlation = spearman(scores, pnls)
        self.without_pnl_ranks += correlation is None
        several = None if judgement is None or judgement.orders < 2 else judgement
        disagreement, tau = (None, None) if several is None else (group.disagreement, several.tau)
        self.hours.append(HourPoint(hour.window, disagreement, tau, correlation))
        if len(self.hours) % self.every == 0:
            self.points += zip(pnls, scores, strict=True)
        self.versions.add(group.judge_version)
        self.without_spread += group.spread < NO_SPREAD
        # the heuristic's hours have no orders
        self.orders.append(0 if judgement is None else judgement.orders)
        self.episodes += group.group_size
        self.flagged += sum(bool(score.flags) for score in group.scores)
        gains = [score.gain for score in hour.scores if score.gain is not None and score.flags]
        self.gains += [fmean(gains)] if gains else []
        if judgement is not None:
            self.masked += judgement.masked is True
            self.words += [fmean(abs(gain) for gain in judgement.words.values())] if judgement.words else []
            self.followed += len(judgement.followed)
        self._add_places(hour.scores)
        if correlation is not None:
            ranks = [rank + 0.5 for rank in centred_ranks(pnls)]  # from 0 (least) to 1
            _bin(self.by_pnl_rank, list(zip(ranks, scores, strict=True)))
        lengths = [float(score.shown_tokens) for score, _ in with_pnl]
        if len(lengths) >= FEWEST_RANKED and all(lengths):
            self.lengths.append(length_moments(scores, lengths, pnls))

    def _add_places(self, scores: Sequence[EpisodeScore]) -> None:
        """Add places and scores as differences from the episode's mean over its orders, with a single order from the group's."""
        seen = [score for score in scores if score.order_scores and len(score.order_scores) == len(score.places)]
        if not seen:
            return
        placed = [(fmean(score.places), fmean(score.order_scores)) for score in seen]
        middle = fmean(place for place, _ in placed)
        self.mean_places.append(fmean((place - middle) ** 2 for place, _ in placed))
        # one order: an episode has no mean of its own, so that of the group stands in
        if max(len(score.places) for score in seen) == 1:
            placed = [(middle, fmean(score for _, score in placed))] * len(seen)
        pairs = [
            (place, place - own_place, value - own_score)
            for score, (own_place, own_score) in zip(seen, placed, strict=True)
            for place, value in zip(score.places, score.order_scores, strict=True)
        ]
        self.slopes.append((math.fsum(x * y for _, x, y in pairs), math.fsum(x * x for _, x, _ in pairs)))
        _bin(self.by_place, [(place, deviation) for place, _, deviation in pairs])


def bin_estimates(bins: Bins) -> list[tuple[float, Estimate]]:
    """Mean place (0..1) and estimate of each bin that is not empty."""
    estimates = [(pairs, mean_estimate(value for _, value in pairs)) for pairs in bins]
    return [(fmean(place for place, _ in pairs), estimate) for pairs, estimate in estimates if estimate is not None]


def _bin(bins: Bins, pairs: Sequence[tuple[float, float]]) -> None:
    """Add the mean of one group's places (0..1) and values in each bin."""
    by_bin: dict[int, list[tuple[float, float]]] = {}
    for place, value in pairs:
        by_bin.setdefault(min(len(bins) - 1, int(place * len(bins))), []).append((place, value))
    for number, own in by_bin.items():
        bins[number].append((fmean(place for place, _ in own), fmean(value for _, value in own)))
