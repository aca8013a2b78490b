"""Hours, observations and players made by hand."""

from babylon_rl.market.agents import News, Observation, Quote
from babylon_rl.market.play import Player
from babylon_rl.market.world import MINUTES, Event, Hour, Question, Stock

WINDOW = "2025-11-15T10:00"
STOCK, OTHER, QUESTION = "Bluff Social", "Titan Diet", "Q7"


def make_hour(*, change: float = 0.0, logit_change: float = 0.0, logit: float = 0.0, events: tuple[Event, ...] = ()) -> Hour:
    """One stock that goes from 100 dollars by ``change`` dollars in a straight line, another that stands still, one question."""
    moving = tuple(100.0 + change * minute / MINUTES for minute in range(MINUTES + 1))
    crowd = tuple(logit + logit_change * minute / MINUTES for minute in range(MINUTES + 1))
    stocks = (Stock(STOCK, moving), Stock(OTHER, (20.0,) * (MINUTES + 1)))
    return Hour(WINDOW, stocks, Question(7, "Will it happen?", True, crowd), events)


def make_event(tick: int = 0, market: str = STOCK, direction: int = 1, *, rumour: bool = False) -> Event:
    return Event(tick, market, f"news about {market}", direction, rumour, 0.01 * direction)


def make_news(market: str = STOCK, direction: int = 1, *, rumour: bool = False) -> News:
    return News(market, f"news about {market}", direction, rumour)


def make_observation(*news: News, changes: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Observation:
    quotes = (
        Quote(STOCK, 57.4, changes[0]),
        Quote(OTHER, 19.0, changes[1]),
        Quote(QUESTION, 0.62, changes[2], "Will it happen?"),
    )
    return Observation(quotes, news, 9_876.4, -12.3, "-$12")


def make_players(*strategies: str) -> list[Player]:
    return [Player(f"test-agent-{number}", name, 1500.0) for number, name in enumerate(strategies, start=1)]
