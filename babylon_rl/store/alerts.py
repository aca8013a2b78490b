"""Rows of babylon_rl.alerts, and the queries that only alerts ask.

A cause has one row. One that comes back more than AGAIN_AFTER after its end starts anew and is sent again; sooner, it is the same alert.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from babylon_rl.store.connection import Connection

AGAIN_AFTER = timedelta(days=1)
ROLLBACK_DONE = "rollback_done"  # by a person, who knows of it
FORGOTTEN_AFTER = timedelta(days=7)  # events are seen, and a late channel is served, for so long

# Its last end is long ago, or it ended before it was due.
_ANEW = """DELETE FROM babylon_rl.alerts WHERE "cause" = %s AND ("resolvedAt" < %s OR "resolvedAt" < "dueAt")"""
_SEE = """
INSERT INTO babylon_rl.alerts AS held ("cause", "kind", "says", "advice", "firstSeenAt", "lastSeenAt", "dueAt")
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT ("cause") DO UPDATE SET "lastSeenAt" = excluded."lastSeenAt", "resolvedAt" = NULL,
    "says" = CASE WHEN held."sentAt" IS NULL THEN excluded."says" ELSE held."says" END,
    "advice" = CASE WHEN held."sentAt" IS NULL THEN excluded."advice" ELSE held."advice" END
"""
# All causes of these kinds were looked for in this tick, so one that was not seen has ended. Causes of other kinds are raised where they
# happen, and nobody looks for their end: they end by a long silence.
_RESOLVE = """
UPDATE babylon_rl.alerts SET "resolvedAt" = %(now)s
WHERE "resolvedAt" IS NULL AND NOT "cause" = ANY(%(seen)s) AND ("kind" = ANY(%(kinds)s) OR "lastSeenAt" < %(forgotten)s)
"""
# A cause that ended before it was due is never sent, nor one that was last seen too long ago.
_DUE = """babylon_rl.alerts
WHERE "sentAt" IS NULL AND "dueAt" <= %(now)s AND "lastSeenAt" >= %(forgotten)s AND ("resolvedAt" IS NULL OR "resolvedAt" >= "dueAt")
  AND NOT "cause" = ANY(%(but)s) ORDER BY "dueAt", "cause" LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_TRIED = 'UPDATE babylon_rl.alerts SET "channels" = %s, "tries" = "tries" + 1, "error" = %s, "sentAt" = %s WHERE "cause" = %s'
# Hours whose scores and episodes both stand; each hour counts once.
_HOURS = """
SELECT g."mean", avg(e."windowPnl")::float8
FROM babylon_rl.group_scores g JOIN babylon_rl.episodes e USING ("window")
WHERE g."window" >= %s AND g."window" < %s AND NOT g."stale" GROUP BY g."window", g."mean" ORDER BY g."window"
"""


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """One row; times are naive UTC. ``channels`` are those that have taken it."""

    cause: str
    kind: str
    says: str
    advice: str
    first_seen_at: datetime
    last_seen_at: datetime
    due_at: datetime
    sent_at: datetime | None
    resolved_at: datetime | None
    channels: Sequence[str]
    tries: int
    error: str | None

    @property
    def open(self) -> bool:
        """True while the cause lasts."""
        return self.resolved_at is None

    @property
    def notice(self) -> bool:
        """True if nothing is wrong and nothing is to be done."""
        return self.kind == ROLLBACK_DONE


def see(connection: Connection, kind: str, cause: str, says: str, advice: str, now: datetime, after: timedelta) -> None:
    """Note that a cause is there now. It is due for sending ``after`` its first sight."""
    with connection.transaction():
        connection.execute(_ANEW, [cause, now - AGAIN_AFTER])
        connection.execute(_SEE, [cause, kind, says, advice, now, now, now + after])


def resolve(connection: Connection, kinds: Collection[str], seen: Collection[str], now: datetime) -> None:
    """End the causes of ``kinds`` that are not among ``seen``. Of other kinds, those not seen for FORGOTTEN_AFTER."""
    connection.execute(_RESOLVE, {"kinds": list(kinds), "seen": list(seen), "now": now, "forgotten": now - FORGOTTEN_AFTER})


def lock_due(connection: Connection, now: datetime, but: Collection[str]) -> StoredAlert | None:
    """Lock the oldest due alert until the transaction ends. Not one among ``but``, nor one held by another process."""
    # The lock lasts while the message is under way: another process takes the next alert instead of sending this one too.
    return connection.first(StoredAlert, _DUE, {"now": now, "forgotten": now - FORGOTTEN_AFTER, "but": list(but)})


def note_try(connection: Connection, cause: str, channels: Sequence[str], error: str | None, sent_at: datetime | None) -> None:
    connection.execute(_TRIED, [list(channels), error, sent_at, cause])


def read_alerts(connection: Connection) -> list[StoredAlert]:
    """Return the first 100 alerts, open ones first, then those that ended last."""
    return connection.rows(StoredAlert, 'babylon_rl.alerts ORDER BY "resolvedAt" DESC NULLS FIRST, "firstSeenAt" DESC LIMIT 100')


def scores_and_pnl(connection: Connection, first: str, end: str) -> list[tuple[float, float]]:
    """Return mean score (0..1) and mean window P&L (dollars) of each judged hour from ``first`` up to ``end`` (exclusive)."""
    return connection.execute(_HOURS, [first, end]).fetchall()


def hours_waiting(connection: Connection, reason: str) -> int:
    """Count the hours that wait for their judge with a reason that begins so."""
    return connection.value('SELECT count(*) FROM babylon_rl.judge_pending WHERE "reason" LIKE %s', [f"{reason}%"]) or 0
