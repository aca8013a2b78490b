"""Connections for heavy reads by people, at a streaming replica that is up to date.

A replica is used once it has replayed all that was written before the read began, by the positions of the write-ahead log, so that nobody
reads data older than the command. Where it takes longer than READ_WAIT_SECONDS, does not answer or is another database, the database itself
is read and a sentence says why. Readers that decide (observation, readiness, freezing, judging, releases) never come here.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from babylon_rl.errors import DatabaseError, DatabaseUnreachable, first_clause
from babylon_rl.store.connection import Connection, address, connect
from babylon_rl.store.database import Database

POLL_S = 0.05
ANSWER_S = 10.0  # of the replica, beside the wait for what is written
_IS_REPLICA = "SELECT pg_is_in_recovery()"
_WRITTEN = "SELECT pg_current_wal_lsn()::text"
_REPLAYED = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
_CONFLICT = "conflict with recovery"


@contextmanager
def read_connection(database: Database, say: Callable[[str], None] = lambda _: None, *, autocommit: bool = False) -> Iterator[Connection]:
    """Open a connection for reads that decide nothing.

    It is at the replica if that is up to date, else at the database itself.

    Args:
        say: called with the reason why the replica is not used, if one is configured.

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
    """Connect to the replica once it has all that is written now.

    Else return the reason why not.
    """
    where = f"The replica at {address(read_url)}"
    # The position is taken once, before the replica is looked at: what others write from now on is not waited for.
    with database.connect(autocommit=True) as primary:
        try:
            # Positions of the log mean something within one server and its replicas only.
            ours = primary.identity()
            if primary.value(_IS_REPLICA):
                return None, f"{database.address} is itself a replica, so nobody knows how far {address(read_url)} must be."
            (written,) = primary.execute(_WRITTEN).fetchone() or ("",)
        except psycopg.errors.InsufficientPrivilege as refused:
            return None, f"The role may not read how far {database.address} is ({first_clause(refused)})."
    replica = None
    try:
        replica = connect(read_url)
        replica.autocommit = True
        with replica.answering_within(database.read_wait_s + ANSWER_S):
            reason = _unfit(replica, ours, written, database)
    except (psycopg.Error, DatabaseUnreachable) as refused:
        reason = f"{where} does not answer ({first_clause(refused)})."
    if reason is None:
        return replica, None
    if replica is not None:
        replica.close()
    return None, reason


def _unfit(replica: Connection, identity: tuple[int, int], written: str, database: Database) -> str | None:
    """Return why a connection must not be read from.

    It is to another server, or to one that is behind for too long.
    """
    shown = address(database.read_url or "")
    if replica.identity() != identity or not replica.value(_IS_REPLICA):
        return f"READ_DATABASE_URL ({shown}) is no streaming replica of {database.address}."
    if not _replayed(replica, written, database.read_wait_s):
        return f"The replica at {shown} was more than {database.read_wait_s:g} s behind."
    return None


def _replayed(replica: Connection, written: str, wait_s: float) -> bool:
    """Wait until the replica has replayed a position of the log; False after ``wait_s``."""
    until = time.monotonic() + wait_s
    while replica.execute(_REPLAYED, [written]).fetchone() != (True,):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
    return True
