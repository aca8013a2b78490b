"""A comparison for readers: its rows, a table in Markdown, a picture, and a hash by which an unchanged re-run is recognised."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.comparison import Comparison, Contest, Standing
from babylon_rl.evaluation.criteria import criteria
from babylon_rl.evaluation.gate import Verdict
from babylon_rl.evaluation.statistics import Interval
from babylon_rl.versions import content_version

FOOTER = (
    "P&L in dollars of one market hour, mean and 95 % interval over the markets; differences are paired market by market. The gate may "
    "look {looks} times at a growing benchmark: intervals of differences keep 95 % over all looks together, p-values of the contests are "
    "corrected for looks and for each other (Holm). The other rows describe and are not corrected for their number. All versions meet the "
    "same markets, and nothing is corrected for how many were tried in them: of forty that are no better, one may pass by chance. The "
    "oracle knows the future, the news reader how often news are true: what foresight and honest reading can earn with the same stake."
)
CONTEST_COLUMNS = ("candidate against", "difference, $ an hour", "effect, standard deviations", "better in", "p, corrected")
COLUMNS = ("model", "P&L, $ an hour", "against the reference", "win rate", "right direction", "invalid / refused", "buy / sell / hold")


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
    played = {
        s.model: [[r.snapshot, markets[r.snapshot], r.pnl_usd, r.refused, list(r.equity_usd)] for r in s.results]
        for s in comparison.standings
    }
    return content_version([played, comparison.candidate, comparison.reference, min_improvement, verdict.decision])


def rows_of(comparison: Comparison, verdict: Verdict) -> list[dict[str, Any]]:
    """One object per model; the candidate's also holds what the gate asked and found, its contests and the success criteria."""
    asked = {
        "checks": [asdict(check) for check in verdict.checks],
        "contests": [contest.row for contest in comparison.contests],
        "criteria": [asdict(criterion) for criterion in criteria(comparison)],
    }
    return [standing.row | (asked if standing.model == comparison.candidate else {}) for standing in comparison.standings]


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
        f"{shares['invalid']:.1%} / {standing.refused / standing.decisions:.1%}",
        " / ".join(f"{shares[action]:.0%}" for action in ("buy", "sell", "hold")),
    ]


def markdown(comparison: Comparison, verdict: Verdict) -> str:
    """The report as a Markdown document of one screen."""
    parts = [
        f"**{verdict.decision.replace('_', ' ')}**: {verdict.reason}",
        _grid(COLUMNS, [cells(comparison, s) for s in comparison.standings]),
    ]
    if comparison.contests:
        parts.append(_grid(CONTEST_COLUMNS, [_contest(contest, comparison.reference) for contest in comparison.contests]))
        parts.append(_grid(("success criterion", "met", "against the reference"), [(c.name, c.met, c.words) for c in criteria(comparison)]))
    parts.append(f"{comparison.markets} unseen markets. {FOOTER.format(looks=comparison.looks)}")
    return "\n\n".join(parts) + "\n"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows))


def _contest(contest: Contest, reference: str | None) -> list[str]:
    effect, better = contest.paired.effect, contest.paired.superiority
    return [
        f"{contest.rival} (the reference)" if contest.rival == reference else contest.rival,
        _interval(contest.paired.difference),
        "-" if effect is None else f"{effect.size:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]",
        f"{better.share:.0%} of {better.count} markets",
        f"{contest.adjusted_p:.2g}",
    ]


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:+.0f} [{interval.low:+.0f}, {interval.high:+.0f}]"


def _percent(share: Interval | None) -> str:
    return "-" if share is None else f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"
