"""Planned events of a range of hours: what Dagster's own storage does one at a time, ours does together."""

import json
from collections import Counter
from typing import Any

import dagster as dg
import pytest
from dagster_postgres import PostgresEventLogStorage

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.launch import job_definition
from babylon_rl.serving.dagster_client import RANGE_END, RANGE_START
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.assets.conftest import NOW

pytestmark = pytest.mark.slow

FIRST, LAST, HOURS = "2025-10-29T13:00", "2025-10-29T16:00", 4
EVENTS = """SELECT dagster_event_type, step_key, asset_key, "partition", event FROM event_logs WHERE run_id = %s ORDER BY id"""
CHECKS = """SELECT asset_key, check_name, "partition", execution_status, evaluation_event, evaluation_event_storage_id,
    materialization_event_storage_id FROM asset_check_executions WHERE run_id = %s ORDER BY asset_key, check_name, "partition" """
ASSETS = """SELECT asset_key, last_run_id, last_materialization, last_materialization_timestamp IS NULL FROM asset_keys ORDER BY 1"""


@pytest.fixture
def job(sample_database: Database, settings: Settings) -> dg.JobDefinition:
    sample_database.prepare_dagster_schema()
    return job_definition("hours", Babylon(settings, sample_database, lambda: NOW))


def planned(instance: dg.DagsterInstance, database: Database, job: dg.JobDefinition) -> tuple[Counter[Any], Counter[Any], list[Any]]:
    """What planning a run of the hours leaves in the events, check results and assets, without ids and times."""
    run = instance.create_run_for_job(job, tags={RANGE_START: FIRST, RANGE_END: LAST})

    def timeless(event: str) -> str:
        return json.dumps({name: value for name, value in json.loads(event).items() if name != "timestamp"}).replace(run.run_id, "RUN")

    with database.connect() as connection:
        connection.execute("SET search_path TO babylon_dagster")
        events = connection.execute(EVENTS, [run.run_id]).fetchall()
        checks = connection.execute(CHECKS, [run.run_id]).fetchall()
        assets = connection.execute(ASSETS).fetchall()
    return (
        Counter((*values, timeless(event)) for *values, event in events),
        Counter((*values, timeless(event), event_id is not None, target) for *values, event, event_id, target in checks),
        [(asset, last == run.run_id, *values) for asset, last, *values in assets],
    )


def test_planned_events_are_those_of_dagsters_own_storage(job: dg.JobDefinition, sample_database: Database, settings: Settings):
    with open_instance(sample_database, settings) as instance:
        ours = planned(instance, sample_database, job)
        instance.event_log_storage.__class__ = PostgresEventLogStorage
        assert ours == planned(instance, sample_database, job)
    events, checks, assets = ours
    assert (
        sum(values[0] == "ASSET_MATERIALIZATION_PLANNED" for values in events) == HOURS * len(assets) == len(events) - len(checks) // HOURS
    )
    assert {values[2] for values in checks} == {f"2025-10-29T{hour}:00" for hour in range(13, 17)} and all(last for _, last, *_ in assets)


def test_a_planned_range_asks_the_database_a_fixed_number_of_times(job: dg.JobDefinition, sample_database: Database, settings: Settings):
    from sqlalchemy import event

    asked: Counter[str] = Counter()
    with open_instance(sample_database, settings) as instance:
        engine = instance.event_log_storage._engine  # type: ignore[attr-defined]

        def counts(last: str) -> int:
            asked.clear()
            instance.create_run_for_job(job, tags={RANGE_START: FIRST, RANGE_END: last})
            return asked.total()

        event.listen(engine, "before_cursor_execute", lambda *given: asked.update([given[2]]))
        counts(LAST)  # what a process looks up once
        assert counts(LAST) == counts("2025-10-31T11:00")
