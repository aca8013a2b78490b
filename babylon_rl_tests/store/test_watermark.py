"""Whether anything was written to some tables, told by the server's counters."""

import psycopg
import pytest

from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.observation import watermark
from babylon_rl_tests.assets.conftest import COUNTED

TABLES = ("public.game", 'public."Other"')


@pytest.fixture
def game(database: Database) -> Database:
    """Two tables of three rows."""
    with database.connect() as connection:
        for table in TABLES:
            connection.execute(f"CREATE TABLE {table} AS SELECT n AS id, n AS price FROM generate_series(1, 3) n")
        connection.execute(COUNTED)
    return database


def mark(game: Database, *of: object, tables: tuple[str, ...] = TABLES, without_inserts: tuple[str, ...] = ()) -> str | None:
    with game.connect(autocommit=True) as connection:
        return watermark(connection, tables, *of, without_inserts=without_inserts)


def write(game: Database, *statements: str) -> None:
    """Sent in one session, which hands its counts over."""
    with game.connect(autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute(COUNTED)


@pytest.mark.parametrize(
    "statements",
    [
        ['INSERT INTO "Other" VALUES (4, 4)'],
        ["UPDATE game SET price = 5 WHERE id = 2"],
        ["DELETE FROM game WHERE id = 3"],
        ["BEGIN", "SAVEPOINT s", "UPDATE game SET price = 0", "ROLLBACK TO s", "DELETE FROM game", "COMMIT"],
        ["COPY game FROM PROGRAM 'echo 4 4' (DELIMITER ' ')"],
        ["TRUNCATE game"],
        ["DROP TABLE game", "CREATE TABLE game AS SELECT n AS id, n AS price FROM generate_series(1, 3) n"],
        ["SELECT pg_stat_reset()"],
    ],
)
def test_whatever_is_written_makes_another_mark(game: Database, statements: list[str]):
    before = mark(game)
    assert before is not None and mark(game) == before
    write(game, *statements)
    after = mark(game)
    assert after is not None and after != before


def test_what_is_read_kept_up_or_written_elsewhere_leaves_the_mark(game: Database):
    before = mark(game)
    write(game, "SELECT * FROM game", "VACUUM ANALYZE game", "CREATE TABLE third AS SELECT 1", "CREATE INDEX ON game (id)")
    assert mark(game) == before and mark(game, "other hours") != before


def test_arriving_rows_can_be_left_out(game: Database):
    marks = [mark(game, tables=TABLES[1:], without_inserts=TABLES[:1])]
    for statement in ("INSERT INTO game VALUES (4, 4)", "UPDATE game SET price = 5 WHERE id = 4", "DELETE FROM game WHERE id = 4"):
        write(game, statement)
        marks.append(mark(game, tables=TABLES[1:], without_inserts=TABLES[:1]))
    assert marks[0] == marks[1] and len(set(marks)) == 3


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE game"],
        ["DROP TABLE game", "CREATE VIEW game AS SELECT 1 AS id"],
        ["DROP TABLE game", "CREATE TABLE game (id int) PARTITION BY HASH (id)"],
        ["CREATE TABLE child () INHERITS (game)"],
        ["ALTER ROLE CURRENT_USER IN DATABASE {} SET track_counts = off"],
    ],
)
def test_where_the_server_does_not_count_there_is_no_mark(game: Database, statements: list[str]):
    write(game, *[statement.format(game.url.rpartition("/")[2]) for statement in statements])
    assert mark(game) is None


def test_a_transaction_compiles_nothing_and_the_session_is_left_as_it_was(database: Database):
    def jit(connection: psycopg.Connection[tuple[str]]) -> str:
        return (connection.execute("SHOW jit").fetchone() or ("",))[0]

    with connect(database.url, autocommit=True) as connection:
        connection.execute("SET jit = on")
        with connection.transaction():
            assert jit(connection) == "off"
            with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
                connection.execute("SELECT 1 / 0")
            assert jit(connection) == "off"
        assert jit(connection) == "on"
