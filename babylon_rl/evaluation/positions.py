"""The positions that an agent had in a run, one after another, with what each brought; together they are the run's whole P&L."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.fills import Fill, Settlement
from babylon_rl.market.simulation.record import AgentRecord

OPENING = ("buy_prediction", "open_perp")


@dataclass
class Position:
    """One position from its first purchase to its end; one still open is worth what closing it would bring.

    ``profit`` is in dollars after fees and funding; ``ended`` is sold, mandate, answer, liquidation or open; from ``ended_moment`` on it
    is not there any more.
    """

    market: str
    side: str
    question: bool
    opened_tick: int
    profit: float = 0.0
    ended: str = "open"
    ended_moment: int | None = None


def purchases(record: AgentRecord) -> Iterator[Fill]:
    """The fills that opened positions or added to them, by tick."""
    for outcome in record.outcomes:
        if isinstance(outcome, Fill) and outcome.kind in OPENING:
            yield outcome


def positions(record: AgentRecord, exchange: Exchange) -> dict[str, Position]:
    """All positions of a run by their id, in the order in which they were opened; ``exchange`` as it stood at the run's end."""
    found: dict[str, Position] = {}
    for fill in purchases(record):
        found.setdefault(fill.position, Position(fill.market, fill.side, fill.kind == "buy_prediction", fill.tick))
    for closing, how in _closings(record):
        if closing.profit is not None:
            one = found[closing.position]
            one.profit += closing.profit
            one.ended, one.ended_moment = how, closing.tick + (how == "sold")  # what is sold at a tick is gone at the next moment
    account = exchange.accounts[record.agent_id]
    for perp in account.perps.values():
        found[perp.id].profit += exchange.worth(perp) - perp.margin - perp.paid
        found[perp.id].ended, found[perp.id].ended_moment = "open", None
    for shares in account.shares.values():
        found[shares.id].profit += exchange.worth(shares) - shares.cost
        found[shares.id].ended, found[shares.id].ended_moment = "open", None
    return found


def open_counts(held: Iterable[Position], moments: int) -> list[int]:
    """How many positions were open at moments 0 to ``moments - 1``."""
    changes = [0] * (moments + 1)
    for one in held:
        changes[min(moments, one.opened_tick + 1)] += 1
        changes[min(moments, one.ended_moment if one.ended_moment is not None else moments)] -= 1
    return list(accumulate(changes[:moments]))


def _closings(record: AgentRecord) -> Iterator[tuple[Fill | Settlement, str]]:
    for outcome in record.outcomes:
        if isinstance(outcome, Fill) and outcome.position and outcome.kind not in OPENING:
            yield outcome, "sold"
    for fills in record.closed.values():
        for fill in fills:
            yield fill, "mandate"
    for settlement in record.settled:
        yield settlement, "answer" if settlement.kind == "resolution" else settlement.kind
