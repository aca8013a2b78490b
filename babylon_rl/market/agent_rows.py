"""Trajectories of simulated agents, one per agent and tick, in the recorder's format."""

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from babylon_rl.market.game_rows import Ids, Paths, moment
from babylon_rl.market.simulation.actions import BuyPrediction, Hold, Invalid, OpenPerp
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.fills import Fill
from babylon_rl.market.simulation.model_agent import MAX_TOKENS
from babylon_rl.market.simulation.record import Turn
from babylon_rl.market.simulation.run import Run
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.recorder import Recording, TrajectoryRecorder
from babylon_rl.windows import window_of

_VERSION = re.compile(r"v\d+\.\d+\.\d+")


def recordings(
    run: Run, market_ids: Mapping[str, str], ids: Ids, *, earlier_pnl_usd: Mapping[str, float] | None = None, evaluation: bool = False,
    scenario: str | None = None,
) -> Iterator[Recording]:  # fmt: skip
    """One recorded trajectory per tick and agent of a run, in simulated time.

    Agents trade under the one-tick mandate. The latency of a model is left out: it is wall time, and the same seed must give the same
    rows.

    Args:
        market_ids: Market.id by question; earlier_pnl_usd: dollars won before this run, by agent id, 0 if absent.
        scenario: the rows' scenarioId, by default the hour.
    """
    clock = [moment(run.scenario, 0)]
    window, kept = window_of(clock[0]), list[Recording]()
    recorder = TrajectoryRecorder(kept.append, ids, lambda: clock[0])
    paths, offset = run.paths, -1
    for tick in range(run.ticks_played):
        shown, begins, ends = _shown(run.scenario, paths, tick), moment(run.scenario, tick), moment(run.scenario, tick + 1)
        for agent, record in run.records.items():
            turn, offset = record.turn(tick), offset + 1
            earlier = (earlier_pnl_usd or {}).get(agent, 0.0) - record.account.start
            before, after = round(earlier + turn.equity, 6), round(earlier + turn.equity_after, 6)
            # Agents act seconds after the tick begins, each at another millisecond.
            clock[0] = begins + timedelta(seconds=5, milliseconds=37 * (offset % 997))
            trajectory = recorder.start_trajectory(agent, window=window, scenario=scenario)
            recorder.start_step(trajectory, balance=round(turn.balance, 2), pnl=before, open_positions=0, activeMarkets=len(shown))
            recorder.provider_access(trajectory, "BABYLON_MARKETS", {"markets": shown}, "Get current market prices")
            _called(recorder, trajectory, turn)
            _complete(recorder, trajectory, run.scenario, turn, market_ids, (before, after))
            clock[0] = ends + timedelta(seconds=-2, milliseconds=37 * (offset % 997) % 1000)
            recorder.end_trajectory(trajectory, balance=round(record.balance[tick + 1], 2), pnl=after, evaluation=evaluation)
    yield from kept


def _shown(scenario: Scenario, paths: Paths, tick: int) -> list[dict[str, Any]]:
    """The markets as shown to agents at a tick.

    Changes are in percent for a stock, in points for a question.
    """
    markets, last = [], max(0, tick - 1)
    for asset in scenario.assets:
        path = paths[asset.ticker]
        markets.append({"market": asset.name, "price": path[tick], "change": 100 * (path[tick] / path[last] - 1), "question": None})
    for question in scenario.questions:
        path = paths[question.id]
        markets.append({"market": question.id, "price": path[tick], "change": 100 * (path[tick] - path[last]), "question": question.text})
    return markets


def _called(recorder: TrajectoryRecorder, trajectory: str, turn: Turn) -> None:
    call = turn.call
    if call is None:
        return
    recorder.llm_call(
        trajectory, model=call.model, messages=call.messages, response=call.response, action_type="TRADING_DECISION",
        temperature=call.temperature, max_tokens=call.max_tokens or MAX_TOKENS[ONE_TICK], response_format=call.response_format,
        logprobs=call.logprobs, model_version=call.model if _VERSION.fullmatch(call.model) else None,
        tokens=(call.prompt_tokens, call.completion_tokens or 0) if call.prompt_tokens is not None else None,
    )  # fmt: skip


def _complete(
    recorder: TrajectoryRecorder, trajectory: str, scenario: Scenario, turn: Turn, market_ids: Mapping[str, str], pnl: tuple[float, float]
) -> None:
    action, outcome = turn.action, turn.outcome
    if isinstance(outcome, Invalid):
        recorder.complete_step(trajectory, "HOLD", {}, success=False, reward=0.0, error=outcome.reason)
        return
    if isinstance(action, Hold):
        recorder.complete_step(trajectory, "HOLD", {}, success=True, reward=0.0, result={"held": True})
        return
    assert isinstance(action, OpenPerp | BuyPrediction)  # under this mandate the run closes what agents open
    if isinstance(action, BuyPrediction):
        target = {"marketId": market_ids[action.market], "side": action.side.upper(), "marketType": "prediction"}
    else:  # agents' trajectories name a stock by its organization's name
        target = {"ticker": scenario.asset(action.ticker).name, "side": action.side, "marketType": "perp"}
    filled, profit = isinstance(outcome, Fill), turn.equity_after - turn.equity
    recorder.complete_step(
        trajectory, "TRADING_DECISION",
        {"method": "simulation", "pnlChange": profit, "initialPnL": pnl[0], "finalPnL": pnl[1], **target},
        success=filled, reward=profit / 1000,
        result={"executed": True, "pnl": profit} if filled else None, error=None if isinstance(outcome, Fill) else outcome.reason,
    )  # fmt: skip
