"""babylon_rl.judge_secret: 32 random bytes, made once per database, from which opaque ids, nonces and orders are derived."""

from datetime import datetime

from babylon_rl.store.trajectories import Connection

_READ = """SELECT "secret" FROM babylon_rl.judge_secret"""
_KEEP = """INSERT INTO babylon_rl.judge_secret ("secret", "createdAt") VALUES (%s, %s) ON CONFLICT DO NOTHING"""


def read_secret(connection: Connection) -> bytes | None:
    """The secret; None before anything was judged."""
    with connection.transaction():
        row = connection.execute(_READ).fetchone()
    return None if row is None else bytes(row[0])


def keep_secret(connection: Connection, offered: bytes, now: datetime) -> bytes:
    """The secret, which is ``offered`` (32 bytes) where there was none."""
    with connection.transaction():
        connection.execute(_KEEP, (offered, now))
        row = connection.execute(_READ).fetchone()
    return offered if row is None else bytes(row[0])
