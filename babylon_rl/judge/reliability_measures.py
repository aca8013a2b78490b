"""Estimates with 95 % intervals; groups are the independent draws, episodes are not.

Only small sums of each group are kept, so a long range takes little memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from babylon_rl.judge.reliability_ranks import centred_ranks

CONFIDENCE = 0.95
_NEARLY = 1 - 1e-9

_TINY = 1e-9

Moments = npt.NDArray[np.float64]  # 5 by 5


@dataclass(frozen=True)
class Estimate:
    """A number over some groups; ``low`` and ``high`` are None for a single group."""

    value: float
    low: float | None
    high: float | None
    groups: int

    @property
    def document(self) -> dict[str, float | int | None]:
        """This estimate as JSON."""
        return {"mean": self.value, "low": self.low, "high": self.high, "groups": self.groups}


def mean_estimate(values: Sequence[float]) -> Estimate | None:
    """Mean of one value (-1..1) per group, with Student's interval; None without values.

    The interval is clipped to -1..1.
    """
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = _quantile(len(values) - 1) * math.sqrt(variance / len(values))
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half), len(values))


def slope_estimate(parts: Sequence[tuple[float, float]]) -> Estimate | None:
    """Slope of one least-squares line within groups.

    Each group is given as (sum of xy, sum of xx) of its centred values.

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
    return _jackknifed(groups, _correlation, _fisher, math.tanh)


def length_points(groups: Sequence[Moments]) -> Estimate | None:
    """Score of a group's longest transcript less that of the shortest, at equal P&L."""
    return _jackknifed(groups, _points, float, float)


def _correlation(moments: Moments) -> float | None:
    left = _less_money(moments)
    if left is None:
        return None
    if left[0, 0] <= _TINY * moments[0, 0] or left[1, 1] <= _TINY * moments[1, 1]:
        return 0.0  # P&L explains one of them wholly
    return float(np.clip(left[0, 1] / math.sqrt(left[0, 0] * left[1, 1]), -1, 1))


def _points(moments: Moments) -> float | None:
    left = _less_money(moments)
    if left is None or left[1, 1] <= _TINY * moments[1, 1]:
        return None
    return float(left[0, 1] / left[1, 1])  # ranks of length run over one unit


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
    """Estimate of ``measure`` over all groups, with a jackknife interval over groups.

    The interval is computed on the scale of ``scaled`` and converted back by ``unscaled``.
    """
    whole = np.sum(groups, axis=0) if groups else None
    value = None if whole is None else measure(whole)
    if whole is None or value is None:
        return None
    # the measure with each group left out in turn; sums make that a subtraction
    left_out = [scaled(one) for group in groups if (one := measure(whole - group)) is not None]
    if len(left_out) < 2:
        return Estimate(value, None, None, len(groups))
    count, middle = len(left_out), math.fsum(left_out) / len(left_out)
    error = math.sqrt((count - 1) / count * math.fsum((one - middle) ** 2 for one in left_out))
    half = _quantile(count - 1) * error
    return Estimate(value, unscaled(scaled(value) - half), unscaled(scaled(value) + half), len(groups))


def _fisher(correlation: float) -> float:
    return math.atanh(max(-_NEARLY, min(_NEARLY, correlation)))


def _quantile(freedom: int) -> float:
    """Student's t quantile of the interval."""
    from scipy.special import stdtrit  # scipy.stats, which has the same, takes four times as long to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
