"""Two arms of agents compared while they play: an A/B of models, clustered by agent and looked at as often as one likes."""

import math
from collections.abc import Sequence

import numpy as np

from babylon_rl.evaluation.statistics.interval import CONFIDENCE, finite, student_quantile, tail
from babylon_rl.evaluation.statistics.live import LiveInterval

FEWEST_AGENTS = 5  # in each arm, by weight; before that nothing is said


def live_comparison(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, expected_effect: float, confidence: float = CONFIDENCE
) -> LiveInterval:
    """The difference of two arms in dollars an agent-hour; ``ours`` and ``theirs`` hold every agent's values so far, an hour each.

    Agents differ for good and their hours depend on each other, so agents are the units: the difference of ratio estimates with its
    variance between agents (Cochran, Sampling Techniques, 1977, chapter 6), in the mixture sequential test (Robbins, 1970; Johari,
    Koomen, Pekelis and Walsh, Operations Research 70, 2022) on the scale of information, with Student's quantiles for few agents.
    Assumptions: agents are assigned at random and for good; means over agents are nearly normal; estimates gain information without
    looking back (Jennison and Turnbull, Group Sequential Methods, 2000, chapter 11). ``expected_effect``, in dollars an hour, must be
    chosen before the first look: the test is sharpest about there, and valid with any. ``count`` is the number of agents.

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
    """Mean of an agent-hour, its variance between agents, and the number of agents by their weight."""
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
