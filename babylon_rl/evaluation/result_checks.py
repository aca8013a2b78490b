"""Validation of results: sums, counts, ranges and order, computed again from the parts.

A result that fails enters no comparison. Numbers are finite: JSON has no others (``decode_result``).
"""

import math
from collections import Counter
from collections.abc import Iterator

from babylon_rl.evaluation.metrics import (
    INVALID,
    action_shares,
    calibration,
    drawdown_shares,
    drawdowns,
    entropy_bits,
    forecast_scores,
    optimality_score,
    share,
    sharpe,
)
from babylon_rl.evaluation.results import BENCHMARK, Result

TOLERANCE = 1e-6  # of dollars that are summed in another order
RELATIVE = 1e-9


def validate_result(result: Result) -> list[str]:
    """Faults of a result, a sentence each; empty for a sound one. A run that ended early is sound as far as it went."""
    faults = [*_ticks(result), *_shape_of_time(result)]
    if not faults:
        faults = [*_money(result), *_positions(result), *_decisions(result), *_forecasts(result), *_ranges(result)]
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
    yield from _same("The equity at the start", equity[0], result.start_balance)
    yield from _same("totalPnl", metrics.total_pnl, equity[-1] - equity[0])
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
    if result.start_balance > 0.0:
        yield from _same("return", metrics.return_share, metrics.total_pnl / result.start_balance)
        yield from _same("maxDrawdownShare", metrics.max_drawdown_share, max(drawdown_shares(equity)))
    yield from _same("perpMetrics.maxDrawdown", metrics.perp_metrics.max_drawdown, max(drawdowns(equity)))
    yield from _same("sharpe", metrics.sharpe, sharpe(equity))
    yield from _same("optimalityScore", metrics.optimality_score, optimality_score(metrics.total_pnl, result.optimum))


def _positions(result: Result) -> Iterator[str]:
    predictions, perps = result.metrics.prediction_metrics, result.metrics.perp_metrics
    total, correct, incorrect = predictions.total_positions, predictions.correct_predictions, predictions.incorrect_predictions
    if min(total, correct, incorrect, perps.total_trades, perps.profitable_trades) < 0:
        yield "A count of positions is below 0."
    if correct + incorrect != total:
        yield f"{correct} correct and {incorrect} incorrect predictions are not {total}."
    if not perps.profitable_trades <= perps.total_trades or perps.liquidations > perps.total_trades:
        yield f"{perps.profitable_trades} profitable and {perps.liquidations} liquidated of {perps.total_trades} trades."
    yield from _same("accuracy", predictions.accuracy, share(correct, total))
    yield from _same("avgPnlPerPosition", predictions.avg_pnl_per_position, share(predictions.pnl, total))
    yield from _same("perpMetrics.winRate", perps.win_rate, share(perps.profitable_trades, perps.total_trades))
    yield from _same("avgPnlPerTrade", perps.avg_pnl_per_trade, share(perps.pnl, perps.total_trades))
    opened = [action for action in result.actions if action.correctness is not None]
    if len(opened) != total + perps.total_trades:
        yield f"{len(opened)} actions opened positions, the metrics count {total} and {perps.total_trades}."
    brought = math.fsum(float(action.correctness.get("pnl", 0.0)) for action in opened if action.correctness)
    yield from _same("What positions brought", brought, result.metrics.total_pnl)


def _decisions(result: Result) -> Iterator[str]:
    metrics = result.metrics
    expected = action_shares(
        f"{one.type}:{one.data['side']}" if one.type != INVALID and "side" in one.data else one.type for one in result.actions
    )
    if set(metrics.action_shares) != set(expected) or any(abs(metrics.action_shares[name] - expected[name]) > 1e-9 for name in expected):
        yield f"The action shares are {metrics.action_shares}, the actions say {expected}."
    yield from _same("actionEntropy", metrics.action_entropy, entropy_bits(expected))
    invalid, refused = sum(metrics.invalid.values()), sum(metrics.refused.values())
    outcomes = Counter(str(action.data.get("outcome")) for action in result.actions)
    below = min([*metrics.invalid.values(), *metrics.refused.values()], default=0) < 0
    if below or invalid != outcomes["invalid"] or refused != outcomes["refused"]:
        yield f"{invalid} invalid and {refused} refused decisions are counted, {outcomes['invalid']} and {outcomes['refused']} kept."
    yield from _same("invalidRate", metrics.invalid_rate, share(invalid, len(result.actions)))
    durations = [action.duration for action in result.actions]
    timing = metrics.timing
    if durations and min(durations) < 0.0:
        yield "A response time is below 0."
    yield from _same("timing.maxResponseTime", timing.max_response_time, max(durations, default=0.0))
    yield from _same("timing.avgResponseTime", timing.avg_response_time, math.fsum(durations) / len(durations) if durations else 0.0)
    yield from _same("timing.totalDuration", timing.total_duration, math.fsum(durations))


def _forecasts(result: Result) -> Iterator[str]:
    forecasts, metrics = result.forecasts, result.metrics
    # Every filled purchase of a question is one forecast.
    bought = sum(action.type == "buy_prediction" and action.data.get("outcome") == "filled" for action in result.actions)
    if len(forecasts) != bought:
        yield f"There are {len(forecasts)} forecasts for {bought} purchases of predictions."
    if any(not (0.0 <= forecast.paid <= 1.0 and 0.0 <= forecast.crowd <= 1.0) for forecast in forecasts):
        yield "A forecast is not a probability."
    brier, market_brier, edge = forecast_scores(forecasts)
    yield from _same("brier", metrics.brier, brier)
    yield from _same("marketBrier", metrics.market_brier, market_brier)
    yield from _same("edge", metrics.edge, edge)
    if metrics.calibration != calibration(forecasts):
        yield "The calibration is not that of the forecasts."


def _ranges(result: Result) -> Iterator[str]:
    metrics = result.metrics
    for name, value in (("winRate", metrics.win_rate), ("reactionShare", metrics.reaction_share)):
        if value is not None and not 0.0 <= value <= 1.0:
            yield f"{name} is {value}, not within 0 and 1."
    if metrics.reaction_ticks is not None and not 0.0 <= metrics.reaction_ticks <= result.ticks:
        yield f"reactionTicks is {metrics.reaction_ticks}, the snapshot has {result.ticks} ticks."
    if metrics.fees < 0.0 or metrics.trades < 0:
        yield f"Fees of {metrics.fees} for {metrics.trades} trades cannot be."


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= TOLERANCE + RELATIVE * max(abs(value), abs(expected))


def _same(name: str, stated: float | None, computed: float | None) -> Iterator[str]:
    if (stated is None) != (computed is None) or (stated is not None and computed is not None and not _near(stated, computed)):
        yield f"{name} is {stated}, worked out again it is {computed}."
