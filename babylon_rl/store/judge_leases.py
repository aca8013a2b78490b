"""Rows of babylon_rl.judge_leases: the run that judges an hour now.

A lease prevents two processes from paying for the same hour. A database lock would have to be held during the judge's answer: in a
transaction that takes minutes, and a session lock does not hold behind a transaction pooler. So it is a row that its holder renews. It
only saves money: every write is checked under the hour's own lock.
"""

from collections.abc import Sequence
from datetime import datetime

from babylon_rl.store.connection import Connection

# A lease is taken over from a holder that is silent since ``dead`` or known to be ``gone``.
_CLAIM = """
    INSERT INTO babylon_rl.judge_leases AS held ("window", "holder", "seenAt") VALUES (%(window)s, %(holder)s, %(now)s)
    ON CONFLICT ("window") DO UPDATE SET "holder" = excluded."holder", "seenAt" = excluded."seenAt"
    WHERE held."holder" = excluded."holder" OR held."seenAt" < %(dead)s OR held."holder" = ANY(%(gone)s)
    RETURNING "window"
"""
_HOLDER = """SELECT "holder" FROM babylon_rl.judge_leases WHERE "window" = %s"""
_RENEW = """UPDATE babylon_rl.judge_leases SET "seenAt" = %s WHERE "holder" = %s"""
_DROP = """DELETE FROM babylon_rl.judge_leases WHERE "window" = ANY(%s) AND "holder" = %s"""
_DROP_ALL = """DELETE FROM babylon_rl.judge_leases WHERE "holder" = %s"""


def claim_lease(connection: Connection, window: str, holder: str, now: datetime, dead: datetime, gone: Sequence[str] = ()) -> str | None:
    """Claim the lease of an hour: None on success, else the present holder.

    A holder not seen since ``dead``, or named in ``gone``, loses its lease.
    """
    with connection.transaction():
        parameters = {"window": window, "holder": holder, "now": now, "dead": dead, "gone": list(gone)}
        if connection.execute(_CLAIM, parameters).fetchone() is not None:
            return None
        row = connection.execute(_HOLDER, (window,)).fetchone()
    return "" if row is None else str(row[0])


def renew_leases(connection: Connection, holder: str, now: datetime) -> None:
    """Renew all leases of ``holder``."""
    with connection.transaction():
        connection.execute(_RENEW, (now, holder))


def drop_leases(connection: Connection, holder: str, windows: Sequence[str] | None = None) -> None:
    """Release the holder's leases of ``windows``, or all of them."""
    with connection.transaction():
        if windows is None:
            connection.execute(_DROP_ALL, (holder,))
        else:
            connection.execute(_DROP, (list(windows), holder))
