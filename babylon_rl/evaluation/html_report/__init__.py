"""Benchmark report: one HTML file that works offline, and its numbers as CSV.

The CSV holds no formula of a spreadsheet.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.html_report.page import page
from babylon_rl.evaluation.results import Result
from babylon_rl.files.durable import write_atomically
from babylon_rl.market.simulation.scenario import Scenario

FORMULA = (*"=+-@", *"\uff1d\uff0b\uff0d\uff20", "\t", "\r", "\n")  # spreadsheets read the full-width signs too
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


def write_report(results: Sequence[Result], directory: Path, scenarios: Mapping[str, Scenario] | None = None) -> list[Path]:
    """Write index.html, runs.csv and actions.csv, each atomically.

    The same results give the same bytes.

    Args:
        results: sound ones, of any agents and markets; runs that ended early are told, and compared with nothing.
        scenarios: markets by ``Result.snapshot``, to show beside each decision what was published then.

    Returns:
        The files, the page first.

    Raises:
        MarketError: there is no result, or one twice.
    """
    if not results:
        raise MarketError("There is no result to report. `babylon-rl benchmark run` makes them.")
    # A result that counts twice would make intervals too narrow.
    if len({result.id for result in results}) < len(results):
        twice = sorted({result.id for result in results if sum(result.id == other.id for other in results) > 1})
        raise MarketError(f"Results are there twice: {', '.join(twice[:5])}. Give each once.")
    files: dict[str, Callable[[], Iterable[str]]] = {
        "index.html": lambda: [page(results, scenarios or {})],
        "runs.csv": lambda: _lines(RUNS, (_run(result) for result in results)),
        "actions.csv": lambda: _lines(ACTIONS, (row for result in results for row in _actions(result))),
    }
    directory.mkdir(parents=True, exist_ok=True)
    return [_written(directory / name, parts()) for name, parts in files.items()]


def _written(path: Path, parts: Iterable[str]) -> Path:
    write_atomically(path, (part.encode("utf-8", "replace") for part in parts))
    return path


def safe(value: object) -> object:
    """Cell that no spreadsheet takes for a formula: such a text gets an apostrophe first."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    # Lone surrogates cannot be written as UTF-8.
    cleaned = value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    # Blanks before a formula do not keep a spreadsheet from reading it.
    return f"'{cleaned}" if cleaned.lstrip(" ").startswith(FORMULA) else cleaned


def _lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    # Line by line: actions.csv may be larger than memory.
    for row in chain([head], rows):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([safe(value) for value in row])
        yield line.getvalue()


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
    """Every decision: order, outcome, and change of equity until the next."""
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
