"""A played hour as the rows that the game would have written: prices with their duplicates, question, events, trajectories."""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from babylon_rl.market.play import Tick
from babylon_rl.market.trading import Pool
from babylon_rl.market.world import MINUTES, TICK_MINUTES, Event, Hour
from babylon_rl.recorder import Recording, TrajectoryRecorder, milliseconds
from babylon_rl.windows import HOUR, window_start

_ID_EPOCH_MS = 1_704_067_200_000
_VERSION = re.compile(r"v\d+\.\d+\.\d+")


class Ids:
    """Decimal snowflakes from simulated time: the same calls give the same ids, and later hours never repeat one."""

    def __init__(self, start: datetime) -> None:
        self._base = (milliseconds(start) - _ID_EPOCH_MS) << 22
        self._next = 0

    def __call__(self) -> str:
        self._next += 1
        return str(self._base + self._next)


def slug(name: str) -> str:
    """A company's organization id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def stock_rows(hour: Hour, ids: Ids) -> list[dict[str, Any]]:
    """StockPrice rows: at each minute the real update, then, as the engine does, the same price again with zero change."""
    start, rows = window_start(hour.window), []
    for stock in hour.stocks:
        for minute in range(1, MINUTES):
            before, price = stock.prices[minute - 1], stock.prices[minute]
            moment = start + timedelta(minutes=minute)
            for change, late_ms in ((price - before, 0), (0.0, 4)):
                rows.append({
                    "id": ids(), "organizationId": slug(stock.name), "price": price, "change": change,
                    "changePercent": 100 * change / before,
                    "timestamp": moment + timedelta(milliseconds=late_ms), "isSnapshot": False,
                })  # fmt: skip
    return rows


def question_rows(hour: Hour, pool_yes_prices: Sequence[float], ids: Ids) -> dict[str, list[dict[str, Any]]]:
    """Question, Market and PredictionPriceHistory rows; ``pool_yes_prices[t]`` is the YES price at tick t.

    A question opens with its hour and is answered in the hour's last millisecond.
    """
    start, question = window_start(hour.window), hour.question
    market_id, answered = ids(), start + HOUR - timedelta(milliseconds=1)
    # the opening price stands from the hour's first moment, so that the hour starts at it and not at 50 %
    moments = [start + timedelta(minutes=tick * TICK_MINUTES, seconds=2 if tick else 0) for tick in range(len(pool_yes_prices))]
    history = [(moment, price, "trade", "npc_trade") for moment, price in zip(moments, pool_yes_prices, strict=True)]
    history.append((answered, float(question.answer), "resolution", "oracle"))
    closing = _pool(pool_yes_prices[-1])
    return {
        "Question": [{
            "id": market_id, "questionNumber": question.number, "text": question.text, "scenarioId": 1, "outcome": question.answer,
            "rank": 1, "createdDate": start, "resolutionDate": answered, "status": "resolved", "resolvedOutcome": question.answer,
            "createdAt": start, "updatedAt": answered,
        }],
        "Market": [{
            "id": market_id, "question": question.text, "gameId": "continuous", **closing, "resolved": True, "resolution": question.answer,
            "endDate": answered, "createdAt": start, "updatedAt": answered,
        }],
        "PredictionPriceHistory": [{
            "id": ids(), "marketId": market_id, "yesPrice": price, "noPrice": 1 - price,
            **(closing if kind == "resolution" else _pool(price)),
            "eventType": kind, "source": source, "createdAt": moment,
        } for moment, price, kind, source in history],
    }  # fmt: skip


def _pool(yes_price: float) -> dict[str, float]:
    pool = Pool.at(math.log(yes_price / (1 - yes_price)))
    return {"yesShares": round(pool.yes, 6), "noShares": round(pool.no, 6), "liquidity": round(pool.yes + pool.no, 6)}


def event_rows(hour: Hour) -> list[dict[str, Any]]:
    """WorldEvent rows, a second before the agents of their tick act."""
    return [_event_row(hour, event) for event in hour.events]


def _event_row(hour: Hour, event: Event) -> dict[str, Any]:
    moment = window_start(hour.window) + timedelta(minutes=event.tick * TICK_MINUTES, seconds=1)
    about_question = event.market == hour.question.label
    points = {1: "YES", -1: "NO"}.get(event.direction) if about_question else None
    return {
        "id": f"event-{milliseconds(moment)}-{event.tick}", "eventType": "rumor" if event.rumour else "announcement",
        "description": event.text,
        "actors": [] if about_question else [slug(event.market)], "relatedQuestion": hour.question.number if about_question else None,
        "pointsToward": points, "visibility": "public", "gameId": "continuous", "timestamp": moment, "createdAt": moment,
    }  # fmt: skip


def recordings(
    window: str, market_id: str, ticks: Sequence[Tick], ids: Ids, *, evaluation: bool = False, scenario: str | None = None
) -> Iterator[Recording]:
    """One recorded trajectory per agent and tick, in simulated time; ``market_id`` is the question's Market.id.

    How long a model took to answer is left out: it is wall time, and the same seed must give the same rows.
    """
    clock = [window_start(window)]
    kept: list[Recording] = []
    recorder = TrajectoryRecorder(kept.append, ids, lambda: clock[0])
    for offset, tick in enumerate(ticks):
        clock[0] = window_start(window) + timedelta(minutes=tick.tick * TICK_MINUTES, seconds=5, milliseconds=37 * (offset % 997))
        trajectory = recorder.start_trajectory(tick.player.agent_id, window=window, scenario=scenario)
        recorder.start_step(
            trajectory,
            balance=round(tick.seen.balance, 2),
            pnl=round(tick.pnl_before, 6),
            open_positions=0,
            activeMarkets=len(tick.seen.quotes),
        )
        recorder.provider_access(
            trajectory, "BABYLON_MARKETS", {"markets": [vars(quote) for quote in tick.seen.quotes]}, "Get current market prices"
        )
        recorder.llm_call(
            trajectory, model=tick.call.model, messages=tick.call.messages, response=tick.call.response, action_type="TRADING_DECISION",
            temperature=tick.call.temperature, max_tokens=tick.call.max_tokens, response_format=tick.call.response_format,
            logprobs=tick.call.logprobs, model_version=tick.call.model if _VERSION.fullmatch(tick.call.model) else None,
            tokens=(tick.call.prompt_tokens, tick.call.completion_tokens or 0) if tick.call.prompt_tokens is not None else None,
        )  # fmt: skip
        _complete(recorder, trajectory, tick, market_id)
        clock[0] = window_start(window) + timedelta(
            minutes=(tick.tick + 1) * TICK_MINUTES, seconds=-2, milliseconds=37 * (offset % 997) % 1000
        )
        recorder.end_trajectory(trajectory, balance=round(tick.balance, 2), pnl=round(tick.pnl_after, 6), evaluation=evaluation)
    yield from kept


def _complete(recorder: TrajectoryRecorder, trajectory: str, tick: Tick, market_id: str) -> None:
    decision = tick.decision
    if decision.market is None:
        failed = decision.invalid is not None
        recorder.complete_step(
            trajectory, "HOLD", {}, success=not failed, reward=0.0, result=None if failed else {"held": True}, error=decision.invalid
        )
        return
    question = any(quote.market == decision.market and quote.question is not None for quote in tick.seen.quotes)
    sides = ("YES", "NO") if question else ("long", "short")
    parameters = {
        "method": "simulation", "pnlChange": tick.profit or 0.0, "initialPnL": round(tick.pnl_before, 6),
        "finalPnL": round(tick.pnl_after, 6), **({"marketId": market_id} if question else {"ticker": decision.market}),
        "side": sides[decision.action == "sell"], "marketType": "prediction" if question else "perp",
    }  # fmt: skip
    recorder.complete_step(
        trajectory, "TRADING_DECISION", parameters, success=tick.filled, reward=(tick.profit or 0.0) / 1000,
        result={"executed": tick.filled, "pnl": tick.profit} if tick.filled else None,
        error=None if tick.filled else "the balance does not cover the order",
    )  # fmt: skip
