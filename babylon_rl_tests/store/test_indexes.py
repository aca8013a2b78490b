"""The optional indexes: built beside writers, rebuilt after a crash, and every answer the same with them."""

import threading
import time
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.freezing import count_unread
from babylon_rl.store.indexes import INDEXES, UNNAMED, VERSIONS, WITHOUT_HOUR, build_indexes, index_state
from babylon_rl.store.observation import trajectory_versions
from babylon_rl.store.trajectories import newest_window_with_rows, trajectory_rows, windows_with_rows
from babylon_rl.training.freezing import freeze_bounds
from babylon_rl.windows import is_window_id
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.plans import RecordedDatabase, explainable, plan_text
from babylon_rl_tests.rows import insert, make_trajectory

FIRST, END = "2025-10-01T00:00", "2025-12-01T00:00"
ODD_IDS = [None, "", "benchmark-1", "2025-11-31T10:00", "2024-02-29T10:00", "2025-02-29T10:00", "0000-01-01T00:00", "2025-11-15T10:00 "]
END_BUILDING = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND datname = current_database()
"""


def found(database: Database) -> list[str]:
    return [built.found for built in build_indexes(database)]


def answers(connection: Connection) -> dict[str, Any]:
    """Everything that looks for rows without a window id."""
    windows = windows_with_rows(connection, FIRST, END)
    bounds = freeze_bounds(connection, Settings(_env_file=None), datetime(2025, 12, 1), (FIRST, END))
    return {
        "windows": windows,
        "rows": sorted((row.window, row.trajectory_id) for row in trajectory_rows(connection, windows)),
        "versions": trajectory_versions(connection, FIRST, END),
        "newest": newest_window_with_rows(connection, END),
        "unread": count_unread(connection, bounds),
    }


def test_every_answer_is_the_same_with_the_indexes(sample_database: Database) -> None:
    with sample_database.connect(autocommit=True) as connection:
        rows = [make_trajectory(f"odd-{number}", windowId=window, minute=70) for number, window in enumerate(ODD_IDS)]
        insert(connection, "trajectories", [*rows, make_trajectory("newest", windowId=None, startTime=datetime(2025, 11, 29, 1))])
        without = answers(connection)
        assert found(sample_database) == ["absent", "absent"]
        assert answers(connection) == without
        assert without["newest"] == "2025-11-29T01:00"
    assert found(sample_database) == ["valid", "valid"]


def test_only_ids_that_surely_name_an_hour_are_left_out(database: Database) -> None:
    start = datetime(2024, 1, 1)
    days = [(start + timedelta(days=n)).strftime("%Y-%m-%d") for n in range(366)]
    ids = [f"{day}T{hour:02}:00" for day in days for hour in (0, 9, 10, 19, 20, 23)]
    ids += [f"2025-{month:02}-{day:02}T00:00" for month in range(14) for day in range(33)]
    ids += [
        "2025-01-01T24:00",
        "2025-01-01T00:30",
        "2025-1-1T00:00",
        "2025-01-01T00:00:00",
        "0000-02-01T00:00",
        "٢٠٢٥-01-01T00:00",
        "",
        "x",
    ]
    with database.connect() as connection:
        told = connection.execute(f'SELECT "windowId", {WITHOUT_HOUR} FROM unnest(%s::text[]) AS given ("windowId")', [ids]).fetchall()
    assert {window for window, odd in told if odd == is_window_id(window)} == {
        f"2024-02-29T{hour:02}:00" for hour in (0, 9, 10, 19, 20, 23)
    }


@pytest.mark.slow
def test_rows_without_an_id_are_found_by_the_index_alone(database: Database) -> None:
    many = ManyRows(20_000, datetime(2025, 10, 1), datetime(2025, 10, 11), agents=100, unnamed_agents=5)
    with database.connect(autocommit=True) as connection:
        insert_many(connection, many)
        build_indexes(database)
        connection.execute("VACUUM (ANALYZE) public.trajectories")
        recorded = RecordedDatabase(database.url)
        with recorded.connect() as watched:
            trajectory_versions(watched, "2025-10-03T00:00", "2025-10-03T05:00")
            list(trajectory_rows(watched, ["2025-10-03T00:00"]))
        plans = [plan_text(connection, sent) for sent in recorded.sent if explainable(sent) and "public.trajectories" in sent.text]
        assert sum(UNNAMED.name in plan for plan in plans) == 2
        assert sum(f"Index Only Scan using {VERSIONS.name}" in plan for plan in plans) == 1
        assert not any('"User"' in plan or "Seq Scan on trajectories" in plan for plan in plans)


def test_an_index_that_a_crash_left_invalid_is_built_again(database: Database) -> None:
    with database.connect() as holds, database.connect(autocommit=True) as connection:
        # A snapshot that building waits for, and the end of its server process while it waits.
        holds.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holds.execute("SELECT FROM public.trajectories")
        failed: list[Exception] = []

        def build() -> None:
            try:
                build_indexes(database)
            except psycopg.OperationalError as ended:
                failed.append(ended)

        builder = threading.Thread(target=build)
        builder.start()
        while index_state(connection, UNNAMED) == "absent":
            time.sleep(0.02)
        with pytest.raises(DatabaseError, match="Another process builds the indexes"):
            build_indexes(database)
        connection.execute(END_BUILDING)
        builder.join()
        holds.rollback()
        assert failed and [index_state(connection, index) for index in INDEXES] == ["invalid", "absent"]
        assert [built.found for built in build_indexes(database, check_only=True)] == ["invalid", "absent"]
        assert found(database) == ["invalid", "absent"]
        assert [index_state(connection, index) for index in INDEXES] == ["valid", "valid"]


def test_only_the_owner_builds_and_the_others_are_told_what_to_run(database: Database) -> None:
    with database.connect(autocommit=True) as connection:
        role = f"no_owner_{connection.info.dbname}"
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        try:
            url = f"postgresql://{role}:x@127.0.0.1:{connection.info.port}/{connection.info.dbname}"
            with pytest.raises(DatabaseError, match=f"needs the owner of its table.*CREATE INDEX CONCURRENTLY {UNNAMED.name}"):
                build_indexes(Database(url, url))
        finally:
            connection.execute(f"DROP ROLE {role}")


def test_a_partitioned_table_is_said_to_need_its_indexes_one_by_one(database: Database) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute("ALTER TABLE public.trajectories RENAME TO whole")
        connection.execute('CREATE TABLE public.trajectories (LIKE whole) PARTITION BY RANGE ("startTime")')
    with pytest.raises(DatabaseError, match=f"build it on each partition, .*: CREATE INDEX CONCURRENTLY {UNNAMED.name}"):
        build_indexes(database)
