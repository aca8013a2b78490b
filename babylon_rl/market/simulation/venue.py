"""State of the exchange at a moment, and the worth of each position.

Accounts, books, pools and the house.

A position is worth what closing it now would bring after its fee: its owner's own impact counts against it, so trading by itself
never makes anybody richer, not even on paper.
"""

import math
from collections.abc import Mapping, Sequence

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.ledger import Account, House, PerpPosition, SharePosition
from babylon_rl.market.simulation.pools import PerpBook, Pool
from babylon_rl.market.simulation.scenario import Scenario


class Venue:
    """State and valuations of one run; `babylon_rl.market.simulation.exchange.Exchange` trades on it.

    Attributes:
        tick: the moment it is, 0 to ``scenario.ticks``.
        accounts: by agent id; books: by ticker; pools: by question id, from the question's first moment on.
    """

    def __init__(self, scenario: Scenario, agents: Sequence[str], start_balance: float | Mapping[str, float], model: MarketModel) -> None:
        self.scenario = scenario
        self.model = model
        self.house = House()
        self.tick = 0
        self.accounts: dict[str, Account] = {}
        for agent in agents:
            balance = start_balance.get(agent, -1.0) if isinstance(start_balance, Mapping) else start_balance
            if agent in self.accounts or not 0.0 <= balance < math.inf:
                raise MarketError(f"Agent {agent!r} cannot start with {balance} $: each agent is named once and starts with 0 or more.")
            self.accounts[agent] = Account(agent, float(balance))
        self.books = {asset.ticker: PerpBook(asset, model.impact_per_usd) for asset in scenario.assets}
        self.pools: dict[str, Pool] = {}
        self._positions = 0

    @property
    def over(self) -> bool:
        """Whether the last moment has come."""
        return self.tick >= self.scenario.ticks

    def account(self, agent_id: str) -> Account:
        """An agent's account; KeyError when there is no such agent."""
        return self.accounts[agent_id]

    def price(self, ticker: str) -> float:
        """A stock's price in dollars; KeyError when there is none."""
        return self.books[ticker].mark

    def probability(self, market: str) -> float:
        """A question's YES price, 0..1; KeyError before its first moment."""
        return self.pools[market].yes_price

    def worth(self, position: PerpPosition | SharePosition) -> float:
        """Proceeds of closing a position now, never below 0. After the fee and with its margin."""
        if isinstance(position, SharePosition):
            pool = self.pools[position.market]
            return pool.worth(position.side, position.shares) * (1.0 - self.model.fee)
        usd = self.books[position.ticker].mark * position.exit_units
        return max(0.0, position.margin + position.direction * (usd - position.notional) - self.model.fee * usd)

    def equity(self, agent_id: str) -> float:
        """An agent's balance and the worth of its positions, in dollars."""
        account = self.accounts[agent_id]
        total = account.balance
        for perp in account.perps.values():
            total += self.worth(perp)
        for (market, side), shares in account.shares.items():
            other = account.shares.get((market, "no")) if side == "yes" else None
            if other is not None:
                total += self.pools[market].worth_both(shares.shares, other.shares) * (1.0 - self.model.fee)
            elif side == "yes" or (market, "yes") not in account.shares:
                total += self.worth(shares)
        return total

    def next_position(self) -> str:
        """A position's id; no two of a run are the same."""
        self._positions += 1
        return f"position-{self._positions}"
