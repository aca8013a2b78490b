"""babylon_rl.judge_reservations: what the requests under way are expected to cost, one row a run, so that all runs share one budget.

A run that was killed gives nothing back; its row counts until it is dropped, or nobody has seen it for RESERVED_FOR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from babylon_rl.store.judge_answers import spent_on
from babylon_rl.store.trajectories import Connection

RESERVED_FOR = timedelta(hours=1)
_LOCK = 0x6A75646765  # "judge": whoever looks at what is left also takes of it

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
    """What was found when something was to be reserved, in dollars; ``fits``: it was. ``holders`` are the runs with something under way."""

    spent: float
    under_way: float
    fits: bool
    holders: Sequence[str] = ()


def reserve(connection: Connection, holder: str, usd: float, most: float, paid: float, now: datetime) -> Account:
    """Reserve dollars for ``holder`` where they fit into ``most``, beside those under way and those of the UTC day, or ``paid`` if more."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        spent = max(spent_on(connection, now)[0], paid)
        under_way, holders = connection.execute(_UNDER_WAY, (now - RESERVED_FOR,)).fetchone() or (0.0, [])
        fits = spent + under_way + usd <= most
        if fits:
            connection.execute(_ADD, (holder, usd, now))
    return Account(spent, under_way, fits, holders)


def give_back(connection: Connection, holder: str, usd: float, now: datetime) -> None:
    """Give some of what the holder has reserved back."""
    with connection.transaction():
        connection.execute(_ADD, (holder, -usd, now))


def drop_reservations(connection: Connection, holders: Sequence[str]) -> None:
    """Give back all that some runs have reserved."""
    with connection.transaction():
        connection.execute(_DROP, (list(holders),))
