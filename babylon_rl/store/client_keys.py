"""Bearer keys of clients: babylon_rl.client_keys. The key itself is stored nowhere, only its SHA-256."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from babylon_rl.errors import UsageError
from babylon_rl.store.connection import Connection

# A trigger notifies it when a key or its limits change, not when it is used (migration 0023).
CHANNEL = "babylon_rl_keys"
_REVOKE = """UPDATE babylon_rl.client_keys SET "revokedAt" = COALESCE("revokedAt", %s) WHERE "name" = %s RETURNING "revokedAt" """


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A client's key by its hash, with limits per minute (None: no limit).

    Only an ``admin`` key opens the admin API. ``agents`` are those that the key speaks for, with * as a wildcard; none: all.
    """

    name: str
    sha256: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    admin: bool = False
    agents: Sequence[str] = ()


def read_keys(connection: Connection) -> Sequence[ClientKey]:
    """Return all keys, revoked ones too, oldest first."""
    with connection.transaction():
        return connection.rows(ClientKey, 'babylon_rl.client_keys ORDER BY "createdAt", "name"')


def create_key(connection: Connection, key: ClientKey) -> None:
    """Store a new key. Raises UsageError: the name is taken, also by a revoked key."""
    try:
        with connection.transaction():
            connection.insert("babylon_rl.client_keys", [key])
    except psycopg.errors.UniqueViolation:
        raise UsageError(f"There is a key {key.name!r} already, perhaps a revoked one: choose another name.") from None


def revoke_key(connection: Connection, name: str, now: datetime) -> datetime:
    """Revoke a key, and return since when it is revoked. Raises UsageError: there is no such key."""
    with connection.transaction():
        revoked_at: datetime | None = connection.value(_REVOKE, (now, name))
    if revoked_at is None:
        raise UsageError(f"There is no key {name!r}; `babylon-rl keys list` shows all.")
    return revoked_at
