"""Rows of trajectories and llm_call_logs, streamed by window in binary COPY.

A trajectory's window is its canonical "windowId", else the hour of its "startTime". Rows of the first kind are found by the index on
windowId. The others (NULL ids, ids that name no real hour) are found agent by agent on the index (agentId, startTime), or by an index of
their own where there is one (indexes.py), so that no read scans the table.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from psycopg.abc import Params

from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.indexes import UNNAMED, WITHOUT_HOUR, index_state
from babylon_rl.windows import is_window_id, window_end, window_of, window_start

# Provider accesses in the metadata of a logged call; Python and Postgres read it alike.
_ACCESSES = r'"providerAccesses"\s*:\s*\[\s*\{'


class TrajectoryRow(msgspec.Struct, frozen=True):
    """One row as the game wrote it; JSON columns are undecoded UTF-8."""

    trajectory_id: str
    agent_id: str
    start_time: datetime
    end_time: datetime
    window_id: str | None
    window_hours: int
    scenario_id: str | None
    final_pnl: float | None
    is_training_data: bool
    is_evaluation: bool
    used_in_training: bool
    metrics_json: bytes
    steps_json: bytes

    @property
    def window(self) -> str:
        return self.window_id if self.window_id is not None and _is_window_id(self.window_id) else window_of(self.start_time)


class CallLogRow(msgspec.Struct, frozen=True):
    """One row of llm_call_logs; JSON columns are undecoded UTF-8."""

    trajectory_id: str
    step_id: str
    call_id: str
    timestamp: datetime
    model: str
    purpose: str
    system_prompt: str
    user_prompt: str
    messages_json: bytes | None
    response: str
    metadata: bytes | None

    @property
    def timestamp_ms(self) -> float:
        return self.timestamp.replace(tzinfo=UTC).timestamp() * 1000

    @property
    def has_accesses(self) -> bool:
        return self.metadata is not None and re.search(_ACCESSES.encode(), self.metadata) is not None


# Infinite times and years beyond four digits have no Python datetime, so they are clamped.
_WITHIN = "least(greatest({0}, timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999')"
_COLUMNS = f""""trajectoryId", "agentId", {_WITHIN.format('"startTime"')}, {_WITHIN.format('"endTime"')}, "windowId", "windowHours",
    "scenarioId", "finalPnL", "isTrainingData", "isEvaluation", "usedInTraining", "metricsJson", "stepsJson\""""
Row = TypeVar("Row", TrajectoryRow, CallLogRow)
# Binary COPY carries no types. Text columns read as bytea stay undecoded UTF-8.
_TYPES: dict[type, list[str]] = {
    TrajectoryRow: ["text", "text", "timestamp", "timestamp", "text", "int4", "text", "float8", "bool", "bool", "bool", "bytea", "bytea"],
    CallLogRow: ["text", "text", "text", "timestamp", "text", "text", "text", "text", "bytea", "text", "bytea"],
}

BY_WINDOW_ID = f"""COPY (SELECT {_COLUMNS} FROM public.trajectories WHERE "windowId" = ANY(%(windows)s)) TO STDOUT (FORMAT BINARY)"""

BETWEEN = """"startTime" >= %(start)s AND "startTime" < %(stop)s"""
BY_START_TIME = """COPY (SELECT * FROM {unnamed} odd) TO STDOUT (FORMAT BINARY)"""

BY_ID = f"""COPY (SELECT {_COLUMNS} FROM public.trajectories WHERE "trajectoryId" = ANY(%(ids)s)) TO STDOUT (FORMAT BINARY)"""

CALL_LOGS = f"""COPY (
    SELECT "trajectoryId", "stepId", "callId", {_WITHIN.format('"timestamp"')}, model, purpose, "systemPrompt", "userPrompt",
        "messagesJson", response, metadata
    FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%(ids)s) ORDER BY "trajectoryId"
) TO STDOUT (FORMAT BINARY)"""

WINDOWS_WITH_ROWS = """
    SELECT "windowId", to_char("startTime", 'YYYY-MM-DD"T"HH24:00') FROM public.trajectories
    WHERE "windowId" >= %(first)s AND "windowId" < %(end)s GROUP BY 1, 2
    UNION
    SELECT * FROM {unnamed} odd
"""

OF_NO_HOUR = """
    SELECT odd.* FROM public."User" agent CROSS JOIN LATERAL (
        SELECT "trajectoryId", "windowId" FROM public.trajectories WHERE "agentId" = agent.id AND "startTime" < timestamp '0001-01-01'
        UNION ALL
        SELECT "trajectoryId", "windowId" FROM public.trajectories WHERE "agentId" = agent.id AND "startTime" >= timestamp '10000-01-01'
        OFFSET 0
    ) odd
"""

NEWEST_NAMED = r"""
    SELECT "windowId" FROM public.trajectories
    WHERE "windowId" < %(before)s AND "windowId" ~ '^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):00$'
    ORDER BY "windowId" DESC LIMIT 1
"""
# Only rows newer than the newest one with an id: otherwise an agent whose rows all have an id would be read to its first row.
NEWEST_UNNAMED = "SELECT max(odd.hour) FROM {unnamed} odd"

_HOUR = """to_char("startTime", 'YYYY-MM-DD"T"HH24:00')"""
_NAMED_OTHERWISE = f""""windowId" IS DISTINCT FROM {_HOUR}"""


def with_unnamed(connection: Connection, statement: str, columns: str, condition: str, suffix: str = "") -> str:
    """Put a query of rows that may have no canonical window id in place of ``{unnamed}``; some have one.

    By the optional index if it is there, else agent by agent: OFFSET 0 keeps the planner on one index range per agent.
    """
    if index_state(connection, UNNAMED) == "valid":
        found = f"(SELECT {columns} FROM public.trajectories WHERE {WITHOUT_HOUR} AND {condition} {suffix})"
    else:
        found = f"""(
            SELECT own.* FROM public."User" agent CROSS JOIN LATERAL (
                SELECT {columns} FROM public.trajectories
                WHERE "agentId" = agent.id AND {condition} AND {_NAMED_OTHERWISE} {suffix} OFFSET 0
            ) own
        )"""
    return statement.replace("{unnamed}", found)


SCORED = """SELECT "trajectoryId" FROM public.trajectories WHERE "trajectoryId" = ANY(%s) AND "aiJudgeReward" IS NOT NULL"""
FIRST_POSSIBLE, LAST_POSSIBLE = "0001-01-01T00:00", "9999-12-31T23:00"


def trajectory_rows(connection: Connection, windows: Sequence[str]) -> Iterator[TrajectoryRow]:
    """Stream the rows of ``windows`` (sorted ids, gaps allowed), in no particular order, one in memory at a time."""
    if not windows:
        return
    chosen = frozenset(windows)
    yield from _copy(connection, TrajectoryRow, BY_WINDOW_ID, {"windows": list(windows)})
    bounds = {"start": window_start(min(windows)), "stop": window_end(max(windows))}
    for row in _copy(connection, TrajectoryRow, with_unnamed(connection, BY_START_TIME, _COLUMNS, BETWEEN), bounds):
        # The query gives some rows with a canonical id as well, which have been yielded above.
        if not _is_window_id(row.window_id) and row.window in chosen:
            yield row


def trajectories_by_id(connection: Connection, trajectory_ids: Sequence[str]) -> Iterator[TrajectoryRow]:
    """Stream the rows of the given trajectories, in no particular order."""
    if trajectory_ids:
        yield from _copy(connection, TrajectoryRow, BY_ID, {"ids": list(trajectory_ids)})


def call_log_rows(connection: Connection, trajectory_ids: Sequence[str]) -> Iterator[CallLogRow]:
    """Stream the log rows of the given trajectories, grouped by trajectory."""
    if trajectory_ids:
        yield from _copy(connection, CallLogRow, CALL_LOGS, {"ids": list(trajectory_ids)})


def windows_with_rows(connection: Connection, first: str, end: str) -> list[str]:
    """Return the windows that hold a trajectory, in order, from ``first`` (inclusive) to ``end`` (exclusive)."""
    bounds = {"first": first, "end": end, "start": window_start(first), "stop": window_start(end)}
    statement = with_unnamed(connection, WINDOWS_WITH_ROWS, f'"windowId", {_HOUR}', BETWEEN)
    rows = connection.execute(statement, bounds).fetchall()
    windows = {window_id if _is_window_id(window_id) else hour for window_id, hour in rows}
    return sorted(window for window in windows if _is_window_id(window) and first <= window < end)


def rows_of_no_hour(connection: Connection) -> list[str]:
    """Ids of trajectories that no hour reads or counts: neither window id nor start time gives one."""
    return sorted(trajectory_id for trajectory_id, window_id in connection.execute(OF_NO_HOUR) if not _is_window_id(window_id))


def newest_window_with_rows(connection: Connection, newest: str) -> str | None:
    """Return the newest window up to and including ``newest`` with a trajectory, or None. Look-backs count from it."""
    stop = window_end(newest)
    # The pattern in SQL accepts days that do not exist, so the search goes on below such an id.
    named = connection.value(NEWEST_NAMED, {"before": window_of(stop)})
    while named is not None and not is_window_id(named):  # 30 February
        named = connection.value(NEWEST_NAMED, {"before": named})
    start = window_start(named or FIRST_POSSIBLE)
    newest = with_unnamed(
        connection, NEWEST_UNNAMED, f"{_HOUR} AS hour", f'{BETWEEN} AND "windowId" IS NULL', 'ORDER BY "startTime" DESC LIMIT 1'
    )
    return max(filter(None, (named, connection.value(newest, {"start": start, "stop": stop}))), default=None)


def scored_ids(connection: Connection, trajectory_ids: Sequence[str]) -> set[str]:
    return set(connection.column(SCORED, (list(trajectory_ids),)))


_is_window_id = functools.lru_cache(maxsize=4096)(is_window_id)


def _copy(connection: Connection, struct: type[Row], statement: str, parameters: Params) -> Iterator[Row]:
    with connection.cursor().copy(statement, parameters) as copy:
        copy.set_types(_TYPES[struct])
        for values in copy.rows():
            yield struct(*values)


# Eligible rows are those that an hour's episodes hold. Newest hour first, so that its index ends the search after some hours.
_NEWEST_ELIGIBLE = f"""COPY (
    SELECT {_COLUMNS} FROM (
        SELECT t.*, e."window" FROM babylon_rl.episodes e
        CROSS JOIN LATERAL unnest(e."trajectoryIds") AS i("id")
        JOIN public.trajectories t ON t."trajectoryId" = i."id"
        WHERE e."window" >= %s AND e."window" < %s AND e."window" <= %s
        ORDER BY e."window" DESC, t."startTime" DESC, t."trajectoryId" DESC LIMIT %s
    ) newest ORDER BY "window" DESC, "startTime" DESC, "trajectoryId" DESC
) TO STDOUT (FORMAT BINARY)"""

# The columns are NOT NULL, but can be empty.
_FIRST_LOGGED = """
SELECT DISTINCT ON ("trajectoryId") "trajectoryId", "systemPrompt" <> '' AND "userPrompt" <> '' AND response <> ''
FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%s) ORDER BY "trajectoryId", "timestamp", "callId" COLLATE "C"
"""

_WITH_ACCESSES = """SELECT DISTINCT "trajectoryId" FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%s) AND metadata ~ %s"""
# Of the gateway's calls outside of every trajectory, each stands for itself.
_UNMATCHED = """
SELECT count(*), min(l."trajectoryId") FROM public.llm_call_logs l
WHERE l."timestamp" >= %s AND l."timestamp" < %s
    AND NOT EXISTS (SELECT FROM public.trajectories t WHERE t."trajectoryId" = l."trajectoryId")
    AND (l."trajectoryId" <> l.id OR coalesce(l.metadata, '') NOT LIKE '%%"arm":%%')
"""


def unmatched_calls(connection: Connection, start: datetime, stop: datetime) -> tuple[int, str | None]:
    """Return the number of calls logged from ``start`` to ``stop`` under ids that no trajectory has, and one of these ids."""
    count, example = connection.row(_UNMATCHED, [start, stop])
    return count, example


def newest_eligible(connection: Connection, first: str, end: str, complete: str, limit: int) -> list[TrajectoryRow]:
    """Return the newest eligible rows of complete windows, newest first. ``first`` <= window < ``end``, window <= ``complete``."""
    return list(_copy(connection, TrajectoryRow, _NEWEST_ELIGIBLE, [first, end, complete, limit]))


def first_logged_calls(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, bool]:
    """Return for each trajectory with logged calls whether the first one is complete. Complete: it has both prompts and a response."""
    return {found: complete for ids in in_parts(trajectory_ids) for found, complete in connection.execute(_FIRST_LOGGED, [ids])}


def with_logged_accesses(connection: Connection, trajectory_ids: Sequence[str]) -> set[str]:
    """Return the trajectories with provider accesses in a logged call."""
    return {found for ids in in_parts(trajectory_ids) for found in connection.column(_WITH_ACCESSES, [ids, _ACCESSES])}
