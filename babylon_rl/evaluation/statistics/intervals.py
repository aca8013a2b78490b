"""Confidence intervals of means, paired differences and shares, and the paired comparison of two players.

Snapshots (markets) are the independent draws. The clusters' means are resampled and nothing within them: that is what makes repeats of one
market count once (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

A comparison has power, difference, effect size, sign-flip test and Holm's correction. When neither player is better, a market's difference
could as well have had the other sign. Left out: stratified and rank versions of the test.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
Floats = npt.NDArray[np.float64]
Values = Sequence[float] | Floats


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from ``count`` independent observations (snapshots, when repeats are clustered)."""

    mean: float
    low: float
    high: float
    count: int


def finite(values: Values, what: str = "values", fewest: int = 1) -> Floats:
    """The values as an array. Raises ValueError: there are fewer than ``fewest``, or one is not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < fewest or not np.isfinite(x).all():
        wrong = [str(value) for value in x.ravel() if not np.isfinite(value)][:3]
        at_least = f", {fewest} at least" if fewest > 1 else ""
        raise ValueError(f"Finite {what} are needed{at_least}: there are {x.size}{', with ' + ', '.join(wrong) if wrong else ''}.")
    return x


def codes_of(clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """The cluster of every value as a number 0.. in order of first appearance."""
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(label, len(codes)) for label in clusters], dtype=np.int64)


def cluster_means(values: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """One mean for every cluster, in order of first appearance; the values themselves without ``clusters``."""
    if clusters is None:
        return values
    codes = codes_of(clusters)
    return np.asarray(np.bincount(codes, weights=values) / np.bincount(codes), dtype=np.float64)


def tail(confidence: float) -> float:
    """The probability below the upper end: 0.975 for 95 %."""
    return 1 - (1 - confidence) / 2


def normal_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def student_quantile(probability: float, degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


RESAMPLES = 10_000
FEWEST_TO_RESAMPLE = 12
_CHUNK = 250_000  # values or signs drawn at once: 2 MB, which stays in a core's cache


def mean_interval(
    values: Values, *, clusters: Sequence[Hashable] | None = None, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """Mean over clusters with its interval. Raises ValueError: there is no value, or one is not finite.

    For a paired comparison give the differences, one per market (and repeat). The symmetric bootstrap-t (Hall, Journal of the Royal
    Statistical Society B 50, 1988): at 95 % it keeps 93 to 97 % from 12 values on for normal, heavy-tailed (Student's t of 4 degrees) and
    moderately skewed ones (to a skewness of 1), where percentiles and Student's interval fall below that. No interval knows what no value
    shows: where a tenth of the values is a large loss, 12 hold none in 28 % of samples, and the interval is then above the mean; 48 hold
    none in 0.6 %. Below FEWEST_TO_RESAMPLE clusters it is Student's interval; of one cluster it is unbounded; of equal values it is that
    value.
    """
    x = cluster_means(finite(values), clusters)
    mean, count = float(x.mean()), int(x.size)
    if count == 1:
        # One draw says nothing of its spread.
        return Interval(mean, -math.inf, math.inf, 1)
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, count)
    half = _reach(x, seed, resamples, confidence) * float(x.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired_interval(ours: Values, theirs: Values, *, confidence: float = CONFIDENCE) -> Interval:
    """Mean of ``ours - theirs``, in the same order of markets, with its interval. Raises ValueError as ``mean_interval`` does."""
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], confidence=confidence)


def _reach(x: Floats, seed: int, resamples: int, confidence: float) -> float:
    """Half-width of the interval in standard errors."""
    student = student_quantile(tail(confidence), x.size - 1)
    if x.size < FEWEST_TO_RESAMPLE:
        return student
    # Centred: resamples come from values whose mean is known to be 0, so that |t| is the error of an estimate.
    reach = float(np.quantile(_studentized(x - x.mean(), seed, resamples), confidence, method="higher"))
    return reach if math.isfinite(reach) else student  # nearly all values are equal: resamples have no spread to go by


def _studentized(centred: Floats, seed: int, resamples: int) -> Floats:
    """|t| of every resample's mean; infinite where a resample has no spread, shape (resamples,)."""
    rng, count = np.random.default_rng(seed), centred.size
    # Below `still` a variance is rounding alone: such a resample drew one value only, and its t says nothing finite.
    rows, still = max(1, _CHUNK // count), 1e-12 * float(centred @ centred) / count
    parts = []
    for start in range(0, resamples, rows):
        drawn = centred[rng.integers(0, count, (min(rows, resamples - start), count), dtype=np.int32)]
        means = drawn.mean(axis=1)
        variances = np.einsum("ij,ij->i", drawn, drawn) / count - means**2
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.where(variances > still, np.abs(means) * np.sqrt((count - 1) / variances), np.inf))
    return np.concatenate(parts)


def linearised(parts: Values, wholes: Values) -> Floats:
    """Each market's part in the ratio of the sums: their mean is the ratio, and their spread is its error.

    A ratio estimate (Cochran, Sampling Techniques, 1977, chapter 6). Raises ValueError: there is no value, or one is not finite.
    """
    of, whole = finite(parts), finite(wholes)
    ratio = of.sum() / whole.sum()
    return np.asarray(ratio + (of - ratio * whole) / whole.mean(), dtype=np.float64)


def share_by_snapshot(successes: Sequence[int], counts: Sequence[int]) -> Interval:
    """Share of successes among trials, with an interval clustered by snapshot.

    Wilson's interval at the effective number of trials, by the variance between snapshots and Student's quantile (Korn and Graubard,
    Survey Methodology 24, 1998; Dean and Pagano, Journal of Survey Statistics and Methodology 3, 2015). Snapshots without trials say
    nothing; where all trials agree the snapshots are the trials. ``count`` of the result is the number of snapshots with trials.
    """
    won, tried = finite(successes, "counts", 0), finite(counts, "counts", 0)
    won, tried = won[tried > 0], tried[tried > 0]
    snapshots, trials = int(tried.size), float(tried.sum())
    if snapshots == 0:
        return Interval(0.5, 0.0, 1.0, 0)
    share = float(won.sum()) / trials
    if snapshots == 1:
        return Interval(share, 0.0, 1.0, 1)
    variance = snapshots / (snapshots - 1) * float(((won - share * tried) ** 2).sum()) / trials**2
    effective = float(snapshots) if variance == 0 or share in (0.0, 1.0) else min(trials, share * (1 - share) / variance)
    # With few snapshots the variance between them is uncertain itself: by Student's quantile they count as fewer trials.
    effective *= (normal_quantile(tail(CONFIDENCE)) / student_quantile(tail(CONFIDENCE), snapshots - 1)) ** 2
    return Interval(share, *wilson(share, effective), snapshots)


def wilson(share: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` trials, which need not be whole."""
    z = normal_quantile(tail(confidence))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return float(np.clip(centre - half, 0.0, share)), float(np.clip(centre + half, share, 1.0))


POWER = 0.8
_LARGE = 10_000  # from here on Student's distribution is the normal one
EXACT_UP_TO = 18  # 262,144 ways to set the signs: milliseconds
FLIPS = 20_000


@dataclass(frozen=True)
class Spread:
    """Standard deviations of paired differences: ``between`` snapshots' true means, and ``within`` one over its repeats."""

    between: float
    within: float = 0.0

    def of_means(self, repeats: int = 1) -> float:
        """The standard deviation of a snapshot's mean over ``repeats``."""
        return math.sqrt(self.between**2 + self.within**2 / repeats)


def markets_needed(effect: float, spread: float, confidence: float = CONFIDENCE) -> int | None:
    """Paired markets that show ``effect`` with probability POWER, when differences have standard deviation ``spread``.

    The power of Student's paired test by the noncentral t distribution (Cohen, Statistical Power Analysis, 1988). None when there is
    no positive effect to show.
    """
    if effect <= 0:
        return None
    # The normal approximation is the start; Student's distribution needs a little more.
    needed = max(2, math.ceil(((normal_quantile(tail(confidence)) + normal_quantile(POWER)) * spread / effect) ** 2))
    if needed > _LARGE:
        return needed + 2
    while _shows(needed, confidence) * spread / math.sqrt(needed) > effect:  # Student's needs two or three more than the normal's
        needed += 1
    return needed


def spread_of(differences: Values, clusters: Sequence[Hashable] | None = None) -> Spread:
    """Decompose the variance by snapshots (``clusters``) and repeats.

    The moments of a one-way analysis of variance (Searle, Casella and McCulloch, Variance Components, 1992), for any numbers of repeats.
    Without repeats all of it is between snapshots, of which there are two at least.
    """
    x = finite(differences, "differences", 2)
    codes = np.arange(x.size) if clusters is None else codes_of(clusters)
    sizes = np.bincount(codes)
    count, total = sizes.size, x.size
    means = np.bincount(codes, weights=x) / sizes
    among = float((sizes * (means - x.mean()) ** 2).sum()) / (count - 1)
    if total == count:
        return Spread(math.sqrt(among))
    within = float(((x - means[codes]) ** 2).sum()) / (total - count)
    # Effective repeats of a snapshot where their numbers differ.
    usual = (total - float((sizes**2).sum()) / total) / (count - 1)
    return Spread(math.sqrt(max(0.0, (among - within) / usual)), math.sqrt(within))


def detectable_effect(snapshots: int, spread: Spread, confidence: float = CONFIDENCE) -> float:
    """The smallest effect that ``snapshots`` (2 or more) show with probability POWER, in the unit of the spread."""
    return _shows(snapshots, confidence) * spread.of_means() / math.sqrt(snapshots)


def _shows(count: int, confidence: float) -> float:
    """Mean difference in standard errors that Student's test shows with probability POWER."""
    from scipy.special import nctdtrinc

    return float(nctdtrinc(count - 1, 1 - POWER, student_quantile(tail(confidence), count - 1)))


def permutation_test(
    differences: Values,
    *,
    alternative: Literal["two-sided", "greater"] = "two-sided",
    seed: int = 0,
    flips: int = FLIPS,
) -> float:
    """p-value of a mean difference of 0, one value a snapshot, by all sign flips or ``flips`` random ones.

    Fisher, The Design of Experiments, 1935. Exact for differences that are symmetric about 0 when nothing is better, as those of two
    players that could change names are. Random flips count the observed one too, so that p is never 0 and never too small (Phipson and
    Smyth, 2010).
    """
    x = finite(differences, "differences")
    exact = x.size <= EXACT_UP_TO
    sums = _all_sums(x) if exact else _random_sums(x, seed, flips)
    observed = float(x.sum())
    near = 1e-9 * float(np.abs(x).sum())  # sums in another order differ in their last digits
    extreme = np.abs(sums) >= abs(observed) - near if alternative == "two-sided" else sums >= observed - near
    more = 0 if exact else 1
    return (int(extreme.sum()) + more) / (sums.size + more)


Name = TypeVar("Name", bound=Hashable)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """P-values after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).

    The probability of any false alarm among all comparisons stays below the level at which the adjusted p-values are read.
    """
    count, largest, adjusted = len(p_values), 0.0, dict[Name, float]()
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        # Never below the one before: a smaller p must not come out larger.
        largest = max(largest, min(1.0, (count - rank) * p))
        adjusted[name] = largest
    return adjusted


def _all_sums(x: Floats) -> Floats:
    # Doubled with each value: all 2^n ways to set the signs, one sum each.
    sums = np.zeros(1)
    for value in x:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _random_sums(x: Floats, seed: int, flips: int) -> Floats:
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // x.size)
    total, parts = float(x.sum()), []
    for start in range(0, flips, rows):
        bits = rng.integers(0, 2, (min(rows, flips - start), x.size), dtype=np.int8)
        # Bits choose the values with a plus: twice their sum less the whole is the sum with signs.
        parts.append(2 * (bits.astype(np.float64) @ x) - total)
    return np.concatenate(parts)


FEWEST_FOR_EFFECT = 3


def paired_effect(differences: Values, *, confidence: float = CONFIDENCE) -> Interval | None:
    """Cohen's d_z (Statistical Power Analysis, 1988), bias-corrected by the jackknife, with its interval.

    That is the mean difference in standard deviations between snapshots; None of fewer than FEWEST_FOR_EFFECT, or without any spread.

    The usual interval by the noncentral t distribution holds for normal differences alone (79 % instead of 95 % for skewed ones); the
    jackknife (Miller, Biometrika 61, 1974) needs no such thing and costs some width for few snapshots.
    """
    x = finite(differences, "differences")
    count = int(x.size)
    if count < FEWEST_FOR_EFFECT or np.ptp(x) == 0:
        return None
    size = float(x.mean() / x.std(ddof=1))
    # Mean and variance without each value in turn, in one pass.
    means = (x.sum() - x) / (count - 1)
    squares = np.maximum(((x - x.mean()) ** 2).sum() - count / (count - 1) * (x - x.mean()) ** 2, 0.0)
    if (squares < 1e-12 * squares.max()).any():  # without one value there is no spread left
        return Interval(size, -math.inf, math.inf, count)
    without = means / np.sqrt(squares / (count - 2))
    size = count * size - (count - 1) * float(without.mean())
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    half = student_quantile(tail(confidence), count - 1) * error
    return Interval(size, size - half, size + half, count)


def superiority(differences: Values, *, confidence: float = CONFIDENCE) -> Interval:
    """Share of snapshots in which ours does better, with Wilson's interval; an equal result counts half.

    The common-language effect size of pairs (McGraw and Wong, Psychological Bulletin 111, 1992).
    """
    x = finite(differences, "differences")
    share = float((np.sign(x) + 1).mean() / 2)
    return Interval(share, *wilson(share, x.size, confidence), int(x.size))


@dataclass(frozen=True)
class PairedComparison:
    """Paired comparison of two players: difference with the p-value of its ``permutation_test``, ``superiority`` and ``paired_effect``.

    ``effect`` is None where differences do not vary or are too few, ``spread`` where there is one snapshot only.
    """

    difference: Interval
    p: float
    superiority: Interval
    effect: Interval | None
    spread: Spread | None


def compare_pairs(
    ours: Values, theirs: Values, *, clusters: Sequence[Hashable] | None = None, confidence: float = CONFIDENCE
) -> PairedComparison:
    """Compare two players over the same snapshots and seeds, pair by pair. Raises ValueError: there is no pair, or a value is not finite.

    ``clusters`` names the snapshot of every pair.
    """
    gains = finite([a - b for a, b in zip(ours, theirs, strict=True)], "differences")
    means = cluster_means(gains, clusters)
    return PairedComparison(
        mean_interval(means, confidence=confidence),
        permutation_test(means),
        superiority(means, confidence=confidence),
        paired_effect(means, confidence=confidence),
        spread_of(gains, clusters) if means.size > 1 else None,
    )
