"""Report of the gate: rows, Markdown, picture, success criteria, and a content hash.

A success criterion compares the candidate with the reference in the same markets: yes when the whole interval of the difference says so,
no when the whole interval says the contrary, else unknown. Criteria describe; the gate decides. Left out: a correction for their number.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from babylon_rl.evaluation.columns import CRITERIA, contest_columns, gate_columns
from babylon_rl.evaluation.comparison import CANDIDATE, STRATEGY, Comparison, GateRow, Pair
from babylon_rl.evaluation.gate import GateVerdict
from babylon_rl.evaluation.snapshots import PRESET
from babylon_rl.evaluation.statistics.intervals import Interval, mean_interval, paired_interval
from babylon_rl.files.durable import write_atomically
from babylon_rl.market.simulation.config import PRESETS
from babylon_rl.reporting import plots
from babylon_rl.reporting.numbers import markdown_rows
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl.versions import content_version

YES, NO, UNKNOWN = "yes", "no", "unknown"
COLOURS = {
    "candidate": "#1f6fb4",
    "base": "#3d3d3d",
    "deployed": "#8a4fa3",
    "parent": "#b07aa1",
    "passed": "#b07aa1",
    "strategy": "#a9a9a9",
}
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
    # Criteria with the gate's confidence, so that both speak of the same evidence.
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
    # For a reference that loses, ten percent better means a smaller loss.
    factor = 1 + BETTER_PNL if theirs.pnl.mean >= 0 else 1 - BETTER_PNL
    beyond = paired_interval(ours.pnls_usd, [factor * usd for usd in theirs.pnls_usd], confidence=confidence)
    required = factor * theirs.pnl.mean
    sentence = f"{ours.pnl.mean:+.1f} where {required:+.1f} is asked: {beyond.mean:+.1f} beyond it [{beyond.low:+.1f}, {beyond.high:+.1f}]"
    return Criterion(f"{BETTER_PNL:.0%}+ better P&L", _met(beyond), sentence)


def _fewer_errors(ours: GateRow, theirs: GateRow, confidence: float) -> Criterion:
    errors = ours.invalid + ours.refused, theirs.invalid + theirs.refused
    # Without any error there is nothing to compare.
    if not any(errors):
        return Criterion("fewer errors", UNKNOWN, "neither made one: no unusable answer and no refused order")
    # Theirs less ours, as fewer errors are better.
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
    """Difference of two shares in the same markets, clustered by market.

    Ratio estimates, linearised (Cochran, Sampling Techniques, 1977, chapter 6), in the interval of means. None when one of them is a share
    of nothing.
    """
    parts = []
    for row in (ours, theirs):
        hits, trials = np.array([count(result) for result in row.results], dtype=np.float64).T
        if not trials.sum():
            return None
        share = hits.sum() / trials.sum()
        # Each market's part in the ratio: their mean is the share, and their spread is its error.
        parts.append(share + (hits - share * trials) / trials.mean())
    linear: Sequence[float] = (parts[0] - parts[1]).tolist()
    return mean_interval(linear, confidence=confidence)


FOOTER = (
    "P&L in dollars of one market hour, mean and 95 % interval over the markets; differences are paired market by market. The gate may "
    "analyse a growing benchmark {analyses} times: intervals of differences keep 95 % over all analyses together, p-values of the pairs "
    "are corrected for the analyses and for each other (Holm). The other rows describe and are not corrected for their number. All "
    "versions meet the same markets, and nothing is corrected for how many were tried in them: of forty that are no better, one may pass "
    "by chance. The oracle knows the future, the news reader how often news are true: what foresight and honest reading can earn with the "
    "same stake."
)


def results_version(comparison: Comparison[GateRow], verdict: GateVerdict, min_improvement: float, markets: Mapping[str, str]) -> str:
    """Hash of every result, its market, and the decision."""
    # With each market's fingerprint: the same money in a market that came out differently is another report.
    results = {
        row.player: [[r.snapshot, markets[r.snapshot], r.pnl_usd, r.refused, list(r.equity_usd)] for r in row.results]
        for row in comparison.rows
    }
    return content_version([results, comparison.candidate, comparison.reference, min_improvement, verdict.decision])


def rows_of(comparison: Comparison[GateRow], verdict: GateVerdict) -> list[dict[str, Any]]:
    """One object per player; the candidate's also holds checks, pairs and success criteria."""
    decided = {
        "checks": [asdict(check) for check in verdict.checks],
        "contests": [_pair_document(pair, comparison) for pair in comparison.pairs],
        "criteria": [asdict(criterion) for criterion in criteria(comparison)],
    }
    return [row.document | (decided if row.player == comparison.candidate else {}) for row in comparison.rows]


def markdown(comparison: Comparison[GateRow], verdict: GateVerdict) -> str:
    """The report as a Markdown document of one screen."""
    parts = [
        f"**{verdict.decision.replace('_', ' ')}**: {verdict.reason}",
        markdown_rows(gate_columns(comparison.reference), comparison.rows),
    ]
    if comparison.pairs:
        parts.append(markdown_rows(contest_columns(comparison.reference), comparison.pairs))
        parts.append(markdown_rows(CRITERIA, criteria(comparison)))
    parts.append(f"{comparison.markets} unseen markets. {FOOTER.format(analyses=comparison.analyses)}")
    return "\n\n".join(parts) + "\n"


def _pair_document(pair: Pair, comparison: Comparison[GateRow]) -> dict[str, Any]:
    """A pair as JSON values: dollars an hour, effect in standard deviations, shares 0..1."""
    difference, effect, better = pair.paired.difference, pair.paired.effect, pair.paired.superiority
    return {
        "rival": pair.b, "role": comparison.row(pair.b).role,
        "difference": difference.mean, "low": difference.low, "high": difference.high,
        "effect": None if effect is None else effect.mean, "effectLow": None if effect is None else _bounded(effect.low),
        "effectHigh": None if effect is None else _bounded(effect.high),
        "betterShare": better.mean, "p": pair.paired.test.p, "adjustedP": pair.adjusted_p,
    }  # fmt: skip


def _bounded(value: float) -> float | None:
    """None for an end that lies at infinity, which JSON cannot say."""
    return value if math.isfinite(value) else None


def benchmark_png(comparison: Comparison[GateRow], verdict: GateVerdict) -> bytes:
    """A comparison as a PNG of about 100 kB: P&L, paired differences, curves, risk."""
    figure = plots.new_figure(13.5, 7.4, 80)
    places = [["means", "pairs", "hour"], ["means", "sharpe", "drawdown"]]
    panels = figure.subplot_mosaic(places, width_ratios=(1.15, 1.0, 1.0), height_ratios=(1.25, 1.0))
    figure.subplots_adjust(left=0.11, right=0.93, bottom=0.07, top=0.86, wspace=0.3, hspace=0.28)
    heading = f"{verdict.decision.replace('_', ' ').upper()}: {verdict.reason}"
    figure.text(0.02, 0.97, "\n".join(textwrap.wrap(heading, 170)[:3]), fontsize=9.5, va="top")
    # models in their order, then strategies from best to worst
    strategies = sorted((row for row in comparison.rows if row.role == STRATEGY), key=lambda row: -row.pnl.mean)
    models = [row for row in comparison.rows if row.role != STRATEGY]
    marks = [plots.IntervalMark(_label(row), row.pnl.mean, row.pnl.low, row.pnl.high, COLOURS[row.role]) for row in [*models, *strategies]]
    plots.draw_intervals(panels["means"], marks, title="Mean P&L, 95 % interval", unit="dollars of a market hour")
    _draw_differences(panels["pairs"], comparison)
    _draw_course(panels["hour"], comparison.rows, lambda row: row.pnl_path, "Mean P&L so far, dollars")
    # the table has the risk of strategies
    shown = models or comparison.rows
    _draw_course(panels["sharpe"], shown, lambda row: row.sharpe_path, "Mean Sharpe ratio so far")
    _draw_course(panels["drawdown"], shown, lambda row: row.drawdown_path, "Mean dollars below the peak so far")
    plots.plain_axes(panels.values())
    return plots.png_of(figure)


def write_plot(png: bytes, path: Path) -> Path:
    """Put a picture at ``path``, complete or not at all; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png)
    return path


def _label(row: GateRow) -> str:
    return f"{row.player} ({row.role})" if row.role not in (row.player, STRATEGY) else row.player


def _draw_differences(axes: Any, comparison: Comparison[GateRow]) -> None:
    if comparison.candidate is None or comparison.reference is None or comparison.candidate == comparison.reference:
        plots.draw_sentence(axes, "not compared")
        return
    ours, theirs = comparison.row(comparison.candidate), comparison.row(comparison.reference)
    differences = [a - b for a, b in zip(ours.pnls_usd, theirs.pnls_usd, strict=True)]
    better, gain, mean = sum(difference > 0 for difference in differences), ours.improvement, None
    if gain is not None:
        mean = plots.IntervalMark(f"mean {gain.mean:+.0f}, 95 % interval", gain.mean, gain.low, gain.high, COLOURS[CANDIDATE])
    title = f"{ours.player} - {theirs.player}: better in {better} of {len(differences)} markets"
    plots.draw_differences(axes, differences, title=title, mean=mean)


def _draw_course(axes: Any, rows: Sequence[GateRow], path_of: Callable[[GateRow], Sequence[float | None]], title: str) -> None:
    """Curves over the market hour."""
    curves = [plots.NamedCurve(row.player, path_of(row), COLOURS[row.role], dashed=row.role == STRATEGY) for row in rows]
    plots.draw_curves(axes, curves, step=PRESETS[PRESET].tick_seconds / 60, title=title, x_label="minute of the hour")
