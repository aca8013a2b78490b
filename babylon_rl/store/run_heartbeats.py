"""Heartbeats of Dagster runs, with the process that holds each run.

Table babylon_rl.run_heartbeats. A session lock cannot serve, because none holds behind a transaction pooler (docs/decisions/0009). Times
here are the server's, the only ones in the package: the clocks of two machines may differ by more than the allowed silence, and a wrong
verdict ends a live run.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from babylon_rl.store.connection import Connection

_NOW = "clock_timestamp() AT TIME ZONE 'UTC'"
# A run that was reported dead, or that another process has taken, cannot have its row again.
_BEAT = f"""
    INSERT INTO babylon_rl.run_heartbeats AS held ("runId", "holder", "seenAt") VALUES (%s, %s, {_NOW})
    ON CONFLICT ("runId") DO UPDATE SET "holder" = excluded."holder", "seenAt" = excluded."seenAt"
    WHERE held."endedAt" IS NULL AND held."holder" IN ('', excluded."holder")
    RETURNING "runId"
"""
_EXPECT = f"""
    INSERT INTO babylon_rl.run_heartbeats ("runId", "holder", "seenAt") SELECT unnest(%s::text[]), '', {_NOW}
    ON CONFLICT ("runId") DO NOTHING
"""
# FOR UPDATE: a beat and a verdict about the same run wait for each other.
_READ = f"""
    SELECT "runId", "holder", "seenAt", extract(epoch FROM {_NOW} - "seenAt")::float8 FROM babylon_rl.run_heartbeats
    WHERE "runId" = ANY(%s) ORDER BY "runId" FOR UPDATE
"""
_END = f"""UPDATE babylon_rl.run_heartbeats SET "endedAt" = {_NOW} WHERE "runId" = %s"""
_FORGET = f"""
    DELETE FROM babylon_rl.run_heartbeats WHERE NOT "runId" = ANY(%s) AND "seenAt" < {_NOW} - interval '1 day'
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
    connection.execute(_END, (run_id,))


def forget_heartbeats(connection: Connection, but: Sequence[str]) -> None:
    """Delete heartbeats silent for more than a day, except those of the runs ``but``. Runs in the caller's transaction."""
    connection.execute(_FORGET, (list(but),))
