"""Copies of a whole database by Postgres' own tools, compared table by table.

pg_dump writes a script; psql executes it in one transaction, which ends with the comparison. A process that dies at any line leaves the
target as it was. Roles and rights belong to a server and are not copied. Taken are ``public`` and our two schemas, Dagster's records among
them: their cursors and data versions say what has been made already.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from babylon_rl.errors import DatabaseError, EmbeddedServerError, UsageError, first_clause
from babylon_rl.progress import Progress
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import DAGSTER_SCHEMA, Database
from babylon_rl.store.embedded.cluster import Cluster, version_of

SCHEMAS = ["public", "babylon_rl", DAGSTER_SCHEMA]
# What the text of a row depends on, beside the row.
_FORM = {"timezone": "UTC", "datestyle": "ISO, YMD", "intervalstyle": "postgres", "bytea_output": "hex", "extra_float_digits": "1"}
_SAME_TEXT = "".join(f"SET LOCAL {name} = '{value}'; " for name, value in _FORM.items())
_NO_TIME_LIMITS = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
# pg_dump 17 and newer sets this; servers before 17 do not know it.
_OF_17 = b"SET transaction_timeout = 0;\n"
# Postgres prints the jsonpath of migration 0050 without brackets that it needs: in backups of before 0051 the column would compute another
# value. Of whole lines, which no row of a table is.
_PATH = b"jsonb_path_exists(answers, 'strict $[*]?(%b > 0.000001)'::jsonpath)"
_DIFFER = b"\n    differ boolean GENERATED ALWAYS AS (" + _PATH + b") STORED NOT NULL\n"
_PRINTED, _MEANT = _DIFFER % b"@[2] - $[0][2].abs()", _DIFFER % b"(@[2] - $[0][2]).abs()"
_BLOCK = 1024 * 1024
_OWN_RELATIONS = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY (%s) AND c.relkind = ANY (%s)
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""
_OTHER_SCHEMAS = """
SELECT nspname FROM pg_namespace WHERE nspname <> ALL (%s) AND nspname <> 'information_schema' AND NOT starts_with(nspname, 'pg_')
"""
# The order of rows does not count; their number and every value do.
_CONTENT = "SELECT concat_ws(',', count(*), COALESCE(sum(hashtextextended(copied_row::text, 0)), 0)) FROM ONLY {} AS copied_row"
_COMPARE = "BEGIN IF ({}) <> {} THEN RAISE EXCEPTION '%', {}; END IF; END"
Contents = Mapping[str, str]  # number of rows and sum of their hashes, by the quoted name of the table


def rows_of(contents: Contents) -> int:
    return sum(int(content.partition(",")[0]) for content in contents.values())


class Checkpoint(msgspec.Struct, frozen=True, rename="camel"):
    version: str
    directory: str = msgspec.field(name="checkpointPath")
    manifest_sha: str


@dataclass(frozen=True)
class DatabaseSnapshot:
    """One moment of a database, for as long as its transaction is open."""

    connection: Connection
    database: Database
    name: str
    major: int

    def contents(self, tell: Progress) -> Contents:
        """Rows and hashes of every table. Raises DatabaseError: the role may not read one of them."""
        tables = [sql.Identifier(*row).as_string() for row in self.connection.execute(_OWN_RELATIONS, [SCHEMAS, ["r"]])]
        found: dict[str, str] = {}
        for number, table in enumerate(tables):
            tell("tables", number, len(tables))
            try:
                found[table] = str(self.connection.value(_CONTENT.format(table)))
            except psycopg.errors.InsufficientPrivilege as refused:
                raise DatabaseError(
                    f"A backup reads every table, and the role of {self.database.address} may not: {first_clause(refused)}. "
                    "Run it with the tables' owner in DATABASE_URL."
                ) from None
        tell("tables", len(tables), len(tables))
        return found

    def migrations(self) -> list[str]:
        if not self.connection.has_table("babylon_rl.migrations"):
            return []
        return self.connection.column("SELECT id FROM babylon_rl.migrations ORDER BY id")

    def checkpoints(self) -> list[Checkpoint]:
        if not self.connection.has_table("babylon_rl.model_lineage"):
            return []
        return self.connection.rows(Checkpoint, 'babylon_rl.model_lineage WHERE "prunedAt" IS NULL ORDER BY "version"')

    def script(self) -> Iterator[bytes]:
        """Blocks of the script of pg_dump that makes the same database.

        Raises DatabaseError: there is no pg_dump for this server, or it fails; then after its last block.
        """
        others = [sql.Identifier(name).as_string() for name in self.connection.column(_OTHER_SCHEMAS, [SCHEMAS])]
        options = ["--no-owner", "--no-privileges", "--no-tablespaces", "--no-publications", "--no-subscriptions"]
        # Named so, and not by --schema: that would leave out extensions, and make the schema public, which every database has.
        options += [f"--exclude-schema={name}" for name in others]
        command = [str(tool("pg_dump", self.major)), f"--snapshot={self.name}", *options]
        with _running(command, self.database.direct_url, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as (child, errors):
            assert child.stdout is not None
            before = _OF_17
            while block := child.stdout.read(_BLOCK):
                yield block.replace(before, b"", 1) if before else block
                before = b""  # it is among the first lines
            if child.wait():
                raise DatabaseError(f"The database at {self.database.address} cannot be copied: {_complaint(errors)}.")


@contextmanager
def snapshot(database: Database) -> Iterator[DatabaseSnapshot]:
    """Open a snapshot of the database, past any pooler."""
    with database.connect_directly() as connection:
        connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        with connection.transaction():
            connection.execute(f"{_NO_TIME_LIMITS}; {_SAME_TEXT}SET LOCAL row_security = off; SET LOCAL search_path = ''")
            name = connection.value("SELECT pg_export_snapshot()")
            yield DatabaseSnapshot(connection, database, str(name), connection.info.server_version // 10_000)


def refuse_unless_empty(database: Database) -> None:
    """Raise UsageError where one of our schemas holds a table, view or sequence."""
    with database.connect_directly() as connection:
        there = [".".join(row) for row in connection.execute(_OWN_RELATIONS, [SCHEMAS, list("rpvmSf")])]
    if there:
        raise UsageError(
            f"The database at {database.address} is not empty: it holds {there[0]}{f' and {len(there) - 1} more' if there[1:] else ''}. "
            "Nothing was changed. Take a new database, or another BABYLON_RL_HOME for a new embedded one."
        )


def fill(target: Database, script: Iterable[bytes], contents: Contents) -> None:
    """Execute a script in an empty database and compare the tables, in one transaction.

    Raises DatabaseError: a statement fails, or a table differs; the database is as it was.
    """
    # Schemas that an administrator has made for the role beforehand go; one that holds anything makes this fail.
    begin = f'BEGIN; {_NO_TIME_LIMITS}; DROP SCHEMA IF EXISTS babylon_rl, "{DAGSTER_SCHEMA}" RESTRICT;\n'
    command = [str(tool("psql", 0)), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]
    with _running(command, target.direct_url, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as (child, errors):
        assert child.stdin is not None
        with suppress(BrokenPipeError):  # psql has ended, and says why below
            child.stdin.write(begin.encode())
            # Raises where the script is not whole: psql is killed before it has read COMMIT.
            for block in _with_brackets(script):
                child.stdin.write(block)
            comparisons = "".join(_comparison(table, content) for table, content in contents.items())
            child.stdin.write(f"{_SAME_TEXT}{comparisons}COMMIT;\n".encode())
            child.stdin.close()
        if child.wait():
            raise DatabaseError(f"The database at {target.address} cannot be filled, and is as it was: {_complaint(errors)}.")


def _with_brackets(script: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in script:
        text = (rest + block).replace(_PRINTED, _MEANT)
        end = max(0, len(text) - len(_PRINTED) + 1)  # of this block alone: what follows may be the beginning of the line
        rest = text[end:]
        yield text[:end]
    yield rest


def _comparison(table: str, content: str) -> str:
    differs = sql.Literal(f"the rows of {table} are not those that were copied").as_string()
    body = _COMPARE.format(_CONTENT.format(table), sql.Literal(content).as_string(), differs)
    return f"DO {sql.Literal(body).as_string()};\n"


@contextmanager
def _running(command: list[str], url: str, *, stdin: int, stdout: int) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Run a program of Postgres on this database; killed where the block raises. Yields it and its messages."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=errors, env=_environment(url))
        try:
            yield child, errors
        finally:
            child.kill()
            child.wait()
            for pipe in filter(None, (child.stdin, child.stdout)):
                with suppress(BrokenPipeError):
                    pipe.close()


def _environment(url: str) -> dict[str, str]:
    """Variables of libpq for a child: what stands in its arguments is seen by every user of the machine."""
    variables = {option.keyword.decode(): option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar is not None}
    given = {variables[name]: str(value) for name, value in conninfo_to_dict(url).items() if name in variables and value is not None}
    return os.environ | given | {"LC_ALL": "C"}


def _complaint(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()
    return next((line for line in lines if "error:" in line.lower()), lines[-1] if lines else "it was ended").strip().rstrip(".")


def tool(name: str, major: int) -> Path:
    """Path of one of Postgres' programs, of this major version or newer: the wheel's, else that on PATH.

    Raises DatabaseError: there is none; the message names those found.
    """
    candidates = [] if (on_path := shutil.which(name)) is None else [Path(on_path)]
    with suppress(EmbeddedServerError):  # without the wheel, which not every platform has
        candidates.insert(0, Cluster(Path()).programs / name)
    found = []
    for path in filter(Path.exists, candidates):
        version = version_of(path)
        if version and int(version.partition(".")[0]) >= major:
            return path
        found.append(f"{path} is of {version or 'no version'}")
    raise DatabaseError(
        f"{name} of Postgres {major} or newer is needed ({', '.join(found) or 'none was found'}). Install Postgres' client programs "
        f"(such as the package postgresql-client-{major}), so that {name} is on PATH."
    )
