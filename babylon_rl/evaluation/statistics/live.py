"""Sequential statistics: A/B arms at every analysis, and unending sequences of tests.

The chance that one of all analyses ever misleads is at most 1 - confidence, however many there are and whatever made one stop. The sample
ratio says whether arms have the numbers of agents that were assigned: where they do not, nothing measured on them can be believed.
``next_level`` bounds the false discoveries of a sequence of tests, each on data of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.statistics.intervals import CONFIDENCE, Interval, finite, student_quantile, tail

FEWEST_AGENTS = 5  # in each arm, by weight; before that nothing is said
MISMATCH_BELOW = 0.001  # Fabijan and others, Diagnosing Sample Ratio Mismatch, KDD 2019
ERROR_RATE = 0.05
_PRIOR_WEIGHT = 200.0  # units that the prior counts for; the test is valid with any
_FIRST_WEALTH = 0.5  # of the error rate, the share that tests spend before the first discovery
_DECAY = 1.6  # of the weights, as in SAFFRON (Ramdas, Zrnic, Wainwright and Jordan, ICML 2018): more power within a hundred tests
_SUM = 2.285765666  # of 1 / n**_DECAY over all n
_TINY = 1e-12


@dataclass(frozen=True)
class LiveInterval(Interval):
    """Estimate after ``count`` units, with an interval and p-value valid at every analysis."""

    p: float

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{self.mean:+.1f}, too early to say after {self.count}"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}] after {self.count}, valid at every analysis (p = {self.p:.2g})"


def live_share(successes: int, count: int, *, null: float = 0.5, confidence: float = CONFIDENCE) -> LiveInterval:
    """Share of independent trials with its anytime-valid interval.

    Without trials it is 0..1 around 0.5. The mixture of binomial likelihood ratios over a uniform prior (Robbins, Annals of Mathematical
    Statistics 41, 1970): exact.
    """
    from scipy.optimize import brentq
    from scipy.special import betaln, xlog1py, xlogy

    share = successes / count if count else 0.5
    mixed, limit = float(betaln(1 + successes, 1 + count - successes)), -math.log(2 * (1 - tail(confidence)))

    # Log of the mixture's likelihood over that of a probability, less its limit: above 0 the probability lies outside the interval.
    def beyond(probability: float) -> float:
        return mixed - float(xlogy(successes, probability) + xlog1py(count - successes, -probability)) - limit

    low = float(brentq(beyond, _TINY, share)) if successes and beyond(_TINY) > 0 else 0.0
    high = float(brentq(beyond, share, 1 - _TINY)) if successes < count and beyond(1 - _TINY) > 0 else 1.0
    # Bounded, as the exponential of more leaves the range of a float.
    p = min(1.0, math.exp(-max(min(beyond(null) + limit, 700.0), -700.0)))
    return LiveInterval(share, low, high, count, p)


def live_comparison(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, expected_effect: float, confidence: float = CONFIDENCE
) -> LiveInterval:
    """Difference of two arms in dollars an agent-hour.

    ``ours`` and ``theirs`` hold every agent's values so far, an hour each. Agents differ for good and their hours depend on each other, so
    agents are the units: the difference of ratio estimates with its variance between agents (Cochran, Sampling Techniques, 1977, chapter
    6), in the mixture sequential test (Robbins, 1970; Johari, Koomen, Pekelis and Walsh, Operations Research 70, 2022) on the scale of
    information, with Student's quantiles for few agents. Assumptions: agents are assigned at random and for good; means over agents are
    nearly normal; estimates gain information without looking back (Jennison and Turnbull, Group Sequential Methods, 2000, chapter 11).
    ``expected_effect``, in dollars an hour, must be chosen before the first analysis: the test is sharpest about there, and valid with any.
    ``count`` is the number of agents.

    Raises:
        ValueError: an arm has no agent, or a value is not finite.
    """
    from scipy.special import ndtr, ndtri, stdtr

    (our_mean, our_variance, our_agents), (their_mean, their_variance, their_agents) = (
        _arm(arm, name) for arm, name in ((ours, "ours"), (theirs, "theirs"))
    )
    difference, variance, count = our_mean - their_mean, our_variance + their_variance, len(ours) + len(theirs)
    if min(our_agents, their_agents) < FEWEST_AGENTS or variance <= 0:
        return LiveInterval(difference, -math.inf, math.inf, count, 1.0)
    # Welch's and Satterthwaite's: two arms of other size and spread.
    degrees = variance**2 / (our_variance**2 / (our_agents - 1) + their_variance**2 / (their_agents - 1))
    information = expected_effect**2 / variance
    reach = math.sqrt(2 * (1 + information) / information * (0.5 * math.log1p(information) - math.log(2 * (1 - tail(confidence)))))
    # Student's and the normal quantile at the other's probability, from the small tail, which keeps its digits.
    half = -student_quantile(float(ndtr(-reach)), degrees) * math.sqrt(variance)
    z = -float(ndtri(max(float(stdtr(degrees, -abs(difference) / math.sqrt(variance))), 1e-300)))
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
    # One agent says nothing of how agents differ.
    if hours.size == 1:
        return mean, math.inf, 1.0
    residuals = float(((totals - mean * hours) ** 2).sum()) / float(hours.sum()) ** 2
    return mean, residuals * effective / (effective - 1), effective


@dataclass(frozen=True)
class SampleRatio:
    """Observed and expected counts of the arms; a ``p`` below MISMATCH_BELOW is a mismatch."""

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    p: float

    @property
    def mismatch(self) -> bool:
        return self.p < MISMATCH_BELOW

    def __str__(self) -> str:
        observed, expected = " : ".join(f"{count:,}" for count in self.counts), " : ".join(f"{count:,.0f}" for count in self.expected)
        verdict = "the assignment is broken" if self.mismatch else "as assigned"
        return f"{observed} where {expected} were expected, {verdict} (p = {self.p:.2g})"


def live_sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> SampleRatio:
    """Check the counts of the arms against ``shares`` (any weights), validly after every unit.

    The Dirichlet mixture of multinomial likelihood ratios (Lindon and Malek, Anytime-Valid Inference for Multinomial Count Data, NeurIPS
    2022): exact for any number of units and arms. False alarms stay below the threshold over all analyses together.
    """
    from scipy.special import gammaln

    observed, weights = finite(counts, "counts", 2), finite(shares, "shares", 2)
    weights = weights / weights.sum()
    prior, total = _PRIOR_WEIGHT * weights, float(observed.sum())
    mixed = gammaln(_PRIOR_WEIGHT) - gammaln(_PRIOR_WEIGHT + total) + (gammaln(prior + observed) - gammaln(prior)).sum()
    evidence = float(mixed - (observed * np.log(weights)).sum())
    p = min(1.0, math.exp(-max(min(evidence, 700.0), 0.0)))
    return SampleRatio(tuple(int(count) for count in observed), tuple((weights * total).tolist()), p)


def next_level(discoveries: Sequence[bool]) -> float:
    """Level of the next test in an unending sequence, from all earlier outcomes.

    LORD++ (Ramdas, Yang, Wainwright and Jordan, Online control of the false discovery rate with decaying memory, NeurIPS 2017, section 3;
    after Javanmard and Montanari, Annals of Statistics 46, 2018): each test spends a part of a wealth, each discovery earns some back. The
    expected share of false ones among the discoveries is at most ERROR_RATE after every test, if each p-value is valid whatever the earlier
    outcomes were, as with data of its own it is. While no tested effect is real, that is the chance of any discovery at all.
    """
    test = len(discoveries) + 1
    first_wealth = _FIRST_WEALTH * ERROR_RATE
    earned = [number for number, discovery in enumerate(discoveries, 1) if discovery]
    level = _weight(test) * first_wealth
    if earned:
        level += (ERROR_RATE - first_wealth) * _weight(test - earned[0])
    return level + ERROR_RATE * sum(_weight(test - number) for number in earned[1:])


def _weight(age: int) -> float:
    """Share of a wealth spent by a test ``age`` tests after its discovery."""
    return float(age**-_DECAY) / _SUM
