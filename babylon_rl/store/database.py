"""The project's database: the server of DATABASE_URL, or the embedded one.

Dagster's own storage lives in schema ``babylon_dagster`` of the same database.
"""

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from babylon_rl.errors import DatabaseError, SchemaMismatch
from babylon_rl.settings import DatabaseSettings
from babylon_rl.store.connection import LOST_AFTER_A_MINUTE, MIGRATIONS, POOLER_ADVICE, Connection, address, connect, libpq_url
from babylon_rl.store.embedded import use_server

DAGSTER_SCHEMA = "babylon_dagster"
DIRECT = "DIRECT_DATABASE_URL"
_MAY_READ_MIGRATIONS = """
SELECT has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'babylon_rl' AND c.relname = 'migrations'
"""
_MAY_USE = """
SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %(schema)s
"""

# The comment on Dagster's schema records the release that made its tables.
_MADE = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %(schema)s"


@dataclass(frozen=True)
class Database:
    """Connection strings of one database. ``direct_url`` bypasses a pooler, for session locks and Dagster."""

    url: str = field(repr=False)
    direct_url: str = field(repr=False)

    @classmethod
    def of(cls, settings: DatabaseSettings) -> "Database | None":
        """The database that the settings name, None without DATABASE_URL. Raises SettingsError: an address is not valid."""
        if settings.database_url is None:
            return None
        url, direct = libpq_url(settings.database_url.get_secret_value()), settings.direct_database_url
        return cls(url, url if direct is None else libpq_url(direct.get_secret_value(), DIRECT))

    def connect(self, autocommit: bool = False) -> Connection:
        """Open a connection, which the caller closes. Raises DatabaseUnreachable: the server does not answer or refuses."""
        return connect(self.url, autocommit=autocommit)

    def connect_directly(self) -> Connection:
        """Open a connection in autocommit past any pooler, so that session locks hold. Raises as ``connect``."""
        return connect(self.direct_url, autocommit=True, variable=self._direct_variable)

    @property
    def _direct_variable(self) -> str:
        return "DATABASE_URL" if self.direct_url == self.url else DIRECT

    @property
    def address(self) -> str:
        """``host:port/database``, safe to display."""
        return address(self.url)

    @property
    def dagster_url(self) -> str:
        """SQLAlchemy URL of Dagster's storage, with its driver and the keepalives of our own connections."""
        parts = urlsplit(self.direct_url)
        query: dict[str, str | list[str]] = {**LOST_AFTER_A_MINUTE, **dict(parse_qsl(parts.query))}
        query["options"] = f"{query.get('options', '')} -csearch_path={DAGSTER_SCHEMA}".strip()
        user, _, hosts = parts.netloc.rpartition("@")
        # SQLAlchemy takes several servers, of which one is the primary, as parameters only.
        if "," in hosts:
            query["host"], parts = hosts.split(","), parts._replace(netloc=f"{user}@")
        return urlunsplit(parts._replace(scheme="postgresql+psycopg2", query=urlencode(query, doseq=True, quote_via=quote)))

    def refuse_newer(self) -> None:
        """Raise SchemaMismatch if a newer version of the package has migrated the database. A role without rights is told so later."""
        with self.connect_directly() as connection:
            if connection.value(_MAY_READ_MIGRATIONS) is not True:
                return
            newest = connection.value("SELECT max(id) FROM babylon_rl.migrations")
        if newest is not None and newest > max(path.stem for path in MIGRATIONS.glob("[0-9]*.sql")):
            raise newer_version(f"The database at {self.address}", newest)

    def prepare_dagster_schema(self) -> None:
        """Create Dagster's schema if it is absent.

        Raises DatabaseError: the role may not create or use it (the message holds the statement), or DIRECT_DATABASE_URL is a pooler.
        """
        # Connected as Dagster will be: with a pooler that drops the search path, its tables would go into the game's schema.
        options = f"{conninfo_to_dict(self.direct_url).get('options', '')} -csearch_path={DAGSTER_SCHEMA}".strip()
        with connect(make_conninfo(self.direct_url, options=options), variable=self._direct_variable) as connection:
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
            connection.take_lock(DAGSTER_SCHEMA)
            try:
                connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{DAGSTER_SCHEMA}"')
            except psycopg.errors.InsufficientPrivilege:
                raise DatabaseError(
                    f"The role {connection.info.user!r} may not create schemas in {self.address}. Have its owner run once: "
                    f'CREATE SCHEMA "{DAGSTER_SCHEMA}" AUTHORIZATION "{connection.info.user}"; and the same for "babylon_rl".'
                ) from None

    @contextlib.contextmanager
    def making_dagster_storage(self, release: str) -> Iterator[bool]:
        """Yield True to the one process that shall create the tables of a Dagster release; False where nothing is to do.

        Other processes wait: Dagster creates its tables one by one, and two processes that do so at once fail.
        """
        # Every command that uses Dagster asks this, and nearly all of them find the comment: no lock for these.
        with connect(self.direct_url, variable=self._direct_variable) as connection:
            release_comment = f"Tables of Dagster {release}"
            if connection.execute(_MADE, {"schema": DAGSTER_SCHEMA}).fetchone() in ((release_comment,), None):
                yield False
                return
            # Checked again under the lock: another process may have finished meanwhile.
            connection.take_lock(f"{DAGSTER_SCHEMA} tables")
            if connection.execute(_MADE, {"schema": DAGSTER_SCHEMA}).fetchone() == (release_comment,):
                yield False
                return
            # If the block raises, the comment is not written, and the next process takes over.
            yield True
            comment = sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(DAGSTER_SCHEMA), sql.Literal(release_comment))
            connection.execute(comment)


def newer_version(place: str, migration: str) -> SchemaMismatch:
    """The error for a migration, at ``place``, that this version of the package does not have."""
    return SchemaMismatch(
        f"{place} holds migration {migration}, which this version of babylon_rl does not know. Nothing was changed. "
        "Update the code (git pull, make setup)."
    )


@contextlib.contextmanager
def open_database(settings: DatabaseSettings, *, prepare: bool = True) -> Iterator[Database]:
    """Open the database of these settings for the length of a ``with`` block.

    Without DATABASE_URL the embedded server is started if it is not running, and stopped when its last user leaves. ``prepare=False``
    changes nothing in the database (no schema for Dagster).

    Raises:
        DatabaseUnreachable: the server of DATABASE_URL does not answer.
        SchemaMismatch: ``prepare``, and a newer version of the package has migrated the database.
        EmbeddedServerError: the embedded server cannot be created or started.
    """
    with contextlib.ExitStack() as stack:
        database = Database.of(settings)
        # The embedded server has no pooler.
        if database is None:
            url = stack.enter_context(use_server(settings.home))
            database = Database(url, url)
        if prepare:
            database.refuse_newer()
            database.prepare_dagster_schema()
        yield database


def process_database(settings: DatabaseSettings) -> Database:
    """Return the database of these settings, open until this process ends. Later calls in the same process return the same object."""
    from multiprocessing.util import Finalize  # 10 ms, which most commands do not need

    # With the process id: a forked child does not hold the embedded server's locks (embedded/__init__.py) and must take its own.
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
