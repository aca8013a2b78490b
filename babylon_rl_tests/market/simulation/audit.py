"""Audit of a market's books: sums that no trade and no tick may change."""

import math

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.exchange import Exchange


def conserved(exchange: Exchange) -> float:
    """All money: balances, margins, positions at the price on the screen, and the house with its own positions, in dollars.

    It is the sum of what agents started with, always.
    """
    prices = {market: pool.yes_price for market, pool in exchange.pools.items()}
    total = exchange.house_cash
    for market, pool in exchange.pools.items():
        total += (pool.yes + pool.crowd_yes) * prices[market] + (pool.no + pool.crowd_no) * (1.0 - prices[market])
    for account in exchange.accounts.values():
        total += account.balance
        for shares in account.shares.values():
            total += shares.shares * (prices[shares.market] if shares.side == "yes" else 1.0 - prices[shares.market])
        # an open profit is the agent's and missing from the house, so only the margin is left of both
        total += sum(position.margin for position in account.perps.values())
    return total


def equity(exchange: Exchange, agent_id: str) -> float:
    """Dollars that an agent has once it has closed everything. A pair of YES and NO is a dollar at any price."""
    account = exchange.accounts[agent_id]
    total = account.balance
    for perp in account.perps.values():
        total += exchange.worth(perp)
    for market in dict.fromkeys(market for market, _ in account.shares):
        yes, no = (account.shares[market, side].shares if (market, side) in account.shares else 0.0 for side in ("yes", "no"))
        pairs = min(yes, no)
        rest = max(yes, no) - pairs
        left = exchange.pools[market].worth("yes" if yes > no else "no", rest) if rest > 0.0 else 0.0
        total += (pairs + left) * (1.0 - exchange.model.fee)
    return total


def faults(exchange: Exchange) -> list[str]:
    """Faults of an exchange's books, in words."""
    found = []
    started = sum(account.start for account in exchange.accounts.values())
    if not math.isclose(
        conserved(exchange), started, rel_tol=1e-6, abs_tol=1e-6 * sum(pool.sets for pool in exchange.pools.values()) + 1e-6
    ):
        found.append(f"agents started with {started} $ in all, now there are {conserved(exchange)} $")
    for market, pool in exchange.pools.items():
        for side, house in (("yes", pool.yes + pool.crowd_yes), ("no", pool.no + pool.crowd_no)):
            shares = house + sum(
                account.shares[market, side].shares for account in exchange.accounts.values() if (market, side) in account.shares
            )
            if not math.isclose(shares, pool.sets, rel_tol=1e-9, abs_tol=1e-6):
                found.append(f"{market} has {shares} {side} shares on {pool.sets} $ of collateral")
    for ticker, book in exchange.books.items():
        units = sum(account.perps[ticker].units for account in exchange.accounts.values() if ticker in account.perps)
        if not math.isclose(units, book.open_units, rel_tol=1e-9, abs_tol=1e-6):
            found.append(f"{ticker} has {units} units open, its book says {book.open_units}")
    for account in exchange.accounts.values():
        amounts = [account.balance, *(position.margin for position in account.perps.values())]
        amounts += [position.shares for position in account.shares.values()]
        if not all(0.0 <= amount < math.inf for amount in amounts):
            found.append(f"{account.agent_id} holds an amount below zero or not finite: {amounts}")
    return found


def check(exchange: Exchange) -> None:
    """Raise when the books do not add up.

    Raises:
        MarketError: they do not.
    """
    if found := faults(exchange):
        raise MarketError(f"The market's books are wrong at tick {exchange.tick}: {'; '.join(found[:5])}.")
