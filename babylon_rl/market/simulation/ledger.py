"""Fills, refusals and settlements of orders, and the accounts and positions that they change.

Money only moves between a balance, a margin, a pool's collateral and the house's cash; the house is everybody else. Accounts and positions
change in place and are the exchange's own; read them, and trade through the exchange.
"""

import math
from typing import Literal

import msgspec

RefusalCode = Literal[
    "unknown_market",
    "not_open",
    "resolved",
    "over",
    "balance",
    "leverage",
    "amount",
    "nothing_to_close",
    "side",
    "opposite_side",
    "too_large",
    "text",
]


class Fill(msgspec.Struct, frozen=True):
    """An action that was carried out.

    Attributes:
        kind: the action's tag; market, side, position: empty for hold and post.
        quantity, price: shares or units, and dollars for each on average.
        usd: what was traded in dollars (a perpetual: with leverage), without the fee.
        profit: what a closing brought after all fees and funding, in dollars; None for anything else.
    """

    tick: int
    agent: str
    kind: str
    market: str = ""
    side: str = ""
    quantity: float = 0.0
    price: float = 0.0
    usd: float = 0.0
    fee: float = 0.0
    profit: float | None = None
    position: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """An action that was not carried out. Nothing changed. ``reason`` says why in words and numbers."""

    tick: int
    agent: str
    kind: str
    code: RefusalCode
    reason: str


class Settlement(msgspec.Struct, frozen=True):
    """A settlement of a position by time. ``usd`` is the agent's gain (paid by it: negative), ``profit`` as in ``Fill``."""

    tick: int
    agent: str
    kind: Literal["funding", "liquidation", "resolution"]
    market: str
    side: str
    quantity: float
    price: float
    usd: float
    profit: float | None
    position: str


class StockQuote(msgspec.Struct, frozen=True):
    """A stock as agents see it. ``change`` in percent since the tick before, volumes in dollars, ``funding_rate`` the next one's."""

    ticker: str
    name: str
    price: float
    change: float
    funding_rate: float
    funding_tick: int
    open_interest: float
    volume: float


class QuestionQuote(msgspec.Struct, frozen=True):
    """An open question as agents see it. ``yes`` is a price 0..1, ``change`` in points of probability since the tick before."""

    market: str
    number: int
    text: str
    yes: float
    change: float
    resolve_tick: int
    volume: float


class Quotes(msgspec.Struct, frozen=True):
    """All that can be traded at a tick."""

    stocks: tuple[StockQuote, ...]
    questions: tuple[QuestionQuote, ...]


class PerpPosition:
    """A long (``direction`` +1) or short (-1) position in a stock.

    ``units`` shares came to ``notional`` dollars when they were opened, on ``margin`` dollars; ``paid`` is fees and funding so far;
    ``exit_units`` are the units that leaving at the mark is worth, the market's impact included.
    """

    def __init__(self, position_id: str, ticker: str, direction: int, opened_tick: int) -> None:
        self.id = position_id
        self.ticker = ticker
        self.direction = direction
        self.opened_tick = opened_tick
        self.units = self.notional = self.margin = self.paid = self.exit_units = 0.0

    @property
    def side(self) -> str:
        """``long`` or ``short``."""
        return "long" if self.direction > 0 else "short"

    @property
    def entry_price(self) -> float:
        """Dollars per unit, on average."""
        return self.notional / self.units

    @property
    def leverage(self) -> float:
        """Dollars held per dollar of margin."""
        return self.notional / self.margin if self.margin > 0.0 else math.inf

    def profit_at(self, price: float) -> float:
        """Dollars won or lost at a price, before fees and the margin's limit."""
        return self.direction * (self.units * price - self.notional)

    def liquidation_price(self, maintenance: float) -> float:
        """The price of a liquidation; at most 0: there is none. There the rest of the margin is ``maintenance`` of the position's worth."""
        return (self.notional - self.direction * self.margin) / (self.units * (1.0 - self.direction * maintenance))


class SharePosition:
    """YES or NO shares of a question. ``cost`` is their price with fees, in dollars."""

    def __init__(self, position_id: str, market: str, side: str, opened_tick: int) -> None:
        self.id = position_id
        self.market = market
        self.side = side
        self.opened_tick = opened_tick
        self.shares = self.cost = 0.0

    @property
    def entry_price(self) -> float:
        """Dollars per share, fees included."""
        return self.cost / self.shares


class Account:
    """One agent's money. ``fees`` and ``funding`` were paid (received: negative)."""

    def __init__(self, agent_id: str, balance: float) -> None:
        self.agent_id = agent_id
        self.start = self.balance = balance
        self.perps: dict[str, PerpPosition] = {}
        self.shares: dict[tuple[str, str], SharePosition] = {}
        self.fees = self.funding = 0.0
        self.trades = self.liquidations = 0

    @property
    def open_positions(self) -> int:
        return len(self.perps) + len(self.shares)
