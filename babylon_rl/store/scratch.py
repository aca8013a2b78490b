"""Temporary databases on the embedded server, dropped at the end of use.

Never created on the server of DATABASE_URL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from babylon_rl.errors import UsageError
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate

_PREFIX = "babylon_rl_scratch_"


@dataclass
class Scratch:
    """A migrated temporary database. Set ``keep`` to keep it for the next call with the same name."""

    database: Database
    keep: bool = False


@contextmanager
def scratch_database(home: Path, name: str) -> Iterator[Scratch]:
    """Open the scratch database ``name`` (letters, digits) on the embedded server, created if absent.

    It is dropped at the end, but kept if the block raises, so that paid or long work can continue. Raises UsageError: another process
    works in it.
    """
    database_name = f"{_PREFIX}{name}"
    with use_server(home) as url, connect(url, autocommit=True) as server:
        # A session lock on the server's own connection marks the database as in use.
        if server.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (database_name,)).fetchone() != (True,):
            raise UsageError(f"Another process works in the scratch database {database_name}: wait for it to end.")
        if server.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database_name,)).fetchone() is None:
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(database_name)))
        address = url.rpartition("/")[0] + f"/{database_name}"
        scratch = Scratch(Database(address, address))
        # Also when it was kept by an earlier call: the package may have a newer schema since.
        migrate(scratch.database)
        yield scratch
        # Not reached if the block raised: the database is then kept.
        if not scratch.keep:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database_name)))
