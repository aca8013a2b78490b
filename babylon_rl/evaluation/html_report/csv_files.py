"""CSV files of the report: runs.csv and actions.csv, without spreadsheet formulas."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from babylon_rl.evaluation.results import Result

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
RUNS = (
    "id", "agent", "mandate", "role", "identity", "benchmark", "snapshot", "seed", "repeat", "complete", "stopped", "ticks_played", "ticks",
    "tick_seconds", "start_balance", "pnl", "return", "sharpe", "max_drawdown", "max_drawdown_share", "win_rate", "trades", "fees",
    "funding", "liquidations", "prediction_positions", "accuracy", "brier", "market_brier", "edge", "prediction_pnl", "perp_trades",
    "perp_win_rate", "perp_pnl", "posts", "invalid", "invalid_rate", "refused", "entropy_bits", "reaction_ticks", "reaction_share",
    "optimality", "optimum", "response_ms_mean", "response_ms_max", "engine",
)  # fmt: skip
ACTIONS = (
    "run", "agent", "benchmark", "repeat", "tick", "timestamp_ms", "action", "market", "side", "usd", "leverage", "share", "outcome",
    "reason", "quantity", "price", "fee", "profit", "balance", "equity", "brought", "response_ms", "text",
)  # fmt: skip


def runs_csv(results: Sequence[Result]) -> Iterator[str]:
    """A line for each run."""
    return _lines(RUNS, (_run(result) for result in results))


def actions_csv(results: Sequence[Result]) -> Iterator[str]:
    """CSV lines of every decision: order, outcome, and change of equity until the next."""
    return _lines(ACTIONS, (row for result in results for row in _actions(result)))


def safe(value: object) -> object:
    """Cell that no spreadsheet takes for a formula: such a text gets an apostrophe first."""
    if not isinstance(value, str):
        return value
    # Lone surrogates cannot be written as UTF-8.
    cleaned = value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    return f"'{cleaned}" if cleaned.lstrip(" ").startswith(FORMULA) else cleaned


def _lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    # Line by line: actions.csv may be larger than memory.
    writer.writerow(head)
    yield _taken(line)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
        yield _taken(line)


def _taken(line: io.StringIO) -> str:
    text = line.getvalue()
    line.seek(0)
    line.truncate()
    return text


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return safe(value)


def _run(result: Result) -> tuple[object, ...]:
    m = result.metrics
    predictions, perps = m.prediction_metrics, m.perp_metrics
    return (
        result.id, result.agent_id, result.mandate, result.role, result.identity, result.benchmark_id, result.snapshot, result.seed,
        result.repeat, result.complete, result.stopped, result.ticks_processed, result.ticks, result.tick_interval, result.start_balance,
        m.total_pnl, m.return_share, m.sharpe, perps.max_drawdown, m.max_drawdown_share, m.win_rate, m.trades, m.fees, m.funding,
        perps.liquidations, predictions.total_positions, predictions.accuracy, m.brier, m.market_brier, m.edge, predictions.pnl,
        perps.total_trades, perps.win_rate, perps.pnl, m.social_metrics.posts_created, sum(m.invalid.values()), m.invalid_rate,
        sum(m.refused.values()), m.action_entropy, m.reaction_ticks, m.reaction_share, m.optimality_score, result.optimum,
        m.timing.avg_response_time, m.timing.max_response_time, result.engine,
    )  # fmt: skip


def _actions(result: Result) -> Iterator[tuple[object, ...]]:
    states, rewards = result.trajectory.states, result.trajectory.rewards
    for action in result.actions:
        data, state = action.data, states[action.tick] if action.tick < len(states) else None
        yield (
            result.id, result.agent_id, result.benchmark_id, result.repeat, action.tick, action.timestamp, action.type,
            _plain(data.get("market", data.get("ticker"))), *(_plain(data.get(name)) for name in ("side", "usd", "leverage", "share")),
            *(_plain(data.get(name)) for name in ("outcome", "reason", "quantity", "price", "fee", "profit")),
            state.balance if state else None, state.equity if state else None,
            rewards[action.tick] if action.tick < len(rewards) else None, action.duration, _plain(data.get("text")),
        )  # fmt: skip


def _plain(value: Any) -> object:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
