"""How sure a benchmark is: paired intervals of mean differences, intervals of shares, and how many markets an effect needs.

Markets are independent draws of one generator, so they are what is resampled. Left out: clusters of markets, sequential looks,
and corrections for several comparisons (the gate makes one; all others are descriptions).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWEST_TO_RESAMPLE = 12
POWER = 0.8
_CHUNK = 2_000_000  # indices drawn at once: 16 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from ``count`` independent observations."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def mean_interval(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Interval:
    """The mean with its bootstrap interval; for a paired comparison give the differences, one per market.

    Percentiles of a bootstrap are too narrow for few values: they are taken at levels expanded to Student's t (Hesterberg, The
    American Statistician 69, 2015, section 4). Below FEWEST_TO_RESAMPLE values it is Student's interval itself; of one value it
    is unbounded.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"An interval needs finite values, not {x.tolist()[:5]}.")
    mean, count = float(x.mean()), int(x.size)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, count)
    if count < FEWEST_TO_RESAMPLE:
        half = _student(1 - (1 - confidence) / 2, count - 1) * float(x.std(ddof=1)) / math.sqrt(count)
        return Interval(mean, mean - half, mean + half, count)
    reach = math.sqrt(count / (count - 1)) * _student(1 - (1 - confidence) / 2, count - 1)
    low, high = np.quantile(_resampled_means(x, seed, resamples), [_cumulative(-reach), _cumulative(reach)])
    return Interval(mean, float(low), float(high), count)


def paired_interval(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of ``ours - theirs`` with its interval; both in the same order of markets.

    Raises:
        ValueError: they are not of the same length, empty, or not finite.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} markets cannot be paired.")
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], seed=seed)


def share_interval(successes: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """A share with Wilson's score interval (JASA 22, 1927); of nothing it is 0..1 around 0.5.

    Raises:
        ValueError: ``successes`` is not within 0..``count``.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count} is not a share.")
    if count == 0:
        return Interval(0.5, 0.0, 1.0, 0)
    z = _normal(1 - (1 - confidence) / 2)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), count)


def markets_needed(effect: float, spread: float, power: float = POWER, confidence: float = CONFIDENCE) -> int | None:
    """How many paired markets show ``effect`` with probability ``power``, when differences have standard deviation ``spread``.

    None when there is no positive effect to show.
    """
    if effect <= 0:
        return None
    needed = 2
    for _ in range(20):  # Student's quantiles depend on the answer; it settles within a few rounds
        quantiles = _student(1 - (1 - confidence) / 2, needed - 1) + _student(power, needed - 1)
        wanted = max(2, math.ceil((quantiles * spread / effect) ** 2))
        if wanted <= needed:
            return needed
        needed = wanted if needed > 2 else max(2, math.ceil(((_normal(1 - (1 - confidence) / 2) + _normal(power)) * spread / effect) ** 2))
    return needed


def _resampled_means(x: npt.NDArray[np.float64], seed: int, resamples: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // x.size)
    parts = [x[rng.integers(0, x.size, (min(rows, resamples - start), x.size))].mean(axis=1) for start in range(0, resamples, rows)]
    return np.concatenate(parts)


def _normal(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def _cumulative(z: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(z))


def _student(probability: float, degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
