"""Scripts at the size of a version, and the risk of its hours, for games whose answers choose their dollars.

There a larger profit may come from larger orders alone. Every claim about a version then stands beside the same scripts at its mean stake,
with Sharpe ratio, worst hour and drawdown. In games with one fixed stake there is nothing to add.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from babylon_rl.evaluation.gate import NOT_COMPARED, Comparison, GateRow, mean_stake_usd
from babylon_rl.evaluation.play import script_rows, staked
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.games import ONE_TICK_GAME
from babylon_rl.market.simulation.strategies import STRATEGIES
from babylon_rl.reporting.numbers import Column
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl.types import BenchmarkReport

NEWS_READER = "news-reader"
AT_THE_STAKE = (*STRATEGIES, NEWS_READER, "oracle")


def scripts_at_stake(snapshots: Sequence[Snapshot], results: Sequence[MarketResult]) -> dict[str, tuple[str, list[MarketResult]]]:
    """Strategies at the mean stake of a player's results; none in games with one fixed stake, or where it never traded."""
    stake = mean_stake_usd(results) if snapshots[0].game.names_size else None
    return {} if stake is None else script_rows(snapshots, AT_THE_STAKE, stake)


def rivals_at_stake(comparison: Comparison) -> list[tuple[str, str]]:
    """The best script and the news reader at the candidate's mean stake, as (words, name of the row)."""
    rows = {row.player: row for row in comparison.rows}
    stake = None if comparison.candidate is None else rows[comparison.candidate].mean_stake_usd
    if stake is None or staked(NEWS_READER, stake) not in rows:
        return []
    best = max(STRATEGIES, key=lambda name: rows[staked(name, stake)].pnl.mean)
    return [
        (f"{best}, the best script at its mean stake of ${stake:,.0f}", staked(best, stake)),
        (f"the news reader at ${stake:,.0f}", staked(NEWS_READER, stake)),
    ]


def risk_words(ours: GateRow, theirs: GateRow) -> str:
    ratios = " against ".join("none" if row.hourly_sharpe is None else f"{row.hourly_sharpe:+.2f}" for row in (ours, theirs))
    worst = f"worst hour {ours.worst_usd:+.0f} against {theirs.worst_usd:+.0f}"
    return f"Sharpe of hours {ratios}, {worst}, drawdown {ours.max_drawdown_usd:.0f} against {theirs.max_drawdown_usd:.0f}"


def stored(name: str, form: str) -> Callable[[Mapping[str, Any]], str | None]:
    """The cell of a figure in a row's document."""
    return lambda row: None if row.get(name) is None else format(row[name], form)


# Of a ``GateRow``'s document.
RISK_COLUMNS = [
    Column("mean stake, $", stored("meanStake", ".0f"), meaning="of an order that opens a position, times leverage"),
    Column("Sharpe of hours", stored("hourlySharpe", "+.2f"), meaning="mean over spread of the hours' P&L"),
    Column("worst hour, $", stored("worstHour", "+.0f")),
]
DOCUMENT_COLUMNS = [
    *RISK_COLUMNS,
    Column("drawdown, $", stored("maxDrawdown", ".0f"), meaning="largest fall from the peak"),
]


def game_of_report(report: BenchmarkReport) -> str | None:
    """Name of the game of a stored report's version; None where that is not known, as of a version that could not be played."""
    games = [str(row["game"]) for row in report.rows if "game" in row]
    if any(row["model"] == report.version for row in report.rows):
        # Reports from before there were several games are of the first.
        return next(iter(games), ONE_TICK_GAME.name)
    # Of a version that is not here the scripts alone played, in no game of its own.
    return None if report.decision == NOT_COMPARED else next(iter(games), None)
