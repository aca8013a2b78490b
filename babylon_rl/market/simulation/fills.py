"""Fills, refusals and settlements, and quotes of all that can be traded."""

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

    @property
    def no(self) -> float:
        """The price of a NO share."""
        return 1.0 - self.yes


class Quotes(msgspec.Struct, frozen=True):
    """All that can be traded at a tick."""

    tick: int
    stocks: tuple[StockQuote, ...]
    questions: tuple[QuestionQuote, ...]
