"""Observation of an agent at a tick, as the game shows it to its agents: its money, quotes, news and posts, and its memory.

An observation is a value: nothing in it changes after it was made. It copies no history; what is older than its tick is looked up in
the scenario and in the agent's own record when it is asked for. Hidden parts of a scenario are not reachable from it by its public names.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Account, QuestionQuote, StockQuote
from babylon_rl.market.simulation.record import AgentRecord, Remembered
from babylon_rl.market.simulation.scenario import Scenario

NEWS_MINUTES = 5.0
MEMORY_MINUTES = 60.0


class Headline(msgspec.Struct, frozen=True):
    """A world event as agents read it.

    ``direction`` is that of its text (+1 good or YES, -1, 0), ``clarity`` how plainly it says so, 0 to 1.
    """

    tick: int
    about: str
    text: str
    direction: int
    clarity: float
    rumour: bool
    category: str


class Heard(msgspec.Struct, frozen=True):
    """A post. ``trust`` is its author's, 0 to 1, and None for an agent of this market, whose posts are about no market."""

    tick: int
    author: str
    trust: float | None
    text: str
    about: str
    direction: int


class Held(msgspec.Struct, frozen=True):
    """An open position.

    Attributes:
        side: ``long`` or ``short`` of a stock, ``yes`` or ``no`` of a question; direction: +1 or -1.
        quantity: units or shares; entry_price: dollars for each, on average.
        worth: what closing it now would bring after the fee, in dollars; profit: ``worth`` less all that was paid for it.
        margin, leverage, liquidation_price: of a stock; 0, 1 and None of a question.
    """

    market: str
    side: str
    direction: int
    quantity: float
    entry_price: float
    worth: float
    profit: float
    opened_tick: int
    margin: float = 0.0
    leverage: float = 1.0
    liquidation_price: float | None = None


class Newsroom:
    """News and posts of one run, by tick, without hidden effects. Shared by all its agents."""

    def __init__(self, scenario: Scenario) -> None:
        self._headlines: defaultdict[int, list[Headline]] = defaultdict(list)
        self._heard: defaultdict[int, list[Heard]] = defaultdict(list)
        for e in scenario.events:
            self._headlines[e.tick].append(Headline(e.tick, e.about, e.text, e.direction, e.clarity, e.rumour, e.category))
        for p in scenario.posts:
            self._heard[p.tick].append(Heard(p.tick, p.author, p.trust, p.text, p.about, p.direction))

    def said(self, tick: int, agent_id: str, text: str) -> None:
        """An agent posted at a tick: the others read it at the next one."""
        self._heard[tick + 1].append(Heard(tick, agent_id, None, text, "", 0))

    def headlines(self, first: int, last: int) -> tuple[Headline, ...]:
        """The events published at some ticks, both ends included."""
        return tuple(event for tick in range(first, last + 1) for event in self._headlines.get(tick, ()))

    def heard(self, first: int, last: int, but_of: str) -> tuple[Heard, ...]:
        """The posts to be read at some ticks but those of one author. The scenario's, then those that agents wrote at the tick before."""
        return tuple(post for tick in range(first, last + 1) for post in self._heard.get(tick, ()) if post.author != but_of)


class Observation(msgspec.Struct, frozen=True):
    """View of one agent when it decides.

    Attributes:
        tick, ticks_left: the moment, and how many more times the agent will act after this one; a tick lasts ``tick_seconds``.
        balance: dollars free to spend; equity: with what closing every position now would bring; start: what the agent began with.
        positions: what is open, stocks first, each kind in the order in which it was opened.
        stocks, questions: what can be traded, at prices that are the same for everybody who decides at this tick.
        last_profit: what the last position closed brought, in dollars after all costs; None before there was one.
    """

    agent_id: str
    tick: int
    ticks_left: int
    tick_seconds: int
    timestamp_ms: int
    start: float
    balance: float
    equity: float
    positions: tuple[Held, ...]
    last_profit: float | None
    stocks: tuple[StockQuote, ...]
    questions: tuple[QuestionQuote, ...]
    _newsroom: Newsroom
    _record: AgentRecord

    @property
    def pnl(self) -> float:
        """Dollars won since the start, open positions included."""
        return self.equity - self.start

    @property
    def headlines(self) -> tuple[Headline, ...]:
        return self._newsroom.headlines(self.tick, self.tick)

    @property
    def posts(self) -> tuple[Heard, ...]:
        """The posts new at this tick, the agent's own left out."""
        return self._newsroom.heard(self.tick, self.tick, self.agent_id)

    def recent_headlines(self, minutes: float = NEWS_MINUTES) -> tuple[Headline, ...]:
        """The events published in the last ``minutes``, this tick's included, oldest first."""
        return self._newsroom.headlines(self._since(minutes), self.tick)

    def recent_posts(self, minutes: float = NEWS_MINUTES) -> tuple[Heard, ...]:
        """The posts new in the last ``minutes``, oldest first. This tick's included, the agent's own left out."""
        return self._newsroom.heard(self._since(minutes), self.tick, self.agent_id)

    def memory(self, count: int = 3, minutes: float = MEMORY_MINUTES) -> tuple[Remembered, ...]:
        """The agent's last decisions with their results, oldest first. At most ``count`` and no older than ``minutes``."""
        return self._record.remembered(max(self._since(minutes), self.tick - count), self.tick)

    def minutes_left(self, question: QuestionQuote) -> float:
        """Minutes until a question's answer is published."""
        return (question.resolve_tick - self.tick) * self.tick_seconds / 60.0

    def held(self, market: str) -> Held | None:
        """The position in a market, the first one where YES and NO are both held. None when there is none."""
        return next((position for position in self.positions if position.market == market), None)

    def public(self) -> dict[str, Any]:
        """All of it as plain JSON values, for an agent outside this process."""
        fields = (name for name in self.__struct_fields__ if not name.startswith("_") and name != "questions")
        shown: dict[str, Any] = {name: getattr(self, name) for name in fields}
        shown |= {"headlines": self.recent_headlines(), "posts": self.recent_posts(), "memory": self.memory()}
        shown["questions"] = [{**msgspec.to_builtins(question), "minutes_left": self.minutes_left(question)} for question in self.questions]
        plain: dict[str, Any] = msgspec.to_builtins(shown)
        return plain

    def _since(self, minutes: float) -> int:
        return max(0, self.tick + 1 - max(1, round(minutes * 60.0 / self.tick_seconds)))


def observe(exchange: Exchange, newsroom: Newsroom, record: AgentRecord) -> Observation:
    """The present view of the owner of ``record``."""
    scenario, account, tick, quotes = exchange.scenario, record.account, exchange.tick, exchange.quotes()
    positions, equity = tuple(_positions(exchange, account)), exchange.equity(record.agent_id)
    return Observation(
        record.agent_id, tick, scenario.ticks - 1 - tick, scenario.tick_seconds, scenario.timestamp_ms(tick), account.start,
        account.balance, equity, positions, record.last_profit, quotes.stocks, quotes.questions, newsroom, record,
    )  # fmt: skip


def _positions(exchange: Exchange, account: Account) -> Iterator[Held]:
    for perp in account.perps.values():
        worth = exchange.worth(perp)
        liquidation = perp.liquidation_price(exchange.model.maintenance)
        yield Held(
            perp.ticker, perp.side, perp.direction, perp.units, perp.entry_price, worth, worth - perp.margin - perp.paid,
            perp.opened_tick, perp.margin, perp.leverage, liquidation if liquidation > 0.0 else None,
        )  # fmt: skip
    for shares in account.shares.values():
        worth = exchange.worth(shares)
        direction = 1 if shares.side == "yes" else -1
        yield Held(shares.market, shares.side, direction, shares.shares, shares.entry_price, worth, worth - shares.cost, shares.opened_tick)
