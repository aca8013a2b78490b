"""The database of DATABASE_URL can be checked and read; nothing is written into it."""

import pytest

from babylon_rl.episodes.reading import read_windows
from babylon_rl.settings import Settings
from babylon_rl.store.database import open_database
from babylon_rl.store.migrate import migrate
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows

pytestmark = pytest.mark.live
NEWEST = 24
COLUMNS = """
SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns
WHERE table_schema IN ('public', 'babylon_rl', 'babylon_dagster') ORDER BY 1, 2, 3
"""


def test_the_database_is_checked_and_its_newest_hours_are_read(keys: Settings) -> None:
    if keys.database_url is None:
        pytest.skip("DATABASE_URL is not set: set it to a Babylon database to check and read that one; nothing is written")
    with open_database(keys, prepare=False) as database, database.connect() as connection:
        connection.read_only = True  # the server refuses what would write
        before = connection.execute(COLUMNS).fetchall()
        connection.commit()
        report = migrate(database, check_only=True)
        windows = windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)[-NEWEST:]
        readings = read_windows(connection, windows, keys)
        after = connection.execute(COLUMNS).fetchall()
    assert before == after
    assert list(readings) == windows
    assert all(readings[window].rows > 0 for window in windows)
    print(f"{len(report.applied)} steps to migrate, {len(report.differences)} differences, {len(windows)} hours read")
