"""Data version of each hour of recorded trajectories.

The version changes when, and only when, the hour must be read again. It counts the hour's rows and logged calls and sums a hash of each:
of a trajectory its id and the producer's last change, never a column that this pipeline writes; of a logged call, which has no such time,
the transaction that last wrote it. So edits, deletions and swaps are detected without reading texts. The market's versions are in
market_observation.py.
"""

from datetime import datetime, timedelta

from babylon_rl.store.connection import Connection
from babylon_rl.store.market_observation import TABLES as MARKET_TABLES
from babylon_rl.store.market_observation import newest_market_hour
from babylon_rl.store.trajectories import FIRST_POSSIBLE, newest_window_with_rows
from babylon_rl.store.watermark import watermark
from babylon_rl.versions import counted_version
from babylon_rl.windows import HOUR, is_window_id, window_of, window_start

# Length of the range that is observed at every tick.
RECENT = timedelta(days=7)
# Changes of "User" need no watching: an agent without trajectories has no rows, and deleting an agent deletes its rows.
TABLES = ("public.trajectories", "public.llm_call_logs", *MARKET_TABLES)

# Rows without a canonical id are found agent by agent on the index (agentId, "startTime"), the others on the index of "windowId".
# OFFSET 0 fixes that plan. The hash of a record is linear in its columns, so two rows that swap a value would give the same sum: the
# second hash prevents that.
TRAJECTORIES = """
    SELECT t."windowId", to_char(t."startTime", 'YYYY-MM-DD"T"HH24:00'), count(*),
           least(greatest(max(t."updatedAt"), timestamp '0001-01-01'), timestamp '9999-12-31'),
           sum(hashint8extended(hash_record_extended(ROW(t."trajectoryId", t."updatedAt"), 1), 0)),
           sum(calls.number), sum(calls.fingerprint)
    FROM (
        SELECT "trajectoryId", "windowId", "startTime", "updatedAt" FROM public.trajectories
        WHERE "windowId" >= %(first)s AND "windowId" < %(end)s
        UNION
        SELECT odd.* FROM public."User" agent CROSS JOIN LATERAL (
            SELECT "trajectoryId", "windowId", "startTime", "updatedAt" FROM public.trajectories
            WHERE "agentId" = agent.id AND "startTime" >= %(start)s AND "startTime" < %(stop)s
              AND "windowId" IS DISTINCT FROM to_char("startTime", 'YYYY-MM-DD"T"HH24:00')
            OFFSET 0
        ) odd
    ) t
    CROSS JOIN LATERAL (
        SELECT count(*) AS number, COALESCE(sum(hashint8extended(hash_record_extended(ROW(id, xmin), 1), 0)), 0) AS fingerprint
        FROM public.llm_call_logs WHERE "trajectoryId" = t."trajectoryId"
    ) calls
    GROUP BY 1, 2
"""


def trajectory_versions(connection: Connection, first: str, end: str) -> dict[str, str]:
    """Return the data versions of hours with trajectories, by window.

    From ``first`` (inclusive) to ``end`` (exclusive).
    """
    bounds = {"first": first, "end": end, "start": window_start(first), "stop": window_start(end)}
    hours: dict[str, tuple[datetime, list[int]]] = {}
    for window_id, hour, rows, newest, *sums in connection.execute(TRAJECTORIES, bounds):
        # A row without a canonical window id belongs to the hour of its start time.
        window = window_id if is_window_id(window_id) else hour
        if is_window_id(window) and first <= window < end:
            before = hours.get(window, (newest, [0, 0, 0, 0]))
            hours[window] = max(before[0], newest), [a + int(b) for a, b in zip(before[1], (rows, *sums), strict=True)]
    return {window: _version(*hours[window]) for window in sorted(hours)}


def observed_watermark(connection: Connection, first: str, end: str) -> str | None:
    """Return the watermark of the versions from ``first`` to ``end`` (see ``watermark``)."""
    return watermark(connection, TABLES, first, end)


def _version(newest: datetime, sums: list[int]) -> str:
    rows, content, calls, logs = sums
    return counted_version(rows=(rows, content), logged_calls=(calls, logs)) + f", last changed {newest.isoformat(timespec='milliseconds')}"


def recent_hours(connection: Connection, end: str) -> tuple[str, str]:
    """Return the start of the recent range for trajectories and for market data.

    RECENT, counted back from the newest hour of each before ``end``.
    """
    # Counted from the newest data, not from now: a game may have stopped some time ago.
    newest = newest_window_with_rows(connection, window_of(window_start(end) - HOUR))
    return _back_from(newest or end), _back_from(newest_market_hour(connection, end) or end)


def _back_from(window: str) -> str:
    return max(FIRST_POSSIBLE, window_of(window_start(window) - RECENT + HOUR))
