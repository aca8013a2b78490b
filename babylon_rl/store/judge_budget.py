"""Rows of babylon_rl.judge_reservations: expected cost of open requests, per run.

All runs share one budget. A killed run frees nothing: its row counts until it is dropped, or for RESERVED_FOR after its last sign of life.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_answers import spent_on

# After this silence a run counts as dead.
RESERVED_FOR = timedelta(hours=1)
_LOCK = 0x6A75646765  # "judge": one reservation at a time

# Older reservations belong to dead runs.
_UNDER_WAY = """
    SELECT COALESCE(sum("usd"), 0), COALESCE(array_agg("holder"), '{}') FROM babylon_rl.judge_reservations WHERE "seenAt" >= %s
"""
_ADD = """
    INSERT INTO babylon_rl.judge_reservations AS held ("holder", "usd", "seenAt") VALUES (%s, %s, %s)
    ON CONFLICT ("holder") DO UPDATE SET "usd" = held."usd" + excluded."usd", "seenAt" = excluded."seenAt"
"""
_DROP = """DELETE FROM babylon_rl.judge_reservations WHERE "holder" = ANY(%s)"""


@dataclass(frozen=True)
class Account:
    """Result of a reservation, in dollars.

    ``fits``: the amount was reserved. ``holders``: runs with open reservations.
    """

    spent: float
    under_way: float
    fits: bool
    holders: Sequence[str] = ()


def reserve(connection: Connection, holder: str, usd: float, most: float, paid: float, now: datetime) -> Account:
    """Reserve dollars for ``holder`` if they fit into the budget ``most``.

    The sum counts open reservations and the spending of the UTC day, or ``paid`` if that is more.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        spent = max(spent_on(connection, now)[0], paid)
        # The lock makes check and reservation one step for all runs.
        under_way, holders = connection.execute(_UNDER_WAY, (now - RESERVED_FOR,)).fetchone() or (0.0, [])
        fits = spent + under_way + usd <= most
        if fits:
            connection.execute(_ADD, (holder, usd, now))
    return Account(spent, under_way, fits, holders)


def give_back(connection: Connection, holder: str, usd: float, now: datetime) -> None:
    """Release a part of the holder's reservation."""
    with connection.transaction():
        connection.execute(_ADD, (holder, -usd, now))


def drop_reservations(connection: Connection, holders: Sequence[str]) -> None:
    """Release all reservations of ``holders``."""
    with connection.transaction():
        connection.execute(_DROP, (list(holders),))
