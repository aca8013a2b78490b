"""Benchmark report: one HTML file that works offline, and its numbers as CSV.

The CSV holds no formula of a spreadsheet.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.html_report.page import page
from babylon_rl.evaluation.results import ActionTaken, Result
from babylon_rl.files.durable import write_atomically
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.reporting.numbers import Column

FORMULA = (*"=+-@", *"\uff1d\uff0b\uff0d\uff20", "\t", "\r", "\n")  # spreadsheets read the full-width signs too
# Of a ``Result``, in runs.csv: a name, and where its value is.
_RUN: dict[str, str | Callable[[Result], object]] = {
    "id": "id", "agent": "agent_id", "mandate": "mandate", "role": "role", "identity": "identity", "benchmark": "benchmark_id",
    "snapshot": "snapshot", "seed": "seed", "repeat": "repeat", "complete": "complete", "stopped": "stopped",
    "ticks_played": "ticks_processed", "ticks": "ticks", "tick_seconds": "tick_interval", "start_balance": "start_balance",
    "pnl": "metrics.total_pnl", "expected": "expected_usd", "ceiling": "ceiling_usd", "return": "metrics.return_share",
    "sharpe": "metrics.sharpe",
    "max_drawdown": "metrics.perp_metrics.max_drawdown", "max_drawdown_share": "metrics.max_drawdown_share",
    "win_rate": "metrics.win_rate", "trades": "metrics.trades", "fees": "metrics.fees", "funding": "metrics.funding",
    "liquidations": "metrics.perp_metrics.liquidations", "prediction_positions": "metrics.prediction_metrics.total_positions",
    "answers_right": "metrics.prediction_metrics.accuracy", "brier": "metrics.brier", "market_brier": "metrics.market_brier",
    "edge": "metrics.edge", "prediction_pnl": "metrics.prediction_metrics.pnl", "perp_trades": "metrics.perp_metrics.total_trades",
    "perp_win_rate": "metrics.perp_metrics.win_rate", "perp_pnl": "metrics.perp_metrics.pnl",
    "posts": "metrics.social_metrics.posts_created", "invalid": lambda result: sum(result.metrics.invalid.values()),
    "invalid_rate": "metrics.invalid_rate", "refused": lambda result: sum(result.metrics.refused.values()),
    "entropy_bits": "metrics.action_entropy", "reaction_ticks": "metrics.reaction_ticks", "reaction_share": "metrics.reaction_share",
    "optimality": "metrics.optimality_score", "optimum": "optimum", "response_ms_mean": "metrics.timing.avg_response_time",
    "response_ms_max": "metrics.timing.max_response_time", "engine": "engine",
}  # fmt: skip
RUNS = [Column(name, attrgetter(place) if isinstance(place, str) else place) for name, place in _RUN.items()]
# Of every decision of a run, in actions.csv.
_DATA = ("side", "usd", "leverage", "share", "outcome", "reason", "quantity", "price", "fee", "profit")
_PLACE = ("run", "agent", "benchmark", "repeat", "tick", "timestamp_ms", "action", "market")
ACTIONS = [Column(name, name) for name in (*_PLACE, *_DATA, "balance", "equity", "brought", "response_ms", "text")]


def _action_row(result: Result, action: ActionTaken) -> dict[str, object]:
    """A decision as actions.csv has it."""
    states, tick = result.trajectory.states, action.tick
    told = {
        name: value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
        for name, value in action.data.items()
    }
    return {
        "run": result.id, "agent": result.agent_id, "benchmark": result.benchmark_id, "repeat": result.repeat,
        "tick": tick, "timestamp_ms": action.timestamp, "action": action.type, "market": told.get("market", told.get("ticker")),
        **{name: told.get(name) for name in (*_DATA, "text")},
        "balance": states[tick].balance, "equity": states[tick].equity,
        "brought": result.trajectory.rewards[tick], "response_ms": action.duration,
    }  # fmt: skip


def write_report(results: Sequence[Result], directory: Path, scenarios: Mapping[str, Scenario] | None = None) -> list[Path]:
    """Write index.html, runs.csv and actions.csv, each atomically.

    The same results give the same bytes.

    Args:
        results: sound ones, of any agents and markets; runs that ended early are listed, and compared with nothing.
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
        "runs.csv": lambda: _lines(RUNS, results),
        "actions.csv": lambda: _lines(ACTIONS, (_action_row(result, action) for result in results for action in result.actions)),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, parts in files.items():
        write_atomically(directory / name, (part.encode("utf-8", "replace") for part in parts()))
    return [directory / name for name in files]


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


def _lines(columns: Sequence[Column], rows: Iterable[Any]) -> Iterator[str]:
    # Line by line: actions.csv may be larger than memory.
    for cells in chain([[column.title for column in columns]], ([column.cell(row) for column in columns] for row in rows)):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([safe(cell) for cell in cells])
        yield line.getvalue()
