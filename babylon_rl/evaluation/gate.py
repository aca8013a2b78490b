"""The gate: decides from the evidence whether a version may be released, with the reasons.

It asks for objective P&L alone: the judge that a version was trained with has no say here. docs/decisions/0007-gate.md says why the
rules are these. Interim analyses of a benchmark that grows are fixed beforehand: as it is set, twice and four times as large, each at a
confidence that keeps 95 % over all of them (Bonferroni over fixed sizes; stopping early only makes it more careful), so that playing on
until something shows is no way through the gate. Left out: sizes chosen from what was seen, which no such correction covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.comparison import BASE, NOTHING, Comparison, GateRow, Pair
from babylon_rl.evaluation.statistics.intervals import FEWEST_TO_RESAMPLE
from babylon_rl.evaluation.statistics.paired import detectable_effect, markets_needed

ANALYSES = (1, 2, 4)  # times the benchmark as it is set
FEWEST_MARKETS = 48  # no version passes below: losses in a tenth of all markets are seen in 48 but for 0.6 %
PASS, FAIL, INCONCLUSIVE, NOT_COMPARED = "pass", "fail", "inconclusive", "not_compared"
COLLAPSE = 0.95  # a larger share of one action is no policy
_WORDS = {"invalid": "something unusable"}


@dataclass(frozen=True)
class GateCheck:
    """One condition of the gate: ``found`` is pass, fail or inconclusive."""

    name: str
    found: str
    words: str


@dataclass(frozen=True)
class GateVerdict:
    """Decision of the gate with its checks.

    ``decision`` is fail when one of ``checks`` failed, pass when all passed, inconclusive otherwise, or not_compared without any.
    """

    decision: str
    reason: str
    checks: tuple[GateCheck, ...] = ()


def decide(comparison: Comparison[GateRow], min_improvement: float = 0.0) -> GateVerdict:
    """Judge the candidate of a comparison.

    Pass needs all of: the lower end of the paired interval of its improvement over the reference above ``min_improvement`` (dollars an
    hour); shown to earn more than the base and than doing nothing too; no more unusable answers than the reference; no action above
    COLLAPSE of its decisions; FEWEST_MARKETS markets.
    """
    if comparison.candidate is None or comparison.reference is None:
        return GateVerdict(NOT_COMPARED, _sentences(*comparison.notes) or "There is nobody to compare.")
    candidate, reference = comparison.row(comparison.candidate), comparison.row(comparison.reference)
    if candidate.improvement is None:
        return GateVerdict(NOT_COMPARED, f"{candidate.player} cannot be compared with itself.")
    improvement = _improvement(comparison, candidate, min_improvement)
    # Hard faults first, then money, then the number of markets.
    checks = (
        _collapse(candidate),
        _valid_answers(candidate, reference),
        improvement,
        *(_gain(pair, comparison) for pair in comparison.pairs if _vetoes(pair, comparison)),
        _enough_markets(comparison),
    )
    outcomes = {check.found for check in checks}
    # One failed check decides; a pass needs every check.
    decision = FAIL if FAIL in outcomes else PASS if outcomes == {PASS} else INCONCLUSIVE
    # Only the checks that made the decision are named before the money; a pass is said by the money alone.
    named = [check for check in checks if check.found == decision and check is not improvement] if decision != PASS else []
    return GateVerdict(
        decision, _sentences(*(check.words for check in named), *_money(comparison, improvement, min_improvement, decision)), checks
    )


def _collapse(candidate: GateRow) -> GateCheck:
    action, share = max(candidate.shares.items(), key=lambda item: item[1])
    most = f"{candidate.player} answers {_WORDS.get(action, action)} in {share:.1%} of its {candidate.decisions} decisions"
    if share > COLLAPSE:
        return GateCheck("no_collapse", FAIL, f"{most}: more than {COLLAPSE:.0%} is a collapse into one action")
    return GateCheck("no_collapse", PASS, f"{most}, the most of any action")


def _valid_answers(candidate: GateRow, reference: GateRow) -> GateCheck:
    rates = ", ".join(f"{row.player} {row.shares['invalid']:.1%}" for row in (candidate, reference))
    # Rates compared as products, so that no rounding decides.
    if candidate.invalid * reference.decisions > reference.invalid * candidate.decisions:
        return GateCheck("valid_answers", FAIL, f"Invalid answers have become more: {rates}")
    return GateCheck("valid_answers", PASS, f"Invalid answers have not become more: {rates}")


def _improvement(comparison: Comparison[GateRow], candidate: GateRow, min_improvement: float) -> GateCheck:
    improvement, required = candidate.improvement, f"{min_improvement:+.1f}"
    assert improvement is not None
    more = "more" if improvement.mean >= 0 else "less"
    difference = (
        f"{candidate.player} earns ${abs(improvement.mean):.1f} an hour {more} than {comparison.reference} over {comparison.markets} "
        f"unseen markets (paired 95 % interval {improvement.low:+.1f} to {improvement.high:+.1f})"
    )
    if improvement.low > min_improvement:
        return GateCheck("improvement", PASS, f"{difference}: all of it is above the required {required}")
    # The whole interval must lie on one side, else nothing is decided.
    if improvement.high <= min_improvement:
        return GateCheck("improvement", FAIL, f"{difference}: none of it is above the required {required}")
    return GateCheck("improvement", INCONCLUSIVE, f"{difference}: it holds the required {required}")


def _vetoes(pair: Pair, comparison: Comparison[GateRow]) -> bool:
    return pair.b != comparison.reference and (pair.b == NOTHING or comparison.row(pair.b).role == BASE)


def _gain(pair: Pair, comparison: Comparison[GateRow]) -> GateCheck:
    """Veto check: a version must earn more than the base, and than no trading."""
    difference, rival = pair.paired.difference, "doing nothing" if pair.b == NOTHING else pair.b
    name = "better_than_nothing" if pair.b == NOTHING else "better_than_base"
    interval = f"{difference.mean:+.1f} an hour, paired 95 % interval {difference.low:+.1f} to {difference.high:+.1f}"
    if difference.low > 0:
        return GateCheck(name, PASS, f"{comparison.candidate} is shown to earn more than {rival} ({interval})")
    if difference.high >= 0:
        return GateCheck(name, INCONCLUSIVE, f"{comparison.candidate} is not shown to earn more than {rival} ({interval})")
    instead = f"; {comparison.reference} is no reason to deploy it: {rival} is the better choice" if pair.b == NOTHING else ""
    return GateCheck(name, FAIL, f"{comparison.candidate} is shown to earn less than {rival} ({interval}){instead}")


def _enough_markets(comparison: Comparison[GateRow]) -> GateCheck:
    # The first pair is that with the reference.
    spread, sentence = comparison.pairs[0].paired.spread, f"{comparison.markets} markets were played"
    if spread is not None and spread.between > 0:
        shown = detectable_effect(comparison.markets, spread, comparison.confidence)
        sentence += f", which show a difference of ${shown:.0f} an hour in 4 of 5 benchmarks"
    if comparison.markets < FEWEST_MARKETS:
        return GateCheck("enough_markets", INCONCLUSIVE, f"{sentence}; a pass needs {FEWEST_MARKETS} markets at least (BENCHMARK_MARKETS)")
    return GateCheck("enough_markets", PASS, sentence)


def _money(comparison: Comparison[GateRow], improvement: GateCheck, min_improvement: float, decision: str) -> Sequence[str]:
    """Sentences about dollars, for every decision."""
    sentences = [improvement.words]
    if decision == INCONCLUSIVE and improvement.found == INCONCLUSIVE:
        sentences.append(_markets_wanted(comparison, min_improvement))
    return [*sentences, *comparison.notes]


def _markets_wanted(comparison: Comparison[GateRow], min_improvement: float) -> str:
    needed = needed_markets(comparison, min_improvement)
    if needed is None:
        return "More markets would not be expected to change that"
    return (
        f"An effect of this size shows in 4 of 5 benchmarks of {needed} markets "
        f"(BENCHMARK_MARKETS; the benchmark itself plays up to {ANALYSES[-1]} times as many)"
    )


def _sentences(*parts: str) -> str:
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)


def analysis_sizes(first: int) -> tuple[int, ...]:
    """Markets of each interim analysis."""
    return tuple(first * times for times in ANALYSES)


def next_analysis(comparison: Comparison[GateRow], min_improvement: float, first: int) -> int | None:
    """Markets of the next interim analysis after an inconclusive one.

    None when no more are worth playing.
    """
    # Sizes are fixed beforehand; none is chosen from the data.
    larger = [size for size in analysis_sizes(first) if size > comparison.markets]
    # Where even the last size is too small to pass, playing on could only cost.
    if not larger or larger[-1] < FEWEST_MARKETS:
        return None
    if comparison.markets < FEWEST_TO_RESAMPLE:  # too few to expect anything from
        return larger[0]
    needed = needed_markets(comparison, min_improvement)
    return larger[0] if needed is not None and needed <= larger[-1] else None


def needed_markets(comparison: Comparison[GateRow], min_improvement: float) -> int | None:
    """Markets in which an improvement of the observed size shows with 80 % power.

    None when it is not above ``min_improvement``.
    """
    if comparison.candidate is None or comparison.reference is None:
        return None
    ours, theirs = comparison.row(comparison.candidate), comparison.row(comparison.reference)
    differences = np.subtract(ours.pnls_usd, theirs.pnls_usd)
    # Power for the observed effect, above the required one.
    effect, spread = float(differences.mean()) - min_improvement, float(differences.std(ddof=1))
    return markets_needed(effect, spread, comparison.confidence)
