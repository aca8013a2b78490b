"""Agents that know the scenario to its end: perfect foresight under the same money, fees and market depth.

With ``coming_moves`` a `Forecaster` chooses for one tick at a time, exactly. ``SwingOracle`` holds positions: it rides every swing of a
market that is larger than what entering and leaving cost, found by dynamic programming over long, flat and short. It ignores other agents
and funding.
"""

from collections.abc import Sequence
from itertools import pairwise

from babylon_rl.market.simulation.actions import Action
from babylon_rl.market.simulation.agents import FREE, QUESTION_STAKE, STAKE_USD, Mandate, choose, closing, order
from babylon_rl.market.simulation.arithmetic import log
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.record import HOLD
from babylon_rl.market.simulation.scenario import Question, Scenario

_NEVER = -1e9


def coming_moves(scenario: Scenario, seen: Observation) -> dict[str, float]:
    """The moves of log prices and log-odds over the next tick, by market."""
    tick, moves = seen.tick, dict[str, float]()
    for stock in seen.stocks:
        prices = scenario.asset(stock.ticker).prices
        moves[stock.ticker] = log(prices[tick + 1] / prices[tick])
    for quote in seen.questions:
        question = scenario.question(quote.market)
        moves[quote.market] = _log_odds(question.crowd[tick + 1]) - _log_odds(question.crowd[tick])
        if question.resolve_tick == tick + 1:
            moves[quote.market] = 30.0 if question.answer else -30.0
    return moves


class Swings:
    """The best side of one market at every moment, given the present side: +1, -1 or 0 for neither.

    Args:
        first: the first moment that can be traded.
        up, down: log gains of +1 and of -1 over each tick from ``first`` on.
        cost: log cost of entering or of leaving.
    """

    def __init__(self, first: int, up: Sequence[float], down: Sequence[float], cost: float) -> None:
        self.first = first
        flat, long, short = 0.0, -cost, -cost
        self._best: list[tuple[int, int, int]] = []  # from flat, from +1, from -1; last moment first
        self._gain: list[float] = []
        for gain, loss in zip(reversed(up), reversed(down), strict=True):
            stay, rise, fall = flat, gain + long, loss + short
            from_flat = max((stay, 0), (rise - cost, 1), (fall - cost, -1))
            from_long = max((rise, 1), (stay - cost, 0), (fall - 2.0 * cost, -1))
            from_short = max((fall, -1), (stay - cost, 0), (rise - 2.0 * cost, 1))
            self._best.append((from_flat[1], from_long[1], from_short[1]))
            self._gain.append(from_flat[0] - stay)
            flat, long, short = from_flat[0], from_long[0], from_short[0]

    def best(self, tick: int, side: int) -> int:
        return self._best[self._at(tick)][side]

    def gain(self, tick: int) -> float:
        """Gain of entering now over waiting for the next moment. In log price after costs."""
        return self._gain[self._at(tick)]

    def covers(self, tick: int) -> bool:
        return 0 <= self._at(tick) < len(self._best)

    def _at(self, tick: int) -> int:
        return len(self._best) - 1 - (tick - self.first)


class SwingOracle:
    """An agent that holds positions in markets that it knows will move. One action a tick, closing first, then the largest gain."""

    name = "oracle"
    mandate: Mandate = FREE

    def __init__(
        self,
        scenario: Scenario,
        model: MarketModel,
        stake_usd: float = STAKE_USD,
        leverage: float = 3.0,
        question_share: float = QUESTION_STAKE,
    ) -> None:
        self._stake_usd, self._leverage, self._question_share = stake_usd, leverage, question_share
        stock_cost = model.fee + 0.5 * model.impact_per_usd * stake_usd * leverage
        self._swings: dict[str, Swings] = {}
        for asset in scenario.assets:
            moves = [log(after / before) for before, after in pairwise(asset.prices)]
            self._swings[asset.ticker] = Swings(0, moves, [-move for move in moves], stock_cost)
        for question in scenario.questions:
            self._swings[question.id] = _question_swings(scenario, question, model, stake_usd * question_share)

    def decide(self, seen: Observation) -> Action:
        """Close a position that has run its course, else enter the best market."""
        tick = seen.tick
        for position in seen.positions:
            swings = self._swings[position.market]
            if swings.covers(tick) and swings.best(tick, position.direction) != position.direction:
                return closing(position)
        if seen.balance < 1.05 * self._stake_usd * max(1.0, self._question_share):
            return HOLD
        held = {position.market for position in seen.positions}
        wanted = [
            (swings.gain(tick) * (self._leverage if index < len(seen.stocks) else self._question_share), swings.best(tick, 0), market)
            for index, (market, swings) in enumerate(self._swings.items())
            if market not in held and swings.covers(tick)
        ]
        gain, direction, market = max(wanted, key=lambda one: (one[0], one[2]), default=(0.0, 0, ""))
        return order(choose(direction, market), seen, self._stake_usd, self._leverage) if gain > 0.0 else HOLD


def _question_swings(scenario: Scenario, question: Question, model: MarketModel, usd: float) -> Swings:
    last = min(question.resolve_tick, scenario.ticks)
    crowd = question.crowd[question.created_tick : last + 1]
    yes = [log(after / before) for before, after in pairwise(crowd)]
    no = [log((1.0 - after) / (1.0 - before)) for before, after in pairwise(crowd)]
    cost = model.fee + usd / model.pool_shares
    if question.resolve_tick <= scenario.ticks:
        # an answer pays a dollar and costs nothing to leave with
        yes[-1] = cost - log(crowd[-2]) if question.answer else _NEVER
        no[-1] = cost - log(1.0 - crowd[-2]) if not question.answer else _NEVER
    return Swings(question.created_tick, yes, no, cost)


def _log_odds(probability: float) -> float:
    return log(probability / (1.0 - probability))
