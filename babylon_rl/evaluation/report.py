"""A comparison for readers: its rows, a table in Markdown, a picture, and a hash by which an unchanged re-run is recognised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.comparison import Comparison, Standing
from babylon_rl.evaluation.gate import Verdict
from babylon_rl.evaluation.statistics import Interval
from babylon_rl.versions import content_version

FOOTER = (
    "P&L in dollars of one market hour, mean and 95 % interval over the markets; the difference is paired market by market. The gate makes "
    "one comparison, candidate with reference; all other rows describe and are not corrected for their number."
)
COLUMNS = ("model", "P&L, $ an hour", "against the reference", "win rate", "right direction", "invalid", "buy / sell / hold")


@dataclass(frozen=True)
class BenchmarkReport:
    """A batch's evidence; ``rows`` holds one object per model (Standing.row), ``plot_path`` where the picture lies."""

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


def results_version(comparison: Comparison, verdict: Verdict, min_improvement: float, markets: Mapping[str, str]) -> str:
    """The hash of every result, the markets they came from, and the decision made of them."""
    played = {s.model: [[r.snapshot, markets[r.snapshot], r.pnl_usd, list(r.equity_usd)] for r in s.results] for s in comparison.standings}
    return content_version([played, comparison.candidate, comparison.reference, min_improvement, verdict.decision])


def cells(comparison: Comparison, standing: Standing) -> list[str]:
    """One model's line for people, under COLUMNS."""
    shares = standing.shares
    against = "the reference" if standing.model == comparison.reference else _interval(standing.improvement)
    return [
        f"{standing.model} ({standing.role})" if standing.role != standing.model else standing.model,
        _interval(standing.pnl),
        against,
        _percent(standing.win_rate),
        _percent(standing.accuracy),
        f"{shares['invalid']:.1%}",
        " / ".join(f"{shares[action]:.0%}" for action in ("buy", "sell", "hold")),
    ]


def markdown(comparison: Comparison, verdict: Verdict) -> str:
    """The report as a Markdown document of one screen."""
    rows: Sequence[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS), *(cells(comparison, s) for s in comparison.standings)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    heading = f"**{verdict.decision.replace('_', ' ')}**: {verdict.reason}"
    return "\n".join([heading, "", *lines, "", f"{comparison.markets} unseen markets. {FOOTER}", ""])


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:+.0f} [{interval.low:+.0f}, {interval.high:+.0f}]"


def _percent(share: Interval | None) -> str:
    return "-" if share is None else f"{share.mean:.0%}"
