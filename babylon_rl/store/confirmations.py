"""Confirmations of versions in fresh markets: rows of babylon_rl.confirmations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from babylon_rl.store.connection import Connection, own_transaction

_LOCK = 0x636F6E6669726D  # "confirm": one number at a time
_ROWS = """
SELECT "number", "version", "reference", "level", "firstMarket", "markets", "begunAt", "improvement", "p", "endedAt"
FROM babylon_rl.confirmations
"""
_BEGIN = """
INSERT INTO babylon_rl.confirmations ("number", "version", "reference", "level", "firstMarket", "markets", "begunAt")
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
_END = """UPDATE babylon_rl.confirmations SET "improvement" = %s, "p" = %s, "endedAt" = %s WHERE "number" = %s AND "endedAt" IS NULL"""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Test of a version against ``reference`` (None: base); under way without ``ended_at``.

    ``improvement`` is in dollars an hour.
    """

    number: int
    version: str
    reference: str | None
    level: float
    first_market: int
    markets: int
    begun_at: datetime
    improvement: float | None
    p: float | None
    ended_at: datetime | None

    @property
    def confirmed(self) -> bool:
        """True when the version was shown to be better."""
        return self.p is not None and self.p <= self.level and (self.improvement or 0) > 0


def read_confirmations(connection: Connection) -> list[Confirmation]:
    """Return all confirmations, first first."""
    return [Confirmation(*row) for row in connection.execute(_ROWS + 'ORDER BY "number"')]


def begin_confirmation(
    connection: Connection,
    version: str,
    reference: str | None,
    markets: int,
    level_after: Callable[[Sequence[bool]], float],
    now: datetime,
) -> Confirmation:
    """Reserve level and markets of a version's confirmation, and commit.

    One that has begun goes on with its own.

    ``level_after`` gives the level from the outcomes of all earlier ones. Markets follow those of all others, so that none is used twice.
    """
    with own_transaction(connection):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        earlier = read_confirmations(connection)
        own = next((test for test in earlier if test.version == version), None)
        if own is not None:
            return own
        number = len(earlier) + 1
        first = max((test.first_market + test.markets for test in earlier), default=0)
        level = level_after([test.confirmed for test in earlier])
        connection.execute(_BEGIN, [number, version, reference, level, first, markets, now])
    return Confirmation(number, version, reference, level, first, markets, now, None, None, None)


def end_confirmation(connection: Connection, number: int, improvement: float, p: float, now: datetime) -> None:
    """Record the outcome of a confirmation and commit; one that has an outcome keeps it."""
    with own_transaction(connection):
        connection.execute(_END, [improvement, p, now, number])
