"""Intervals of shares: of independent trials, and of trials that come in clusters (the orders of one market)."""

import math
from collections.abc import Sequence

import numpy as np

from babylon_rl.evaluation.statistics.interval import CONFIDENCE, Interval, finite, normal_quantile, student_quantile, tail


def share_interval(successes: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """A share with Wilson's score interval (JASA 22, 1927); of nothing it is 0..1 around 0.5.

    Raises:
        ValueError: ``successes`` is not within 0..``count``.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count} is not a share.")
    if count == 0:
        return Interval(0.5, 0.0, 1.0, 0)
    low, high = wilson(successes / count, count, confidence)
    return Interval(successes / count, low, high, count)


def share_by_snapshot(successes: Sequence[int], counts: Sequence[int], confidence: float = CONFIDENCE) -> Interval:
    """The share of all successes among all trials, with an interval that knows which of them come from one snapshot.

    Wilson's interval at the effective number of trials, by the variance between snapshots and Student's quantile (Korn and Graubard,
    Survey Methodology 24, 1998; Dean and Pagano, Journal of Survey Statistics and Methodology 3, 2015). Snapshots without trials say
    nothing; where all trials agree the snapshots are the trials. ``count`` of the result is the number of snapshots with trials.

    Raises:
        ValueError: lengths differ, or a snapshot has more successes than trials.
    """
    if len(successes) != len(counts):
        raise ValueError(f"{len(successes)} snapshots' successes and {len(counts)} snapshots' trials cannot be paired.")
    won, tried = finite(successes, "counts", 0), finite(counts, "counts", 0)
    if ((won < 0) | (won > tried)).any():
        raise ValueError("A snapshot's successes lie within 0 and its trials.")
    won, tried = won[tried > 0], tried[tried > 0]
    snapshots, trials = int(tried.size), float(tried.sum())
    if snapshots == 0:
        return Interval(0.5, 0.0, 1.0, 0)
    share = float(won.sum()) / trials
    if snapshots == 1:
        return Interval(share, 0.0, 1.0, 1)
    variance = snapshots / (snapshots - 1) * float(((won - share * tried) ** 2).sum()) / trials**2
    effective = float(snapshots) if variance == 0 or share in (0.0, 1.0) else min(trials, share * (1 - share) / variance)
    effective *= (normal_quantile(tail(confidence)) / student_quantile(tail(confidence), snapshots - 1)) ** 2
    low, high = wilson(share, effective, confidence)
    return Interval(share, low, high, snapshots)


def wilson(share: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` trials, which need not be whole."""
    z = normal_quantile(tail(confidence))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return float(np.clip(centre - half, 0.0, share)), float(np.clip(centre + half, share, 1.0))
