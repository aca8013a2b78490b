"""Event logs of Dagster's runs, in its own schema, step by step.

Materializations, observations, checks and the state of runs are records: they say which data a version was made of, and Dagster decides
by them what is stale. Only the rows between them are deleted, of runs that ended long ago.
"""

from collections.abc import Collection, Sequence
from datetime import datetime

from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import DAGSTER_SCHEMA

_ENDED = f"""
    SELECT r.run_id FROM {DAGSTER_SCHEMA}.runs r
    WHERE r.status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND r.update_timestamp < %s AND NOT EXISTS (
        SELECT FROM {DAGSTER_SCHEMA}.run_tags t WHERE t.run_id = r.run_id AND t.key = 'dagster/partition' AND t.value = ANY(%s)
    ) ORDER BY r.run_id
"""
# A line of a log has no type. All types that are not listed here are records, those of a later release too (docs/decisions/0019).
_PASSING = """
    e.run_id = ANY(%s) AND (e.dagster_event_type IS NULL OR e.dagster_event_type IN (
        'ENGINE_EVENT', 'STEP_INPUT', 'STEP_OUTPUT', 'STEP_START', 'STEP_WORKER_STARTING', 'STEP_WORKER_STARTED',
        'RESOURCE_INIT_STARTED', 'RESOURCE_INIT_SUCCESS', 'LOADED_INPUT', 'HANDLED_OUTPUT', 'OBJECT_STORE_OPERATION',
        'ASSET_STORE_OPERATION', 'LOGS_CAPTURED', 'HOOK_COMPLETED', 'HOOK_SKIPPED'))
"""
_COUNT = f"SELECT count(*) FROM {DAGSTER_SCHEMA}.event_logs e WHERE {_PASSING}"
_DELETE = f"DELETE FROM {DAGSTER_SCHEMA}.event_logs e WHERE {_PASSING}"
# Runs in one transaction.
_AT_ONCE = 500


def ended_runs(connection: Connection, before: datetime, but_partitions: Collection[str]) -> list[str]:
    """Return the ids of runs that ended before a time (naive UTC). Without those of ``but_partitions``; empty without Dagster's tables."""
    if not connection.has_table(f"{DAGSTER_SCHEMA}.event_logs"):
        return []
    return [run_id for (run_id,) in connection.execute(_ENDED, [before, list(but_partitions)])]


def delete_logs(connection: Connection, run_ids: Sequence[str], *, dry_run: bool) -> int:
    """Delete the passing events of runs, some runs in a transaction, and return their number. ``dry_run`` only counts."""
    deleted = 0
    for some in in_parts(run_ids, _AT_ONCE):
        with connection.transaction():
            if dry_run:
                deleted += connection.value(_COUNT, [some]) or 0
            else:
                deleted += connection.execute(_DELETE, [some]).rowcount
    return deleted
