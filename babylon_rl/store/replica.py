"""Connections for heavy reads by people, at a streaming replica that is up to date.

A replica is used once it has replayed all that was written before the read began, by the positions of the write-ahead log, so that nobody
reads data older than the command. Where it takes longer than READ_WAIT_SECONDS, does not answer or is another database, the database itself
is read and a sentence says why. Readers that decide (observation, readiness, freezing, judging, releases) never come here.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from babylon_rl.errors import DatabaseError, DatabaseUnreachable
from babylon_rl.store.connection import Connection, address, connect
from babylon_rl.store.database import Database

POLL_S = 0.05
# Server, and database in it: positions of the log mean something within one server and its replicas only.
_IDENTITY = """
    SELECT (SELECT system_identifier FROM pg_control_system()), (SELECT oid FROM pg_database WHERE datname = current_database()),
           pg_is_in_recovery()
"""
_WRITTEN = "SELECT pg_current_wal_lsn()::text"
_REPLAYED = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
_CONFLICT = "conflict with recovery"


def _ignore(sentence: str) -> None:
    """Say nothing."""


@contextmanager
def read_connection(database: Database, say: Callable[[str], None] = _ignore, *, autocommit: bool = False) -> Iterator[Connection]:
    """Open a connection for reads that decide nothing: at the replica if it is up to date, else at the database itself.

    Args:
        say: is told in a sentence why the replica is not used, if one is configured.

    Raises:
        DatabaseUnreachable: the database itself does not answer.
        DatabaseError: the replica ended a read because it replayed a removal of the rows.
    """
    replica, reason = (None, None) if database.read_url is None else _current_replica(database, database.read_url)
    if reason is not None:
        say(f"{reason} Reading from the database itself.")
    try:
        with replica or database.connect(autocommit=autocommit) as connection:
            connection.autocommit = autocommit
            yield connection
    except psycopg.errors.SerializationFailure as ended:
        if _CONFLICT not in str(ended):
            raise
        raise DatabaseError(
            f"The replica at {address(database.read_url or '')} ended a long read, as it had to apply changes to the rows. Try again, or "
            "set hot_standby_feedback = on there, or unset READ_DATABASE_URL."
        ) from None


def _current_replica(database: Database, read_url: str) -> tuple[Connection | None, str | None]:
    """Connect to the replica once it has all that is written now; else return the reason why not."""
    where = f"The replica at {address(read_url)}"
    with database.connect(autocommit=True) as primary:
        ours = primary.execute(_IDENTITY).fetchone()
        if ours is None or ours[2]:
            return None, f"{database.address} is itself a replica, so nobody knows how far {address(read_url)} must be."
        (written,) = primary.execute(_WRITTEN).fetchone() or ("",)
    try:
        replica = connect(read_url)
    except DatabaseUnreachable as refused:
        return None, f"{where} does not answer ({refused})."
    replica.autocommit = True
    theirs = replica.execute(_IDENTITY).fetchone()
    reason = None
    if theirs is None or theirs[:2] != ours[:2] or not theirs[2]:
        reason = f"READ_DATABASE_URL ({address(read_url)}) is no streaming replica of {database.address}."
    elif not _replayed(replica, written, database.read_wait_s):
        reason = f"{where} was more than {database.read_wait_s:g} s behind."
    if reason is not None:
        replica.close()
        return None, reason
    return replica, None


def _replayed(replica: Connection, written: str, wait_s: float) -> bool:
    """Wait until the replica has replayed a position of the log; False after ``wait_s``."""
    until = time.monotonic() + wait_s
    while replica.execute(_REPLAYED, [written]).fetchone() != (True,):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
    return True
