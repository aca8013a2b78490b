"""Rows beside Dagster's: heartbeats of runs, versions of hours that were reported; and the cleanup of its event logs.

A heartbeat names the process that holds a run. A session lock cannot serve, because none holds behind a transaction pooler
(docs/decisions/0009). Their times are the server's, as a wrong verdict ends a live run.

Versions are written after the report. Each Dagster storage has rows of its own, so that a new one, or another project's, gets everything.

Of the logs, materializations, observations, checks and the state of runs are records: they say which data a version was made of, and
Dagster decides by them what is stale. Only the rows between them are deleted, of runs that ended long ago.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from babylon_rl.store.columns import SERVER_NOW, in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import DAGSTER_SCHEMA

# A run that was reported dead, or that another process has taken, cannot have its row again.
_BEAT = f"""
    INSERT INTO babylon_rl.run_heartbeats AS held ("runId", "holder", "seenAt") VALUES (%s, %s, {SERVER_NOW})
    ON CONFLICT ("runId") DO UPDATE SET "holder" = excluded."holder", "seenAt" = excluded."seenAt"
    WHERE held."endedAt" IS NULL AND held."holder" IN ('', excluded."holder")
    RETURNING "runId"
"""
_EXPECT = f"""
    INSERT INTO babylon_rl.run_heartbeats ("runId", "holder", "seenAt") SELECT unnest(%s::text[]), '', {SERVER_NOW}
    ON CONFLICT ("runId") DO NOTHING
"""
# FOR UPDATE: a beat and a verdict about the same run wait for each other.
_READ = f"""
    SELECT "runId", "holder", "seenAt", extract(epoch FROM {SERVER_NOW} - "seenAt")::float8 FROM babylon_rl.run_heartbeats
    WHERE "runId" = ANY(%s) ORDER BY "runId" FOR UPDATE
"""
_FORGET = f"""
    DELETE FROM babylon_rl.run_heartbeats WHERE NOT "runId" = ANY(%s) AND "seenAt" < {SERVER_NOW} - interval '1 day'
"""


class Heartbeat(msgspec.Struct, frozen=True):
    """Last heartbeat of a run. ``holder`` is the process that holds it, empty before the first beat."""

    run_id: str
    holder: str
    seen_at: datetime
    silent_s: float


def beat(connection: Connection, run_id: str, holder: str) -> bool:
    """Write a heartbeat of a run held by ``holder``. False if it was reported dead or another process holds it."""
    with connection.transaction():
        return connection.execute(_BEAT, (run_id, holder)).fetchone() is not None


def lock_heartbeats(connection: Connection, run_ids: Sequence[str]) -> list[Heartbeat]:
    """Return the heartbeats of runs, locked until the transaction ends; a run without one gets one of now."""
    # Rows are inserted and locked in one order, so that two processes that look at the same runs do not block each other.
    connection.execute(_EXPECT, (sorted(run_ids),))
    return [Heartbeat(*row) for row in connection.execute(_READ, (list(run_ids),))]


def end_heartbeat(connection: Connection, run_id: str) -> None:
    """Mark a run as reported dead, in the caller's transaction."""
    connection.execute(f"""UPDATE babylon_rl.run_heartbeats SET "endedAt" = {SERVER_NOW} WHERE "runId" = %s""", (run_id,))


def forget_heartbeats(connection: Connection, but: Sequence[str]) -> None:
    """Delete heartbeats silent for more than a day, except those of the runs ``but``. Runs in the caller's transaction."""
    connection.execute(_FORGET, (list(but),))


_TOLD = """
    SELECT "window", "version" FROM babylon_rl.observed_versions
    WHERE "storage" = %s AND "source" = %s AND "window" >= %s AND "window" < %s
"""


def told_versions(connection: Connection, storage: str, source: str, first: str, end: str) -> dict[str, str]:
    """Return the versions last reported of a source, by window, from ``first`` (inclusive) to ``end`` (exclusive)."""
    return dict(connection.execute(_TOLD, [storage, source, first, end]).fetchall())


def lock_reports(connection: Connection, storage: str) -> None:
    """Keep other reports to a storage waiting until the transaction ends."""
    connection.take_lock(f"observed_versions {storage}")


def note_versions(connection: Connection, storage: str, source: str, versions: Mapping[str, str]) -> None:
    """Store the versions that were reported of a source, by window."""
    rows = [{"storage": storage, "source": source, "window": window, "version": version} for window, version in versions.items()]
    connection.upsert("babylon_rl.observed_versions", rows, keys=("storage", "source", "window"))


def forget_versions(connection: Connection, storage: str, source: str) -> None:
    """Delete the reports of a source to a storage that has lost them."""
    connection.execute('DELETE FROM babylon_rl.observed_versions WHERE "storage" = %s AND "source" = %s', [storage, source])


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
# Runs in one transaction.
_AT_ONCE = 500


def ended_runs(connection: Connection, before: datetime, but_partitions: Collection[str]) -> list[str]:
    """Return the ids of runs that ended before a time (naive UTC). Without those of ``but_partitions``; empty without Dagster's tables."""
    if not connection.has_table(f"{DAGSTER_SCHEMA}.event_logs"):
        return []
    return connection.column(_ENDED, [before, list(but_partitions)])


def delete_logs(connection: Connection, run_ids: Sequence[str], *, dry_run: bool) -> int:
    """Delete the passing events of runs, some runs in a transaction, and return their number. ``dry_run`` only counts."""
    deleted = 0
    for some in in_parts(run_ids, _AT_ONCE):
        with connection.transaction():
            if dry_run:
                deleted += connection.value(f"SELECT count(*) FROM {DAGSTER_SCHEMA}.event_logs e WHERE {_PASSING}", [some]) or 0
            else:
                deleted += connection.execute(f"DELETE FROM {DAGSTER_SCHEMA}.event_logs e WHERE {_PASSING}", [some]).rowcount
    return deleted
