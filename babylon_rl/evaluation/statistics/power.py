"""Power: snapshots for an effect, repeats of each, and the detectable effect."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.statistics.intervals import CONFIDENCE, Values, codes_of, finite, normal_quantile, student_quantile, tail

POWER = 0.8
_LARGE = 10_000  # from here on Student's distribution is the normal one


@dataclass(frozen=True)
class Spread:
    """Standard deviations of paired differences: ``between`` snapshots' true means, and ``within`` one over its repeats."""

    between: float
    within: float = 0.0

    def of_means(self, repeats: int = 1) -> float:
        """The standard deviation of a snapshot's mean over ``repeats``."""
        if repeats < 1:
            raise ValueError(f"A snapshot is played once at least, not {repeats} times.")
        return math.sqrt(self.between**2 + self.within**2 / repeats)

    def __str__(self) -> str:
        return f"a standard deviation of {self.between:.1f} between snapshots and {self.within:.1f} between repeats of one"


@dataclass(frozen=True)
class SampleSize:
    """Number of snapshots that show an effect with a probability; None: no number does.

    Each snapshot is played ``repeats`` times.
    """

    effect: float
    repeats: int
    snapshots: int | None
    power: float

    def __str__(self) -> str:
        if self.snapshots is None:
            return f"no number of snapshots shows {self.effect:+.1f}"
        times = "" if self.repeats == 1 else f", each played {self.repeats} times"
        return f"{self.snapshots} snapshots{times}, show {self.effect:+.1f} with {self.power:.0%} probability"


def markets_needed(effect: float, spread: float, power: float = POWER, confidence: float = CONFIDENCE) -> int | None:
    """Paired markets that show ``effect`` with probability ``power``, when differences have standard deviation ``spread``.

    The power of Student's paired test by the noncentral t distribution (Cohen, Statistical Power Analysis, 1988). None when there is
    no positive effect to show.
    """
    if effect <= 0:
        return None
    needed = max(2, math.ceil(((normal_quantile(tail(confidence)) + normal_quantile(power)) * spread / effect) ** 2))
    if needed > _LARGE:
        return needed + 2
    while _shows(needed, confidence, power) * spread / math.sqrt(needed) > effect:  # Student's needs two or three more than the normal's
        needed += 1
    return needed


def spread_of(differences: Values, clusters: Sequence[Hashable] | None = None) -> Spread:
    """Decompose the variance by snapshots (``clusters``) and repeats.

    The moments of a one-way analysis of variance (Searle, Casella and McCulloch, Variance Components, 1992), for any numbers of repeats.
    Without repeats all of it is between snapshots.

    Raises:
        ValueError: fewer than two snapshots, or a value that is not finite.
    """
    x = finite(differences, "differences", 2)
    codes = np.arange(x.size) if clusters is None else codes_of(clusters, x.size)
    sizes = np.bincount(codes)
    count, total = sizes.size, x.size
    if count < 2:
        raise ValueError("A spread between snapshots needs two of them at least, not 1.")
    means = np.bincount(codes, weights=x) / sizes
    among = float((sizes * (means - x.mean()) ** 2).sum()) / (count - 1)
    if total == count:
        return Spread(math.sqrt(among))
    within = float(((x - means[codes]) ** 2).sum()) / (total - count)
    usual = (total - float((sizes**2).sum()) / total) / (count - 1)
    return Spread(math.sqrt(max(0.0, (among - within) / usual)), math.sqrt(within))


def snapshots_needed(
    effect: float, spread: Spread, *, repeats: int = 1, power: float = POWER, confidence: float = CONFIDENCE
) -> int | None:
    """``markets_needed`` when each snapshot is played ``repeats`` times and its mean counts."""
    return markets_needed(effect, spread.of_means(repeats), power, confidence)


def snapshots_table(
    effects: Sequence[float], spread: Spread, *, repeats: Sequence[int] = (1,), power: float = POWER, confidence: float = CONFIDENCE
) -> tuple[SampleSize, ...]:
    """One row for every effect and number of repeats, effects first."""
    return tuple(
        SampleSize(effect, times, snapshots_needed(effect, spread, repeats=times, power=power, confidence=confidence), power)
        for effect in effects
        for times in repeats
    )


def detectable_effect(snapshots: int, spread: Spread, *, repeats: int = 1, power: float = POWER, confidence: float = CONFIDENCE) -> float:
    """The smallest effect that ``snapshots`` show with probability ``power``, in the unit of the spread.

    Raises:
        ValueError: fewer than two snapshots.
    """
    if snapshots < 2:
        raise ValueError(f"An effect needs two snapshots at least to show, not {snapshots}.")
    return _shows(snapshots, confidence, power) * spread.of_means(repeats) / math.sqrt(snapshots)


def _shows(count: int, confidence: float, power: float) -> float:
    """Mean difference in standard errors that Student's test shows with probability ``power``."""
    from scipy.special import nctdtrinc

    return float(nctdtrinc(count - 1, 1 - power, student_quantile(tail(confidence), count - 1)))
