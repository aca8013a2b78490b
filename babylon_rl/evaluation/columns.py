"""Columns of result tables, header and cell together: one list per kind of row.

The terminal, Markdown, the HTML page and the CSV files draw from these lists. None is a dash.
"""

import json
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from babylon_rl.evaluation.compare_results import AgentRow, Bounds, PairRow
from babylon_rl.evaluation.comparison import BASE, GateRow, Pair
from babylon_rl.evaluation.gate import FAIL, PASS
from babylon_rl.evaluation.results import ActionTaken, Result
from babylon_rl.evaluation.statistics.intervals import Interval
from babylon_rl.reporting.numbers import Column


def gate_columns(reference: str | None) -> list[Column]:
    """Columns of a ``GateRow``; without a reference there is none of differences."""

    def shares(row: GateRow) -> str:
        return " / ".join(f"{row.shares[action]:.0%}" for action in ("buy", "sell", "hold"))

    return [
        *_earnings("model", "against the reference" if reference is not None else None, reference, "the reference"),
        Column("invalid / refused", lambda row: f"{row.shares['invalid']:.1%} / {row.refused / row.decisions:.1%}"),
        Column("buy / sell / hold", shares),
    ]


def leaderboard_columns(reference: str | None) -> list[Column]:
    """Columns of a ``LeaderboardRow``, compared with the base."""
    return [
        Column("", lambda line: str(line.place)),
        *(_of("row", column) for column in _earnings("who", "against the base", reference, "the base")),
        Column("invalid", lambda line: f"{line.row.shares['invalid']:.1%}"),
        Column("hold", lambda line: f"{line.row.shares['hold']:.0%}"),
        Column("gate", lambda line: None if line.gated is None else line.gated.decision.replace("_", " ")),
    ]


def _earnings(who: str, against: str | None, reference: str | None, called: str) -> list[Column]:
    """Columns of a ``GateRow`` that all tables of the gate's markets have."""
    improvement = Column(against or "", lambda row: called if row.player == reference else _interval(row.improvement))
    return [
        Column(who, lambda row: f"{row.player} ({row.role})" if row.role != row.player else row.player),
        Column("P&L, $ an hour", lambda row: _interval(row.pnl)),
        *([improvement] if against is not None else []),
        Column("Sharpe", lambda row: None if row.sharpe is None else f"{row.sharpe:+.2f}"),
        Column("drawdown, $", lambda row: f"{row.max_drawdown_usd:.0f}"),
        Column("win rate", lambda row: _share(row.win_rate)),
        Column("right direction", lambda row: _share(row.accuracy)),
    ]


def _of(part: str, column: Column) -> Column:
    """The column of a part of a row."""
    return Column(column.title, lambda row: column.cell(getattr(row, part)))


def contest_columns(reference: str | None) -> list[Column]:
    """Columns of the gate's ``Pair``, the candidate against each rival."""

    def effect(pair: Pair) -> str | None:
        found = pair.paired.effect
        return None if found is None else f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"

    return [
        Column("candidate against", lambda pair: f"{pair.b} (the reference)" if pair.b == reference else pair.b),
        Column("difference, $ an hour", lambda pair: _interval(pair.paired.difference)),
        Column("effect, standard deviations", effect),
        Column("better in", lambda pair: f"{pair.paired.superiority.mean:.0%} of {pair.paired.superiority.count} markets"),
        Column("p, corrected", lambda pair: f"{pair.adjusted_p:.2g}"),
    ]


CRITERIA = [Column("success criterion", "name"), Column("met", "met"), Column("against the reference", "words")]


def _interval(interval: Interval | None) -> str | None:
    return None if interval is None else f"{interval.mean:+.0f} [{interval.low:+.0f}, {interval.high:+.0f}]"


def _share(share: Interval | None) -> str | None:
    return None if share is None else f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _bounds(bounds: Bounds | None, digits: int = 0) -> str | None:
    """An interval as ``+12 (+3 to +21)``; only the mean if it has no ends."""
    if bounds is None:
        return None
    mean = f"{bounds.mean:+,.{digits}f}"
    return mean if bounds.low is None or bounds.high is None else f"{mean} ({bounds.low:+,.{digits}f} to {bounds.high:+,.{digits}f})"


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _percent(share: float | None, digits: int = 0) -> str | None:
    return None if share is None else f"{100 * share:.{digits}f} %"


def _brier(row: AgentRow) -> str | None:
    return None if row.brier is None else f"{row.brier:.3f} ({row.market_brier:.3f})"


def _reaction(row: AgentRow) -> str | None:
    return None if row.reaction_ticks is None else f"{row.reaction_ticks:.1f} ticks, {_percent(row.reaction_share)}"


# Of an ``AgentRow``.
AGENTS = [
    Column("agent", "agent"),
    Column("runs", "runs"),
    Column("P&L $ (95 %)", lambda row: _bounds(row.pnl)),
    Column("Sharpe", lambda row: _number(row.sharpe), meaning="mean over spread of the equity's changes in a run, mean over markets"),
    Column("drawdown $", lambda row: _number(row.max_drawdown, 0), meaning="largest fall of the equity from its peak, mean over markets"),
    Column("win rate", lambda row: _percent(row.win_rate), meaning="of the positions that won or lost"),
    Column("accuracy", lambda row: _percent(row.accuracy), meaning="of the questions' sides that were bought"),
    Column("Brier (crowd's)", _brier, meaning="squared error of what was paid for being right, and of the crowd; 0 is perfect"),
    Column("invalid", lambda row: _percent(row.invalid_rate), meaning="answers that were no action"),
    Column("entropy", lambda row: _number(row.action_entropy)),
    Column("reaction", _reaction),
    Column("optimality", lambda row: _number(row.optimality, 1), meaning="P&L of the oracle's, 0 to 100"),
]


def _better(row: PairRow) -> str | None:
    return _percent(row.better_share.mean)


# Of a ``PairRow``.
PAIRS = [
    Column("A - B", lambda row: f"{row.a} - {row.b}"),
    Column("difference $ (95 %)", lambda row: _bounds(row.difference)),
    Column("p", lambda row: f"{row.p:.2g}"),
    Column("p (Holm)", lambda row: f"{row.adjusted_p:.2g}"),
    Column("effect size (95 %)", lambda row: _bounds(row.effect_size, 2)),
    Column("A better in", _better),
    Column("markets", "snapshots"),
    Column("better", lambda row: row.winner or "not decided"),
]
# Of the rows of ``benchmark compare --effect``.
NEEDED = [
    Column("A - B", lambda row: f"{row['a']} - {row['b']}"),
    Column("deviation between snapshots $", lambda row: f"{row['between']:,.0f}"),
    Column("between repeats $", lambda row: f"{row['within']:,.0f}"),
    Column("repeats", "repeats"),
    Column("snapshots needed", "snapshots"),
    Column("played", "played"),
]


def demo_columns(reference: str) -> list[Column]:
    """Columns of a ``GateRow``'s document, as the demo ends with."""

    def percent(name: str) -> Callable[[dict[str, Any]], str | None]:
        return lambda row: _percent(row.get(name))

    def signed(name: str) -> Callable[[dict[str, Any]], str | None]:
        return lambda row: None if row.get(name) is None else f"{row[name]:+.0f}"

    def ends(low: str, high: str) -> Callable[[dict[str, Any]], str | None]:
        return lambda row: None if row.get(low) is None else f"{row[low]:+.0f} to {row[high]:+.0f}"

    return [
        Column("model", "model"), Column("P&L", signed("pnl")), Column("interval", ends("low", "high")),
        Column(f"against {reference}", signed("improvement")), Column("interval ", ends("improvementLow", "improvementHigh")),
        Column("win rate", percent("winRate")), Column("accuracy", percent("accuracy")), Column("invalid", lambda row: row.get("invalid")),
        Column("HOLD", percent("holdShare")),
    ]  # fmt: skip


def _released(one: dict[str, Any]) -> str:
    return "yes" if one["released"] else {FAIL: "refused", PASS: "not confirmed"}.get(one["decision"], "no")


def _trained(title: str, value: Callable[[dict[str, Any]], object]) -> Column:
    """A column that is empty where a generation has trained no version."""
    return Column(title, lambda one: None if one["modelVersion"] is None else value(one))


# Of a generation of the demo.
GENERATIONS = [
    Column("generation", "generation"), Column("played by", "player"), Column("trained", "modelVersion"),
    _trained("from", lambda one: one["parentVersion"] or BASE), _trained("gate", lambda one: one["decision"]),
    _trained("$ an hour", lambda one: None if one["improvement"] is None else f"{one['improvement']:+.0f}"),
    _trained("against", lambda one: one["reference"]), _trained("released", _released), Column("deployed then", "deployed"),
]  # fmt: skip
# Of a ``Result``, in runs.csv: a name, and where its value is.
_RUN: dict[str, str | Callable[[Result], object]] = {
    "id": "id", "agent": "agent_id", "mandate": "mandate", "role": "role", "identity": "identity", "benchmark": "benchmark_id",
    "snapshot": "snapshot", "seed": "seed", "repeat": "repeat", "complete": "complete", "stopped": "stopped",
    "ticks_played": "ticks_processed", "ticks": "ticks", "tick_seconds": "tick_interval", "start_balance": "start_balance",
    "pnl": "metrics.total_pnl", "return": "metrics.return_share", "sharpe": "metrics.sharpe",
    "max_drawdown": "metrics.perp_metrics.max_drawdown", "max_drawdown_share": "metrics.max_drawdown_share",
    "win_rate": "metrics.win_rate", "trades": "metrics.trades", "fees": "metrics.fees", "funding": "metrics.funding",
    "liquidations": "metrics.perp_metrics.liquidations", "prediction_positions": "metrics.prediction_metrics.total_positions",
    "accuracy": "metrics.prediction_metrics.accuracy", "brier": "metrics.brier", "market_brier": "metrics.market_brier",
    "edge": "metrics.edge", "prediction_pnl": "metrics.prediction_metrics.pnl", "perp_trades": "metrics.perp_metrics.total_trades",
    "perp_win_rate": "metrics.perp_metrics.win_rate", "perp_pnl": "metrics.perp_metrics.pnl",
    "posts": "metrics.social_metrics.posts_created", "invalid": lambda result: sum(result.metrics.invalid.values()),
    "invalid_rate": "metrics.invalid_rate", "refused": lambda result: sum(result.metrics.refused.values()),
    "entropy_bits": "metrics.action_entropy", "reaction_ticks": "metrics.reaction_ticks", "reaction_share": "metrics.reaction_share",
    "optimality": "metrics.optimality_score", "optimum": "optimum", "response_ms_mean": "metrics.timing.avg_response_time",
    "response_ms_max": "metrics.timing.max_response_time", "engine": "engine",
}  # fmt: skip
RUNS = [Column(name, attrgetter(place) if isinstance(place, str) else place) for name, place in _RUN.items()]


def _run(name: str, place: str) -> Column:
    return Column(name, lambda row: attrgetter(place)(row[0]))


def _decision(name: str, place: str) -> Column:
    return Column(name, lambda row: getattr(row[1], place))


def _told(name: str, *keys: str) -> Column:
    """What a decision's data says under the first of ``keys`` that is there."""

    def cell(row: tuple[Result, ActionTaken]) -> object:
        value: Any = next((row[1].data[key] for key in keys if key in row[1].data), None)
        return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)

    return Column(name, cell)


def _state(name: str) -> Column:
    def cell(row: tuple[Result, ActionTaken]) -> object:
        states = row[0].trajectory.states
        return getattr(states[row[1].tick], name) if row[1].tick < len(states) else None

    return Column(name, cell)


def _brought(row: tuple[Result, ActionTaken]) -> float | None:
    """Change of equity until the next decision."""
    rewards = row[0].trajectory.rewards
    return rewards[row[1].tick] if row[1].tick < len(rewards) else None


# Of (``Result``, ``ActionTaken``), every decision of a run, in actions.csv.
ACTIONS = [
    _run("run", "id"), _run("agent", "agent_id"), _run("benchmark", "benchmark_id"), _run("repeat", "repeat"),
    _decision("tick", "tick"), _decision("timestamp_ms", "timestamp"), _decision("action", "type"), _told("market", "market", "ticker"),
    *(_told(name, name) for name in ("side", "usd", "leverage", "share", "outcome", "reason", "quantity", "price", "fee", "profit")),
    _state("balance"), _state("equity"), Column("brought", _brought), _decision("response_ms", "duration"), _told("text", "text"),
]  # fmt: skip
