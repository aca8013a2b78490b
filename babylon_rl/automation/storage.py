"""Dagster's storage in the Babylon database, with a clear message if its address is missing.

A run of a range plans a materialization and check results for every hour. Dagster stores the former one at a time and serializes the
latter once per hour; here both are one statement.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from dagster import DagsterEventType, EventLogEntry

# Not in the public API; the pinned release hands the first to every configurable class.
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from sqlalchemy import make_url, text

from babylon_rl.assets.resources import HOW_TO_START
from babylon_rl.store.connection import LOST_AFTER_A_MINUTE

STORAGE_URL = "BABYLON_RL_DAGSTER_URL"
WITHOUT_VARIABLES = f"{STORAGE_URL} is not set: Dagster was started without this project's variables. {HOW_TO_START}"


PLANNED_CHECKS = text("""
    INSERT INTO asset_check_executions (asset_key, check_name, "partition", run_id, execution_status, evaluation_event,
        evaluation_event_timestamp, evaluation_event_storage_id)
    SELECT :asset, :check, hour, :run, :status, :event, :moment, :event_id FROM unnest(CAST(:hours AS text[])) AS hour
""")


class HourlyEventLog(PostgresEventLogStorage):
    """Event log that stores the planned events of a range's hours together."""

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
        # Serialized once, and stored by one statement; the base class serializes the event for each hour.
        row = self._event_to_row(event)
        values = {
            "asset": planned.asset_key.to_string(), "check": planned.check_name, "run": row["run_id"], "event": row["event"],
            "moment": row["timestamp"], "event_id": event_id, "status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "hours": list(planned.partitions_subset.get_partition_keys()),
        }  # fmt: skip
        with self.index_connection() as connection:
            connection.execute(PLANNED_CHECKS, values)


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
