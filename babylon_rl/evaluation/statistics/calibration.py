"""Calibration of probabilities: the Brier score with its parts, and reliability bins.

Left out: scores of more than two outcomes.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.statistics.intervals import (
    CONFIDENCE,
    Floats,
    Interval,
    Values,
    codes_of,
    finite,
    mean_interval,
    share_by_snapshot,
    share_interval,
)

BINS = 10
RESAMPLED_FORECASTS = 999


@dataclass(frozen=True)
class Brier:
    """Mean squared error of forecasts, 0 is perfect.

    ``score`` = miscalibration - discrimination + uncertainty.
    """

    score: Interval
    miscalibration: float
    discrimination: float
    uncertainty: float

    @property
    def skill(self) -> float | None:
        """Share of the uncertainty that forecasts remove.

        1 is perfect, 0 no better than the base rate, None without uncertainty.
        """
        return 1 - self.score.mean / self.uncertainty if self.uncertainty else None

    def __str__(self) -> str:
        score = f"a Brier score of {self.score.mean:.3f} (95 % interval {self.score.low:.3f} to {self.score.high:.3f})"
        parts = f"{self.miscalibration:.3f} miscalibration - {self.discrimination:.3f} discrimination + {self.uncertainty:.3f} uncertainty"
        return f"{score} = {parts}"


@dataclass(frozen=True)
class ReliabilityBin:
    """``count`` forecasts within ``low``..``high``: their mean, and the share that came true with its interval."""

    low: float
    high: float
    count: int
    forecast: float
    observed: Interval

    def __str__(self) -> str:
        return (
            f"{self.count} forecasts of {self.forecast:.0%} on average came true in {self.observed.mean:.0%} "
            f"(95 % interval {self.observed.low:.0%} to {self.observed.high:.0%})"
        )


def brier(
    forecasts: Values,
    outcomes: Sequence[bool],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Brier:
    """The Brier score (Monthly Weather Review 78, 1950) with its interval.

    Resampled by ``clusters`` (the question, or the snapshot).

    Taken apart without bins, against isotonic regression (Dimitriadis, Gneiting and Jordan, PNAS 118, 2021), so that the parts add up
    exactly; they describe these forecasts, and few of them look miscalibrated by chance (``calibration_p``). Every cluster counts the
    same, as in ``mean_interval``.

    Raises:
        ValueError: there is no forecast, lengths differ, or one is not within 0..1.
    """
    p, y = _checked(forecasts, outcomes)
    score = mean_interval((p - y) ** 2, clusters=clusters, seed=seed, confidence=confidence)
    bounded = Interval(score.mean, max(0.0, score.low), min(1.0, score.high), score.count)
    weights = _weights(p.size, clusters)
    rate = float(weights @ y)
    uncertainty, recalibrated = rate * (1 - rate), float(weights @ (_isotonic(p, y, weights) - y) ** 2)
    return Brier(bounded, score.mean - recalibrated, uncertainty - recalibrated, uncertainty)


def reliability_bins(
    forecasts: Values,
    outcomes: Sequence[bool],
    *,
    bins: int = BINS,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[ReliabilityBin, ...]:
    """Forecasts in equally wide bins; empty bins are left out.

    With ``clusters`` (the question) intervals account for dependence.

    Raises:
        ValueError: there is no forecast, lengths differ, one is not within 0..1, or there is no bin.
    """
    p, y = _checked(forecasts, outcomes)
    if bins < 1:
        raise ValueError(f"forecasts need one bin at least, not {bins}.")
    # A forecast of exactly 1 belongs to the last bin.
    of_bin = np.minimum((p * bins).astype(np.int64), bins - 1)
    codes = np.arange(p.size) if clusters is None else codes_of(clusters, p.size)
    rows = []
    for number in np.unique(of_bin).tolist():
        there = of_bin == number
        count, true = int(there.sum()), int(y[there].sum())
        if clusters is None:
            observed = share_interval(true, count, confidence)
        else:
            won, tried = np.bincount(codes[there], weights=y[there]), np.bincount(codes[there])
            observed = share_by_snapshot(won.astype(int).tolist(), tried.tolist(), confidence)
        rows.append(ReliabilityBin(number / bins, (number + 1) / bins, count, float(p[there].mean()), observed))
    return tuple(rows)


def calibration_p(
    forecasts: Values,
    outcomes: Sequence[bool],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLED_FORECASTS,
) -> float:
    """P-value of calibrated forecasts, by simulation of their outcomes.

    It is how often outcomes drawn from the forecasts look as miscalibrated (Brocker and Smith, Weather and Forecasting 22, 2007). Forecasts
    of one of ``clusters`` (the question) come true or fail together.

    Raises:
        ValueError: there is no forecast, lengths differ, or one is not within 0..1.
    """
    p, y = _checked(forecasts, outcomes)
    codes = np.arange(p.size) if clusters is None else codes_of(clusters, p.size)
    weights, rng = _weights(p.size, clusters), np.random.default_rng(seed)

    def miscalibration(came_true: Floats) -> float:
        return float(weights @ (p - came_true) ** 2 - weights @ (_isotonic(p, came_true, weights) - came_true) ** 2)

    seen = miscalibration(y) - 1e-12
    draws = ((rng.random(int(codes.max()) + 1)[codes] < p).astype(np.float64) for _ in range(resamples))
    return (1 + sum(miscalibration(drawn) >= seen for drawn in draws)) / (resamples + 1)


def _weights(count: int, clusters: Sequence[Hashable] | None) -> Floats:
    """Weights of forecasts: each cluster the same, all together 1."""
    codes = np.arange(count) if clusters is None else codes_of(clusters, count)
    sizes = np.bincount(codes)
    return np.asarray(1 / (sizes[codes] * sizes.size), dtype=np.float64)


def _isotonic(p: Floats, y: Floats, weights: Floats) -> Floats:
    """Frequencies that rise with the forecast, equal where forecasts are."""
    from scipy.optimize import isotonic_regression

    _, codes = np.unique(p, return_inverse=True)
    masses = np.bincount(codes, weights=weights)
    return np.asarray(isotonic_regression(np.bincount(codes, weights=weights * y) / masses, weights=masses).x[codes], dtype=np.float64)


def _checked(forecasts: Values, outcomes: Sequence[bool]) -> tuple[Floats, Floats]:
    if len(forecasts) != len(outcomes):
        raise ValueError(f"{len(forecasts)} forecasts and {len(outcomes)} outcomes cannot be paired.")
    p, y = finite(forecasts, "forecasts"), finite(outcomes, "outcomes")
    if p.min() < 0 or p.max() > 1 or not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("forecasts lie within 0 and 1, and outcomes are true or false.")
    return p, y
