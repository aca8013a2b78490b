"""Reader of news and posts: the best play possible without the future.

It holds the model's own rates: how often a report and a rumour are true, how far they move their market and for how long, how often a
post comes from knowledge. From these it takes the probability that an event moves its market up, by Bayes' rule over the event's
text and the posts about it, and from that the dollars that an order can be expected to bring. ``Forecaster`` chooses the best order
for one tick; ``NewsTrader`` holds positions. Trends, reversion to a fundamental and funding are left out: nothing that is told shows them.
"""

from collections.abc import Callable

import msgspec

from babylon_rl.market.simulation.actions import Action
from babylon_rl.market.simulation.agents import (
    FREE,
    HOLDING,
    QUESTION_STAKE,
    STAKE_USD,
    Choice,
    Mandate,
    choose,
    closing,
    leveraged,
    question_profit,
    stock_profit,
)
from babylon_rl.market.simulation.arithmetic import log, odds
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.observation import Headline, Heard, Held, Observation
from babylon_rl.market.simulation.questions import room
from babylon_rl.market.simulation.record import HOLD


class Beliefs:
    """Expected moves of markets, from news and posts and the true rates of ``model``."""

    def __init__(self, model: MarketModel) -> None:
        self._model = model

    def moves(self, seen: Observation, horizon_ticks: int | None = None) -> dict[str, float]:
        """The expected moves of log prices and log-odds within the horizon, by market. Horizon None: of all that is known."""
        told = seen.recent_headlines(self._model.event_minutes)
        if not told:
            return {}
        lasts = max(1, round(self._model.event_minutes * 60.0 / seen.tick_seconds))
        posts = seen.recent_posts(2.0 * self._model.event_minutes)
        stocks = {stock.ticker for stock in seen.stocks}
        found: dict[str, float] = {}
        for event in told:
            left = lasts - (seen.tick - event.tick)
            if event.direction == 0 or left <= 0:
                continue
            ahead = left if horizon_ticks is None else min(left, horizon_ticks)
            up = self.probability_up(event, [post for post in posts if post.about == event.about and post.tick >= event.tick - 1], seen)
            size = self._model.event_effect if event.about in stocks else self._question_effect(seen, event.about)
            size *= sum(self._model.strength) / 2.0 * (self._model.rumour_strength if event.rumour else 1.0)
            found[event.about] = found.get(event.about, 0.0) + (2.0 * up - 1.0) * size * ahead / lasts
        return found

    def probability_up(self, event: Headline, posts: list[Heard], seen: Observation) -> float:
        """The probability that an event moves its market up (towards YES). It is given the event's text and the posts about it."""
        right = self._model.rumour_truth if event.rumour else self._model.report_truth
        up = odds(right) if event.direction > 0 else 1.0 / odds(right)
        about_it = self._share_about_events(seen)
        for post in posts:
            if post.direction and post.trust is not None:
                knows = about_it * post.trust
                guesses = about_it * (1.0 - post.trust) / 2.0 + (1.0 - about_it) / 3.0
                ratio = (knows + guesses) / guesses if guesses > 0.0 else odds(1.0)
                up *= ratio if post.direction > 0 else 1.0 / ratio
        return up / (1.0 + up)

    def _share_about_events(self, seen: Observation) -> float:
        """Share of a market's posts that are about an event, and not chatter."""
        markets = max(1, len(seen.stocks) + len(seen.questions))
        window_hours = (self._model.event_minutes * 60.0 + seen.tick_seconds) / 3600.0
        chatter = self._model.chatter_per_hour / markets * window_hours
        return self._model.posts_per_event / (self._model.posts_per_event + chatter) if self._model.posts_per_event > 0.0 else 0.0

    def _question_effect(self, seen: Observation, market: str) -> float:
        yes = next((question.yes for question in seen.questions if question.market == market), 0.5)
        return self._model.question_effect * room(log(yes / (1.0 - yes)), self._model.question_limit)


class Prospect(msgspec.Struct, frozen=True, order=True):
    """An order's expected profit in dollars."""

    usd: float
    market: str
    direction: int


def prospects(seen: Observation, moves: dict[str, float], usd: float, model: MarketModel) -> list[Prospect]:
    """Expected gain of an order in each market that is expected to move. In dollars with leverage, closing included."""
    found = []
    for stock in seen.stocks:
        if move := moves.get(stock.ticker):
            direction = 1 if move > 0.0 else -1
            found.append(Prospect(stock_profit(direction, usd, move, model.fee), stock.ticker, direction))
    for question in seen.questions:
        if move := moves.get(question.market):
            direction = 1 if move > 0.0 else -1
            profit = question_profit(direction, usd * QUESTION_STAKE, question.yes, move, model.fee, model.pool_shares)
            found.append(Prospect(profit, question.market, direction))
    return found


class Forecaster:
    """A ``Strategy``: the order with the largest expected profit over one tick. Hold where none is above 0.

    ``moves`` are those of log prices and log-odds that it expects of the next tick, by market.
    """

    def __init__(self, name: str, moves: Callable[[Observation], dict[str, float]], model: MarketModel, stake_usd: float) -> None:
        self.name = name
        self._moves = moves
        self._model = model
        self._stake_usd = stake_usd

    def choose(self, seen: Observation) -> Choice:
        best = max(prospects(seen, self._moves(seen), self._stake_usd, self._model), default=None)
        return choose(best.direction, best.market) if best is not None and best.usd > 0.0 else HOLDING


class NewsTrader:
    """An agent that holds positions by expected moves.

    Each tick it opens or adds in the best market, or leaves one that is expected to lose more. With nothing to expect it closes what has
    had its time, oldest first: a position without news is a risk without a reason.
    """

    name = "news-reader"
    mandate: Mandate = FREE

    def __init__(self, model: MarketModel, stake_usd: float = STAKE_USD, leverage: float = 3.0) -> None:
        self._model = model
        self._beliefs = Beliefs(model)
        self._stake_usd = stake_usd
        self._leverage = leverage

    def decide(self, seen: Observation) -> Action:
        """The action with the largest expected gain."""
        moves = self._beliefs.moves(seen)
        best = None
        if moves and seen.balance > 1.05 * self._stake_usd * max(1.0 / self._leverage, QUESTION_STAKE):
            held = {position.market: position.direction for position in seen.positions}
            orders = prospects(seen, moves, self._stake_usd, self._model)
            best = max((one for one in orders if held.get(one.market, one.direction) == one.direction), default=None)
        expected = max(0.0, best.usd) if best is not None else 0.0
        for position in seen.positions:
            if position.market in moves and self._expected_loss(seen, position, moves[position.market]) > expected:
                return closing(position)
        if best is None or best.usd <= 0.0:
            return self._leave(seen)
        return leveraged(choose(best.direction, best.market), seen, self._stake_usd, self._leverage)

    def _expected_loss(self, seen: Observation, position: Held, move: float) -> float:
        if position.side in ("long", "short"):
            return -position.direction * move * position.quantity * position.entry_price
        yes = next((question.yes for question in seen.questions if question.market == position.market), 0.5)
        return -position.direction * move * position.quantity * yes * (1.0 - yes)

    def _leave(self, seen: Observation) -> Action:
        lasts = max(1, round(self._model.event_minutes * 60.0 / seen.tick_seconds))
        oldest = min(seen.positions, key=lambda position: position.opened_tick, default=None)
        return closing(oldest) if oldest is not None and seen.tick - oldest.opened_tick >= lasts else HOLD
