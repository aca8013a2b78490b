"""babylon_rl.judge_leases: who is judging an hour now, so that two processes do not pay for it.

A lock of the database would have to be held while a judge thinks: in a transaction it would keep one open for minutes, and one of a
session does not hold behind a transaction pooler. So it is a row that its holder renews. It only saves money: what is written
is checked under the hour's own lock.
"""

from collections.abc import Sequence
from datetime import datetime

from babylon_rl.store.trajectories import Connection

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
    """Take an hour's lease: None when it is ours now, else who holds it. Not seen since ``dead``, or one of ``gone``, is no holder."""
    with connection.transaction():
        given = {"window": window, "holder": holder, "now": now, "dead": dead, "gone": list(gone)}
        if connection.execute(_CLAIM, given).fetchone() is not None:
            return None
        row = connection.execute(_HOLDER, (window,)).fetchone()
    return "" if row is None else str(row[0])


def renew_leases(connection: Connection, holder: str, now: datetime) -> None:
    """Say that the holder lives."""
    with connection.transaction():
        connection.execute(_RENEW, (now, holder))


def drop_leases(connection: Connection, holder: str, windows: Sequence[str] | None = None) -> None:
    """Give back some hours, or all that the holder has."""
    with connection.transaction():
        if windows is None:
            connection.execute(_DROP_ALL, (holder,))
        else:
            connection.execute(_DROP, (list(windows), holder))
