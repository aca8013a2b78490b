"""The gate's report: rows, a table in Markdown, the success criteria, and a hash by which an unchanged re-run is recognised.

A success criterion compares the candidate with the reference in the same markets: yes when the whole interval of the difference says so,
no when the whole interval says the contrary, else unknown. Criteria describe; the gate decides. Left out: a correction for their number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from babylon_rl.evaluation.comparison import Comparison, GateRow, Pair
from babylon_rl.evaluation.gate import GateVerdict
from babylon_rl.evaluation.statistics import Interval, mean_interval, paired_interval
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl.versions import content_version

YES, NO, UNKNOWN = "yes", "no", "unknown"
BETTER_PNL = 0.10
Count = Callable[[MarketResult], tuple[int, int]]  # hits and trials in one market


@dataclass(frozen=True)
class Criterion:
    """``met`` is yes, no or unknown."""

    name: str
    met: str
    words: str


def criteria(comparison: Comparison[GateRow]) -> tuple[Criterion, ...]:
    """The four criteria; none when the candidate was not compared."""
    if comparison.candidate is None or comparison.reference is None or comparison.candidate == comparison.reference:
        return ()
    ours, theirs = comparison.row(comparison.candidate), comparison.row(comparison.reference)
    confidence = comparison.confidence
    closed = _share_gain(ours, theirs, lambda result: (result.wins, result.wins + result.losses), confidence)
    right = _share_gain(ours, theirs, lambda result: (result.predictions_right, result.predictions), confidence)
    return (
        _better_pnl(ours, theirs, confidence),
        _share("better win rate", closed, "of the orders closed with a gain or a loss"),
        _fewer_errors(ours, theirs, confidence),
        _share("better timing", right, "of the orders in the direction that the market took over their tick"),
    )


def _better_pnl(ours: GateRow, theirs: GateRow, confidence: float) -> Criterion:
    """Criterion: ours is above theirs by BETTER_PNL of theirs."""
    factor = 1 + BETTER_PNL if theirs.pnl.mean >= 0 else 1 - BETTER_PNL
    beyond = paired_interval(ours.pnls_usd, [factor * usd for usd in theirs.pnls_usd], confidence=confidence)
    wanted = factor * theirs.pnl.mean
    words = f"{ours.pnl.mean:+.1f} where {wanted:+.1f} is asked: {beyond.mean:+.1f} beyond it [{beyond.low:+.1f}, {beyond.high:+.1f}]"
    return Criterion(f"{BETTER_PNL:.0%}+ better P&L", _met(beyond), words)


def _fewer_errors(ours: GateRow, theirs: GateRow, confidence: float) -> Criterion:
    errors = ours.invalid + ours.refused, theirs.invalid + theirs.refused
    if not any(errors):
        return Criterion("fewer errors", UNKNOWN, "neither made one: no unusable answer and no refused order")
    gain = _share_gain(theirs, ours, lambda result: (result.invalid + result.refused, result.decisions), confidence)
    return _share("fewer errors", gain, f"of the decisions ({errors[0]} errors against {errors[1]})")


def _share(name: str, gain: Interval | None, of_what: str) -> Criterion:
    if gain is None:
        return Criterion(name, UNKNOWN, "one of the two traded in no market")
    points = f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return Criterion(name, _met(gain), f"{points} {of_what}")


def _met(beyond: Interval) -> str:
    return YES if beyond.low > 0 else NO if beyond.high <= 0 else UNKNOWN


def _share_gain(ours: GateRow, theirs: GateRow, count: Count, confidence: float) -> Interval | None:
    """The difference of two shares of the same markets, clustered by market: ratio estimates, linearised (Cochran, Sampling
    Techniques, 1977, chapter 6), in the interval of means. None when one of them is a share of nothing."""
    parts = []
    for row in (ours, theirs):
        hits, trials = np.array([count(result) for result in row.results], dtype=np.float64).T
        if not trials.sum():
            return None
        share = hits.sum() / trials.sum()
        parts.append(share + (hits - share * trials) / trials.mean())
    linear: Sequence[float] = (parts[0] - parts[1]).tolist()
    return mean_interval(linear, confidence=confidence)


FOOTER = (
    "P&L in dollars of one market hour, mean and 95 % interval over the markets; differences are paired market by market. The gate may "
    "look {looks} times at a growing benchmark: intervals of differences keep 95 % over all looks together, p-values of the contests are "
    "corrected for looks and for each other (Holm). The other rows describe and are not corrected for their number. All versions meet the "
    "same markets, and nothing is corrected for how many were tried in them: of forty that are no better, one may pass by chance. The "
    "oracle knows the future, the news reader how often news are true: what foresight and honest reading can earn with the same stake."
)
PAIR_COLUMNS = ("candidate against", "difference, $ an hour", "effect, standard deviations", "better in", "p, corrected")
COLUMNS = (
    "model", "P&L, $ an hour", "against the reference", "Sharpe", "drawdown, $", "win rate", "right direction", "invalid / refused",
    "buy / sell / hold",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkReport:
    """A batch's evidence; ``rows`` holds one object per model (GateRow.document), ``plot_path`` where the picture lies."""

    batch_id: str
    version: str
    reference: str | None
    decision: str
    reason: str
    markets: int
    min_improvement: float
    rows: list[dict[str, Any]]
    data_version: str
    table_markdown: str
    plot_png: bytes | None
    plot_path: Path | None


def results_version(comparison: Comparison[GateRow], verdict: GateVerdict, min_improvement: float, markets: Mapping[str, str]) -> str:
    """The hash of every result, the markets they came from, and the decision made of them."""
    results = {
        row.player: [[r.snapshot, markets[r.snapshot], r.pnl_usd, r.refused, list(r.equity_usd)] for r in row.results]
        for row in comparison.rows
    }
    return content_version([results, comparison.candidate, comparison.reference, min_improvement, verdict.decision])


def rows_of(comparison: Comparison[GateRow], verdict: GateVerdict) -> list[dict[str, Any]]:
    """One object per player; the candidate's also holds the gate's checks, its pairs and the success criteria."""
    decided = {
        "checks": [asdict(check) for check in verdict.checks],
        "contests": [_pair_document(pair, comparison) for pair in comparison.pairs],
        "criteria": [asdict(criterion) for criterion in criteria(comparison)],
    }
    return [row.document | (decided if row.player == comparison.candidate else {}) for row in comparison.rows]


def cells(comparison: Comparison[GateRow], row: GateRow) -> list[str]:
    """One player's row for people, under COLUMNS."""
    shares = row.shares
    return [
        *earnings(row, "the reference" if row.player == comparison.reference else None),
        f"{shares['invalid']:.1%} / {row.refused / row.decisions:.1%}",
        " / ".join(f"{shares[action]:.0%}" for action in ("buy", "sell", "hold")),
    ]


def earnings(row: GateRow, reference: str | None) -> list[str]:
    """Cells that every table has, from P&L to accuracy; ``reference`` is said in place of a difference to it."""
    return [
        f"{row.player} ({row.role})" if row.role != row.player else row.player,
        _interval(row.pnl),
        reference or _interval(row.improvement),
        "-" if row.sharpe is None else f"{row.sharpe:+.2f}",
        f"{row.max_drawdown_usd:.0f}",
        _percent(row.win_rate),
        _percent(row.accuracy),
    ]


def markdown(comparison: Comparison[GateRow], verdict: GateVerdict) -> str:
    """The report as a Markdown document of one screen."""
    parts = [
        f"**{verdict.decision.replace('_', ' ')}**: {verdict.reason}",
        grid(COLUMNS, [cells(comparison, row) for row in comparison.rows]),
    ]
    if comparison.pairs:
        parts.append(grid(PAIR_COLUMNS, [_pair(pair, comparison.reference) for pair in comparison.pairs]))
        parts.append(grid(("success criterion", "met", "against the reference"), [(c.name, c.met, c.words) for c in criteria(comparison)]))
    parts.append(f"{comparison.markets} unseen markets. {FOOTER.format(looks=comparison.analyses)}")
    return "\n\n".join(parts) + "\n"


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows))


def _pair(pair: Pair, reference: str | None) -> list[str]:
    effect, better = pair.paired.effect, pair.paired.superiority
    return [
        f"{pair.b} (the reference)" if pair.b == reference else pair.b,
        _interval(pair.paired.difference),
        "-" if effect is None else f"{effect.size:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]",
        f"{better.share:.0%} of {better.count} markets",
        f"{pair.adjusted_p:.2g}",
    ]


def _pair_document(pair: Pair, comparison: Comparison[GateRow]) -> dict[str, Any]:
    """A pair as plain values: dollars an hour, the effect in standard deviations of the markets' differences, shares 0..1."""
    difference, effect, better = pair.paired.difference, pair.paired.effect, pair.paired.superiority
    return {
        "rival": pair.b, "role": comparison.row(pair.b).role,
        "difference": difference.mean, "low": difference.low, "high": difference.high,
        "effect": None if effect is None else effect.size, "effectLow": None if effect is None else _bounded(effect.low),
        "effectHigh": None if effect is None else _bounded(effect.high),
        "betterShare": better.share, "p": pair.paired.test.p, "adjustedP": pair.adjusted_p,
    }  # fmt: skip


def _bounded(value: float) -> float | None:
    """None for an end that lies at infinity, which JSON cannot say."""
    return value if math.isfinite(value) else None


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:+.0f} [{interval.low:+.0f}, {interval.high:+.0f}]"


def _percent(share: Interval | None) -> str:
    return "-" if share is None else f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"
