"""Best play by a prompt: the order with the largest expected profit that can be chosen from what the prompt shows.

Expectations are exact, by Bayes' rule from the market's own rates; nothing is fitted. A headline names a market and a direction, and is
right as often as reports or rumours are. A post that quotes it knows the effect with its author's trust, else it guesses. Own impact and
its recovery, fees and the depth of a question are in it. Prices, chatter and memory are left out: they say nothing of the next move.
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, Invalid, OpenPerp, SellPrediction
from babylon_rl.market.simulation.agents import (
    FREE,
    ONE_TICK,
    SIZES_USD,
    STAKE_USD,
    Mandate,
    choose,
    closing,
    order,
    question_profit,
    stock_profit,
)
from babylon_rl.market.simulation.arithmetic import exp, log, odds
from babylon_rl.market.simulation.config import HOUR_S, START_BALANCE, MarketModel
from babylon_rl.market.simulation.events import chance_up
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.games import AMOUNTS, ONE_TICK_GAME, POSITIONS, POSTS
from babylon_rl.market.simulation.news_reader import Beliefs
from babylon_rl.market.simulation.observation import Headline, Heard, Held, Newsroom, Observation, observe
from babylon_rl.market.simulation.prompting import POSTS_SHOWN, on_menu
from babylon_rl.market.simulation.record import HOLD, AgentRecord
from babylon_rl.market.simulation.scenario import Scenario

_WATCHER = "watcher"  # sees a market without a trade of its own


class Ceiling(msgspec.Struct, frozen=True):
    """Best play by one prompt.

    Attributes:
        name: of its player. posts: how many the prompt shows.
        amounts_usd: dollars that an answer may name; empty where the stake is fixed.
        mandate: where positions last, it is the best answer for the next tick; who plans further ahead may earn more.
    """

    name: str
    posts: int
    amounts_usd: tuple[float, ...] = ()
    mandate: Mandate = ONE_TICK


BY_PROMPT = Ceiling("best-by-prompt", 0)
WITH_POSTS = Ceiling("best-with-posts", POSTS_SHOWN)
WITH_AMOUNTS = Ceiling("best-with-amounts", POSTS_SHOWN, tuple(map(float, SIZES_USD.values())))
WITH_POSITIONS = Ceiling("best-with-positions", POSTS_SHOWN, WITH_AMOUNTS.amounts_usd, FREE)
CEILING_OF_GAME = {
    ONE_TICK_GAME.name: BY_PROMPT, POSTS.name: WITH_POSTS, AMOUNTS.name: WITH_AMOUNTS, POSITIONS.name: WITH_POSITIONS
}  # fmt: skip
CEILINGS = {ceiling.name: ceiling for ceiling in CEILING_OF_GAME.values()}


class _Shown(Beliefs):
    """Beliefs from the headlines and the posts that a prompt shows."""

    def __init__(self, model: MarketModel, posts: int) -> None:
        super().__init__(model)
        self._posts = posts

    def probability_up(self, event: Headline, posts: list[Heard], seen: Observation) -> float:
        """The probability that an event moves its market up, from its text and the shown posts that quote it."""
        return chance_up(event, seen.recent_posts()[-self._posts :] if self._posts else (), self._model)


class Appraisal(msgspec.Struct, frozen=True):
    """Expected profit of actions in the next tick.

    Attributes:
        headlines: what the prompt shows of news. moves: expected moves of log prices and log-odds, by market.
        prices: of stocks, yes: of the open questions; recovery: share of an order's impact that is gone after the tick.
    """

    headlines: tuple[Headline, ...]
    moves: dict[str, float]
    prices: dict[str, float]
    yes: dict[str, float]
    recovery: float
    model: MarketModel

    def usd(self, action: Action | Invalid) -> float:
        """Expected dollars of an order that is closed after the tick, or counts by what closing would bring; 0 of anything else."""
        if isinstance(action, OpenPerp):
            direction, usd = 1 if action.side == "long" else -1, action.usd * action.leverage
            faded = direction * self.recovery * self.model.impact_per_usd * usd
            return stock_profit(direction, usd, self.moves.get(action.ticker, 0.0) - faded, self.model.fee)
        if isinstance(action, BuyPrediction):
            direction, yes, depth = 1 if action.side == "yes" else -1, self.yes[action.market], self.model.pool_shares
            price = yes if direction > 0 else 1.0 - yes
            other = depth * math.sqrt(price / (1.0 - price))
            # The maker's odds are pushed by the square of what was paid in; the crowd takes a part of that back.
            pushed = ((other + action.usd) / other) ** (2 * direction)
            move = self.moves.get(action.market, 0.0) + log(1.0 + self.recovery * (1.0 / pushed - 1.0))
            return question_profit(direction, action.usd, yes, move, self.model.fee, depth)
        return 0.0

    def held_usd(self, position: Held) -> float:
        """Expected dollars of an open position."""
        move = self.moves.get(position.market, 0.0)
        if position.market in self.prices:
            return position.direction * position.quantity * self.prices[position.market] * (exp(move) - 1.0)
        yes = self.yes[position.market]
        after = odds(yes) * exp(move)
        return position.direction * position.quantity * (after / (1.0 + after) - yes)

    def gain_usd(self, action: Action, seen: Observation) -> float:
        """Expected dollars of an action over holding."""
        if not isinstance(action, ClosePerp | SellPrediction):
            return self.usd(action)
        market, side = (action.ticker, None) if isinstance(action, ClosePerp) else (action.market, action.side)
        closed = [one for one in seen.positions if one.market == market and side in (None, one.side)]
        return -action.share * math.fsum(map(self.held_usd, closed))

    def best(self, seen: Observation, amounts_usd: Sequence[float], mandate: Mandate = ONE_TICK) -> tuple[float, Action]:
        """The largest expected dollars over holding, and the action that has them; 0 and hold where none has more."""
        actions = [order(choose(move, market), seen, usd) for market, move in self.moves.items() for usd in amounts_usd]
        if mandate == FREE:
            actions = [on_menu(one, seen) for one in actions] + [closing(position) for position in seen.positions]
        return max([(0.0, HOLD), *((self.gain_usd(one, seen), one) for one in actions)], key=lambda worth: worth[0])


class PromptReader:
    """An agent that gives the best answer for one tick to every prompt."""

    def __init__(self, ceiling: Ceiling, model: MarketModel, stake_usd: float = STAKE_USD) -> None:
        self.name, self.mandate = ceiling.name, ceiling.mandate
        self._model = model
        self._beliefs = _Shown(model, ceiling.posts)
        self.amounts_usd = ceiling.amounts_usd or (stake_usd,)

    def appraise(self, seen: Observation) -> Appraisal:
        moves = self._beliefs.moves(seen, horizon_ticks=1)
        yes = {question.market: question.yes for question in seen.questions}
        prices = {stock.ticker: stock.price for stock in seen.stocks}
        open_now = {market: move for market, move in moves.items() if market in yes or market in prices}
        recovery = 1.0 - exp(-self._model.recovery_per_hour * seen.tick_seconds / HOUR_S)
        return Appraisal(seen.recent_headlines(), open_now, prices, yes, recovery, self._model)

    def decide(self, seen: Observation) -> Action:
        return self.appraise(seen).best(seen, self.amounts_usd, self.mandate)[1]


def appraised(scenario: Scenario, ceiling: Ceiling) -> tuple[list[Appraisal], list[float]]:
    """Appraisals of a market at every tick, without any order in it, and the expected dollars of the best order of each."""
    reader, exchange, newsroom = PromptReader(ceiling, scenario.model or MarketModel()), Exchange(scenario, [_WATCHER]), Newsroom(scenario)
    record = AgentRecord(_WATCHER, _WATCHER, reader.mandate, exchange.accounts[_WATCHER])
    appraisals, best_usd = list[Appraisal](), list[float]()
    while not exchange.over:
        seen = observe(exchange, newsroom, record)
        appraisals.append(reader.appraise(seen))
        best_usd.append(appraisals[-1].best(seen, reader.amounts_usd)[0])
        exchange.advance()
    return appraisals, best_usd


def course_usd(
    scenario: Scenario, ceiling: Ceiling, decide: Callable[[Observation], Action] | None = None, start_balance: float = START_BALANCE
) -> float:
    """Expected dollars of who plays a market alone with positions that last: of what is held, and of each action over holding.

    Left out: that the answer to a question is published within the market.

    Args:
        decide: the action of each tick; by default the best play's.
    """
    reader, newsroom = PromptReader(ceiling, scenario.model or MarketModel()), Newsroom(scenario)
    exchange = Exchange(scenario, [_WATCHER], start_balance)
    record, total = AgentRecord(_WATCHER, _WATCHER, reader.mandate, exchange.accounts[_WATCHER]), 0.0
    while not exchange.over:
        seen = observe(exchange, newsroom, record)
        appraisal, action = _with_recovery(reader.appraise(seen), exchange), (decide or reader.decide)(seen)
        total += appraisal.gain_usd(action, seen) + math.fsum(map(appraisal.held_usd, seen.positions))
        exchange.apply(_WATCHER, action)
        exchange.advance()
    return total


def _with_recovery(appraisal: Appraisal, exchange: Exchange) -> Appraisal:
    """An appraisal whose moves hold what takes back the effect of earlier orders on prices."""
    recovery, moves = appraisal.recovery, dict(appraisal.moves)
    for ticker, book in exchange.books.items():
        moves[ticker] = moves.get(ticker, 0.0) - recovery * book.pressure
    for market, yes in appraisal.yes.items():
        pushed = odds(yes) / odds(exchange.pools[market].question.crowd[exchange.tick])
        moves[market] = moves.get(market, 0.0) + log(1.0 + recovery * (1.0 / pushed - 1.0))
    return msgspec.structs.replace(appraisal, moves=moves)
