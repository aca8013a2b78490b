"""Accounts and fills: what an order costs and what it brings when it is closed.

An order lasts one tick: it is opened at the tick's price and closed at the next tick's. Stocks are long or short at the
quoted price with a fee on each side. Questions trade on a constant-product maker (YES price = no / (yes + no)), which agents
and the crowd move alike, so that a round trip through an otherwise quiet pool loses exactly the fees.
"""

import math
from dataclasses import dataclass, field

from babylon_rl.market.world import TICK_MINUTES, Hour

FEE = 0.001  # of the dollars traded, on each side
START_BALANCE = 10_000.0
_POOL_SHARES = 20_000.0


@dataclass
class Pool:
    """A constant-product maker for one question; ``yes`` and ``no`` are shares held by the maker."""

    yes: float
    no: float

    @classmethod
    def at(cls, logit: float) -> "Pool":
        """A pool whose YES price has the given log-odds, with the usual depth."""
        ratio = math.exp(logit / 2)
        return cls(_POOL_SHARES / ratio, _POOL_SHARES * ratio)

    @property
    def yes_price(self) -> float:
        """The marginal price of a YES share, 0..1."""
        return self.no / (self.yes + self.no)

    def buy(self, side: bool, usd: float) -> float:
        """Pay ``usd`` into the pool; returns the shares of ``side`` (True = YES) received."""
        product = self.yes * self.no
        yes, no = self.yes + usd, self.no + usd
        if side:
            shares = yes - product / no
            self.yes, self.no = yes - shares, no
        else:
            shares = no - product / yes
            self.yes, self.no = yes, no - shares
        return shares

    def sell(self, side: bool, shares: float) -> float:
        """Give ``shares`` of ``side`` back; returns the dollars received."""
        product = self.yes * self.no
        yes, no = (self.yes + shares, self.no) if side else (self.yes, self.no + shares)
        # the maker burns usd complete pairs: (yes - usd) * (no - usd) = product
        total = yes + no
        usd = (total - math.sqrt(total * total - 4 * (yes * no - product))) / 2
        self.yes, self.no = yes - usd, no - usd
        return usd

    def move_to(self, logit: float) -> None:
        """The crowd trades until the YES price has the given log-odds; the product of the shares stays."""
        depth = math.sqrt(self.yes * self.no)
        ratio = math.exp(logit / 2)
        self.yes, self.no = depth / ratio, depth * ratio


@dataclass(frozen=True)
class Order:
    """What an agent wants: ``direction`` +1 (buy, YES) or -1 (sell, NO) for ``usd`` dollars of ``market``."""

    market: str
    direction: int
    usd: float


@dataclass(frozen=True)
class Fill:
    """An open order: dollars paid, price seen, and shares held (stocks: dollars / price)."""

    order: Order
    price: float
    shares: float
    fee: float


@dataclass
class Account:
    """One agent's money; ``pnl`` is its lifetime profit in dollars, as the game keeps it."""

    balance: float = START_BALANCE
    pnl: float = 0.0
    open: Fill | None = None
    wins: int = 0
    losses: int = 0
    trades: int = 0
    last: str = field(default="none")


class Exchange:
    """The markets of one hour as the agents move them."""

    def __init__(self, hour: Hour) -> None:
        self.hour = hour
        self.pool = Pool.at(hour.question.crowd_logit[0])
        self._stocks = {stock.name: stock.prices for stock in hour.stocks}

    def price(self, market: str, tick: int) -> float:
        """The quoted price at a tick: dollars for a stock, the YES price for the question."""
        if market == self.hour.question.label:
            return self.pool.yes_price
        return self._stocks[market][tick * TICK_MINUTES]

    def open(self, account: Account, order: Order, tick: int) -> Fill | None:
        """Open an order at the tick's price; None when the balance does not cover it."""
        fee = order.usd * FEE
        if order.usd + fee > account.balance:
            return None
        price = self.price(order.market, tick)
        if order.market == self.hour.question.label:
            shares = self.pool.buy(order.direction > 0, order.usd)
        else:
            shares = order.usd / price
        account.balance -= order.usd + fee
        account.open = Fill(order, price, shares, fee)
        account.trades += 1
        return account.open

    def close(self, account: Account, tick: int) -> float | None:
        """Close what is open at the tick's price; returns its profit in dollars after fees, None when nothing is open."""
        fill = account.open
        if fill is None:
            return None
        order = fill.order
        if order.market == self.hour.question.label:
            proceeds = self.pool.sell(order.direction > 0, fill.shares)
        else:
            proceeds = order.usd + order.direction * fill.shares * (self.price(order.market, tick) - fill.price)
        proceeds = max(0.0, proceeds * (1 - FEE))
        profit = proceeds - order.usd - fill.fee
        account.balance += proceeds
        account.pnl += profit
        account.open = None
        account.wins += profit > 0
        account.losses += profit < 0
        account.last = f"{'+' if profit >= 0 else '-'}${abs(profit):.0f}"
        return profit

    def crowd_trades(self, tick: int) -> None:
        """The crowd moves the question's pool by what happened since the last tick, on top of what agents did."""
        logits = self.hour.question.crowd_logit
        minute = tick * TICK_MINUTES
        change = logits[minute] - logits[minute - TICK_MINUTES]
        odds = self.pool.no / self.pool.yes
        self.pool.move_to(math.log(odds) + change)
