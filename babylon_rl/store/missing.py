"""Readable errors for missing tables and columns, with the migration that creates them.

The name is taken from the server's message and looked up in the text of the migrations. If the message names a column without its table,
the catalog tells which of the candidate tables lacks it.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
Missing = psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn | psycopg.errors.InvalidSchemaName
MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName)

# Patterns over the text of the migrations.
_NAME = r'((?:"?babylon_rl"?\.)?"?\w+"?)'
_CREATE_TABLE = re.compile(rf"CREATE TABLE\s+(?:IF NOT EXISTS\s+)?{_NAME}\s*\((.*?)\n\s*\);", re.DOTALL)
_CREATE_VIEW = re.compile(rf"CREATE (?:OR REPLACE )?VIEW\s+{_NAME}")
_ALTER_TABLE = re.compile(rf"ALTER TABLE\s+{_NAME}\s+(ADD COLUMN.*?);", re.DOTALL)
_ADDED = re.compile(r'ADD COLUMN\s+(?:IF NOT EXISTS\s+)?"?(\w+)"?')
_COLUMN_LINE = re.compile(r'^\s+"?(\w+)"? ', re.MULTILINE)
_NO_COLUMN = frozenset({"CONSTRAINT", "PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "EXCLUDE"})

# Patterns over the server's messages.
_RELATION = re.compile(r'relation "([^"]+)" does not exist')
_COLUMN_OF = re.compile(r'column "([^"]+)" of relation "([^"]+)" does not exist')
_COLUMN = re.compile(r'column "?(?:\w+\.)?([^"\s]+)"? does not exist')

# Candidate tables that lack the column.
_GONE = """
SELECT given.name FROM unnest(%s::text[], %s::text[], %s::text[]) AS given (name, "schema", "column")
WHERE NOT EXISTS (
    SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = given."schema" AND c.relname = given.name AND a.attname = given."column" AND NOT a.attisdropped
)
"""


@dataclass(frozen=True)
class Defined:
    """Migration by table or view, and by (table, column).

    Names are qualified and without quotes.
    """

    tables: dict[str, str]
    columns: dict[tuple[str, str], str]


@cache
def defined(directory: Path = MIGRATIONS) -> Defined:
    """Return the tables, views and columns that the migrations in ``directory`` create."""
    tables: dict[str, str] = {}
    columns: dict[tuple[str, str], str] = {}
    for path in sorted(directory.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        sql = path.read_text(encoding="utf-8")
        for name, body in _CREATE_TABLE.findall(sql):
            tables[_qualified(name)] = path.stem
            columns |= {(_qualified(name), column): path.stem for column in _COLUMN_LINE.findall(body) if column not in _NO_COLUMN}
        tables |= {_qualified(name): path.stem for name in _CREATE_VIEW.findall(sql)}
        for name, body in _ALTER_TABLE.findall(sql):
            columns |= {(_qualified(name), column): path.stem for column in _ADDED.findall(body)}
    return Defined(tables, columns)


def missing_sentence(connection: psycopg.Connection[Any], error: Missing, directory: Path = MIGRATIONS) -> str:
    """Return one sentence naming the missing thing and the migration that creates it.

    Rolls back a failed transaction on ``connection``.
    """
    message = (error.diag.message_primary or str(error)).strip()
    # The catalog can be read only after the failed transaction is rolled back.
    if connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
        connection.rollback()
    if match := _RELATION.search(message):
        return _no_table(_qualified(match[1]), defined(directory))
    if match := _COLUMN_OF.search(message):
        return _no_column(match[1], _tables_with(match[1], defined(directory), match[2]), defined(directory))
    if match := _COLUMN.search(message):
        return _no_column(match[1], _gone(connection, match[1], _tables_with(match[1], defined(directory))), defined(directory))
    return f"The database is not up to date: {message.rstrip('.')}. Run `babylon-rl migrate`."


def _no_table(table: str, known: Defined) -> str:
    migration = known.tables.get(table)
    if migration is None:
        return (
            f"The database has no table {table}, and no migration makes one of that name. `babylon-rl migrate --check` lists what differs."
        )
    return (
        f"The database is not up to date: there is no table {_shown(table)}, which migration {migration} makes. Run `babylon-rl migrate`; "
        "if it was there before, that says what to restore."
    )


def _no_column(column: str, tables: list[str], known: Defined) -> str:
    if not tables:
        return f'The database has no column "{column}", and no migration makes one. `babylon-rl migrate --check` lists what differs.'
    where = " or ".join(_shown(table) for table in tables)
    migrations = " or ".join(sorted({known.columns[table, column] for table in tables}))
    sentence = f'The database is not up to date: there is no column "{column}" in {where}, which migration {migrations} makes.'
    if all(table.startswith("public.") for table in tables):
        return (
            f"{sentence} A table that was there before is adopted as it is and never altered: bring the game's schema up to date; "
            "`babylon-rl migrate --check` lists every difference."
        )
    return f"{sentence} Run `babylon-rl migrate`."


def _tables_with(column: str, known: Defined, relation: str | None = None) -> list[str]:
    return sorted(table for table, name in known.columns if name == column and (relation is None or table.split(".")[1] == relation))


def _gone(connection: psycopg.Connection[Any], column: str, tables: list[str]) -> list[str]:
    if connection.closed or connection.broken:
        return tables
    schemas, names = [table.split(".")[0] for table in tables], [table.split(".")[1] for table in tables]
    gone = {name for (name,) in connection.execute(_GONE, (names, schemas, [column] * len(tables)))}
    return [table for table, name in zip(tables, names, strict=True) if name in gone] or tables


def _qualified(name: str) -> str:
    bare = name.replace('"', "")
    return bare if "." in bare else f"public.{bare}"


def _shown(table: str) -> str:
    schema, name = table.split(".")
    return table if name == name.lower() else f'{schema}."{name}"'
