"""A recorded hour of a real game as a ``Scenario`` that our agents can play.

Prices, one question and events are as recorded. Our orders do not move its stocks; a question's pool moves like that of any market maker.
A company without a price yet uses its first one; events about other markets are left out.
"""

import math

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.config import PRESETS, MarketModel
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario, WorldEvent, from_paths
from babylon_rl.recorder import milliseconds
from babylon_rl.store import market as store
from babylon_rl.store.connection import Connection
from babylon_rl.windows import HOUR, window_start

MODEL = MarketModel(impact_per_usd=1e-12)
_EXTREME = 0.02
_HOUR = PRESETS["hour"]
_MINUTES, _TICK_MINUTES = _HOUR.minutes, _HOUR.tick_seconds // 60


def read_recorded_hour(connection: Connection, window: str) -> Scenario:
    """A recorded hour's busiest companies and question, in the ticks of a simulated hour.

    Raises:
        MarketError: the hour has no company with prices, or no traded question.
    """
    start, end = window_start(window), window_start(window) + HOUR
    busiest = store.busiest_stocks(connection, start, end, _HOUR.perps)
    stocks = tuple(stock for stock in (_stock(connection, *row, window) for row in busiest) if stock)
    traded = store.busiest_question(connection, start, end)
    if not stocks or traded is None:
        raise MarketError(
            f"{window} has no recorded prices to play at. "
            f"`babylon-rl outcomes {window}` shows what it holds; give --start with an hour that has some."
        )
    market_id, number, text, answer = traded
    crowd = tuple(_bounded(p) for p in store.minute_probabilities(connection, market_id, start, _MINUTES)[::_TICK_MINUTES])
    question = Question(f"Q{number}", number, text, answer, crowd, 0, _HOUR.ticks + 1)
    scenario = from_paths(
        tick_seconds=_HOUR.tick_seconds, assets=stocks, questions=(question,), events=_events(connection, window, stocks, question),
        start_ms=milliseconds(start),
    )  # fmt: skip
    return msgspec.structs.replace(scenario, model=MODEL)


def _stock(connection: Connection, organization_id: str, name: str, window: str) -> Asset | None:
    prices = store.minute_prices(connection, organization_id, window_start(window), _MINUTES)
    valid = [price for price in prices if price is not None and 0 < price < math.inf]
    if not valid:
        return None
    # Minutes without a valid price repeat the last one.
    filled, last = [], valid[0]
    for price in prices:
        last = price if price is not None and 0 < price < math.inf else last
        filled.append(last)
    return Asset(organization_id, name, tuple(filled[::_TICK_MINUTES]))


def _bounded(probability: float) -> float:
    return min(1 - _EXTREME, max(_EXTREME, probability))


def _events(connection: Connection, window: str, stocks: tuple[Asset, ...], question: Question) -> list[WorldEvent]:
    start, by_tick = window_start(window), dict[int, WorldEvent]()
    for moment, text, actors, number, points in store.events_between(connection, start, start + HOUR):
        tick = min(_MINUTES - 1, int((moment - start).total_seconds() // 60)) // _TICK_MINUTES + 1  # agents read it at the next tick
        named = next((stock.ticker for stock in stocks if stock.name.lower() in f"{text} {' '.join(actors or [])}".lower()), None)
        about = question.id if number == question.number else named
        if about is not None and tick < _HOUR.ticks:
            direction = {"YES": 1, "NO": -1}.get(points or "", 0)
            by_tick.setdefault(tick, WorldEvent(tick, about, text, direction, 1.0, False, "recorded", 0.0, "noise", 0.0, 1))
    return [by_tick[tick] for tick in sorted(by_tick)]
