"""One version per hour of what the game has written: it changes when, and only when, the hour has to be read again.

An hour of trajectories is versioned by its rows, their newest producer change and their logged calls; never by a column that
this pipeline writes. An hour of market data is versioned by a hash of its own prices, events and probabilities, of the last
hour before it that holds some (where its start prices come from), and of the questions open in it with their official answers.
Left out: a late price more than one priced hour back.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any

import psycopg

from babylon_rl.store.trajectories import FIRST_POSSIBLE, newest_window_with_rows
from babylon_rl.versions import content_version
from babylon_rl.windows import HOUR, is_window_id, window_of, window_start

Connection = psycopg.Connection[Any]

NOTHING = "nothing recorded"
RECENT = timedelta(days=7)
_MOST = 2**64

# Rows without a canonical id are found agent by agent on the index (agentId, "startTime"), the others on that of "windowId".
TRAJECTORIES = """
    SELECT t."windowId", to_char(t."startTime", 'YYYY-MM-DD"T"HH24:00'), count(*), max(t."updatedAt"), sum(calls.number)
    FROM (
        SELECT "trajectoryId", "windowId", "startTime", "updatedAt" FROM public.trajectories
        WHERE "windowId" >= %(first)s AND "windowId" < %(end)s
        UNION
        SELECT odd.* FROM public."User" agent CROSS JOIN LATERAL (
            SELECT "trajectoryId", "windowId", "startTime", "updatedAt" FROM public.trajectories
            WHERE "agentId" = agent.id AND "startTime" >= %(start)s AND "startTime" < %(stop)s
              AND "windowId" IS DISTINCT FROM to_char("startTime", 'YYYY-MM-DD"T"HH24:00')
        ) odd
    ) t
    CROSS JOIN LATERAL (SELECT count(*) AS number FROM public.llm_call_logs WHERE "trajectoryId" = t."trajectoryId") calls
    GROUP BY 1, 2
"""

# Prices and probabilities reach back to the last hour before the range that has any.
MARKET = """
    SELECT 'prices', date_trunc('hour', "timestamp"), count(*),
           sum(hashtextextended(concat_ws('|', id, "organizationId", price, "timestamp", volume), 0))
    FROM public."StockPrice"
    WHERE "timestamp" < %(stop)s AND "timestamp" >= COALESCE(
        (SELECT date_trunc('hour', max("timestamp")) FROM public."StockPrice" WHERE "timestamp" <= %(start)s), %(start)s)
    GROUP BY 2
    UNION ALL
    SELECT 'probabilities', date_trunc('hour', "createdAt"), count(*),
           sum(hashtextextended(concat_ws('|', id, "marketId", "yesPrice", "eventType", "createdAt"), 0))
    FROM public."PredictionPriceHistory"
    WHERE "createdAt" < %(stop)s AND "createdAt" >= COALESCE(
        (SELECT date_trunc('hour', max("createdAt")) FROM public."PredictionPriceHistory" WHERE "createdAt" <= %(start)s), %(start)s)
    GROUP BY 2
    UNION ALL
    SELECT 'events', date_trunc('hour', "timestamp"), count(*),
           sum(hashtextextended(concat_ws('|', id, description, array_to_string(actors, ','), "relatedQuestion", "timestamp"), 0))
    FROM public."WorldEvent" WHERE "timestamp" >= %(start)s AND "timestamp" < %(stop)s
    GROUP BY 2
"""

# One row per question, or market without one: open from the first moment until the second (NULL: still), with its answer.
QUESTIONS = """
    WITH resolution AS (
        SELECT "marketId", min("createdAt") AS at FROM public."PredictionPriceHistory" WHERE "eventType" = 'resolution' GROUP BY 1
    )
    SELECT q.id, q."createdDate", COALESCE(r.at, CASE WHEN q."resolvedOutcome" IS NOT NULL THEN q."updatedAt" END),
           COALESCE(q."resolvedOutcome", CASE WHEN m.resolved THEN m.resolution END), q."questionNumber", q.text
    FROM public."Question" q LEFT JOIN public."Market" m ON m.id = q.id LEFT JOIN resolution r ON r."marketId" = q.id
    UNION ALL
    SELECT m.id, m."createdAt", COALESCE(r.at, CASE WHEN m.resolved THEN m."endDate" END),
           CASE WHEN m.resolved THEN m.resolution END, NULL, m.question
    FROM public."Market" m LEFT JOIN resolution r ON r."marketId" = m.id
    WHERE NOT EXISTS (SELECT FROM public."Question" q WHERE q.id = m.id)
"""

NEWEST_MARKET_ROW = """
    SELECT max(newest) FROM (
        SELECT max("timestamp") AS newest FROM public."StockPrice" WHERE "timestamp" < %(stop)s
        UNION ALL SELECT max("timestamp") FROM public."WorldEvent" WHERE "timestamp" < %(stop)s
    ) newest
"""


def trajectory_versions(connection: Connection, first: str, end: str) -> dict[str, str]:
    """Versions of the hours from ``first`` (inclusive) to ``end`` (exclusive) that hold trajectories, by window id."""
    bounds = {"first": first, "end": end, "start": window_start(first), "stop": window_start(end)}
    found: dict[str, tuple[int, datetime, int]] = {}
    for window_id, hour, rows, newest, calls in connection.execute(TRAJECTORIES, bounds):
        window = window_id if is_window_id(window_id) else hour
        if first <= window < end:
            before = found.get(window, (0, newest, 0))
            found[window] = (before[0] + rows, max(before[1], newest), before[2] + int(calls))
    return {
        window: f"{rows} rows, last changed {newest.isoformat(timespec='milliseconds')}, {calls} logged calls"
        for window, (rows, newest, calls) in sorted(found.items())
    }


def market_versions(connection: Connection, first: str, end: str) -> dict[str, str]:
    """Versions of the hours from ``first`` (inclusive) to ``end`` (exclusive) that hold prices, events or probabilities, by window id."""
    bounds = {"start": window_start(first), "stop": window_start(end)}
    hours: dict[datetime, dict[str, Any]] = {}
    for kind, hour, rows, fingerprint in connection.execute(MARKET, bounds):
        hours.setdefault(hour, {})[kind] = [rows, int(fingerprint)]
    open_in = _open_questions(connection)
    versions: dict[str, str] = {}
    before: dict[str, Any] = {}
    for hour in sorted(hours):
        own = hours[hour]
        if hour >= bounds["start"]:
            versions[window_of(hour)] = content_version({"own": own, "before": before, "open": open_in(hour)})
        before = before | {kind: own[kind] for kind in ("prices", "probabilities") if kind in own}
    return versions


def recent_hours(connection: Connection, end: str) -> tuple[str, str]:
    """Where the last RECENT before ``end`` begin, for trajectories and for market data: counted back from the newest hour of each."""
    newest = newest_window_with_rows(connection, window_of(window_start(end) - HOUR))
    row = connection.execute(NEWEST_MARKET_ROW, {"stop": window_start(end)}).fetchone()
    newest_market = window_of(row[0]) if row is not None and row[0] is not None else None
    return _back_from(newest or end), _back_from(newest_market or end)


def _back_from(window: str) -> str:
    return max(FIRST_POSSIBLE, window_of(window_start(window) - RECENT + HOUR))


class _Open:
    """The questions open in an hour as one number: the sum of their hashes, which needs no list per hour."""

    def __init__(self, changes: Mapping[datetime, int]) -> None:
        self.hours = sorted(changes)
        self.sums = list(accumulate(changes[hour] for hour in self.hours))

    def __call__(self, hour: datetime) -> int:
        position = bisect_right(self.hours, hour)
        return self.sums[position - 1] % _MOST if position else 0


def _open_questions(connection: Connection) -> _Open:
    changes: dict[datetime, int] = {}
    for identity, created, resolved, *rest in connection.execute(QUESTIONS):
        fingerprint = int.from_bytes(hashlib.sha256(repr((identity, resolved, *rest)).encode()).digest()[:8])
        opened = created.replace(minute=0, second=0, microsecond=0)
        changes[opened] = changes.get(opened, 0) + fingerprint
        if resolved is not None:
            # Not resolved before the hour's start, so an hour that begins at the very moment still has it.
            closed = max(opened, resolved.replace(minute=0, second=0, microsecond=0)) + HOUR
            changes[closed] = changes.get(closed, 0) - fingerprint
    return _Open(changes)
