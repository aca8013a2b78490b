"""Groups without scores and the reason: babylon_rl.judge_quarantine and judge_pending.

Quarantine: the judge's answers are unusable. Pending: not judged yet. An hour in quarantine has that state in babylon_rl.windows too; it
leaves when a person asks for another try, when another judge scores it, or when its request would differ from the failed one.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from babylon_rl.store.connection import Connection


class Quarantined(msgspec.Struct, frozen=True, rename="camel"):
    """One row of babylon_rl.judge_quarantine.

    ``transcript`` holds the requests and answers, shortened, in order. ``sources_version`` is the version of the request's inputs: while it
    is unchanged, the same request would be sent. Empty: unknown.
    """

    window: str
    judge: str
    judge_version: str
    reason: str
    transcript: list[dict[str, Any]]
    at: datetime
    sources_version: str = ""


_READ = """
    SELECT "window", "judge", "judgeVersion", "reason", "transcript", "at", "sourcesVersion" FROM babylon_rl.judge_quarantine
    WHERE "window" = ANY(%s) ORDER BY "window"
"""
_READ_ALL = """
    SELECT "window", "judge", "judgeVersion", "reason", "transcript", "at", "sourcesVersion" FROM babylon_rl.judge_quarantine
    ORDER BY "window"
"""
_QUARANTINE = """
    INSERT INTO babylon_rl.judge_quarantine AS held ("window", "judge", "judgeVersion", "reason", "transcript", "at", "sourcesVersion")
    VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT ("window") DO UPDATE SET "judge" = excluded."judge", "judgeVersion" = excluded."judgeVersion",
        "reason" = excluded."reason", "transcript" = excluded."transcript", "at" = excluded."at",
        "sourcesVersion" = excluded."sourcesVersion"
"""
_SET_ASIDE = """UPDATE babylon_rl.windows SET "state" = 'quarantined' WHERE "window" = %s"""
# The state of the hour follows from its readiness and from current scores.
_RELEASE = """
    WITH released AS (DELETE FROM babylon_rl.judge_quarantine WHERE "window" = ANY(%s) RETURNING "window")
    UPDATE babylon_rl.windows held SET "state" = CASE
        WHEN NOT held."ready" THEN 'thin'
        WHEN EXISTS (
            SELECT FROM babylon_rl.group_scores s WHERE s."window" = held."window" AND s."inputVersion" = held."groupVersion"
        ) THEN 'scored'
        ELSE 'ready' END
    FROM released WHERE held."window" = released."window" AND held."state" = 'quarantined'
"""
_PENDING = """
    SELECT "window", "reason" FROM babylon_rl.judge_pending
    WHERE "window" = ANY(%(windows)s) AND "judge" = COALESCE(%(judge)s::text, "judge") ORDER BY "window"
"""
_PENDING_SINCE = """SELECT max("at") FROM babylon_rl.judge_pending WHERE "window" = ANY(%s)"""
_WAITING_SINCE = """SELECT "window", "at" FROM babylon_rl.judge_pending WHERE "judge" = %s ORDER BY "window" """
_WAIT = """
    INSERT INTO babylon_rl.judge_pending AS held ("window", "judge", "reason", "at")
    SELECT given."window", %s, given."reason", %s FROM unnest(%s::text[], %s::text[]) AS given ("window", "reason")
    ON CONFLICT ("window") DO UPDATE SET "judge" = excluded."judge", "reason" = excluded."reason", "at" = excluded."at"
"""
_WAIT_NO_MORE = """DELETE FROM babylon_rl.judge_pending WHERE "window" = ANY(%s)"""


def read_quarantined(connection: Connection, windows: Sequence[str] | None = None) -> dict[str, Quarantined]:
    """Return the quarantined groups among ``windows``, or all of them, by window."""
    with connection.transaction():
        rows = connection.execute(_READ_ALL) if windows is None else connection.execute(_READ, (list(windows),))
        return {row[0]: Quarantined(*row) for row in rows.fetchall()}


def quarantine(connection: Connection, entry: Quarantined) -> None:
    """Quarantine a group, in the caller's transaction and under the hour's lock."""
    transcript = Jsonb(entry.transcript)
    # A quarantined hour is not pending any more.
    head = (entry.window, entry.judge, entry.judge_version, entry.reason)
    connection.execute(_QUARANTINE, (*head, transcript, entry.at, entry.sources_version))
    connection.execute(_SET_ASIDE, (entry.window,))
    connection.execute(_WAIT_NO_MORE, ([entry.window],))


def release(connection: Connection, windows: Sequence[str]) -> None:
    """Remove groups from quarantine and from the pending ones."""
    connection.execute(_RELEASE, (list(windows),))
    connection.execute(_WAIT_NO_MORE, (list(windows),))


def read_pending(connection: Connection, windows: Sequence[str], judge: str | None = None) -> dict[str, str]:
    """Return pending reasons by window; with ``judge``, only those of that judge."""
    with connection.transaction():
        return dict(connection.execute(_PENDING, {"windows": list(windows), "judge": judge}).fetchall())


def end_pending(connection: Connection, windows: Sequence[str]) -> None:
    """Remove ``windows`` from the pending ones."""
    connection.execute(_WAIT_NO_MORE, (list(windows),))


def pending_since(connection: Connection, windows: Sequence[str]) -> datetime | None:
    """Return the newest time at which one of ``windows`` was found pending, or None."""
    row = connection.execute(_PENDING_SINCE, (list(windows),)).fetchone()
    return None if row is None else row[0]


def waiting_since(connection: Connection, judge: str) -> dict[str, datetime]:
    """Return the time of the last pending mark by window, for ``judge``."""
    return dict(connection.execute(_WAITING_SINCE, (judge,)).fetchall())


def keep_pending(connection: Connection, judge: str, reasons: Mapping[str, str], now: datetime) -> None:
    """Mark hours as pending for ``judge`` (window -> reason)."""
    if reasons:
        with connection.transaction():
            connection.execute(_WAIT, (judge, now, list(reasons), list(reasons.values())))
