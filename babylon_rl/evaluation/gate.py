"""The gate: whether the evidence lets a version in front of the agents, and why, in words and numbers.

It asks for objective P&L alone: the judge that a version was trained with has no say here.
"""

import math
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.comparison import Comparison, Standing
from babylon_rl.evaluation.statistics import markets_needed

PASS, FAIL, INCONCLUSIVE, NOT_COMPARED = "pass", "fail", "inconclusive", "not_compared"
COLLAPSE = 0.95  # a larger share of one action is no policy
_WORDS = {"invalid": "something unusable"}


@dataclass(frozen=True)
class Verdict:
    """``decision`` is pass, fail, inconclusive (the interval holds the required improvement) or not_compared."""

    decision: str
    reason: str


def decide(comparison: Comparison, min_improvement: float = 0.0) -> Verdict:
    """Judge the candidate of a comparison.

    Pass needs all of: no action above COLLAPSE of its decisions, no more invalid answers than the reference, and the lower end
    of the paired 95 % interval of its improvement above ``min_improvement`` (dollars an hour).
    """
    if comparison.candidate is None or comparison.reference is None:
        return Verdict(NOT_COMPARED, _sentences(*comparison.notes) or "There is nobody to compare.")
    candidate, reference = comparison.standing(comparison.candidate), comparison.standing(comparison.reference)
    action, share = max(candidate.shares.items(), key=lambda item: item[1])
    if share > COLLAPSE:
        fault = f"{candidate.model} answers {_WORDS.get(action, action)} in {share:.1%} of its {candidate.decisions} decisions"
        return Verdict(FAIL, _sentences(f"{fault}: more than {COLLAPSE:.0%} is a collapse into one action", _difference(comparison)))
    if candidate.invalid * reference.decisions > reference.invalid * candidate.decisions:
        rates = [f"{standing.model} {standing.shares['invalid']:.1%}" for standing in (candidate, reference)]
        fault = f"Invalid answers have become more: {', '.join(rates)}"
        return Verdict(FAIL, _sentences(fault, _difference(comparison)))
    improvement = candidate.improvement
    if improvement is None:
        return Verdict(NOT_COMPARED, f"{candidate.model} cannot be compared with itself.")
    wanted = f"{min_improvement:+.1f}"
    if improvement.low > min_improvement:
        above = f"{_difference(comparison)}: all of it is above the required {wanted}"
        return Verdict(PASS, _sentences(above, *_cautions(comparison, candidate)))
    if improvement.high <= min_improvement:
        return Verdict(FAIL, _sentences(f"{_difference(comparison)}: none of it is above the required {wanted}", *comparison.notes))
    more = _markets_wanted(candidate, reference, min_improvement)
    return Verdict(INCONCLUSIVE, _sentences(f"{_difference(comparison)}: it holds the required {wanted}", more, *comparison.notes))


def _difference(comparison: Comparison) -> str:
    candidate = comparison.standing(comparison.candidate or "")
    improvement = candidate.improvement
    if improvement is None:
        return ""
    more = "more" if improvement.mean >= 0 else "less"
    interval = f"paired 95 % interval {improvement.low:+.1f} to {improvement.high:+.1f}"
    return (
        f"{candidate.model} earns ${abs(improvement.mean):.1f} an hour {more} than {comparison.reference} over {comparison.markets} unseen "
        f"markets ({interval})"
    )


def _cautions(comparison: Comparison, candidate: Standing) -> list[str]:
    losing = f"It still loses ${-candidate.pnl.mean:.1f} an hour: doing nothing earns more" if candidate.pnl.mean < 0 else ""
    return [losing, *comparison.notes]


def _markets_wanted(candidate: Standing, reference: Standing, min_improvement: float) -> str:
    differences = np.subtract(candidate.pnls_usd, reference.pnls_usd)
    needed = markets_needed(float(differences.mean()) - min_improvement, float(differences.std(ddof=1)))
    if needed is None or not math.isfinite(needed):
        return "More markets would not be expected to change that"
    return f"An effect of this size shows in 4 of 5 benchmarks of {needed} markets (BENCHMARK_MARKETS)"


def _sentences(*parts: str) -> str:
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)
