"""Connections to Postgres that work behind a transaction pooler, and readable errors.

Nothing is set for a session, because a pooler would pass it on to another client; so datetimes are bound as naive UTC. The server's clock
is read for heartbeats (dagster_rows.py) and to compare it with this machine's, in UTC.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import cache, partial
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Any

import msgspec
import psycopg
from psycopg.abc import Params
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import Jsonb, set_json_loads

from babylon_rl.errors import DatabaseUnreachable, SchemaMismatch, SettingsError, first_clause
from babylon_rl.project_files import project_file
from babylon_rl.store.columns import T, columns_of, document_of, insertion, listed, loaded, updates
from babylon_rl.tolerant_json import read_json
from babylon_rl.traces import traced_connection

_LOG = logging.getLogger(__name__)
MIGRATIONS = project_file("migrations")
_AGAIN = "run the same command again."
MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName)
# Errors caused by the content of one row; anything else is a fault of the connection or the server.
ROW_FAULTS = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.RaiseException)
# A server that vanished with its machine sends no reset; without these a statement waits two hours for its answer. A server that computes
# for long answers the kernel's probes all the while.
LOST_AFTER_A_MINUTE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3", "tcp_user_timeout": "60000"}
CONNECT_TIMEOUT_S = 10
# Parameters of Prisma in an address; libpq refuses what it does not know.
_PRISMA = {
    "schema", "pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "sslaccept", "sslidentity",
    "single_use_connections", "max_connection_lifetime", "max_idle_connection_lifetime",
}  # fmt: skip
# Words of Postgres and of PgBouncer; at the time of connecting libpq gives no code.
_NO_ROOM = re.compile(r"too many clients|too many connections|remaining connection slots|no more connections allowed")
_UNKNOWN_PARAMETER = re.compile(r'^invalid URI query parameter: "([a-z_A-Z]{1,40})"')
POOLER_ADVICE = (
    "It is a pooler: name the server itself in DIRECT_DATABASE_URL, which migrations and Dagster use, "
    "and leave `options` out of DATABASE_URL."
)

Rows = Sequence[Any]  # by column name, or structs or dataclasses of one type


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that explains missing tables and columns, and runs transactions without JIT compilation.

    The planner overestimates our statements, which find rows by index: compiling one takes longer than running it.
    """

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[psycopg.Transaction]:
        """Open a transaction as psycopg does, with jit off in the outermost one, and no longer: the session may be pooled."""
        outermost = self.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as begun:
            if outermost:
                self.execute("SET LOCAL jit = off")
            yield begun

    def value(self, statement: str, parameters: Params | None = None) -> Any | None:
        """Return the first column of the first row, None without a row."""
        row = self.execute(statement, parameters).fetchone()
        return None if row is None else row[0]

    def row(self, statement: str, parameters: Params | None = None) -> tuple[Any, ...]:
        """Return the first row of a statement that always has one."""
        row = self.execute(statement, parameters).fetchone()
        assert row is not None
        return row

    def column(self, statement: str, parameters: Params | None = None) -> list[Any]:
        """Return the first column of all rows."""
        return [row[0] for row in self.execute(statement, parameters)]

    def rows(self, struct: type[T], source: str, parameters: Params | None = None, but: Collection[str] = ()) -> list[T]:
        """Return rows as structs or dataclasses; ``source`` is the statement from its table on, ``but`` as for ``columns_of``."""
        columns = columns_of(struct, but)
        return [loaded(struct, columns, row) for row in self.execute(f"SELECT {listed(columns)} FROM {source}", parameters)]

    def first(self, struct: type[T], source: str, parameters: Params | None = None) -> T | None:
        """Return the first of ``rows``, or None."""
        return next(iter(self.rows(struct, source, parameters)), None)

    def by_window(self, struct: type[T], source: str, windows: Sequence[str], but: Collection[str] = ()) -> dict[str, list[T]]:
        """Return ``rows`` of each of ``windows``, which ``source`` has as its parameter; a window without rows has an empty list."""
        columns, found = columns_of(struct, but), {window: list[T]() for window in windows}
        for window, *row in self.execute(f'SELECT "window", {listed(columns)} FROM {source}', [list(windows)]):
            found[window].append(loaded(struct, columns, row))
        return found

    def insert(self, table: str, rows: Rows, then: str = "") -> None:
        """Insert rows; ``table`` as for ``copy_rows``, ``then`` ends the statement."""
        if rows:
            document = Jsonb(list(rows), dumps=partial(json.dumps, default=_json_ready))
            self.execute(insertion(table, _columns(rows[0])) + then, [document])

    def upsert(
        self, table: str, rows: Rows, keys: Sequence[str] = ("window",), but: Mapping[str, str] | None = None, where: str = "TRUE"
    ) -> None:
        """Insert rows as ``insert``, in place of those with the same ``keys``; ``but`` as for ``updates``, of the table as ``held``."""
        if rows:
            kept = updates((name for name in _columns(rows[0]) if name not in keys), but)
            self.insert(table, rows, f"ON CONFLICT ({listed(keys)}) DO UPDATE SET {kept} WHERE {where}")

    def of_hours(self, table: str, column: str, windows: Sequence[str]) -> dict[str, Any]:
        """Return a column of the rows of ``windows``, by window, in order."""
        statement = f'SELECT "window", "{column}" FROM {table} WHERE "window" = ANY(%s) ORDER BY "window"'
        return dict(self.execute(statement, [list(windows)]).fetchall())

    def delete_hours(self, table: str, windows: Sequence[str]) -> None:
        """Delete the rows of ``windows``; ``table`` is as for ``copy_rows``."""
        self.execute(f'DELETE FROM {table} WHERE "window" = ANY(%s)', [list(windows)])

    def copy_rows(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write many rows by COPY, the fastest way; ``table`` is qualified by its schema and quoted."""
        with self.cursor().copy(f"COPY {table} ({listed(columns)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def take_lock(self, key: int | str) -> None:
        """Take an advisory lock, by its number or by the hash of a name, until the transaction ends."""
        self.execute(f"SELECT pg_advisory_xact_lock({'%s' if isinstance(key, int) else 'hashtext(%s)'})", [key])

    def has_table(self, name: str) -> bool:
        """Return True if a table of this name, qualified by its schema, is there."""
        return self.value("SELECT to_regclass(%s) IS NOT NULL", [name]) is True

    @contextmanager
    def answering_within(self, seconds: float) -> Iterator[None]:
        """Cut the connection off if the block takes longer. Raises DatabaseUnreachable: it was cut off.

        For a network that drops packets: the server neither answers nor closes, and TCP alone notices after minutes.
        """
        late = threading.Event()

        def cut_off() -> None:
            late.set()
            # It may be closed already, or by the server in this moment.
            # A duplicate of the descriptor is closed, libpq's own stays open; the shutdown wakes the thread that waits for an answer.
            with suppress(psycopg.Error, OSError), socket(fileno=os.dup(self.fileno())) as line:
                line.shutdown(SHUT_RDWR)

        timer = threading.Timer(seconds, cut_off)
        timer.daemon = True
        # Python 3.12 starts no thread while the interpreter ends, when a forgotten recorder writes: then TCP's own limit is the only one.
        with suppress(RuntimeError):
            timer.start()
        try:
            yield
        except psycopg.OperationalError as broken:
            if late.is_set():
                raise DatabaseUnreachable(f"The database did not answer within {seconds:g} s, and the connection was cut off.") from broken
            raise
        finally:
            timer.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Replace psycopg's UndefinedTable and UndefinedColumn by SchemaMismatch."""
        super().__exit__(kind, error, trace)
        if isinstance(error, MISSING):
            raise SchemaMismatch(
                f"The database is not up to date: {first_clause(error)}. Run `babylon-rl migrate`. It never alters the game's tables: "
                "`babylon-rl migrate --check` lists how they differ from what is expected."
            ) from error


def _columns(row: Any) -> Sequence[str]:
    return list(row) if isinstance(row, Mapping) else columns_of(type(row))


def _json_ready(value: Any) -> Any:
    return document_of(value) if is_dataclass(value) else msgspec.to_builtins(value)


def connect(url: str, *, autocommit: bool = False, variable: str = "DATABASE_URL") -> Connection:
    """Open one connection without server-side prepared statements; ``variable`` holds ``url`` and is named in errors.

    Raises:
        DatabaseUnreachable: the server does not answer, or refuses the user, the password or the database.
        SettingsError: ``url`` is not a connection string.
    """
    # Parameters in the URL win over these defaults.
    defaults = LOST_AFTER_A_MINUTE | {"connect_timeout": str(CONNECT_TIMEOUT_S), "application_name": "babylon-rl"}
    parameters = make_conninfo("", **defaults | _parts(url, variable))
    try:
        # Prepared statements would belong to one server session of the pooler.
        connection = Connection.connect(parameters, autocommit=autocommit, prepare_threshold=None)
    except psycopg.OperationalError as refused:
        raise DatabaseUnreachable(_sentence(url, refused, variable)) from None
    set_json_loads(read_json, connection)  # hours of episodes are read four times as fast as by json
    return traced_connection(connection)


def libpq_url(url: str, variable: str = "DATABASE_URL") -> str:
    """Return the address in ``variable`` without parameters of Prisma, which are named in the log.

    Raises SettingsError: it is not a connection string, or names another schema than public.
    """
    head, _, query = url.partition("?")
    given = [part.partition("=") for part in query.split("&")]
    foreign = {name: value for name, _, value in given if name in _PRISMA}
    if foreign.get("schema", "public") != "public":
        raise SettingsError(f"{variable} names a schema other than public, where the game's tables are expected: leave schema= out.")
    if foreign:
        _say_dropped(variable, ", ".join(foreign))
        kept = "&".join("".join(part) for part in given if part[0] not in foreign)
        url = f"{head}?{kept}" if kept else head
    _parts(url, variable)
    return url


@cache
def _say_dropped(variable: str, names: str) -> None:
    """Log it once per process."""
    advice = " Prisma's sslaccept=strict is sslmode=verify-full here." if "sslaccept" in names else ""
    _LOG.warning("%s: %s without effect: only Prisma knows such parameters.%s", variable, names, advice)


def address(url: str) -> str:
    """Return ``host:port/database`` of a connection string, without user and password; of several servers each ``host:port``."""
    parts = _parts(url)
    database = parts.get("dbname") or parts.get("user") or "postgres"
    hosts, ports = (parts.get("host") or "").split(","), (parts.get("port") or "").split(",")
    # One port holds for all hosts.
    pairs = zip(hosts, ports if len(ports) == len(hosts) else ports[:1] * len(hosts), strict=True)
    return ",".join(f"{host or 'localhost'}:{port or 5432}" for host, port in pairs) + f"/{database}"


def _parts(url: str, variable: str = "DATABASE_URL") -> dict[str, str]:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.ProgrammingError as refused:
        if unknown := _UNKNOWN_PARAMETER.match(str(refused)):
            raise SettingsError(f"{variable} has the parameter {unknown[1]}, which libpq does not know: leave it out.") from None
        raise SettingsError(
            f"{variable} is not a connection string: write postgresql://user:password@host:port/database, with special characters as %XX."
        ) from None


def _sentence(url: str, refused: psycopg.OperationalError, variable: str) -> str:
    lines = [line.strip() for line in str(refused).splitlines() if line.strip()] or ["no answer"]
    # What stands before it is the address, which the sentence below has in a form without the password.
    reason = lines[0].rpartition("failed: ")[2]
    password = _parts(url).get("password")
    if password:
        # The message may quote the connection string.
        reason = reason.replace(password, "***")
    instead = "to use DATABASE_URL" if variable != "DATABASE_URL" else "to use the embedded one"
    advice = f"Check {variable} and that the server runs, or unset it {instead}."
    if _NO_ROOM.search(reason):
        advice = "All of its connections are in use: end some, raise the limit, or put a pooler before the server."
    if "startup parameter" in reason:
        advice = POOLER_ADVICE
    return f"The database at {address(url)} cannot be used: {reason.rstrip('.')}. {advice}"


@contextmanager
def own_transaction(connection: Connection) -> Iterator[None]:
    """Run the block in its own transaction, committed at the end. Work that the caller had open is committed first."""
    # Otherwise the block would be a savepoint of the caller's transaction, and its locks would last until the caller commits.
    connection.commit()
    with connection.transaction():
        yield


# Errors that a repetition alone does not cure: what happened, and what to do before.
_REMEDIES: tuple[tuple[type[psycopg.Error], str, str], ...] = (
    (psycopg.errors.DiskFull, "The database's disk is full", "Make room there, then"),
    (
        psycopg.errors.LockNotAvailable,
        "Another session holds a lock for longer than lock_timeout",
        "See pg_blocking_pids() and pg_stat_activity, end that session or wait, then",
    ),
    (
        psycopg.errors.QueryCanceled,
        "The database canceled a statement",
        "If that was statement_timeout, raise it for this role (ALTER ROLE ... SET statement_timeout), then",
    ),
    (
        psycopg.errors.ReadOnlySqlTransaction,
        "The database takes no writes, as a replica does not",
        "Name every server in DATABASE_URL with target_session_attrs=read-write, then",
    ),
)


def database_sentence(failed: BaseException) -> str | None:
    """Sentence for a database error that no layer has translated; None for any other error."""
    # The named ones are operational errors too, but the read-only one, so they come first.
    for kind, what, remedy in _REMEDIES:
        if isinstance(failed, kind):
            return f"{what}: {first_clause(failed)}. What was not committed is undone. {remedy} {_AGAIN}"
    if isinstance(failed, psycopg.OperationalError | psycopg.errors.IdleInTransactionSessionTimeout):
        return f"The database broke off: {first_clause(failed)}. What was not committed is undone; {_AGAIN}"
    if isinstance(failed, psycopg.errors.InsufficientPrivilege):
        return f"The database's role may not do this: {first_clause(failed)}. docs/howto/database.md lists what it needs."
    return None
