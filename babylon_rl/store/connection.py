"""Connections to Postgres that work behind a transaction pooler.

Failures are raised as one readable sentence. Nothing is set for a session, because a pooler would pass it on to another client; so
datetimes are bound as naive UTC. The server's clock is read for heartbeats only (run_heartbeats.py), in UTC.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from babylon_rl.errors import DatabaseUnreachable, SchemaMismatch, SettingsError
from babylon_rl.store.missing import MISSING, missing_sentence

CONNECT_TIMEOUT_S = 10
POOLER_ADVICE = (
    "It is a pooler: name the server itself in DIRECT_DATABASE_URL, which migrations and Dagster use, "
    "and leave `options` out of DATABASE_URL."
)


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that explains missing tables and columns in one sentence.

    The ``with`` block raises SchemaMismatch for them. Transactions run without JIT compilation: the planner overestimates our statements,
    which find rows by index, and compiling one takes longer than running it.
    """

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[psycopg.Transaction]:
        """Open a transaction as psycopg does, with jit off in the outermost one.

        The setting is local to the transaction, so a pooled session goes back unchanged.
        """
        outermost = self.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as begun:
            if outermost:
                self.execute("SET LOCAL jit = off")
            yield begun

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Replace psycopg's UndefinedTable and UndefinedColumn by SchemaMismatch."""
        sentence = missing_sentence(self, error) if isinstance(error, MISSING) else None
        super().__exit__(kind, error, trace)
        if sentence is not None:
            raise SchemaMismatch(sentence) from error


def connect(url: str, *, autocommit: bool = False) -> Connection:
    """Open one connection without server-side prepared statements.

    Raises:
        DatabaseUnreachable: the server does not answer, or refuses the user, the password or the database.
        SettingsError: ``url`` is not a connection string.
    """
    # Parameters in the URL win over these defaults.
    defaults = {"connect_timeout": str(CONNECT_TIMEOUT_S), "application_name": "babylon-rl"}
    try:
        # Prepared statements would belong to one server session of the pooler.
        return Connection.connect(make_conninfo("", **defaults | _parts(url)), autocommit=autocommit, prepare_threshold=None)
    except psycopg.OperationalError as refused:
        raise DatabaseUnreachable(_sentence(url, refused)) from None


def with_search_path(url: str, schema: str) -> str:
    """Return ``url`` with ``schema`` as the search path of its sessions.

    Other options in ``url`` are kept.
    """
    parts = _parts(url)
    return make_conninfo("", **parts | {"options": f"{parts.get('options', '')} -csearch_path={schema}".strip()})


def address(url: str) -> str:
    """Return ``host:port/database`` of a connection string, without user and password."""
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
        # The message may quote the connection string.
        reason = reason.replace(password, "***")
    advice = "Check DATABASE_URL and that the server runs, or unset it to use the embedded one."
    if "startup parameter" in reason:
        advice = POOLER_ADVICE
    return f"The database at {address(url)} cannot be used: {reason.rstrip('.')}. {advice}"
