"""babylon_rl.run_heartbeats: the runs of Dagster that are alive, and the process that holds each.

No lock of a session says it, as none holds behind a transaction pooler (docs/decisions/0009). Times here are the server's, the only ones
in the package: the clocks of two machines may differ by more than a run may be silent, and a wrong verdict ends a run that is alive.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from babylon_rl.store.trajectories import Connection

_NOW = "clock_timestamp() AT TIME ZONE 'UTC'"
_BEAT = f"""
    INSERT INTO babylon_rl.run_heartbeats AS held ("runId", "holder", "seenAt") VALUES (%s, %s, {_NOW})
    ON CONFLICT ("runId") DO UPDATE SET "holder" = excluded."holder", "seenAt" = excluded."seenAt" WHERE held."endedAt" IS NULL
    RETURNING "runId"
"""
_EXPECT = f"""
    INSERT INTO babylon_rl.run_heartbeats ("runId", "holder", "seenAt") SELECT unnest(%s::text[]), '', {_NOW}
    ON CONFLICT ("runId") DO NOTHING
"""
_READ = f"""
    SELECT "runId", "holder", "seenAt", extract(epoch FROM {_NOW} - "seenAt")::float8 FROM babylon_rl.run_heartbeats
    WHERE "runId" = ANY(%s) ORDER BY "runId" FOR UPDATE
"""
_END = f"""UPDATE babylon_rl.run_heartbeats SET "endedAt" = {_NOW} WHERE "runId" = %s"""
_FORGET = f"""
    DELETE FROM babylon_rl.run_heartbeats WHERE NOT "runId" = ANY(%s) AND "seenAt" < {_NOW} - interval '1 day'
"""


class Heartbeat(msgspec.Struct, frozen=True):
    """One row: the run, the process that holds it (empty: none has come yet), when it was last heard of and how long ago."""

    run_id: str
    holder: str
    seen_at: datetime
    silent_s: float


def beat(connection: Connection, run_id: str, holder: str) -> bool:
    """Say that a run is alive in the process ``holder``; False when it was reported dead."""
    with connection.transaction():
        return connection.execute(_BEAT, (run_id, holder)).fetchone() is not None


def lock_heartbeats(connection: Connection, run_ids: Sequence[str]) -> list[Heartbeat]:
    """The heartbeats of runs that are under way, locked until the caller's transaction ends; one that has none is awaited from now on."""
    connection.execute(_EXPECT, (sorted(run_ids),))
    return [Heartbeat(*row) for row in connection.execute(_READ, (list(run_ids),))]


def end_heartbeat(connection: Connection, run_id: str) -> None:
    """Note that a run was reported dead, in the caller's transaction."""
    connection.execute(_END, (run_id,))


def forget_heartbeats(connection: Connection, but: Sequence[str]) -> None:
    """Remove the rows of runs that ended more than a day ago, in the caller's transaction."""
    connection.execute(_FORGET, (list(but),))
