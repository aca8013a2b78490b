"""Sequential statistics for live comparisons: intervals, p-values and A/B arms that hold at every analysis.

The chance that one of all analyses ever misleads is at most 1 - confidence, however many there are and whatever made one stop. The sample
ratio says whether arms have the numbers of agents that were assigned: where they do not, nothing measured on them can be believed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from babylon_rl.evaluation.statistics.intervals import CONFIDENCE, Floats, Values, differences, finite, student_quantile, tail

FIRST_ANALYSIS = 30  # before that many values nothing is said
TUNED_FOR = 200  # the number of values at which intervals are to be narrow; any other is as valid
_TINY = 1e-12


@dataclass(frozen=True)
class LiveInterval:
    """Estimate after ``count`` units, with an interval and p-value valid at every analysis."""

    mean: float
    low: float
    high: float
    count: int
    p: float

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{self.mean:+.1f}, too early to say after {self.count}"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}] after {self.count}, valid at every analysis (p = {self.p:.2g})"


def live_interval(
    values: Values, *, null: float = 0.0, tuned_for: int = TUNED_FOR, first: int = FIRST_ANALYSIS, confidence: float = CONFIDENCE
) -> LiveInterval:
    """Mean of independent values in order of arrival, with its anytime-valid interval and p-value.

    The p-value is that of ``null``; one value per independent unit.

    The normal mixture of the self-normalized sum (de la Pena, Klass and Lai, Annals of Probability 32, 2004; Howard, Ramdas, McAuliffe
    and Sekhon, Probability Surveys 17, 2020). Values may be unbounded and of any tails. Assumptions: independent values, and either
    symmetric about their mean, as differences of two equal players are (then exact at any size, without any variance), or of finite
    variance (then from about ``first`` values on, as the asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and
    Ramdas, Annals of Statistics 52, 2024; extreme skew needs a later first analysis). Unbounded before ``first`` and without any spread.

    Raises:
        ValueError: there is no value, one is not finite, or ``first`` or ``tuned_for`` is below 2.
    """
    return live_intervals(values, [len(values)], null=null, tuned_for=tuned_for, first=first, confidence=confidence)[0]


def live_paired(
    ours: Values, theirs: Values, *, tuned_for: int = TUNED_FOR, first: int = FIRST_ANALYSIS, confidence: float = CONFIDENCE
) -> LiveInterval:
    """``live_interval`` of the paired differences ``ours - theirs``.

    The k-th of each belong together (a market, an hour) or arrived as the k-th.

    Raises:
        ValueError: they are not of the same length, empty, or not finite.
    """
    return live_interval(differences(ours, theirs), tuned_for=tuned_for, first=first, confidence=confidence)


def live_intervals(
    values: Values,
    analyses: Sequence[int],
    *,
    null: float = 0.0,
    tuned_for: int = TUNED_FOR,
    first: int = FIRST_ANALYSIS,
    confidence: float = CONFIDENCE,
) -> tuple[LiveInterval, ...]:
    """``live_interval`` after each of ``analyses`` numbers of values, for a plot.

    Raises:
        ValueError: as ``live_interval``, or an analysis is not within 1..len(values).
    """
    p_values = live_p_values(values, analyses, null=null, tuned_for=tuned_for, first=first)
    x = finite(values)
    start, weight, alpha = _start(x, first), _weight(tuned_for), 2 * (1 - tail(confidence))
    found = []
    for analysis, p in zip(analyses, p_values.tolist(), strict=True):
        seen = x[:analysis]
        low, high = (-math.inf, math.inf) if analysis < start else (_end(seen, start, weight, side, alpha) for side in (-1, 1))
        found.append(LiveInterval(float(seen.mean()), low, high, int(analysis), p))
    return tuple(found)


def live_p_values(
    values: Values, analyses: Sequence[int], *, null: float = 0.0, tuned_for: int = TUNED_FOR, first: int = FIRST_ANALYSIS
) -> Floats:
    """P-value of the mean ``null`` at each of ``analyses``; shape (analyses,).

    Their smallest is a p-value too.

    Raises:
        ValueError: as ``live_intervals``.
    """
    x = finite(values)
    if first < 2 or tuned_for < 2:
        raise ValueError(f"The first look and the size tuned for are 2 at least, not {first} and {tuned_for}.")
    at = np.asarray(analyses, dtype=np.int64)
    if at.size == 0 or at.min() < 1 or at.max() > x.size:
        raise ValueError(f"Looks lie within 1 and the {x.size} values, not at {at.tolist()[:5]}.")
    start, centred = _start(x, first), x - null
    if start > x.size:
        return np.ones(at.size)
    sums, squares = centred.cumsum()[at - 1], (centred**2).cumsum()[at - 1]
    prior = _weight(tuned_for) * float((centred[:start] ** 2).mean())
    evidence = _log_evidence(sums, squares, prior)
    return np.where(at < start, 1.0, np.minimum(1.0, np.exp(-np.minimum(evidence, 700.0))))


def live_share(successes: int, count: int, *, null: float = 0.5, confidence: float = CONFIDENCE) -> LiveInterval:
    """Share of independent trials with its anytime-valid interval.

    Without trials it is 0..1 around 0.5.

    The mixture of binomial likelihood ratios over a uniform prior (Robbins, Annals of Mathematical Statistics 41, 1970): exact.

    Raises:
        ValueError: ``successes`` is not within 0..``count``, or ``null`` not within 0..1.
    """
    from scipy.optimize import brentq
    from scipy.special import betaln, xlog1py, xlogy

    if not 0 <= successes <= count or not 0 <= null <= 1:
        raise ValueError(f"{successes} of {count} is not a share, or {null} is none.")
    share = successes / count if count else 0.5
    mixed, limit = float(betaln(1 + successes, 1 + count - successes)), -math.log(2 * (1 - tail(confidence)))

    def beyond(probability: float) -> float:
        return mixed - float(xlogy(successes, probability) + xlog1py(count - successes, -probability)) - limit

    low = float(brentq(beyond, _TINY, share)) if successes and beyond(_TINY) > 0 else 0.0
    high = float(brentq(beyond, share, 1 - _TINY)) if successes < count and beyond(1 - _TINY) > 0 else 1.0
    p = min(1.0, math.exp(-max(min(beyond(null) + limit, 700.0), -700.0)))
    return LiveInterval(share, low, high, count, p)


def _start(x: Floats, first: int) -> int:
    """Number of values before the first statement: ``first``, or until two of them differ."""
    differing = np.flatnonzero(x != x[0])
    return max(first, int(differing[0]) + 1 if differing.size else x.size + 1)


def _weight(tuned_for: int) -> float:
    """Variance of the mixture over one value's.

    Intervals are narrowest at ``tuned_for`` for 95 % (Howard et al., Annals of Statistics 49, 2021).
    """
    return tuned_for / (-2 * math.log(0.05) + math.log(-2 * math.log(0.05)) + 1)


def _log_evidence(sums: Floats, squares: Floats, prior: float | Floats) -> Floats:
    """The logarithm of the mixture martingale: squares of the sums against the sums of squares."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(squares > 0, 0.5 * np.log(prior / (squares + prior)) + sums**2 / (2 * (squares + prior)), 0.0))


def _end(x: Floats, start: int, weight: float, side: int, alpha: float) -> float:
    """Outermost mean on one side that is not excluded; infinite when none is."""
    count, mean = x.size, float(x.mean())
    spread, early, early_spread = float(((x - mean) ** 2).sum()), float(x[:start].mean()), float(x[:start].var())

    def beyond(distance: npt.NDArray[np.float64]) -> Floats:
        squares = spread + count * distance**2
        prior = weight * (early_spread + (early - mean - side * distance) ** 2)
        return _log_evidence(count * distance, squares, prior) + math.log(alpha)

    unit = math.sqrt(spread) / count + abs(early - mean)
    grid = unit * np.logspace(-4, 5, 400)
    inside = np.flatnonzero(beyond(grid) <= 0)
    last = int(inside[-1]) if inside.size else 0
    if last == grid.size - 1:
        return side * math.inf
    for _ in range(3):  # each narrows it down five hundredfold
        grid = np.linspace(grid[last], grid[last + 1], 500)
        inside = np.flatnonzero(beyond(grid) <= 0)
        last = min(int(inside[-1]), grid.size - 2) if inside.size else 0
    return mean + side * float(grid[last + 1])


FEWEST_AGENTS = 5  # in each arm, by weight; before that nothing is said


def live_comparison(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, expected_effect: float, confidence: float = CONFIDENCE
) -> LiveInterval:
    """Difference of two arms in dollars an agent-hour.

    ``ours`` and ``theirs`` hold every agent's values so far, an hour each.

    Agents differ for good and their hours depend on each other, so agents are the units: the difference of ratio estimates with its
    variance between agents (Cochran, Sampling Techniques, 1977, chapter 6), in the mixture sequential test (Robbins, 1970; Johari,
    Koomen, Pekelis and Walsh, Operations Research 70, 2022) on the scale of information, with Student's quantiles for few agents.
    Assumptions: agents are assigned at random and for good; means over agents are nearly normal; estimates gain information without
    looking back (Jennison and Turnbull, Group Sequential Methods, 2000, chapter 11). ``expected_effect``, in dollars an hour, must be
    chosen before the first analysis: the test is sharpest about there, and valid with any. ``count`` is the number of agents.

    Raises:
        ValueError: an arm has no agent, a value is not finite, or ``expected_effect`` is not above 0.
    """
    if not (math.isfinite(expected_effect) and expected_effect > 0):
        raise ValueError(f"The expected effect is a finite number above 0, not {expected_effect}.")
    (our_mean, our_variance, our_agents), (their_mean, their_variance, their_agents) = (
        _arm(arm, name) for arm, name in ((ours, "ours"), (theirs, "theirs"))
    )
    difference, variance, count = our_mean - their_mean, our_variance + their_variance, len(ours) + len(theirs)
    if min(our_agents, their_agents) < FEWEST_AGENTS or variance <= 0:
        return LiveInterval(difference, -math.inf, math.inf, count, 1.0)
    degrees = variance**2 / (our_variance**2 / (our_agents - 1) + their_variance**2 / (their_agents - 1))
    information = expected_effect**2 / variance
    reach = math.sqrt(2 * (1 + information) / information * (0.5 * math.log1p(information) - math.log(2 * (1 - tail(confidence)))))
    half = _as_student(reach, degrees) * math.sqrt(variance)
    z = _as_normal(abs(difference) / math.sqrt(variance), degrees)
    evidence = -0.5 * math.log1p(information) + z * z * information / (2 * (1 + information))
    return LiveInterval(difference, difference - half, difference + half, count, min(1.0, math.exp(-min(evidence, 700.0))))


def _arm(agents: Sequence[Sequence[float]], name: str) -> tuple[float, float, float]:
    """Mean of an agent-hour, its variance between agents, and the effective number of agents."""
    played = [finite(values, f"values of {name}", 0) for values in agents]
    hours = np.array([values.size for values in played if values.size], dtype=np.float64)
    totals = np.array([values.sum() for values in played if values.size])
    if hours.size == 0:
        raise ValueError(f"No agent of {name} has played yet.")
    mean, effective = float(totals.sum() / hours.sum()), float(hours.sum() ** 2 / (hours**2).sum())
    if hours.size == 1:
        return mean, math.inf, 1.0
    residuals = float(((totals - mean * hours) ** 2).sum()) / float(hours.sum()) ** 2
    return mean, residuals * effective / (effective - 1), effective


def _as_student(z: float, degrees: float) -> float:
    """Student's quantile at the normal's probability, from the small tail, which keeps its digits."""
    from scipy.special import ndtr

    return -student_quantile(float(ndtr(-z)), degrees)


def _as_normal(t: float, degrees: float) -> float:
    from scipy.special import ndtri, stdtr

    return -float(ndtri(max(float(stdtr(degrees, -t)), 1e-300)))


MISMATCH_BELOW = 0.001
FEWEST_EXPECTED = 5.0
_PRIOR_WEIGHT = 200.0


@dataclass(frozen=True)
class SampleRatio:
    """Observed and expected counts of the arms; a ``p`` below MISMATCH_BELOW is a mismatch."""

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    p: float

    @property
    def mismatch(self) -> bool:
        """Whether the assignment is broken."""
        return self.p < MISMATCH_BELOW

    def __str__(self) -> str:
        found, wanted = " : ".join(f"{count:,}" for count in self.counts), " : ".join(f"{count:,.0f}" for count in self.expected)
        verdict = "the assignment is broken" if self.mismatch else "as assigned"
        return f"{found} where {wanted} were expected, {verdict} (p = {self.p:.2g})"


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> SampleRatio:
    """Check the numbers of units in each arm against the assigned ``shares`` (any weights).

    Exact binomial for two arms, chi-square for more; for one analysis. The threshold of 0.001 is that of Fabijan and others (Diagnosing
    Sample Ratio Mismatch, KDD 2019).

    Raises:
        ValueError: fewer than two arms, lengths differ, a count below 0, a share not above 0, or fewer than FEWEST_EXPECTED in one of
            more than two arms.
    """
    from scipy.stats import binomtest, chisquare

    found, weights = _checked(counts, shares)
    expected = weights * found.sum()
    if found.size == 2:
        p = float(binomtest(int(found[0]), int(found.sum()), float(weights[0])).pvalue) if found.sum() else 1.0
    elif expected.min() < FEWEST_EXPECTED:
        raise ValueError(
            f"{FEWEST_EXPECTED:g} units are to be expected in every arm at least; with {int(found.sum())} it is {expected.min():.1f}."
        )
    else:
        p = float(chisquare(found, expected).pvalue)
    return SampleRatio(tuple(int(count) for count in found), tuple(expected.tolist()), p)


def live_sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> SampleRatio:
    """``sample_ratio`` that is valid after every unit.

    False alarms stay below the threshold over all analyses together.

    The Dirichlet mixture of multinomial likelihood ratios (Lindon and Malek, Anytime-Valid Inference for Multinomial Count Data, NeurIPS
    2022): exact for any number of units and arms.

    Raises:
        ValueError: fewer than two arms, lengths differ, a count below 0, or a share not above 0.
    """
    from scipy.special import gammaln

    found, weights = _checked(counts, shares)
    prior, total = _PRIOR_WEIGHT * weights, float(found.sum())
    mixed = gammaln(_PRIOR_WEIGHT) - gammaln(_PRIOR_WEIGHT + total) + (gammaln(prior + found) - gammaln(prior)).sum()
    evidence = float(mixed - (found * np.log(weights)).sum())
    p = min(1.0, math.exp(-max(min(evidence, 700.0), 0.0)))
    return SampleRatio(tuple(int(count) for count in found), tuple((weights * total).tolist()), p)


def _checked(counts: Sequence[int], shares: Sequence[float]) -> tuple[Floats, Floats]:
    if len(counts) != len(shares):
        raise ValueError(f"{len(counts)} counts and {len(shares)} shares are not of the same arms.")
    found, weights = finite(counts, "counts", 2), finite(shares, "shares", 2)
    if (found < 0).any() or (found != np.floor(found)).any() or (weights <= 0).any():
        raise ValueError(f"Counts are whole and 0 at least, shares above 0: {list(counts)}, {list(shares)}.")
    return found, np.asarray(weights / weights.sum(), dtype=np.float64)
