"""Where the data is: the server of DATABASE_URL, or the embedded one while somebody uses it.

Dagster's own storage lives in schema ``babylon_dagster`` of the same database.
"""

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings
from babylon_rl.store.connection import POOLER_ADVICE, address, connect, with_search_path
from babylon_rl.store.embedded import use_server

DAGSTER_SCHEMA = "babylon_dagster"
_MAY_USE = """
SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %(schema)s
"""

_MADE = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %(schema)s"


@dataclass(frozen=True)
class Database:
    """Two ways to one database: ``url``, perhaps through a pooler, and ``direct_url``, past it (for locks and Dagster)."""

    url: str = field(repr=False)
    direct_url: str = field(repr=False)

    def connect(self, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
        """A new connection; the caller closes it. Raises DatabaseUnreachable."""
        return connect(self.url, autocommit=autocommit)

    def connect_directly(self, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
        """A new connection past any pooler: session locks hold on it. Raises DatabaseUnreachable."""
        return connect(self.direct_url, autocommit=autocommit)

    @property
    def address(self) -> str:
        """``host:port/database``, fit to be shown."""
        return address(self.url)

    @property
    def dagster_url(self) -> str:
        """The SQLAlchemy address of Dagster's storage; the driver is named because SQLAlchemy's default may be psycopg 3."""
        parts = urlsplit(self.direct_url)
        query = dict(parse_qsl(parts.query))
        query["options"] = f"{query.get('options', '')} -csearch_path={DAGSTER_SCHEMA}".strip()
        return urlunsplit(parts._replace(scheme="postgresql+psycopg2", query=urlencode(query, quote_via=quote)))

    def prepare_dagster_schema(self) -> None:
        """Create Dagster's schema where it is absent.

        Raises:
            DatabaseError: the role may not create it, or not use what is there (the message holds the statement to run once), or
                DIRECT_DATABASE_URL is a pooler.
        """
        # Connected as Dagster will be: a pooler that drops the search path would let it make its tables in the game's schema.
        with connect(with_search_path(self.direct_url, DAGSTER_SCHEMA)) as connection:
            if connection.execute("SELECT current_setting('search_path')").fetchone() != (DAGSTER_SCHEMA,):
                raise DatabaseError(f"{address(self.direct_url)} does not take the schema that Dagster's storage asks for. {POOLER_ADVICE}")
            allowed = connection.execute(_MAY_USE, {"schema": DAGSTER_SCHEMA}).fetchone()
            if allowed == (False,):
                raise DatabaseError(
                    f"The role {connection.info.user!r} may not use Dagster's schema in {self.address}. Have its owner run once: "
                    f'ALTER SCHEMA "{DAGSTER_SCHEMA}" OWNER TO "{connection.info.user}"; (and so for its tables), '
                    "or connect as the role that made it."
                )
            if allowed is not None:
                return
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (DAGSTER_SCHEMA,))
            try:
                connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{DAGSTER_SCHEMA}"')
            except psycopg.errors.InsufficientPrivilege:
                raise DatabaseError(
                    f"The role {connection.info.user!r} may not create schemas in {self.address}. Have its owner run once: "
                    f'CREATE SCHEMA "{DAGSTER_SCHEMA}" AUTHORIZATION "{connection.info.user}"; and the same for "babylon_rl".'
                ) from None

    @contextlib.contextmanager
    def making_dagster_storage(self, release: str) -> Iterator[bool]:
        """True for the first who comes with a release of Dagster, who is to make its tables within the block; others wait, and get False.

        Dagster makes them table by table, and two processes that do so at once fail. Where the schema is absent there is nothing to make.
        """
        with connect(self.direct_url) as connection:
            made = f"Tables of Dagster {release}"
            if connection.execute(_MADE, {"schema": DAGSTER_SCHEMA}).fetchone() in ((made,), None):
                yield False
                return
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"{DAGSTER_SCHEMA} tables",))
            if connection.execute(_MADE, {"schema": DAGSTER_SCHEMA}).fetchone() == (made,):
                yield False
                return
            yield True
            comment = sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(DAGSTER_SCHEMA), sql.Literal(made))
            connection.execute(comment)


@contextlib.contextmanager
def open_database(settings: Settings, *, prepare: bool = True) -> Iterator[Database]:
    """The database of these settings, for the length of a ``with`` block.

    Without DATABASE_URL the embedded server is started when nobody uses it yet, and stopped by the last who leaves.
    ``prepare=False`` changes nothing in the database (no schema for Dagster).

    Raises:
        DatabaseUnreachable: DATABASE_URL's server does not answer.
        EmbeddedServerError: the embedded server cannot be made or started.
    """
    with contextlib.ExitStack() as stack:
        if settings.database_url is None:
            url = stack.enter_context(use_server(settings.home))
            database = Database(url, url)
        else:
            url = settings.database_url.get_secret_value()
            direct = settings.direct_database_url
            database = Database(url, direct.get_secret_value() if direct is not None else url)
        if prepare:
            database.prepare_dagster_schema()
        yield database


def process_database(settings: Settings) -> Database:
    """The database of these settings, held until this process ends; a worker calls it as often as it likes."""
    key = (os.getpid(), str(settings.database_url and settings.database_url.get_secret_value()), str(settings.home))
    with _opening:
        if key not in _opened:
            stack = contextlib.ExitStack()
            _opened[key] = stack.enter_context(open_database(settings))
            atexit.register(stack.close)
            Finalize(None, stack.close, exitpriority=0)  # children of multiprocessing leave without atexit
        return _opened[key]


_opening = threading.Lock()
_opened: dict[tuple[int, str, str], Database] = {}
