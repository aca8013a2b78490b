"""Tables of ``benchmark run`` and ``benchmark compare``."""

from typing import TYPE_CHECKING, Any

from babylon_rl.cli.output import table

if TYPE_CHECKING:
    from rich.table import Table

    from babylon_rl.evaluation.compare_results import Bounds, ComparisonDocument, PairRow

AGENTS = (
    "agent", "runs", "P&L $ (95 %)", "Sharpe", "drawdown $", "win rate", "accuracy", "Brier (crowd's)", "invalid", "entropy", "reaction",
    "optimality",
)  # fmt: skip
PAIRS = ("A - B", "difference $ (95 %)", "p", "p (Holm)", "effect size (95 %)", "A better in", "markets", "better")


def agents_table(comparison: "ComparisonDocument") -> "Table":
    """One row per agent, highest P&L first."""
    rows: list[list[Any]] = []
    for one in sorted(comparison.agents, key=lambda agent: -agent.pnl.mean):
        brier = "-" if one.brier is None else f"{one.brier:.3f} ({one.market_brier:.3f})"
        reaction = "-" if one.reaction_ticks is None else f"{one.reaction_ticks:.1f} ticks, {percent(one.reaction_share)}"
        rows.append([
            one.agent, one.runs, interval(one.pnl), number(one.sharpe), number(one.max_drawdown, 0), percent(one.win_rate),
            percent(one.accuracy), brier, percent(one.invalid_rate), number(one.action_entropy), reaction, number(one.optimality, 1),
        ])  # fmt: skip
    markets = max(one.snapshots for one in comparison.agents)
    return table(f"{markets} {'market' if markets == 1 else 'markets'}, mean P&L of one", list(AGENTS), rows)


def pairs_table(comparison: "ComparisonDocument") -> "Table":
    """One row per pair of agents."""
    return table("In the same markets", list(PAIRS), [_pair(one) for one in comparison.pairs])


def _pair(one: "PairRow") -> list[Any]:
    effect = interval(one.effect_size, 2) if one.effect_size is not None else None
    return [
        f"{one.a} - {one.b}", interval(one.difference), f"{one.p:.2g}", f"{one.adjusted_p:.2g}", effect, percent(one.better_share.mean),
        one.snapshots, one.winner or "not decided",
    ]  # fmt: skip


def interval(one: "Bounds", digits: int = 0) -> str:
    """An interval as ``+12 (+3 to +21)``; only the mean if it has no ends."""
    mean = f"{one.mean:+,.{digits}f}"
    return f"{mean} ({one.low:+,.{digits}f} to {one.high:+,.{digits}f})" if one.low is not None and one.high is not None else mean


def percent(share: float | None) -> str:
    """A share as ``12 %``."""
    return "-" if share is None else f"{100 * share:.0f} %"


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"
