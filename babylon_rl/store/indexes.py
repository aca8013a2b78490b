"""Optional indexes on the game's tables, built without blocking its writers (`migrate --indexes`).

Each is made by CREATE INDEX CONCURRENTLY, one after the other: what is finished stays when the command is stopped, and an index that a
crash left invalid is dropped and built again. Statements that need one ask for its state first; the others leave the choice to the planner.
"""

from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql

from babylon_rl.errors import DatabaseError
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database

IndexState = Literal["valid", "invalid", "absent"]
_LOCK = "babylon_rl indexes"

# True for every window id that names no hour, and for those of 29 February, whose year the pattern does not check. A pattern is immutable
# where a comparison with to_char("startTime") is not, as an index must be.
WITHOUT_HOUR = (
    """COALESCE("windowId", '') !~ '^(?!0000)[0-9]{4}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|"""
    """(0[13578]|1[02])-31)T([01][0-9]|2[0-3]):00$'"""
)


@dataclass(frozen=True)
class OptionalIndex:
    """An index in the schema public; ``on`` is all that follows ON in its definition."""

    name: str
    on: str
    purpose: str

    @property
    def statement(self) -> str:
        """SQL that builds it beside running writers."""
        return f"CREATE INDEX CONCURRENTLY {self.name} ON {self.on}"


UNNAMED = OptionalIndex(
    "babylon_rl_trajectories_unnamed",
    f"""public.trajectories ("startTime") WHERE {WITHOUT_HOUR}""",
    "finds rows without a window id at once; without it they are looked for agent by agent",
)
VERSIONS = OptionalIndex(
    "babylon_rl_trajectories_versions",
    """public.trajectories ("windowId") INCLUDE ("trajectoryId", "startTime", "updatedAt")""",
    "tells whether an hour changed without reading its rows",
)
INDEXES = (UNNAMED, VERSIONS)


@dataclass(frozen=True)
class BuiltIndex:
    """An optional index: its state, and its size now (None: it is not there)."""

    index: OptionalIndex
    found: IndexState
    size_bytes: int | None


def index_state(connection: Connection, index: OptionalIndex) -> IndexState:
    valid = connection.value("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('public.' || %s)", [index.name])
    return "absent" if valid is None else "valid" if valid else "invalid"


def build_indexes(database: Database, *, check_only: bool = False) -> list[BuiltIndex]:
    """Build the optional indexes that are missing, or with ``check_only`` only look. Safe to repeat and to interrupt.

    Raises DatabaseError: the role does not own a table, the table is partitioned, or another process builds them.
    """
    with database.connect_directly() as connection:
        # A session lock: building runs outside transactions, and waits for those of others.
        if not check_only and connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [_LOCK]).fetchone() != (True,):
            raise DatabaseError("Another process builds the indexes. Wait for it to end, then run it again.")
        return [_built(connection, index, check_only) for index in INDEXES]


def _built(connection: Connection, index: OptionalIndex, check_only: bool) -> BuiltIndex:
    found = index_state(connection, index)
    if not check_only and found != "valid":
        try:
            # Its build was interrupted: no query uses it, but every write to the table keeps it up to date.
            if found == "invalid":
                connection.execute(sql.SQL("DROP INDEX CONCURRENTLY public.{}").format(sql.Identifier(index.name)))
            connection.execute(index.statement)
        except psycopg.errors.InsufficientPrivilege as refused:
            raise DatabaseError(
                f"The index {index.name} needs the owner of its table: {refused.diag.message_primary}. Run `babylon-rl migrate --indexes` "
                f"with the owner's DATABASE_URL, or have it run: {index.statement};"
            ) from None
        except psycopg.errors.FeatureNotSupported as refused:
            raise DatabaseError(
                f"The index {index.name} cannot be built here: {refused.diag.message_primary}. On a partitioned table, build it on each "
                f"partition, with the partition's name in place of the table's: {index.statement};"
            ) from None
    return BuiltIndex(index, found, connection.value("SELECT pg_relation_size(to_regclass('public.' || %s))", [index.name]))
