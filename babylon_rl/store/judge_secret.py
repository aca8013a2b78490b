"""The database's judge secret: 32 random bytes, created once.

Opaque ids, nonces and orders are derived from it. Table babylon_rl.judge_secret.
"""

from datetime import datetime

from babylon_rl.store.connection import Connection

_READ = """SELECT "secret" FROM babylon_rl.judge_secret"""
_KEEP = """INSERT INTO babylon_rl.judge_secret ("secret", "createdAt") VALUES (%s, %s) ON CONFLICT DO NOTHING"""


def read_secret(connection: Connection) -> bytes | None:
    """Return the secret, or None before the first judgement."""
    with connection.transaction():
        row = connection.execute(_READ).fetchone()
    return None if row is None else bytes(row[0])


def keep_secret(connection: Connection, offered: bytes, now: datetime) -> bytes:
    """Store ``offered`` (32 bytes) unless a secret exists; return the stored one."""
    with connection.transaction():
        connection.execute(_KEEP, (offered, now))
        row = connection.execute(_READ).fetchone()
    return offered if row is None else bytes(row[0])
