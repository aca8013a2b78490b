"""Accounts and positions of agents, and the house, which is everybody else.

Money only moves between a balance, a margin, a pool's collateral and the house's cash. Objects here
change in place and are the exchange's own; read them, and trade through the exchange.
"""

import math


class PerpPosition:
    """A long (``direction`` +1) or short (-1) position in a stock.

    ``units`` shares came to ``notional`` dollars when they were opened, on ``margin`` dollars; ``paid`` is fees and funding so far;
    ``exit_units`` are the units that leaving at the mark is worth, the market's impact included.
    """

    __slots__ = ("direction", "exit_units", "id", "margin", "notional", "opened_tick", "paid", "ticker", "units")

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

    __slots__ = ("cost", "id", "market", "opened_tick", "shares", "side")

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
    """One agent's money.

    ``realized`` is the profit of closed positions, ``fees`` and ``funding`` were paid (received: negative). ``wins`` and ``losses`` count
    closed positions or parts of them, ``correct`` and ``incorrect`` shares held to a question's answer.
    """

    __slots__ = (
        "agent_id", "balance", "correct", "fees", "funding", "incorrect", "liquidations", "losses", "perps", "realized", "shares", "start",
        "trades", "wins",
    )  # fmt: skip

    def __init__(self, agent_id: str, balance: float) -> None:
        self.agent_id = agent_id
        self.start = self.balance = balance
        self.perps: dict[str, PerpPosition] = {}
        self.shares: dict[tuple[str, str], SharePosition] = {}
        self.realized = self.fees = self.funding = 0.0
        self.trades = self.wins = self.losses = self.correct = self.incorrect = self.liquidations = 0

    @property
    def open_positions(self) -> int:
        """How many positions are open."""
        return len(self.perps) + len(self.shares)

    def closed(self, profit: float) -> None:
        """Book the profit of something that was closed."""
        self.realized += profit
        self.wins += profit > 0.0
        self.losses += profit < 0.0


class House:
    """The other side of every trade: the crowd, the makers and the venue.

    ``cash`` may be negative: it is the world outside. The rest says where cash came from: ``fees`` and ``funding`` received,
    ``perp_profit`` won from positions, ``gaps`` the losses beyond a margin that it bore, ``liquidated`` the margins that it kept.
    """

    __slots__ = ("cash", "fees", "funding", "gaps", "liquidated", "perp_profit")

    def __init__(self) -> None:
        self.cash = self.fees = self.funding = self.gaps = self.liquidated = self.perp_profit = 0.0
