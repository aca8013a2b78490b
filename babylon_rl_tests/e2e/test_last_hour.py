"""The last hour of the graph in ``babylon-rl dev``: the newest with rows of a game that is over, and on with a game that goes on."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from babylon_rl.assets.partitions import end_of_hours
from babylon_rl.cli.system import last_window
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import newest_complete, utc_now, window_start
from babylon_rl_tests.e2e.dev import ask, running_dev

LAST = "2025-10-30T01:00"  # of the sample
KEYS = '{ assetNodeOrError(assetKey: {path: ["window_groups"]}) { ... on AssetNode { partitionKeys } } }'
MADE = '{ assetNodeOrError(assetKey: {path: ["window_groups"]}) { ... on AssetNode { assetMaterializations(limit: 20) { partition } } } }'
# The rows of an hour, once more as those of another.
COPY = """
    INSERT INTO trajectories SELECT (r).* FROM (
        SELECT jsonb_populate_record(t, jsonb_build_object(
            'id', t.id || '-again', 'trajectoryId', t."trajectoryId" || '-again', 'windowId', %(to)s::text,
            'startTime', %(at)s::timestamp, 'endTime', %(at)s::timestamp)) AS r
        FROM trajectories t WHERE "windowId" = '2025-10-29T14:00'
    ) copied
"""


def test_a_game_that_goes_on_has_no_last_hour(sample_database: Database, settings: Settings):
    over = window_start(LAST) + timedelta(days=30)
    assert last_window(sample_database, settings, over) == {"LAST_WINDOW": LAST}
    # A pause of some days is no end, and what a person set stands.
    assert last_window(sample_database, settings, window_start(LAST) + timedelta(days=3)) == {}
    assert last_window(sample_database, settings.model_copy(update={"last_window": "2025-10-29T15:00"}), over) == {}
    assert last_window(sample_database, settings.model_copy(update={"first_window": "2025-11-01T00:00"}), over) == {}


def test_the_graph_ends_with_its_last_hour_until_rows_come_after_it(sample_database: Database, settings: Settings):
    assert end_of_hours(settings, utc_now()) is None
    given = settings.model_copy(update={"database_url": None, "last_window": LAST})
    assert end_of_hours(given, utc_now()) == "2025-10-30T02:00"
    with sample_database.connect(autocommit=True) as connection:
        connection.execute(COPY, {"to": "2025-11-15T10:00", "at": datetime(2025, 11, 15, 10, 5)})
    named = Settings(DATABASE_URL=sample_database.url, last_window=LAST, babylon_rl_home=settings.home)
    assert end_of_hours(named, utc_now()) is None
    assert end_of_hours(named.model_copy(update={"last_window": "2025-11-15T10:00"}), utc_now()) == "2025-11-15T11:00"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_game_that_goes_on_after_its_last_hour_is_followed(server: str, template: Callable[[str], str], tmp_path: Path):
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE goes_on TEMPLATE {template('sample')}")
    url = f"{server.rpartition('/')[0]}/goes_on"
    with running_dev(tmp_path / "home", DATABASE_URL=url, AUTOMATION_SECONDS="5", FIRST_WINDOW="2025-10-29T00:00") as dev:
        ui = dev.url()

        def until(query: str, over: Callable[[dict[str, list[object]]], bool]) -> None:
            deadline = time.monotonic() + 240
            while not over(found := ask(ui, query)["assetNodeOrError"]):
                assert time.monotonic() < deadline, f"{found} {dev.log.read_text()[-3000:]}"
                time.sleep(1)

        until(KEYS, lambda node: node["partitionKeys"][-1:] == [LAST])
        until(MADE, lambda node: {"partition": "2025-10-29T14:00"} in node["assetMaterializations"])
        new = newest_complete(utc_now(), timedelta(minutes=10))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(COPY, {"to": new, "at": window_start(new) + timedelta(minutes=5)})
        until(KEYS, lambda node: node["partitionKeys"][-1] >= new)
        until(MADE, lambda node: {"partition": new} in node["assetMaterializations"])
