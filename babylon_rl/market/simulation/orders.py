"""Orders: their effects on accounts, books and pools, and their refusals.

Every function takes the venue, the account and the action, and either carries it out in full or changes nothing.
"""

import math

from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, OpenPerp, SellPrediction, kind
from babylon_rl.market.simulation.ledger import Account, Fill, PerpPosition, Refusal, RefusalCode, SharePosition
from babylon_rl.market.simulation.venue import Pool, Venue

DUST_USD = 0.01  # what would be left below this is closed too
MIN_SHARE = 1e-6


def refusal(venue: Venue, account: Account, action: Action, code: RefusalCode, reason: str) -> Refusal:
    """A refusal of this action now."""
    return Refusal(venue.tick, account.agent_id, kind(action), code, reason)


def buy_prediction(venue: Venue, account: Account, action: BuyPrediction) -> Fill | Refusal:
    """Buy YES or NO shares."""
    pool = _open_pool(venue, account, action)
    if isinstance(pool, Refusal):
        return pool
    fee = action.usd * venue.model.fee
    if refused := _uncovered(venue, account, action, action.usd, fee):
        return refused
    shares = pool.buy(action.side, action.usd)
    account.balance -= action.usd + fee
    _charge(venue, account, fee)
    position = account.shares.get((action.market, action.side))
    if position is None:
        position = SharePosition(venue.next_position(), action.market, action.side, venue.tick)
        account.shares[action.market, action.side] = position
    position.shares += shares
    position.cost += action.usd + fee
    return Fill(
        venue.tick, account.agent_id, "buy_prediction", action.market, action.side, shares, action.usd / shares, action.usd, fee,
        None, position.id,
    )  # fmt: skip


def sell_prediction(venue: Venue, account: Account, action: SellPrediction) -> Fill | Refusal:
    """Sell shares that are held."""
    pool = _open_pool(venue, account, action)
    if isinstance(pool, Refusal):
        return pool
    position = account.shares.get((action.market, action.side))
    if position is None:
        return refusal(venue, account, action, "nothing_to_close", f"no {action.side} shares of {action.market} are held")
    if not MIN_SHARE <= action.share <= 1.0:
        return refusal(venue, account, action, "amount", f"a share of {action.share} cannot be sold; allowed is {MIN_SHARE:g} to 1")
    share = 1.0 if position.shares * (1.0 - action.share) < DUST_USD else action.share
    shares, cost = position.shares * share, position.cost * share
    usd = pool.sell(action.side, shares)
    fee = usd * venue.model.fee
    account.balance += usd - fee
    _charge(venue, account, fee)
    position.shares -= shares
    position.cost -= cost
    if share == 1.0:
        del account.shares[action.market, action.side]
    profit = usd - fee - cost
    account.closed(profit)
    return Fill(
        venue.tick, account.agent_id, "sell_prediction", action.market, action.side, shares, usd / shares, usd, fee, profit, position.id
    )


def open_perp(venue: Venue, account: Account, action: OpenPerp) -> Fill | Refusal:
    """Open a position in a stock, or add to it on the same side."""
    model, book = venue.model, venue.books.get(action.ticker)
    if book is None:
        return _unknown(venue, account, action, action.ticker, list(venue.books))
    if action.side not in ("long", "short"):
        return refusal(venue, account, action, "side", f"a stock has the sides long and short, not {str(action.side)[:20]!r}")
    if not 1.0 <= action.leverage <= model.max_leverage:
        return refusal(venue, account, action, "leverage", f"leverage {action.leverage:g} is not between 1 and {model.max_leverage:g}")
    usd = action.usd * action.leverage
    fee = usd * model.fee
    if refused := _uncovered(venue, account, action, action.usd, fee):
        return refused
    direction = 1 if action.side == "long" else -1
    position = account.perps.get(action.ticker)
    if position is not None and position.direction != direction:
        return refusal(venue, account, action, "opposite_side", f"a {position.side} in {action.ticker} is open; close it first")
    room = model.max_impact * book.mark / book.per_unit if book.per_unit > 0.0 else math.inf
    units = book.units_for(direction, usd) if usd < room else room
    held = position.units if position is not None else 0.0
    pressure = book.pressure + direction * book.per_unit * units
    if usd >= room or abs(pressure) > max(abs(book.pressure), model.max_impact) or book.per_unit * (held + units) > model.max_impact:
        return refusal(venue, account, action, "too_large", f"{usd:.0f} $ more are more than the market of {action.ticker} takes")
    if position is None:
        position = PerpPosition(venue.next_position(), action.ticker, direction, venue.tick)
        account.perps[action.ticker] = position
    book.trade(direction, units, usd)
    book.open_units += units
    account.balance -= action.usd + fee
    _charge(venue, account, fee)
    position.units += units
    position.notional += usd
    position.margin += action.usd
    position.paid += fee
    position.exit_units = book.exit_units(direction, position.units)
    return Fill(venue.tick, account.agent_id, "open_perp", action.ticker, action.side, units, usd / units, usd, fee, None, position.id)


def close_perp(venue: Venue, account: Account, action: ClosePerp) -> Fill | Refusal:
    """Close a position or part of it. A loss beyond its margin is the house's."""
    book = venue.books.get(action.ticker)
    if book is None:
        return _unknown(venue, account, action, action.ticker, list(venue.books))
    position = account.perps.get(action.ticker)
    if position is None:
        return refusal(venue, account, action, "nothing_to_close", f"no position in {action.ticker} is open")
    if not MIN_SHARE <= action.share <= 1.0:
        return refusal(venue, account, action, "amount", f"a share of {action.share} cannot be closed; allowed is {MIN_SHARE:g} to 1")
    share = 1.0 if position.units * book.mark * (1.0 - action.share) < DUST_USD else action.share
    units, notional, margin, paid = (share * part for part in (position.units, position.notional, position.margin, position.paid))
    usd = book.usd_for(-position.direction, units)
    book.trade(-position.direction, units, usd)
    book.open_units -= units
    gain = position.direction * (usd - notional)
    fee = min(usd * venue.model.fee, max(0.0, margin + gain))
    profit = _pay_out(venue, account, margin, gain, fee) - margin - paid
    position.units -= units
    position.notional -= notional
    position.margin -= margin
    position.paid -= paid
    if share == 1.0:
        del account.perps[action.ticker]
    else:
        position.exit_units = book.exit_units(position.direction, position.units)
    account.closed(profit)
    return Fill(venue.tick, account.agent_id, "close_perp", action.ticker, position.side, units, usd / units, usd, fee, profit, position.id)


def _pay_out(venue: Venue, account: Account, margin: float, gain: float, fee: float) -> float:
    """Give back a margin with its gain, less a fee; returns the amount. It is never below 0."""
    paid = max(0.0, margin + gain)
    venue.house.gaps += paid - (margin + gain)
    venue.house.perp_profit -= gain
    venue.house.cash += margin - paid
    account.balance += paid - fee
    _charge(venue, account, fee)
    return paid - fee


def _charge(venue: Venue, account: Account, fee: float) -> None:
    account.trades += 1
    account.fees += fee
    venue.house.fees += fee
    venue.house.cash += fee


def _open_pool(venue: Venue, account: Account, action: BuyPrediction | SellPrediction) -> Pool | Refusal:
    pool = venue.pools.get(action.market)
    if pool is not None and pool.resolved is None and action.side in ("yes", "no"):
        return pool
    if pool is not None and pool.resolved is not None:
        answer = "YES" if pool.resolved else "NO"
        return refusal(venue, account, action, "resolved", f"{action.market} is resolved: {answer}")
    if pool is not None:
        return refusal(venue, account, action, "side", f"a question has the sides yes and no, not {str(action.side)[:20]!r}")
    later = [question for question in venue.scenario.questions if question.id == action.market]
    if later:
        return refusal(venue, account, action, "not_open", f"{action.market} is not open yet")
    return _unknown(venue, account, action, action.market, [name for name, pool in venue.pools.items() if pool.resolved is None])


def _unknown(venue: Venue, account: Account, action: Action, name: str, known: list[str]) -> Refusal:
    return refusal(venue, account, action, "unknown_market", f"there is no market {name[:40]!r}; there are {', '.join(known) or 'none'}")


def _uncovered(venue: Venue, account: Account, action: Action, usd: float, fee: float) -> Refusal | None:
    if not venue.model.min_order_usd <= usd:
        return refusal(venue, account, action, "amount", f"{usd} $ are less than the smallest order, {venue.model.min_order_usd:g} $")
    if not usd + fee <= account.balance:
        return refusal(
            venue, account, action, "balance", f"{usd:.2f} $ with a fee of {fee:.2f} $ are more than the balance of {account.balance:.2f} $"
        )
    return None
