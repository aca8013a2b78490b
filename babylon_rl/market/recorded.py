"""An hour of a real game as an ``Hour`` that our agents can play: recorded prices, a recorded question, recorded events.

Our orders leave no trace in these markets. A company without a price yet stands at its first one; events about other markets are
left out.
"""

import math
from typing import Any

import psycopg

from babylon_rl.errors import MarketError
from babylon_rl.market.world import MINUTES, STOCKS, TICK_MINUTES, Event, Hour, Question, Stock
from babylon_rl.store import recorded_market as store
from babylon_rl.windows import HOUR, window_start

_EXTREME = 0.02


def read_recorded_hour(connection: psycopg.Connection[Any], window: str) -> Hour:
    """The busiest companies and the busiest question of a recorded hour.

    Raises:
        MarketError: the hour has no company with prices, or no traded question.
    """
    start, end = window_start(window), window_start(window) + HOUR
    stocks = tuple(
        stock for stock in (_stock(connection, *one, window) for one in store.busiest_stocks(connection, start, end, STOCKS)) if stock
    )
    traded = store.busiest_question(connection, start, end)
    if not stocks or traded is None:
        raise MarketError(
            f"{window} has no recorded prices to play at. "
            f"`babylon-rl outcomes {window}` shows what it holds; give --start with an hour that has some."
        )
    market_id, number, text, answer = traded
    logits = tuple(_logit(p) for p in store.minute_probabilities(connection, market_id, start, MINUTES))
    question = Question(number, text, answer, logits)
    return Hour(window, stocks, question, _events(connection, window, stocks, question))


def _stock(connection: psycopg.Connection[Any], organization_id: str, name: str, window: str) -> Stock | None:
    prices = store.minute_prices(connection, organization_id, window_start(window), MINUTES)
    known = [price for price in prices if price is not None and 0 < price < math.inf]
    if not known:
        return None
    filled, last = [], known[0]
    for price in prices:
        last = price if price is not None and 0 < price < math.inf else last
        filled.append(last)
    return Stock(name, tuple(filled))


def _logit(probability: float) -> float:
    bounded = min(1 - _EXTREME, max(_EXTREME, probability))
    return math.log(bounded / (1 - bounded))


def _events(connection: psycopg.Connection[Any], window: str, stocks: tuple[Stock, ...], question: Question) -> tuple[Event, ...]:
    start, found = window_start(window), dict[int, Event]()
    for moment, text, actors, number, points in store.events_between(connection, start, start + HOUR):
        tick = min(MINUTES - 1, int((moment - start).total_seconds() // 60)) // TICK_MINUTES + 1  # agents read it at the next tick
        named = next((stock.name for stock in stocks if stock.name.lower() in f"{text} {' '.join(actors or [])}".lower()), None)
        market = question.label if number == question.number else named
        if market is not None:
            found.setdefault(tick, Event(tick, market, text, {"YES": 1, "NO": -1}.get(points or "", 0), False, 0.0))
    return tuple(found[tick] for tick in sorted(found))
