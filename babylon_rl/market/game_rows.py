"""Rows of a simulated hour in the game's format: prices, questions, events, and agents' trajectories.

Prices repeat as in the game. The rows come from the scenario and from the prices after the agents' trades. Posts are left out: the
pipeline reads no table of them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from babylon_rl.market.model_endpoints import ACTION_TYPE, GatewayCall
from babylon_rl.market.simulation.actions import BuyPrediction, ClosePerp, Hold, Invalid, OpenPerp, SellPrediction
from babylon_rl.market.simulation.arithmetic import exp, log, normal, stream
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.record import Call, Turn
from babylon_rl.market.simulation.run import Run
from babylon_rl.market.simulation.scenario import Asset, Scenario
from babylon_rl.recorder import Recording, TrajectoryRecorder, milliseconds
from babylon_rl.windows import window_of

_ID_EPOCH_MS = 1_704_067_200_000  # 2024-01-01 UTC, in milliseconds
_EPOCH = datetime(1970, 1, 1)
_CLOSING = timedelta(milliseconds=100)  # from the last prices to the market's end
_ANSWERED = timedelta(milliseconds=1)

Paths = Mapping[str, Sequence[float]]
CLOSING = "CLOSE_POSITION"  # action type of a step that sells what is held
_VERSION = re.compile(r"v\d+\.\d+\.\d+")


class Ids:
    """Decimal snowflake ids from simulated time: deterministic, and never repeated by later hours."""

    def __init__(self, start: datetime) -> None:
        # Milliseconds above, 22 bits below: an hour counts on from its first moment and never reaches the ids of the next.
        self._base = (milliseconds(start) - _ID_EPOCH_MS) << 22
        self._next = 0

    def __call__(self) -> str:
        self._next += 1
        return str(self._base + self._next)


def slug(name: str) -> str:
    """A company's organization id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def moment(scenario: Scenario, tick: int) -> datetime:
    """Start of a tick, naive UTC; the last moment is the market's end."""
    return _EPOCH + timedelta(milliseconds=scenario.timestamp_ms(tick))


def _after(scenario: Scenario, tick: int, late_ms: int) -> datetime:
    # Delays are those of a five-minute tick; a shorter one has shorter delays.
    return moment(scenario, tick) + timedelta(milliseconds=late_ms * min(300, scenario.tick_seconds) // 300)


def closing_prices(scenario: Scenario, paths: Paths) -> dict[str, float]:
    """The hour's last price by organization id, as `stock_rows` writes it."""
    return {slug(asset.name): _rounded(_whole(paths.get(asset.ticker, ()), asset.prices)[-1]) for asset in scenario.assets}


def stock_rows(scenario: Scenario, paths: Paths, ids: Ids) -> list[dict[str, Any]]:
    """StockPrice rows: per minute (or shorter tick) an update, then the same price with zero change.

    The engine writes both. At a tick the price is the one that agents were shown; between ticks it is interpolated at random.

    Args:
        paths: prices after the agents' trades, by ticker, for the moments that were played; after them the scenario's own prices are used.
    """
    rows, steps = [], max(1, scenario.tick_seconds // 60)
    step = timedelta(seconds=scenario.tick_seconds) / steps
    for asset in scenario.assets:
        prices = _between(scenario, asset, _whole(paths.get(asset.ticker, ()), asset.prices), steps)
        for minute, (before, price) in enumerate(pairwise(prices), 1):
            at = moment(scenario, 0) + minute * step - (_CLOSING if minute == len(prices) - 1 else timedelta())
            # The real update, and 4 ms later the engine's copy of it.
            for change, late_ms in ((price - before, 0), (0.0, 4)):
                rows.append({
                    "id": ids(), "organizationId": slug(asset.name), "price": price, "change": change,
                    "changePercent": 100 * change / before,
                    "timestamp": at + timedelta(milliseconds=late_ms), "isSnapshot": False,
                })  # fmt: skip
    return rows


def _between(scenario: Scenario, asset: Asset, path: Sequence[float], steps: int) -> list[float]:
    """Prices in ``steps`` steps a tick: a Brownian bridge of the log price between ticks."""
    volatility = (scenario.model or MarketModel()).volatility / math.sqrt(60.0)
    rng = stream(scenario.digest, "minutes", asset.ticker)
    prices = [_rounded(path[0])]
    for now, then in pairwise(path):
        log_price, target = log(now), log(then)
        # Each step moves towards the target, with noise that vanishes as the target nears.
        for left in range(steps, 1, -1):
            log_price += (target - log_price) / left + volatility * math.sqrt((left - 1) / left) * normal(rng)
            prices.append(_rounded(exp(log_price)))
        prices.append(_rounded(then))
    return prices


def _whole(played: Sequence[float], alone: Sequence[float]) -> list[float]:
    # A run that stopped has played a part; the prices go on to the end without the agents.
    return [*played, *alone[len(played) :]]


def _rounded(price: float) -> float:
    return max(1e-6, round(price, 6))


def question_rows(scenario: Scenario, paths: Paths, ids: Ids) -> dict[str, list[dict[str, Any]]]:
    """Question, Market and PredictionPriceHistory rows.

    ``paths`` as for `stock_rows`: YES prices by question. A question opens with its hour. It is answered in the hour's last millisecond,
    after the last order was closed, so agents trade on beliefs, not on the answer.
    """
    rows: dict[str, list[dict[str, Any]]] = {"Question": [], "Market": [], "PredictionPriceHistory": []}
    start, end = moment(scenario, 0), moment(scenario, scenario.ticks)
    answered, depth = end - _ANSWERED, (scenario.model or MarketModel()).pool_shares
    # the opening price stands from the hour's first moment, so that the hour starts at it and not at 50 %
    moments = [*(_after(scenario, tick, 2000 if tick else 0) for tick in range(scenario.ticks)), end - _CLOSING]
    for question in scenario.questions:
        yes_prices = _whole(paths.get(question.id, ()), question.crowd)
        history = [(at, price, "trade", "npc_trade") for at, price in zip(moments, yes_prices, strict=True)]
        history.append((answered, float(question.answer), "resolution", "oracle"))
        market_id, closing = ids(), _pool(yes_prices[-1], depth)
        rows["Question"].append({
            "id": market_id, "questionNumber": question.number, "text": question.text, "scenarioId": 1, "outcome": question.answer,
            "rank": 1, "createdDate": start, "resolutionDate": answered, "status": "resolved", "resolvedOutcome": question.answer,
            "createdAt": start, "updatedAt": answered,
        })  # fmt: skip
        rows["Market"].append({
            "id": market_id, "question": question.text, "gameId": "continuous", **closing, "resolved": True, "resolution": question.answer,
            "endDate": answered, "createdAt": start, "updatedAt": answered,
        })  # fmt: skip
        rows["PredictionPriceHistory"] += [{
            "id": ids(), "marketId": market_id, "yesPrice": price, "noPrice": 1 - price,
            **(closing if kind == "resolution" else _pool(price, depth)),
            "eventType": kind, "source": source, "createdAt": at,
        } for at, price, kind, source in history]  # fmt: skip
    return rows


def _pool(yes_price: float, depth: float) -> dict[str, float]:
    root = math.sqrt(yes_price / (1.0 - yes_price))
    # A constant-product pool: yes times no is depth squared, and the price of YES is no / (yes + no).
    yes, no = depth / root, depth * root
    return {"yesShares": round(yes, 6), "noShares": round(no, 6), "liquidity": round(yes + no, 6)}


def event_rows(scenario: Scenario) -> list[dict[str, Any]]:
    """WorldEvent rows, a second before the agents of their tick act."""
    rows = []
    for number, event in enumerate(scenario.events):
        at = _after(scenario, event.tick, 1000)
        question = next((question for question in scenario.questions if question.id == event.about), None)
        rows.append({
            "id": f"event-{milliseconds(at)}-{number}", "eventType": "rumor" if event.rumour else event.category,
            "description": event.text, "actors": [slug(scenario.asset(event.about).name)] if question is None else [],
            "relatedQuestion": question.number if question is not None else None,
            "pointsToward": {1: "YES", -1: "NO"}.get(event.direction) if question is not None else None,
            "visibility": "public", "gameId": "continuous", "timestamp": at, "createdAt": at,
        })  # fmt: skip
    return rows


def recordings(run: Run, market_ids: Mapping[str, str], ids: Ids, *, earlier_pnl_usd: Mapping[str, float] | None = None) -> list[Recording]:
    """One recorded trajectory per tick and agent of a run, in simulated time.

    P&L is equity: what is open counts at its worth, so that closing it changes nothing. The latency of a model is left out: it is wall
    time, and the same seed must give the same rows. A call that a gateway has recorded is not written again.

    Args:
        market_ids: Market.id by question; earlier_pnl_usd: dollars won before this run, by agent id, 0 if absent.
    """
    clock = [moment(run.scenario, 0)]
    window, recorded = window_of(clock[0]), list[Recording]()
    recorder = TrajectoryRecorder(recorded.append, ids, lambda: clock[0])
    paths, offset = run.paths, -1
    for tick in range(run.ticks_played):
        shown = _shown(run.scenario, paths, tick)
        for agent, record in run.records.items():
            turn, offset = record.turn(tick), offset + 1
            # Recorded P&L goes on from hour to hour, while a run's equity begins with what the agent held at its start.
            earlier = (earlier_pnl_usd or {}).get(agent, 0.0) - record.account.start
            before, after = round(earlier + turn.equity, 6), round(earlier + turn.equity_after, 6)
            # Agents act seconds after the tick begins, each at another millisecond.
            clock[0] = _after(run.scenario, tick, 5000 + 37 * (offset % 997))
            recorded_as = turn.call.trajectory_id if isinstance(turn.call, GatewayCall) else None
            trajectory = recorder.start_trajectory(agent, window=window, trajectory_id=recorded_as)
            recorder.start_step(trajectory, balance=round(turn.balance, 2), pnl=before, open_positions=turn.held, activeMarkets=len(shown))
            recorder.provider_access(trajectory, "BABYLON_MARKETS", {"markets": shown}, "Get current market prices")
            if turn.call is not None and recorded_as is None:
                record_call(recorder, trajectory, turn.call)
            _complete(recorder, trajectory, run.scenario, turn, market_ids, (before, after))
            clock[0] = _after(run.scenario, tick + 1, 37 * (offset % 997) % 1000 - 2000)
            recorder.end_trajectory(trajectory, balance=round(record.balance[tick + 1], 2), pnl=after)
    return recorded


def _shown(scenario: Scenario, paths: Paths, tick: int) -> list[dict[str, Any]]:
    """The markets as shown to agents at a tick. Changes are in percent for a stock, in points for a question."""
    markets, last = [], max(0, tick - 1)
    for asset in scenario.assets:
        path = paths[asset.ticker]
        markets.append({"market": asset.name, "price": path[tick], "change": 100 * (path[tick] / path[last] - 1), "question": None})
    for question in scenario.questions:
        path = paths[question.id]
        markets.append({"market": question.id, "price": path[tick], "change": 100 * (path[tick] - path[last]), "question": question.text})
    return markets


def record_call(recorder: TrajectoryRecorder, trajectory: str, call: Call, latency_ms: float | None = None) -> None:
    """Record a model's call in the open step of a trajectory."""
    recorder.llm_call(
        trajectory, model=call.model, messages=call.messages, response=call.response, action_type=ACTION_TYPE,
        temperature=call.temperature, max_tokens=call.max_tokens, latency_ms=latency_ms, response_format=call.response_format,
        logprobs=call.logprobs, model_version=call.model if _VERSION.fullmatch(call.model) else None,
        tokens=(call.prompt_tokens, call.completion_tokens or 0) if call.prompt_tokens is not None else None,
        finish_reason=call.finish_reason,
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
    assert isinstance(action, OpenPerp | BuyPrediction | ClosePerp | SellPrediction)  # players of a game post nothing
    if isinstance(action, ClosePerp):
        target = {"ticker": scenario.asset(action.ticker).name, "share": action.share, "marketType": "perp"}
    elif isinstance(action, SellPrediction):
        sold = {"marketId": market_ids[action.market], "side": action.side.upper(), "share": action.share}
        target = {**sold, "marketType": "prediction"}
    elif isinstance(action, BuyPrediction):
        target = {"marketId": market_ids[action.market], "side": action.side.upper(), "marketType": "prediction"}
    else:  # agents' trajectories name a stock by its organization's name
        target = {"ticker": scenario.asset(action.ticker).name, "side": action.side, "marketType": "perp"}
    filled, profit = isinstance(outcome, Fill), turn.equity_after - turn.equity
    recorder.complete_step(
        # A closing names no view of the market: it is no trade whose side is right or wrong.
        trajectory, CLOSING if isinstance(action, ClosePerp | SellPrediction) else ACTION_TYPE,
        {"method": "simulation", "pnlChange": profit, "initialPnL": pnl[0], "finalPnL": pnl[1], **target},
        success=filled, reward=profit / 1000,
        result={"executed": True, "pnl": profit} if filled else None, error=None if isinstance(outcome, Fill) else outcome.reason,
    )  # fmt: skip
