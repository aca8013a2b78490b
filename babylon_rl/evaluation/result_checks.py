"""Validation of results: sums, counts, ranges and order, computed again from the parts.

A result that fails enters no comparison. Numbers are finite: JSON has no others (``decode_result``).
"""

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from babylon_rl.evaluation.metrics import metrics_of
from babylon_rl.evaluation.results import BENCHMARK, Result

# Metrics that only the run itself can tell.
TOLD = {
    "perpMetrics.liquidations", "socialMetrics.groupsJoined", "socialMetrics.messagesReceived", "socialMetrics.reputationGained",
    "trades", "fees", "funding", "newsWithDirection", "reactionTicks", "reactionShare", "expectedUsd", "ceilingUsd",
}  # fmt: skip
TOLERANCE = 1e-6  # of dollars that are summed in another order
RELATIVE = 1e-9


def validate_result(result: Result) -> list[str]:
    """Faults of a result, a sentence each; empty for a sound one. A run that ended early is sound as far as it went."""
    faults = [*_ticks(result), *_shape_of_time(result)]
    if not faults:
        start = _same("The equity at the start", result.equity[0], result.start_balance)
        faults = [*start, *_metrics(result), *_money(result), *_ranges(result)]
    return faults


def _ticks(result: Result) -> Iterator[str]:
    played, trajectory = result.ticks_processed, result.trajectory
    counts = {
        "actions": (len(result.actions), played), "trajectory.actions": (len(trajectory.actions), played),
        "trajectory.rewards": (len(trajectory.rewards), played), "trajectory.states": (len(trajectory.states), played + 1),
    }  # fmt: skip
    # Lengths first: the other checks index by tick.
    for name, (count, expected) in counts.items():
        if count != expected:
            yield f"There are {count} {name} for {played} ticks processed, not {expected}."
    if not 0 <= played <= result.ticks:
        yield f"{played} ticks were processed, the snapshot has {result.ticks}."
    if result.complete != (played == result.ticks and result.stopped is None):
        claim = "complete" if result.complete else "not complete"
        yield f"It is called {claim} with {played} of {result.ticks} ticks and stopped: {result.stopped!r}."


def _shape_of_time(result: Result) -> Iterator[str]:
    step = result.tick_interval * 1000
    if step <= 0 or result.end_time != result.start_time + result.ticks_processed * step:
        yield f"It ends at {result.end_time}, {result.ticks_processed} ticks of {result.tick_interval} s after {result.start_time} do not."
    stamps = {
        "action": [(entry.tick, entry.timestamp) for entry in result.actions],
        "state": [(entry.tick, entry.timestamp) for entry in result.trajectory.states],
    }
    for name, moments in stamps.items():
        for number, (tick, timestamp) in enumerate(moments):
            if (tick, timestamp) != (number, result.start_time + number * step):
                yield f"The {name} number {number} is of tick {tick} at {timestamp}."
                break
    if result.trajectory.window_id != f"{BENCHMARK}{result.benchmark_id}":
        yield f"Its window is {result.trajectory.window_id!r}, its benchmark {result.benchmark_id!r}."


def _money(result: Result) -> Iterator[str]:
    metrics, equity = result.metrics, result.equity
    yield from _same("The rewards' sum", math.fsum(result.trajectory.rewards), metrics.total_pnl)
    # The first fault of a kind is enough to reject the result.
    for number, reward in enumerate(result.trajectory.rewards):
        if not _near(reward, equity[number + 1] - equity[number]):
            yield f"The reward of tick {number} is {reward}, the equity changed by {equity[number + 1] - equity[number]}."
            break
    # Both kinds of positions together are the whole P&L.
    parts = metrics.prediction_metrics.pnl + metrics.perp_metrics.pnl
    yield from _same("The P&L of predictions and perpetuals together", parts, metrics.total_pnl)
    for state in result.trajectory.states:
        if state.open_positions < 0:
            yield f"At tick {state.tick} {state.open_positions} positions are open."
            break
        if state.balance < 0.0 or state.equity < 0.0:
            yield f"At tick {state.tick} the balance is {state.balance} and the equity {state.equity}: neither can be below 0."
            break


def _metrics(result: Result) -> Iterator[str]:
    again = metrics_of(result.actions, result.equity, result.forecasts, result.start_balance, result.optimum)
    stated, computed = (_by_name(msgspec.to_builtins(metrics)) for metrics in (result.metrics, again))
    for name in computed | stated:
        if name not in TOLD:
            yield from _same(name, stated.get(name), computed.get(name))


def _by_name(part: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Values by name, those of a part as ``part.name``."""
    values: dict[str, Any] = {}
    for name, value in part.items():
        values |= _by_name(value, f"{within}{name}.") if isinstance(value, dict) else {f"{within}{name}": value}
    return values


def _ranges(result: Result) -> Iterator[str]:
    forecasts, metrics, perps = result.forecasts, result.metrics, result.metrics.perp_metrics
    # Every filled purchase of a question is one forecast.
    bought = sum(action.type == "buy_prediction" and action.data.get("outcome") == "filled" for action in result.actions)
    if len(forecasts) != bought:
        yield f"There are {len(forecasts)} forecasts for {bought} purchases of predictions."
    if any(not (0.0 <= forecast.paid <= 1.0 and 0.0 <= forecast.crowd <= 1.0) for forecast in forecasts):
        yield "A forecast is not a probability."
    if perps.liquidations > perps.total_trades:
        yield f"{perps.liquidations} liquidated of {perps.total_trades} trades."
    if any(action.duration < 0.0 for action in result.actions):
        yield "A response time is below 0."
    if metrics.reaction_share is not None and not 0.0 <= metrics.reaction_share <= 1.0:
        yield f"reactionShare is {metrics.reaction_share}, not within 0 and 1."
    if metrics.reaction_ticks is not None and not 0.0 <= metrics.reaction_ticks <= result.ticks:
        yield f"reactionTicks is {metrics.reaction_ticks}, the snapshot has {result.ticks} ticks."
    if metrics.fees < 0.0 or metrics.trades < 0:
        yield f"Fees of {metrics.fees} for {metrics.trades} trades cannot be."


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= TOLERANCE + RELATIVE * max(abs(value), abs(expected))


def _same(name: str, stated: Any, computed: Any) -> Iterator[str]:
    measured = isinstance(stated, float) and isinstance(computed, float)  # counts are exact, and of any size
    if not (_near(stated, computed) if measured else stated == computed):
        yield f"{name} is {stated}, worked out again it is {computed}."
