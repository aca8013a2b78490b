"""Counts and rows of the status of trainings.

None of them reads a large table from end to end: babylon_rl.windows holds the counts of the hours that were read, and the other hours are
counted by the index on "windowId". Totals of the whole table are exact up to EXACT_UP_TO rows; above, the planner's estimate and a sample
of pages.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from babylon_rl.store.columns import SERVER_NOW, Time, columns_of, json_value, listed
from babylon_rl.store.connection import Connection
from babylon_rl.store.trajectories import newest_window_with_rows
from babylon_rl.windows import window_of

TRIGGER_LOCK = "babylon_rl trigger"  # one trigger at a time checks and freezes
EXACT_UP_TO = 10_000
SAMPLED_PAGES = 200
# The planner's estimate reads no row.
_ESTIMATE = "EXPLAIN (FORMAT JSON) SELECT FROM public.trajectories"
_MEANS = """avg("totalReward")::float8, avg("episodeLength")::float8, avg("durationMs")::float8"""
# The same pages at every reading, so that means do not jump between two of them.
_SAMPLED = f"SELECT %s::bigint, {_MEANS}, 'estimated' FROM public.trajectories TABLESAMPLE SYSTEM (%s) REPEATABLE (0)"
# Hour by hour, each by the index: the planner would scan the table for a range.
_ARRIVED = """
SELECT COALESCE(sum(n) FILTER (WHERE "hour" > %(day)s), 0)::int, COALESCE(sum(n), 0)::int FROM (
    SELECT "window" AS "hour", "rows"::bigint AS n FROM babylon_rl.windows WHERE "window" > %(week)s AND "window" <= %(now)s
    UNION ALL
    SELECT unread."hour", counted.n FROM (
        SELECT to_char("start", 'YYYY-MM-DD"T"HH24":00"') AS "hour"
        FROM generate_series(%(week)s::timestamp + interval '1 hour', %(now)s::timestamp, interval '1 hour') AS given ("start")
    ) unread
    CROSS JOIN LATERAL (SELECT count(*) AS n FROM public.trajectories t WHERE t."windowId" = unread."hour" OFFSET 0) counted
    WHERE NOT EXISTS (SELECT FROM babylon_rl.windows w WHERE w."window" = unread."hour")
) hours
"""
_NEWEST_ROW = """SELECT max("endTime") FROM public.trajectories WHERE "windowId" = %s"""
_HOURS = """
SELECT w."window", w."eligible", avg(e."steps")::float8, w."avgPnl", w."usableEpisodes"
FROM babylon_rl.windows w LEFT JOIN babylon_rl.episodes e USING ("window")
WHERE w."window" >= %s AND w."window" < %s GROUP BY w."window" ORDER BY w."window" DESC
"""
_HEARTBEATS = "babylon_dagster.daemon_heartbeats"
_STOPPED = """
SELECT instigator_body::jsonb -> 'origin' ->> 'job_name' FROM babylon_dagster.instigators WHERE status = 'STOPPED' ORDER BY 1
"""
_JUDGED = """
SELECT (SELECT count(*) FROM babylon_rl.group_scores WHERE "window" >= %(first)s AND "window" < %(end)s AND NOT "stale"),
       (SELECT avg("disagreement")::float8 FROM babylon_rl.group_scores WHERE "window" >= %(first)s AND "window" < %(end)s AND NOT "stale"),
       (SELECT count(*) FROM babylon_rl.judge_pending), (SELECT count(*) FROM babylon_rl.judge_quarantine),
       (SELECT "reason" FROM babylon_rl.judge_pending ORDER BY "at" DESC, "window" LIMIT 1)
"""


class TrajectoryMeans(msgspec.Struct, frozen=True):
    """Means over all trajectories, null without any."""

    mean_reward: float | None = msgspec.field(name="totalReward")
    mean_length: float | None = msgspec.field(name="episodeLength")
    mean_duration_ms: float | None = msgspec.field(name="durationMs")


class TrajectoryStats(msgspec.Struct, frozen=True):
    """All recorded trajectories. ``counted`` is exact or, of a large table, estimated (the means then are a sample's)."""

    count: int = msgspec.field(name="_count")
    means: TrajectoryMeans = msgspec.field(name="_avg")
    counted: Literal["exact", "estimated"]


class Arrivals(msgspec.Struct, frozen=True):
    """Trajectories of the last 24 hours and 7 days, by their hours. Also the end of the newest (naive UTC)."""

    last24h: int
    last7d: int
    newest_at: datetime | None


class HourDocument(msgspec.Struct, frozen=True):
    """An hour that was read; P&L is the mean window P&L in dollars."""

    window: str = msgspec.field(name="windowId")
    trajectories: int = msgspec.field(name="trajectoryCount")
    mean_steps: float | None = msgspec.field(name="avgSteps")
    mean_pnl: float | None = msgspec.field(name="avgPnl")


class TrajectoryDocument(msgspec.Struct, frozen=True, rename="camel"):
    """A recorded trajectory without its steps."""

    trajectory_id: str
    agent_id: str
    window_id: str | None
    start_time: Time | None
    episode_length: int
    total_reward: float
    final_pnl: float | None = msgspec.field(name="finalPnL")
    final_status: str
    created_at: Time | None


# The hours from that of the row that is %(most)s-th by hour.
_RECENT = f"""
SELECT {listed(columns_of(TrajectoryDocument))} FROM public.trajectories
WHERE "windowId" <= %(newest)s AND "windowId" >= COALESCE((
    SELECT "windowId" FROM public.trajectories WHERE "windowId" <= %(newest)s ORDER BY "windowId" DESC OFFSET %(most)s - 1 LIMIT 1
), '')
ORDER BY "createdAt" DESC, "trajectoryId" DESC LIMIT %(most)s
"""


class KeptCounts(msgspec.Struct, frozen=True, rename="camel"):
    """Counts of the hours that were read. Freezable trajectories by window, other new ones by reason; counted in ``seconds``."""

    mark: str
    episodes: int
    windows: dict[str, int]
    not_trainable: dict[str, int]
    seconds: float
    counted_at: datetime


class AutomationState(msgspec.Struct, frozen=True):
    """Dagster on this database. The daemon's newest heartbeat, its runs, and the sensors and schedules that a person switched off."""

    seen_at: datetime | None
    runs: int
    stopped: tuple[str, ...]


class JudgedState(msgspec.Struct, frozen=True):
    """Hours of a range with current scores, their mean disagreement (0..1), and all hours waiting or in quarantine."""

    hours_scored: int
    disagreement: float | None
    hours_waiting: int
    hours_quarantined: int
    waiting_reason: str | None


def trajectory_stats(connection: Connection) -> TrajectoryStats:
    """Count all trajectories and average them; above EXACT_UP_TO rows as estimates."""
    estimate = int(connection.row(_ESTIMATE)[0][0]["Plan"]["Plan Rows"])
    if estimate <= EXACT_UP_TO:
        count, *means, counted = connection.row(f"SELECT count(*), {_MEANS}, 'exact' FROM public.trajectories")
    else:
        pages = max(1, connection.value("SELECT pg_relation_size('public.trajectories') / current_setting('block_size')::int") or 0)
        count, *means, counted = connection.row(_SAMPLED, [estimate, min(100.0, 100.0 * SAMPLED_PAGES / pages)])
    return TrajectoryStats(count, TrajectoryMeans(*means), counted)


def arrivals(connection: Connection, now: datetime) -> Arrivals:
    """Count the trajectories of the last 24 hours and 7 days: as last read, else by the index on "windowId"."""
    current = window_of(now)
    bounds = {"now": current, "day": window_of(now - timedelta(days=1)), "week": window_of(now - timedelta(days=7))}
    newest = newest_window_with_rows(connection, current)
    last_day, last_week = connection.row(_ARRIVED, bounds)
    return Arrivals(last_day, last_week, None if newest is None else connection.value(_NEWEST_ROW, [newest]))


def hours_read(connection: Connection, first: str, end: str) -> list[tuple[HourDocument, int]]:
    """Return the hours from ``first`` up to ``end`` (exclusive) that were read, newest first, each with its usable episodes."""
    return [(HourDocument(*shown), usable) for *shown, usable in connection.execute(_HOURS, [first, end])]


def recent_trajectories(connection: Connection, now: datetime, limit: int) -> list[TrajectoryDocument]:
    """Return the last trajectories, newest first, of the newest hours in "windowId"."""
    # Not converted: a row of the game that breaks a rule of its table costs the status nothing.
    rows = connection.execute(_RECENT, {"newest": window_of(now), "most": limit})
    return [TrajectoryDocument(*map(json_value, row)) for row in rows]


def judged_state(connection: Connection, first: str, end: str) -> JudgedState:
    return JudgedState(*connection.row(_JUDGED, {"first": first, "end": end}))


def daemon_seen_at(connection: Connection) -> datetime | None:
    """Return the newest heartbeat of Dagster's daemon (naive UTC), or None."""
    if not connection.has_table(_HEARTBEATS):
        return None
    seconds = connection.value(f"SELECT max((body::jsonb ->> 'timestamp')::float8) FROM {_HEARTBEATS}")
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def automation_state(connection: Connection) -> AutomationState:
    """Return the state of automation by Dagster's tables. Empty where they are not there yet."""
    if not connection.has_table(_HEARTBEATS):
        return AutomationState(None, 0, ())
    stopped = tuple(connection.column(_STOPPED))
    return AutomationState(daemon_seen_at(connection), connection.value("SELECT count(*) FROM babylon_dagster.runs") or 0, stopped)


def clock_of(connection: Connection) -> datetime:
    at: datetime = connection.row(f"SELECT {SERVER_NOW}")[0]
    return at


def read_kept_counts(connection: Connection) -> KeptCounts | None:
    return connection.first(KeptCounts, "babylon_rl.kept_counts")


def write_kept_counts(connection: Connection, counts: KeptCounts) -> None:
    """Replace the kept counts, in the caller's transaction."""
    connection.upsert("babylon_rl.kept_counts", [counts], keys=("one",))
