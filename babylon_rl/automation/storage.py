"""Dagster's storage in the Babylon database, with a clear message if its address is missing.

A run of a range plans a materialization and check results for every hour. Dagster stores the former one at a time and serializes the
latter once per hour; here both are one statement. A run has one result of a check, and Dagster shows the hours of a range as skipped; here
those that the check measured pass with that result. Dagster adds up the states of a check hour by hour, a millisecond each; here one query
asks for the hours of each state.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Self

from dagster import (
    AssetCheckKey,
    AssetKey,
    DagsterEventType,
    EventLogEntry,
    PartitionsDefinition,
    TimeWindowPartitionsDefinition,
)

# Not in the public API, but what the pinned release calls and is called by.
from dagster._core.asset_graph_view.serializable_entity_subset import SerializableEntitySubset
from dagster._core.definitions.partitions.subset import PartitionsSubset
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionResolvedStatus as Resolved
from dagster._core.storage.asset_check_state import AssetCheckState
from dagster._core.storage.dagster_run import FINISHED_STATUSES, RunsFilter
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_shared.record import copy
from sqlalchemy import make_url, text

from babylon_rl.assets.resources import HOW_TO_START
from babylon_rl.store.connection import LOST_AFTER_A_MINUTE
from babylon_rl.windows import next_window, window_range

STORAGE_URL = "BABYLON_RL_DAGSTER_URL"
WITHOUT_VARIABLES = f"{STORAGE_URL} is not set: Dagster was started without this project's variables. {HOW_TO_START}"

# Metadata of a range's check result: stretches of hours that it looked at, as (first, last).
MEASURED = "babylon_rl/measured_hours"
NOTHING_FOUND = "Nothing found."
AN_HOUR = "{hour}"

PLANNED_CHECKS = text("""
    INSERT INTO asset_check_executions (asset_key, check_name, "partition", run_id, execution_status, evaluation_event,
        evaluation_event_timestamp, evaluation_event_storage_id)
    SELECT :asset, :check, hour, :run, :status, :event, :moment, :event_id FROM unnest(CAST(:hours AS text[])) AS hour
""")
# What was made before the asset was wiped no longer counts. The index has no times: they are looked at only where it was.
_MADE = """asset_key = :asset AND dagster_event_type = 'ASSET_MATERIALIZATION'
    AND (CAST(:wiped AS timestamp) IS NULL OR timestamp > CAST(:wiped AS timestamp))"""
_MATERIALIZATION = f"""(
    SELECT max(id) FROM event_logs WHERE {_MADE} AND event_logs."partition" = asset_check_executions."partition"
)"""
_OF_RUN = "asset_key = :asset AND check_name = :check AND run_id = :run"
PASSED_HOURS = text(f"""
    UPDATE asset_check_executions SET execution_status = :status, evaluation_event = replace(:event, '{AN_HOUR}', "partition"),
        evaluation_event_timestamp = :moment, evaluation_event_storage_id = :event_id, materialization_event_storage_id = {_MATERIALIZATION}
    WHERE {_OF_RUN} AND execution_status = 'PLANNED' AND "partition" = ANY(:hours)
""")
BAD_HOURS = text(f"""
    UPDATE asset_check_executions SET materialization_event_storage_id = {_MATERIALIZATION}
    WHERE {_OF_RUN} AND execution_status <> 'PLANNED' AND "partition" IS NOT NULL AND materialization_event_storage_id IS NULL
""")

# The newest record of each hour decides. Hours that are only planned are grouped by their run; hours that were made again after their
# check have neither state nor run.
CHECKED_HOURS = text(f"""
    WITH newest AS (
        SELECT DISTINCT ON (check_name, "partition") check_name, "partition", execution_status, run_id,
            evaluation_event_storage_id AS event_id, materialization_event_storage_id AS checked_id
        FROM asset_check_executions
        WHERE asset_key = :asset AND check_name = ANY(:checks) AND evaluation_event_storage_id IS NOT NULL
        ORDER BY check_name, "partition", id DESC
    ), made AS (
        SELECT "partition", max(id) AS made_id FROM event_logs WHERE {_MADE} AND "partition" IS NOT NULL GROUP BY "partition"
    ), states AS (
        SELECT check_name, "partition", greatest(event_id, made_id) AS event_id,
            CASE WHEN execution_status = 'PLANNED' THEN run_id END AS run_id,
            CASE WHEN execution_status <> 'PLANNED' AND (made_id IS NULL OR made_id = checked_id) THEN execution_status END AS state
        FROM newest LEFT JOIN made USING ("partition")
    )
    SELECT check_name, state, run_id, array_agg("partition") AS hours, max(event_id) AS newest_id
    FROM states GROUP BY check_name, state, run_id
""")


class HourlyEventLog(PostgresEventLogStorage):
    """Event log that stores and reads what Dagster does hour by hour for many hours together."""

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store planned materializations with one statement, all other events as Dagster does."""
        planned = [event for event in events if event.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION_PLANNED]
        if planned:
            rows, table = [self._event_to_row(event) for event in planned], SqlEventLogStorageTable
            with self._connect() as connection:
                inserted = connection.execute(table.insert().returning(table.c.id, sort_by_parameter_order=True), rows)
                ids = [int(row[0]) for row in inserted]
            # The asset's own row keeps its newest event only.
            newest = {row["asset_key"]: (event, event_id) for row, event, event_id in zip(rows, planned, ids, strict=True)}
            with self.index_transaction() as connection:
                for event, event_id in newest.values():
                    self._store_asset_event(connection, event, event_id)
        others = [event for event in events if event.dagster_event_type != DagsterEventType.ASSET_MATERIALIZATION_PLANNED]
        if others:
            super().store_event_batch(others)

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        planned: Any = event.get_dagster_event().event_specific_data
        if planned.partitions_subset is None:
            super()._store_asset_check_evaluation_planned(event, event_id)
            return
        windows = list(planned.partitions_subset.get_partition_keys())
        with self.index_connection() as connection:
            connection.execute(PLANNED_CHECKS, self._values(event, event_id, AssetCheckExecutionRecordStatus.PLANNED, windows))

    def _update_asset_check_evaluation(self, event: EventLogEntry, event_id: int | None) -> None:
        super()._update_asset_check_evaluation(event, event_id)
        dagster_event: Any = event.get_dagster_event()
        evaluation = dagster_event.event_specific_data
        measured = evaluation.metadata.get(MEASURED)
        if measured is None:
            return
        # The result of a range: hours that it measured and that have no result of their own have passed.
        of_hour = copy(evaluation, passed=True, description=NOTHING_FOUND, metadata={}, target_materialization_data=None, partition=AN_HOUR)
        entry = event._replace(user_message="", dagster_event=dagster_event._replace(message=None, event_specific_data=of_hour))
        windows = [window for first, last in measured.value for window in window_range(first, next_window(last))]
        values = self._values(entry, event_id, AssetCheckExecutionRecordStatus.SUCCEEDED, windows)
        with self.index_transaction() as connection:
            connection.execute(PASSED_HOURS, values)
            connection.execute(BAD_HOURS, values)

    def _values(
        self, event: EventLogEntry, event_id: int | None, status: AssetCheckExecutionRecordStatus, windows: list[str]
    ) -> dict[str, Any]:
        """Parameters of a statement about a check's hours; the event is serialized once."""
        of_check: Any = event.get_dagster_event().event_specific_data
        row = self._event_to_row(event)
        return {
            "asset": of_check.asset_key.to_string(), "check": of_check.check_name, "run": row["run_id"], "event": row["event"],
            "moment": row["timestamp"], "event_id": event_id, "status": status.value, "hours": windows,
            "wiped": self._wiped(of_check.asset_key),
        }  # fmt: skip

    def _wiped(self, asset: AssetKey) -> datetime | None:
        """When the asset was last wiped, in UTC without a zone, as the log's times are."""
        (details,) = self._get_assets_details([asset])
        if details is None or details.last_wipe_timestamp is None:
            return None
        return datetime.fromtimestamp(details.last_wipe_timestamp, UTC).replace(tzinfo=None)

    def get_asset_check_state(
        self, keys: Sequence[tuple[AssetCheckKey, PartitionsDefinition | None]]
    ) -> Mapping[AssetCheckKey, AssetCheckState]:
        """States of checks by partition, as Dagster's; one query an asset for checks of hours."""
        of_hours: dict[AssetKey, dict[AssetCheckKey, TimeWindowPartitionsDefinition]] = defaultdict(dict)
        others = []
        for key, definition in keys:
            if isinstance(definition, TimeWindowPartitionsDefinition):
                of_hours[key.asset_key][key] = definition
            else:
                others.append((key, definition))
        states = dict(super().get_asset_check_state(others)) if others else {}
        for asset, checks in of_hours.items():
            states |= self._states_of_hours(asset, checks)
        return states

    def _states_of_hours(
        self, asset: AssetKey, checks: Mapping[AssetCheckKey, TimeWindowPartitionsDefinition]
    ) -> dict[AssetCheckKey, AssetCheckState]:
        values = {"asset": asset.to_string(), "checks": [key.name for key in checks], "wiped": self._wiped(asset)}
        with self.index_connection() as connection:
            rows = connection.execute(CHECKED_HOURS, values).fetchall()
        run_ids = list({row.run_id for row in rows if row.run_id is not None})
        ended = self._instance.get_runs(RunsFilter(run_ids=run_ids, statuses=FINISHED_STATUSES)) if run_ids else []
        after = {run.run_id: Resolved.EXECUTION_FAILED if run.is_failure else Resolved.SKIPPED for run in ended}

        @cache
        def existing(definition: TimeWindowPartitionsDefinition) -> frozenset[str]:
            return frozenset(definition.get_partition_keys())

        @cache  # checks of an asset mostly agree, and a subset takes as long as the query
        def subset(definition: TimeWindowPartitionsDefinition, windows: frozenset[str]) -> PartitionsSubset:
            return definition.subset_with_partition_keys(windows)

        states = {}
        for key, definition in checks.items():
            of_check = [row for row in rows if row.check_name == key.name]
            by_state: dict[Resolved, set[str]] = {state: set() for state in Resolved}
            running = {}
            for row in of_check:
                windows = existing(definition).intersection(row.hours)
                if row.state is not None:
                    by_state[Resolved(row.state)] |= windows
                elif row.run_id is not None:
                    by_state[after.get(row.run_id, Resolved.IN_PROGRESS)] |= windows
                    if row.run_id not in after and windows:
                        running[row.run_id] = SerializableEntitySubset(key, subset(definition, windows))
            states[key] = AssetCheckState(
                latest_storage_id=max((row.newest_id for row in of_check), default=0),
                subsets={state: SerializableEntitySubset(key, subset(definition, frozenset(found))) for state, found in by_state.items()},
                in_progress_runs=running,
            )
        return states


class BabylonStorage(DagsterPostgresStorage):
    """Postgres storage whose address comes from the environment only."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        # The line above has made the tables, or found them.
        self._event_log_storage = HourlyEventLog(postgres_url, should_autocreate_tables=False)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """An empty configuration: dagster.yaml sets nothing."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """The storage at BABYLON_RL_DAGSTER_URL.

        Raises:
            SystemExit: with a sentence, if the variable is not set.
        """
        url = os.environ.get(STORAGE_URL)
        if not url:
            raise SystemExit(WITHOUT_VARIABLES)  # nothing of ours stands above Dagster's own command to catch an error
        parts = make_url(url)
        # As for our own connections: a server that went away without a word is noticed after a minute.
        parts = parts.update_query_dict({name: value for name, value in LOST_AFTER_A_MINUTE.items() if name not in parts.query})
        return cls(parts.render_as_string(hide_password=False), inst_data=inst_data)
