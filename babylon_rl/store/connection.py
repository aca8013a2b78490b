"""Connections to Postgres that work behind a transaction pooler and fail with a sentence instead of a traceback.

Nothing is set for a session (a pooler would hand it to somebody else), so datetimes are bound as naive UTC and no SQL of
ours reads the server's clock.
"""

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from babylon_rl.errors import DatabaseUnreachable, SettingsError

CONNECT_TIMEOUT_S = 10


def connect(url: str, *, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
    """Open one connection; no statement is prepared on the server.

    Raises:
        DatabaseUnreachable: nobody answers, or the server refuses the user, the password or the database.
        SettingsError: ``url`` is not a connection string.
    """
    defaults = {"connect_timeout": str(CONNECT_TIMEOUT_S), "application_name": "babylon-rl"}
    try:
        return psycopg.connect(make_conninfo("", **defaults | _parts(url)), autocommit=autocommit, prepare_threshold=None)
    except psycopg.OperationalError as refused:
        raise DatabaseUnreachable(_sentence(url, refused)) from None


def address(url: str) -> str:
    """``host:port/database`` of a connection string, without user and password."""
    parts = _parts(url)
    database = parts.get("dbname") or parts.get("user") or "postgres"
    return f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{database}"


def _parts(url: str) -> dict[str, str]:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.ProgrammingError:
        raise SettingsError(
            "DATABASE_URL is not a connection string: write postgresql://user:password@host:port/database, with special characters as %XX."
        ) from None


def _sentence(url: str, refused: psycopg.OperationalError) -> str:
    lines = [line.strip() for line in str(refused).splitlines() if line.strip()] or ["no answer"]
    reason = lines[0].rpartition("failed: ")[2]
    password = _parts(url).get("password")
    if password:
        reason = reason.replace(password, "***")
    return (
        f"The database at {address(url)} cannot be used: {reason.rstrip('.')}. "
        "Check DATABASE_URL and that the server runs, or unset it to use the embedded one."
    )
