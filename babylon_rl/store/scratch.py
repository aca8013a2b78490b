"""A database for a while: on the embedded server, beside the game's or instead of it, never on DATABASE_URL's; dropped when done with."""

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
    """``database`` is migrated; set ``keep`` to leave it for the next call of the same name."""

    database: Database
    keep: bool = False


@contextmanager
def scratch_database(home: Path, name: str) -> Iterator[Scratch]:
    """The scratch database of that name (letters and digits) on the embedded server under ``home``, made where it is absent.

    It is dropped at the end of the block, but kept when that raises, so that a paid or long work goes on where it was.

    Raises:
        UsageError: another process works in it.
        EmbeddedServerError: the server cannot be made or started.
    """
    called = f"{_PREFIX}{name}"
    with use_server(home) as url, connect(url, autocommit=True) as server:
        if server.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (called,)).fetchone() != (True,):
            raise UsageError(f"Another process works in the scratch database {called}: wait for it to end.")
        if server.execute("SELECT 1 FROM pg_database WHERE datname = %s", (called,)).fetchone() is None:
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(called)))
        address = url.rpartition("/")[0] + f"/{called}"
        scratch = Scratch(Database(address, address))
        migrate(scratch.database)
        yield scratch
        if not scratch.keep:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(called)))
