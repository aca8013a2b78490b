"""Database migrations: numbered SQL files, forward only, one transaction each.

Migration 0001 creates the contract's tables where they are absent and leaves existing ones unchanged. Every transaction holds an
advisory lock and reads the records again, so two concurrent migrations do each step once, also behind a pooler.

Differences of ``public`` from the contract are found by running migration 0001 itself into pg_temp, inside a transaction that is rolled
back: the catalog's description of the result is what is compared. Nothing is written down twice.
"""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psycopg

from babylon_rl.errors import DatabaseError, SchemaMismatch
from babylon_rl.store.connection import MIGRATIONS, Connection
from babylon_rl.store.database import Database, newer_version
from babylon_rl.windows import utc_now

# The migration that creates the tables shared with the game.
CONTRACT = "0001_contract_tables"
BY_PSQL = "psql"  # in place of a checksum: psql/begin.sql recorded it, and does not know the file's text
_OF_PSQL = re.compile(r"^\\.*\n", re.MULTILINE)  # psql's own commands in a file
_LOCK = 0x6261_6279_6C6F_6E  # "babylon"
_LOCK_TIMEOUT_S = 120
_OWN_TABLE = re.compile(r'^\s*CREATE TABLE\s+(?:IF NOT EXISTS\s+)?"?babylon_rl"?\."?(\w+)"?', re.IGNORECASE | re.MULTILINE)
_DROPPED_TABLE = re.compile(r'^\s*DROP TABLE\s+(?:IF EXISTS\s+)?"?babylon_rl"?\."?(\w+)"?', re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class MigrationReport:
    """Result of a migration, or with ``check_only`` its plan.

    ``applied``: migrations, the first followed by the contract's tables it created; ``adopted``: those of them that existed before;
    ``differences`` of ``public`` from the contract, in sentences, none of them repaired.
    """

    applied: tuple[str, ...] = ()
    adopted: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Migration:
    """One SQL file of migrations/, without the lines for psql."""

    name: str
    sql: str = field(repr=False)

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True)
class CatalogColumn:
    type: str
    required: bool
    default: str | None
    fills_itself: bool = False


@dataclass(frozen=True)
class CatalogTable:
    """Columns by name, and the sets of columns that are unique together."""

    columns: dict[str, CatalogColumn]
    unique: frozenset[tuple[str, ...]]


def migrate(database: Database, *, check_only: bool = False, now: datetime | None = None, directory: Path = MIGRATIONS) -> MigrationReport:
    """Apply missing migrations in order; with ``check_only``, only report them.

    Raises:
        SchemaMismatch: the records do not belong to these files, a recorded table is gone, or a step does not fit the database.
        DatabaseError: the role lacks a privilege, or another migration holds the lock.
    """
    files = read_migrations(directory)
    try:
        with database.connect_directly() as connection:
            return _migrate(connection, files, None if check_only else now or utc_now())
    except psycopg.errors.InsufficientPrivilege as refused:
        raise DatabaseError(
            f"The database's role lacks a privilege: {refused.diag.message_primary}. "
            'Grant CREATE and TEMPORARY on the database (and CREATE on "public" when its tables are absent), '
            "then run `babylon-rl migrate` again."
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise DatabaseError(
            f"Another migration has held the lock for {_LOCK_TIMEOUT_S} s. Wait for it to end, then run it again."
        ) from None


def _migrate(connection: Connection, files: list[Migration], now: datetime | None) -> MigrationReport:
    expected = expected_tables(connection, files[0].sql)
    # The records first: a step that another process applies in between adds tables, and none of the recorded ones is missed.
    recorded = _recorded(connection)
    before = read_tables(connection, "public")
    names = [migration.name for migration in _pending(files, recorded)]
    _check_tables(connection, files, recorded, expected, before)
    after = before
    if now is not None:
        names = _apply_all(connection, files, now)
        after = read_tables(connection, "public")
    # Only the contract's migration creates or adopts tables of the game.
    contract = expected if CONTRACT in names else {}
    created = [f'public."{name}"' for name in contract if name not in before]
    adopted = [f'public."{name}"' for name in contract if name in before]
    return MigrationReport(tuple(names[:1] + created + names[1:]), tuple(adopted), tuple(differences(expected, after)))


def require_migrated(database: Database) -> None:
    """Check that every migration is applied. Raises SchemaMismatch: a migration is missing."""
    with database.connect_directly() as connection:
        pending = _pending(read_migrations(), _recorded(connection))
    if pending:
        raise SchemaMismatch(
            f"The database at {database.address} is not up to date ({len(pending)} migrations are missing, from {pending[0].name}). "
            "Run `babylon-rl migrate`."
        )


def read_migrations(directory: Path = MIGRATIONS) -> list[Migration]:
    """Return the migrations in order. Raises SchemaMismatch: the directory does not begin with the contract's migration."""
    paths = sorted(directory.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    if not paths or paths[0].stem != CONTRACT:
        raise SchemaMismatch(f"{directory} does not hold {CONTRACT}.sql. Run babylon_rl from a whole clone (`make setup`) or its wheel.")
    return [Migration(path.stem, _OF_PSQL.sub("", path.read_text(encoding="utf-8"))) for path in paths]


def _apply_all(connection: Connection, files: list[Migration], now: datetime) -> list[str]:
    applied: list[str] = []
    # A transaction each: what is applied stays when a later one fails, and the next call goes on behind it.
    while True:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'")
            connection.take_lock(_LOCK)
            # Read again under the lock: another process may have applied it.
            pending = _pending(files, _recorded(connection))
            if not pending:
                return applied
            _apply(connection, pending[0], now)
        applied.append(pending[0].name)


def _apply(connection: Connection, migration: Migration, now: datetime) -> None:
    # CREATE SCHEMA IF NOT EXISTS needs CREATE on the database even if the schema exists; a role with few rights lacks it.
    if connection.value("SELECT to_regnamespace('babylon_rl')") is None:
        connection.execute('CREATE SCHEMA "babylon_rl"')
    connection.execute(
        'CREATE TABLE IF NOT EXISTS babylon_rl.migrations (id TEXT PRIMARY KEY, checksum TEXT NOT NULL, "appliedAt" TIMESTAMP(3) NOT NULL)'
    )
    # The contract's tables are named without a schema in the migrations.
    connection.execute("SET LOCAL search_path = public")
    try:
        connection.execute(migration.sql)
    # A ProgrammingError too, but ``migrate`` has the better sentence for it.
    except psycopg.errors.InsufficientPrivilege:
        raise
    except psycopg.ProgrammingError as refused:
        raise SchemaMismatch(
            f"Migration {migration.name} does not fit this database: {refused.diag.message_primary}. Nothing of it was applied. "
            "Something of that name is there that no migration made: rename or remove it, then run `babylon-rl migrate` again."
        ) from refused
    connection.execute("INSERT INTO babylon_rl.migrations VALUES (%s, %s, %s)", (migration.name, migration.checksum, now))


def _recorded(connection: Connection) -> dict[str, str]:
    if not connection.has_table("babylon_rl.migrations"):
        return {}
    return dict(connection.execute("SELECT id, checksum FROM babylon_rl.migrations ORDER BY id").fetchall())


def _pending(files: list[Migration], recorded: dict[str, str]) -> list[Migration]:
    """Return the migrations that are not recorded yet. Raises SchemaMismatch: the records are not a beginning of ``files``."""
    by_name = {migration.name: migration for migration in files}
    for name, checksum in recorded.items():
        if name not in by_name:
            raise newer_version("The database", name)
        if checksum not in (by_name[name].checksum, BY_PSQL):
            raise SchemaMismatch(
                f"Migration {name} was changed after it was applied here. Restore migrations/{name}.sql as it was; "
                "a change belongs into a new file."
            )
    # Forward only: nothing may be missing before the newest recorded one.
    pending = [migration for migration in files if migration.name not in recorded]
    if pending and recorded and pending[0].name < max(recorded):
        raise SchemaMismatch(
            f"The database is half migrated: {max(recorded)} is recorded, {pending[0].name} before it is not. "
            "Restore the database or babylon_rl.migrations from a backup."
        )
    return pending


def _check_tables(
    connection: Connection,
    files: list[Migration],
    recorded: dict[str, str],
    contract: dict[str, CatalogTable],
    public: dict[str, CatalogTable],
) -> None:
    """Check that every table named by applied migrations exists. Raises SchemaMismatch: one is missing."""
    # Tables that the applied migrations leave behind, by the text of the migrations.
    own: set[str] = set()
    for migration in files:
        if migration.name in recorded:
            own |= set(_OWN_TABLE.findall(migration.sql))
            own -= set(_DROPPED_TABLE.findall(migration.sql))
    gone = [f'public."{name}"' for name in contract if CONTRACT in recorded and name not in public]
    gone += [f"babylon_rl.{name}" for name in sorted(own - read_tables(connection, "babylon_rl").keys())] if own else []
    if gone:
        raise SchemaMismatch(
            f"The database is half migrated: {', '.join(gone)} {'is' if len(gone) == 1 else 'are'} recorded as made and not there. "
            "Restore them from a backup; their definitions are in migrations/."
        )


# Tables into which this pipeline or its recorder inserts rows.
WRITTEN_TABLES = frozenset(
    {"User", "trajectories", "llm_call_logs", "training_batches", "market_outcomes", "trained_models", "reward_judgments"}
)

# Columns of tables and views; the last value is true for identity and generated columns.
_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
       a.attidentity <> '' OR a.attgenerated <> ''
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY c.relname, a.attnum
"""

# Valid unique indexes over plain columns, without a predicate.
_UNIQUE_KEYS = """
SELECT c.relname, array_agg(a.attname::text ORDER BY a.attname)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
WHERE c.relnamespace = %s::regnamespace AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid
GROUP BY c.relname, i.indexrelid
"""


def read_tables(connection: Connection, schema: str) -> dict[str, CatalogTable]:
    """Return the tables and views of ``schema`` by name."""
    columns: dict[str, dict[str, CatalogColumn]] = {}
    for table, name, kind, required, default, fills_itself in connection.execute(_COLUMNS, (schema,)):
        columns.setdefault(table, {})[name] = CatalogColumn(kind, required, default, fills_itself)
    unique: dict[str, set[tuple[str, ...]]] = {}
    for table, key in connection.execute(_UNIQUE_KEYS, (schema,)):
        unique.setdefault(table, set()).add(tuple(key))
    return {table: CatalogTable(table_columns, frozenset(unique.get(table, ()))) for table, table_columns in columns.items()}


def expected_tables(connection: Connection, contract_sql: str) -> dict[str, CatalogTable]:
    """Return the tables that ``contract_sql`` creates on an empty database, by name. Rolled back: leaves no trace."""
    with connection.transaction(force_rollback=True):
        # The contract's statements name no schema, so they create temporary tables here.
        connection.execute("SET LOCAL search_path = pg_temp")
        connection.execute(contract_sql)
        return read_tables(connection, connection.row("SELECT pg_my_temp_schema()::regnamespace::text")[0])


def differences(expected: dict[str, CatalogTable], actual: dict[str, CatalogTable]) -> list[str]:
    """Return one line per relevant difference between existing tables and the contract."""
    lines = []
    for name in sorted(expected.keys() & actual.keys()):
        want, have = expected[name], actual[name]
        for column, expected_column in want.columns.items():
            lines += _column_differences(f'public."{name}"."{column}"', expected_column, have.columns.get(column))
        # Upserts may name these columns in ON CONFLICT, which Postgres refuses without the key.
        for key in sorted(want.unique - have.unique):
            listed = ", ".join(f'"{column}"' for column in key)
            lines.append(f'public."{name}" has no unique key on ({listed}), as the contract has.')
        # An additional column matters only if it would refuse our rows.
        if name in WRITTEN_TABLES:
            lines += [
                f'public."{name}"."{column}" is not in the contract and is required without a default: '
                "rows that are written here would be refused."
                for column, actual_column in have.columns.items()
                if column not in want.columns
                and actual_column.required
                and actual_column.default is None
                and not actual_column.fills_itself
            ]
    return lines


def _column_differences(place: str, want: CatalogColumn, have: CatalogColumn | None) -> list[str]:
    if have is None:
        return [f"{place} is missing; the contract has it as {want.type}."]
    lines = []
    if have.type != want.type:
        lines.append(f"{place} is {have.type}; the contract has {want.type}.")
    if have.required != want.required:
        lines.append(f"{place} is {_nullability(have)}; the contract has it {_nullability(want)}.")
    # A column that may be NULL takes our rows without its default as well.
    if want.default is not None and have.default is None and have.required:
        lines.append(f"{place} has no default; the contract has {want.default}.")
    return lines


def _nullability(column: CatalogColumn) -> str:
    return "not null" if column.required else "nullable"
