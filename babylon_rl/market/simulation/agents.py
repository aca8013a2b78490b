"""Agents: their protocol, and the two mandates that turn a strategy's views into orders.

An agent is made anew for every run by a factory that gets its id and a seed; given the same observations it must decide the same.
docs/howto/agents.md shows how to write one. A ``Strategy`` is less: it only says which market it likes, and ``OneTickTrader`` or
``PositionTrader`` trades on it.
"""

import math
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import msgspec

from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, Hold, Invalid, OpenPerp, SellPrediction
from babylon_rl.market.simulation.arithmetic import exp
from babylon_rl.market.simulation.observation import Held, Observation
from babylon_rl.market.simulation.record import HOLD, Call

Mandate = Literal["free", "one-tick"]
Size = Literal["small", "medium", "large"]
FREE: Mandate = "free"
ONE_TICK: Mandate = "one-tick"
STAKE_USD = 1500.0
QUESTION_STAKE = 0.35  # of the stake: questions move further than stocks
# Stakes by the word that an answer names. The base writes each word about as often; of amounts in digits it writes nearly always the same.
SIZES_USD: dict[Size, int] = {"small": 500, "medium": 1500, "large": 5000}
# Of stocks where positions last: a stake ties up so much less of the balance.
LEVERAGES: dict[Size, float] = {"small": 1.0, "medium": 2.0, "large": 5.0}


class Agent(Protocol):
    """Decides once a tick.

    ``mandate`` may be left out, it is then ``free``: what is open stays open. Under ``one-tick`` the run closes whatever the agent
    holds just before its next decision, so that what a decision brought is known then and is its own.
    """

    @property
    def name(self) -> str:
        """Name in reports."""

    def decide(self, seen: Observation) -> Action | Invalid:
        """The action of this tick. ``Invalid`` says why there is no usable answer: it is counted and costs the turn."""
        ...


AgentFactory = Callable[[str, int | str], Agent]  # (agent id, seed) -> a fresh agent for one run


class Decision(msgspec.Struct, frozen=True):
    """A decision, the request behind it, and how long it took."""

    action: Action | Invalid
    call: Call | None = None
    latency_ms: float = 0.0


@runtime_checkable
class AskingAgent(Agent, Protocol):
    """An agent that waits for another program's answer. A run asks all such agents of a tick at once, each in a thread."""

    def ask(self, seen: Observation) -> Decision:
        """The action of this tick with the request behind it.

        Raises:
            ModelUnavailable: its endpoint stays down; the run ends there and says so.
        """


def mandate_of(agent: Agent) -> Mandate:
    """The agent's mandate, ``free`` when it names none."""
    return ONE_TICK if getattr(agent, "mandate", FREE) == ONE_TICK else FREE


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """Buy (long, YES), sell (short, NO), close what is held, or hold. ``market`` is a ticker or a question's id, None for hold."""

    action: Literal["buy", "sell", "close", "hold"]
    market: str | None = None

    @property
    def direction(self) -> int:
        """+1, -1 or 0."""
        return {"buy": 1, "sell": -1}.get(self.action, 0)


class SizedChoice(Choice, frozen=True, omit_defaults=True):
    """A choice with the word for its stake, None where none is opened."""

    size: Size | None = None

    @property
    def usd(self) -> int | None:
        """Its stake in dollars."""
        return None if self.size is None else SIZES_USD[self.size]


HOLDING = Choice("hold")


def choose(direction: float, market: str) -> Choice:
    """Buy where ``direction`` is positive, sell where it is negative, else hold."""
    return HOLDING if direction == 0 else Choice("buy" if direction > 0 else "sell", market)


class Strategy(Protocol):
    """A scripted view of the market. Its randomness is its own, seeded when it is made."""

    @property
    def name(self) -> str: ...

    def choose(self, seen: Observation) -> Choice:
        """Which market to buy or sell now, if any."""


def order(choice: Choice, seen: Observation, stake_usd: float, leverage: float = 1.0) -> Action:
    """The order of a choice."""
    if choice.market is None or choice.direction == 0:
        return HOLD
    is_question = any(question.market == choice.market for question in seen.questions)
    return directed(choice.market, choice.direction, stake_usd, is_question=is_question, leverage=leverage)


def leveraged(choice: Choice, seen: Observation, stake_usd: float, leverage: float) -> Action:
    """The order of a choice whose dollars times leverage are the stake. Questions have no leverage."""
    times = leverage if any(stock.ticker == choice.market for stock in seen.stocks) else 1.0
    return order(choice, seen, stake_usd / times, times)


def directed(market: str, direction: int, stake_usd: float, *, is_question: bool, leverage: float = 1.0) -> Action:
    """The order in a direction. ``stake_usd`` of a stock times ``leverage``, or ``QUESTION_STAKE`` of it on a question."""
    if direction == 0:
        return HOLD
    if is_question:
        return BuyPrediction(market, "yes" if direction > 0 else "no", stake_usd * QUESTION_STAKE)
    return OpenPerp(market, "long" if direction > 0 else "short", stake_usd, leverage)


def closing(position: Held) -> ClosePerp | SellPrediction:
    """The action that closes a position."""
    if position.side == "yes" or position.side == "no":
        return SellPrediction(position.market, "yes" if position.side == "yes" else "no")
    return ClosePerp(position.market)


class OneTickTrader:
    """Trades a strategy's choices as policies are trained to. A fixed stake for one tick, closed before the next decision."""

    mandate: Mandate = ONE_TICK

    def __init__(self, strategy: Strategy, stake_usd: float = STAKE_USD) -> None:
        self.name = strategy.name
        self._strategy = strategy
        self._stake_usd = stake_usd

    def decide(self, seen: Observation) -> Action:
        return order(self._strategy.choose(seen), seen, self._stake_usd)


class Style(msgspec.Struct, frozen=True):
    """Trading style of positions. Dollars of margin and leverage of each, how long they are held, and how many at once."""

    stake_usd: float = STAKE_USD
    leverage: float = 1.0
    hold_minutes: float = 30.0
    most_positions: int = 3


class PositionTrader:
    """Trades a strategy's choices as positions that last.

    One action a tick, so closing comes before opening. A position is closed when its time is up or when the strategy chooses the other
    direction; a choice that is held already, or for which there is no room or no money, is a hold.
    """

    mandate: Mandate = FREE

    def __init__(self, strategy: Strategy, style: Style) -> None:
        self.name = strategy.name
        self._strategy = strategy
        self._style = style

    def decide(self, seen: Observation) -> Action:
        """Close a position that is due, else trade on the strategy's choice."""
        style, choice = self._style, self._strategy.choose(seen)
        lasts = max(1, round(style.hold_minutes * 60.0 / seen.tick_seconds))
        due = [position for position in seen.positions if seen.tick - position.opened_tick >= lasts]
        if due:
            return closing(min(due, key=lambda position: position.opened_tick))
        if choice.market is None:
            return HOLD
        held = seen.held(choice.market)
        if held is not None:
            return HOLD if held.direction == choice.direction else closing(held)
        if len(seen.positions) >= style.most_positions or style.stake_usd * 1.05 > seen.balance:
            return HOLD
        return order(choice, seen, style.stake_usd, style.leverage)


class Nothing:
    """Holds, always."""

    name = "nothing"

    def decide(self, seen: Observation) -> Hold:
        return HOLD


def stock_profit(direction: int, usd: float, log_move: float, fee: float) -> float:
    """Dollars from a long (+1) or short (-1) position. ``usd`` dollars are held over a move of the log price, closing included."""
    ratio = exp(log_move)
    return usd * (direction * (ratio - 1.0) - fee * (1.0 + ratio))


def question_profit(direction: int, usd: float, yes: float, log_odds_move: float, fee: float, depth: float) -> float:
    """Dollars from buying YES (+1) or NO (-1) at a YES price.

    They are sold after the crowd has moved the log-odds.

    Args:
        depth: the root of the maker's YES times NO shares.
    """
    price = yes if direction > 0 else 1.0 - yes
    root = math.sqrt(price / (1.0 - price))
    mine, other = depth / root, depth * root  # the maker's shares of what is bought, and of the other side
    paid_in = other + usd
    shares = usd + mine * usd / paid_in
    mine = mine * other / paid_in
    moved = exp(0.5 * direction * log_odds_move)
    mine, other = mine / moved, paid_in * moved
    total = mine + other + shares
    proceeds = 2.0 * shares * other / (total + math.sqrt(total * total - 4.0 * shares * other))
    return proceeds * (1.0 - fee) - usd * (1.0 + fee)
