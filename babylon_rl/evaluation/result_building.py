"""Results built from runs: the full Result, its decision lines, and the gate's row."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from babylon_rl.evaluation.metrics import OPENING, forecasts, metrics_of, open_counts, positions
from babylon_rl.evaluation.results import BENCHMARK, ActionTaken, Moment, Result, RunTrajectory
from babylon_rl.evaluation.snapshot_file.oracle_play import optimality_score
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.actions import Action, Invalid, kind
from babylon_rl.market.simulation.fills import Fill, Refusal
from babylon_rl.market.simulation.prompting import choice_of
from babylon_rl.market.simulation.record import AgentRecord, Outcome
from babylon_rl.market.simulation.run import Run
from babylon_rl.store.benchmarks import MarketResult

_NO_TRADE = ("hold", "post")


@dataclass(frozen=True)
class RunLabel:
    """Identity of a result: player, seed, repeat and engine.

    ``key`` is unique to player, market, seed and repeat.
    """

    name: str
    identity: str
    role: str
    mandate: str
    seed: int | str
    repeat: int
    key: str
    engine: str


def result_id(key: str) -> str:
    """Id of the result with a label's key."""
    return f"result-{key}"


def result_of(run: Run, agent_id: str, snapshot: Snapshot, label: RunLabel) -> Result:
    """The result of one agent of a run; strategies have response times of 0."""
    record, scenario, ticks = run.records[agent_id], run.scenario, run.ticks_played
    equity = list(record.equity)[: ticks + 1]
    durations = [response_ms(record, tick) for tick in range(ticks)]
    # Positions at every moment, for the recorded steps.
    held = open_counts(positions(record, run.exchange).values(), ticks + 1)
    orders = [msgspec.to_builtins(action) for action in record.actions]
    return Result(
        id=result_id(label.key),
        agent_id=label.name,
        benchmark_id=snapshot.id,
        start_time=scenario.timestamp_ms(0),
        end_time=scenario.timestamp_ms(ticks),
        ticks_processed=ticks,
        actions=list(_actions(run, record, durations)),
        metrics=metrics_of(run, agent_id, durations, optimality_score(record.pnl_usd, snapshot.best_pnl)),
        trajectory=RunTrajectory(
            states=[
                Moment(
                    tick=tick, timestamp=scenario.timestamp_ms(tick), balance=record.balance[tick], equity=worth, open_positions=held[tick]
                )
                for tick, worth in enumerate(equity)
            ],
            actions=orders,
            rewards=[after - before for before, after in pairwise(equity)],
            window_id=f"{BENCHMARK}{snapshot.id}",
        ),
        identity=label.identity,
        role=label.role,
        mandate=label.mandate,
        snapshot=snapshot.digest,
        seed=label.seed,
        repeat=label.repeat,
        ticks=scenario.ticks,
        tick_interval=scenario.tick_seconds,
        start_balance=record.account.start,
        optimum=snapshot.best_pnl,
        engine=label.engine,
        edition=scenario.config.edition if scenario.config is not None else "",
        complete=run.complete,
        stopped=run.stopped,
        forecasts=forecasts(record, scenario),
    )


def market_result(result: Result, snapshot: Snapshot) -> MarketResult:
    """The gate's row of a result: counts of orders, and P&L after every tick.

    An order is right when its direction was the market's over the tick, the player's own impact left out.
    """
    outcomes = [action.data["outcome"] for action in result.actions]
    choices = [choice_of(msgspec.convert(order, Action)) for order in result.trajectory.actions]
    # Invalid answers are counted apart, not as holds.
    valid = [choice.action for choice, outcome in zip(choices, outcomes, strict=True) if outcome != "invalid"]
    traded = [action.tick for action in result.actions if action.data["outcome"] == "filled" and action.type not in _NO_TRADE]
    profits = [action.correctness["pnl"] for action in result.actions if action.correctness is not None]
    # The market's own path, without the player's impact.
    paths = {asset.ticker: asset.prices for asset in snapshot.scenario.assets}
    paths |= {question.id: question.crowd for question in snapshot.scenario.questions}
    moves = {tick: paths[choices[tick].market or ""][tick + 1] - paths[choices[tick].market or ""][tick] for tick in traded}
    # From moment 0 on, where it is 0; the row keeps it from the first tick on.
    pnls = [equity - result.start_balance for equity in result.equity]
    return MarketResult(
        snapshot=snapshot.id,
        pnl_usd=pnls[-1],
        wins=sum(profit > 0 for profit in profits),
        losses=sum(profit < 0 for profit in profits),
        trades=len(traded),
        decisions=len(outcomes),
        invalid=outcomes.count("invalid"),
        refused=outcomes.count("refused"),
        actions={action: valid.count(action) for action in ("buy", "sell", "hold")},
        predictions=len(traded),
        predictions_right=sum(move * choices[tick].direction > 0 for tick, move in moves.items()),
        equity_usd=tuple(pnls[1:]),
    )


def response_ms(record: AgentRecord, tick: int) -> float:
    """Response time of a model at a tick; 0 for a scripted agent."""
    call = record.calls.get(tick)
    return max(0.0, call.latency_ms) if call is not None else 0.0


def decision_lines(run: Run, agent_id: str) -> Iterator[bytes]:
    """Every decision as a JSON line: action, outcome, money, and the model's request and answer."""
    record = run.records[agent_id]
    for tick in range(run.ticks_played):
        turn = record.turn(tick)
        settled = [settlement for settlement in record.settled if settlement.tick == tick + 1]
        yield msgspec.json.encode({
            "tick": tick, "timestamp": run.scenario.timestamp_ms(tick), "action": turn.action, "outcome": _outcome_values(turn.outcome),
            "closed": turn.closed, "settled": settled, "balance": turn.balance,
            "equity": turn.equity, "equityAfter": turn.equity_after, "call": turn.call,
        }) + b"\n"  # fmt: skip


def _actions(run: Run, record: AgentRecord, durations: list[float]) -> Iterator[ActionTaken]:
    held = positions(record, run.exchange)
    opened: set[str] = set()
    for tick, (action, outcome) in enumerate(zip(record.actions, record.outcomes, strict=True)):
        correctness = None
        # Correctness stands with the purchase that opened the position, once.
        if isinstance(outcome, Fill) and outcome.kind in OPENING and outcome.position not in opened:
            opened.add(outcome.position)
            position = held[outcome.position]
            right = position.profit > 0.0
            if position.question:
                right = (position.side == "yes") == run.scenario.question(position.market).answer
            correctness = {"predictionCorrect" if position.question else "perpCorrect": right, "pnl": position.profit}
        yield ActionTaken(
            tick=tick, timestamp=run.scenario.timestamp_ms(tick), type="invalid" if isinstance(outcome, Invalid) else kind(action),
            data=_data(msgspec.to_builtins(action), outcome), duration=durations[tick], correctness=correctness,
        )  # fmt: skip


def _data(order: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Invalid):
        return _outcome_values(outcome)
    return {**{name: value for name, value in order.items() if name != "action"}, **_outcome_values(outcome)}


def _outcome_values(outcome: Outcome) -> dict[str, Any]:
    """Outcome of an action as plain values: filled, refused or invalid, and how."""
    if isinstance(outcome, Invalid):
        return {"outcome": "invalid", "reason": outcome.reason}
    if isinstance(outcome, Refusal):
        return {"outcome": "refused", "code": outcome.code, "reason": outcome.reason}
    if not outcome.position:
        return {"outcome": "filled"}
    fill = {"outcome": "filled", "quantity": outcome.quantity, "price": outcome.price, "filledUsd": outcome.usd, "fee": outcome.fee}
    return {**fill, "position": outcome.position, **({} if outcome.profit is None else {"profit": outcome.profit})}
