"""The gate: whether the evidence lets a version in front of the agents, and why, in words and numbers.

It asks for objective P&L alone: the judge that a version was trained with has no say here. docs/decisions/0007-gate.md says why the
rules are these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.evaluation.comparison import BASE, NOTHING, Comparison, Contest, Standing
from babylon_rl.evaluation.looks import FEWEST_MARKETS, LOOKS, needed_markets
from babylon_rl.evaluation.statistics import detectable_effect

PASS, FAIL, INCONCLUSIVE, NOT_COMPARED = "pass", "fail", "inconclusive", "not_compared"
COLLAPSE = 0.95  # a larger share of one action is no policy
_WORDS = {"invalid": "something unusable"}


@dataclass(frozen=True)
class Check:
    """One condition of the gate: ``found`` is pass, fail or inconclusive."""

    name: str
    found: str
    words: str


@dataclass(frozen=True)
class Verdict:
    """``decision`` is fail when one of ``checks`` failed, pass when all passed, inconclusive otherwise, or not_compared without any."""

    decision: str
    reason: str
    checks: tuple[Check, ...] = ()


def decide(comparison: Comparison, min_improvement: float = 0.0) -> Verdict:
    """Judge the candidate of a comparison.

    Pass needs all of: the lower end of the paired interval of its improvement over the reference above ``min_improvement`` (dollars an
    hour); shown to earn more than the base and than doing nothing too; no more unusable answers than the reference; no action above
    COLLAPSE of its decisions; FEWEST_MARKETS markets.
    """
    if comparison.candidate is None or comparison.reference is None:
        return Verdict(NOT_COMPARED, _sentences(*comparison.notes) or "There is nobody to compare.")
    candidate, reference = comparison.standing(comparison.candidate), comparison.standing(comparison.reference)
    if candidate.improvement is None:
        return Verdict(NOT_COMPARED, f"{candidate.model} cannot be compared with itself.")
    improvement = _improvement(comparison, candidate, min_improvement)
    checks = (
        _collapse(candidate),
        _valid_answers(candidate, reference),
        improvement,
        *(_gain(contest, comparison) for contest in comparison.contests if _vetoes(contest, comparison)),
        _enough_markets(comparison),
    )
    found = {check.found for check in checks}
    decision = FAIL if FAIL in found else PASS if found == {PASS} else INCONCLUSIVE
    named = [check for check in checks if check.found == decision and check is not improvement] if decision != PASS else []
    return Verdict(
        decision, _sentences(*(check.words for check in named), *_money(comparison, improvement, min_improvement, decision)), checks
    )


def _collapse(candidate: Standing) -> Check:
    action, share = max(candidate.shares.items(), key=lambda item: item[1])
    most = f"{candidate.model} answers {_WORDS.get(action, action)} in {share:.1%} of its {candidate.decisions} decisions"
    if share > COLLAPSE:
        return Check("no_collapse", FAIL, f"{most}: more than {COLLAPSE:.0%} is a collapse into one action")
    return Check("no_collapse", PASS, f"{most}, the most of any action")


def _valid_answers(candidate: Standing, reference: Standing) -> Check:
    rates = ", ".join(f"{standing.model} {standing.shares['invalid']:.1%}" for standing in (candidate, reference))
    if candidate.invalid * reference.decisions > reference.invalid * candidate.decisions:
        return Check("valid_answers", FAIL, f"Invalid answers have become more: {rates}")
    return Check("valid_answers", PASS, f"Invalid answers have not become more: {rates}")


def _improvement(comparison: Comparison, candidate: Standing, min_improvement: float) -> Check:
    improvement, wanted = candidate.improvement, f"{min_improvement:+.1f}"
    assert improvement is not None
    more = "more" if improvement.mean >= 0 else "less"
    difference = (
        f"{candidate.model} earns ${abs(improvement.mean):.1f} an hour {more} than {comparison.reference} over {comparison.markets} unseen "
        f"markets (paired 95 % interval {improvement.low:+.1f} to {improvement.high:+.1f})"
    )
    if improvement.low > min_improvement:
        return Check("improvement", PASS, f"{difference}: all of it is above the required {wanted}")
    if improvement.high <= min_improvement:
        return Check("improvement", FAIL, f"{difference}: none of it is above the required {wanted}")
    return Check("improvement", INCONCLUSIVE, f"{difference}: it holds the required {wanted}")


def _vetoes(contest: Contest, comparison: Comparison) -> bool:
    return contest.rival != comparison.reference and (contest.rival == NOTHING or contest.role == BASE)


def _gain(contest: Contest, comparison: Comparison) -> Check:
    """Nobody is put in front of the agents who is not shown to earn more than what costs nothing: the base, or no trading at all."""
    difference, rival = contest.paired.difference, "doing nothing" if contest.rival == NOTHING else contest.rival
    name = "better_than_nothing" if contest.rival == NOTHING else "better_than_base"
    interval = f"{difference.mean:+.1f} an hour, paired 95 % interval {difference.low:+.1f} to {difference.high:+.1f}"
    if difference.low > 0:
        return Check(name, PASS, f"{comparison.candidate} is shown to earn more than {rival} ({interval})")
    if difference.high >= 0:
        return Check(name, INCONCLUSIVE, f"{comparison.candidate} is not shown to earn more than {rival} ({interval})")
    instead = f"; {comparison.reference} is no reason to deploy it: {rival} is the better choice" if contest.rival == NOTHING else ""
    return Check(name, FAIL, f"{comparison.candidate} is shown to earn less than {rival} ({interval}){instead}")


def _enough_markets(comparison: Comparison) -> Check:
    spread, words = comparison.contests[0].paired.spread, f"{comparison.markets} markets were played"
    if spread is not None and spread.between > 0:
        shown = detectable_effect(comparison.markets, spread, confidence=comparison.confidence)
        words += f", which show a difference of ${shown:.0f} an hour in 4 of 5 benchmarks"
    if comparison.markets < FEWEST_MARKETS:
        return Check("enough_markets", INCONCLUSIVE, f"{words}; a pass needs {FEWEST_MARKETS} markets at least (BENCHMARK_MARKETS)")
    return Check("enough_markets", PASS, words)


def _money(comparison: Comparison, improvement: Check, min_improvement: float, decision: str) -> Sequence[str]:
    """What is said of dollars, whatever was decided."""
    said = [improvement.words]
    if decision == INCONCLUSIVE and improvement.found == INCONCLUSIVE:
        said.append(_markets_wanted(comparison, min_improvement))
    return [*said, *comparison.notes]


def _markets_wanted(comparison: Comparison, min_improvement: float) -> str:
    needed = needed_markets(comparison, min_improvement)
    if needed is None:
        return "More markets would not be expected to change that"
    return (
        f"An effect of this size shows in 4 of 5 benchmarks of {needed} markets "
        f"(BENCHMARK_MARKETS; the benchmark itself plays up to {LOOKS[-1]} times as many)"
    )


def _sentences(*parts: str) -> str:
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)
