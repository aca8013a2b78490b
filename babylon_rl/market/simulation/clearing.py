"""What time does to positions: funding, liquidation, and the answers of questions."""

from babylon_rl.market.simulation.fills import Settlement
from babylon_rl.market.simulation.ledger import Account, PerpPosition
from babylon_rl.market.simulation.perps import PerpBook
from babylon_rl.market.simulation.pools import Pool
from babylon_rl.market.simulation.venue import Venue


def settle_funding(venue: Venue, book: PerpBook, rate: float) -> list[Settlement]:
    """Longs pay ``rate`` of their position's worth at the mark, shorts receive it (the other way round when it is negative).

    An agent pays from its balance first, then from the position's margin; what neither covers is not paid.
    """
    settled = []
    for account in venue.accounts.values():
        position = account.perps.get(book.asset.ticker)
        if position is None or rate == 0.0:
            continue
        due = position.direction * rate * position.units * book.mark
        from_margin = min(position.margin, max(0.0, due - account.balance))
        from_balance = min(due, account.balance)
        account.balance -= from_balance
        position.margin -= from_margin
        paid = from_balance + from_margin
        position.paid += paid
        account.funding += paid
        venue.house.funding += paid
        venue.house.cash += paid
        settled.append(_settlement(venue, "funding", account, position, book.mark, -paid, None))
    return settled


def liquidate(venue: Venue, book: PerpBook) -> list[Settlement]:
    """Close at the mark every position whose margin with its profit is down to the maintenance margin; the rest goes to the house."""
    settled = []
    mark, maintenance = book.mark, venue.model.maintenance
    for account in venue.accounts.values():
        position = account.perps.get(book.asset.ticker)
        if position is None:
            continue
        left = position.margin + position.profit_at(mark)
        if left > maintenance * position.units * mark:
            continue
        house = venue.house
        house.cash += position.margin
        house.perp_profit -= position.profit_at(mark)
        house.liquidated += max(0.0, left)
        house.gaps += max(0.0, -left)
        book.open_units -= position.units
        del account.perps[book.asset.ticker]
        account.liquidations += 1
        profit = -position.margin - position.paid
        account.closed(profit)
        settled.append(_settlement(venue, "liquidation", account, position, mark, 0.0, profit))
    return settled


def resolve(venue: Venue, pool: Pool) -> list[Settlement]:
    """Publish a question's answer: every share of it is paid a dollar, the others nothing."""
    question = pool.question
    pool.resolved = question.answer
    settled = []
    for account in venue.accounts.values():
        for side in ("yes", "no"):
            position = account.shares.pop((question.id, side), None)
            if position is None:
                continue
            right = (side == "yes") == question.answer
            paid = position.shares if right else 0.0
            account.balance += paid
            pool.sets -= paid
            account.correct += right
            account.incorrect += not right
            profit = paid - position.cost
            account.closed(profit)
            settled.append(
                Settlement(
                    venue.tick, account.agent_id, "resolution", question.id, side, position.shares, float(right), paid, profit, position.id
                )
            )
    venue.house.cash += pool.sets
    pool.sets = pool.yes = pool.no = pool.crowd_yes = pool.crowd_no = 0.0
    return settled


def _settlement(
    venue: Venue, kind: str, account: Account, position: PerpPosition, mark: float, usd: float, profit: float | None
) -> Settlement:
    return Settlement(
        venue.tick,
        account.agent_id,
        "funding" if kind == "funding" else "liquidation",
        position.ticker,
        position.side,
        position.units,
        mark,
        usd,
        profit,
        position.id,
    )
