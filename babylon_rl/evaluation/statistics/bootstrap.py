"""Confidence intervals of means and of mean paired differences, clustered by snapshot.

The clusters' means are resampled and nothing within them: that is what makes repeats of one market count once (Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8). A market counts as much as any other, however often it was played.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

from babylon_rl.evaluation.statistics.interval import (
    CONFIDENCE,
    Floats,
    Interval,
    Values,
    cluster_means,
    differences,
    finite,
    student_quantile,
    tail,
)

RESAMPLES = 10_000
FEWEST_TO_RESAMPLE = 12
_CHUNK = 250_000  # values drawn at once: 2 MB, which stays in a core's cache


def mean_interval(
    values: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The mean over clusters with its interval; for a paired comparison give the differences, one per market (and repeat).

    The symmetric bootstrap-t (Hall, Journal of the Royal Statistical Society B 50, 1988): at 95 % it keeps 93 to 97 % from 12 values on
    for normal, heavy-tailed (Student's t of 4 degrees) and moderately skewed ones (to a skewness of 1), where percentiles and Student's
    interval fall below that. No interval knows what no value shows: where a tenth of the values is a large loss, 12 hold none in 28 % of
    samples, and the interval is then above the mean; 48 hold none in 0.6 %.
    Below FEWEST_TO_RESAMPLE clusters it is Student's interval; of one cluster it is unbounded; of equal values it is that value.

    Raises:
        ValueError: there is no value, one is not finite, or there is not one cluster label each.
    """
    x = cluster_means(finite(values), clusters)
    mean, count = float(x.mean()), int(x.size)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, count)
    half = _reach(x, seed, resamples, confidence) * float(x.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired_interval(
    ours: Values,
    theirs: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The mean of ``ours - theirs`` with its interval; both in the same order of markets and repeats, ``clusters`` naming the market.

    Raises:
        ValueError: they are not of the same length, empty, or not finite.
    """
    return mean_interval(differences(ours, theirs), clusters=clusters, seed=seed, resamples=resamples, confidence=confidence)


def _reach(x: Floats, seed: int, resamples: int, confidence: float) -> float:
    """How many standard errors the interval goes to either side."""
    student = student_quantile(tail(confidence), x.size - 1)
    if x.size < FEWEST_TO_RESAMPLE:
        return student
    reach = float(np.quantile(_studentized(x - x.mean(), seed, resamples), confidence, method="higher"))
    return reach if math.isfinite(reach) else student  # nearly all values are equal: resamples have no spread to go by


def _studentized(centred: Floats, seed: int, resamples: int) -> Floats:
    """|t| of every resample's mean; infinite where a resample has no spread, shape (resamples,)."""
    rng, count = np.random.default_rng(seed), centred.size
    rows, still = max(1, _CHUNK // count), 1e-12 * float(centred @ centred) / count
    parts = []
    for start in range(0, resamples, rows):
        drawn = centred[rng.integers(0, count, (min(rows, resamples - start), count), dtype=np.int32)]
        means = drawn.mean(axis=1)
        variances = np.einsum("ij,ij->i", drawn, drawn) / count - means**2
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.where(variances > still, np.abs(means) * np.sqrt((count - 1) / variances), np.inf))
    return np.concatenate(parts)
