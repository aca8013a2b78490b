"""Counts and rows for a look at the training as a whole: recorded trajectories, hours that were read, and the lock of the trigger."""

from datetime import datetime, timedelta

import msgspec

from babylon_rl.store.connection import Connection

_TOTALS = """
SELECT count(*), avg("totalReward")::float8, avg("episodeLength")::float8, avg("durationMs")::float8,
       count(*) FILTER (WHERE "createdAt" >= %(day)s), count(*) FILTER (WHERE "createdAt" >= %(week)s)
FROM public.trajectories
"""
_HOURS = """
SELECT w."window", w."eligible", avg(e."steps")::float8, w."avgPnl", w."usableEpisodes"
FROM babylon_rl.windows w LEFT JOIN babylon_rl.episodes e USING ("window")
WHERE w."window" >= %s AND w."window" < %s GROUP BY w."window" ORDER BY w."window" DESC
"""
_RECENT = """
SELECT "trajectoryId", "agentId", "windowId", "startTime", "episodeLength", "totalReward", "finalPnL", "finalStatus", "createdAt"
FROM public.trajectories ORDER BY "createdAt" DESC, "trajectoryId" DESC LIMIT %s
"""


class TrajectoryTotals(msgspec.Struct, frozen=True):
    """All recorded trajectories; means are None without any. ``last_day`` and ``last_week`` count by createdAt."""

    count: int
    mean_reward: float | None
    mean_length: float | None
    mean_duration_ms: float | None
    last_day: int
    last_week: int


class HourTotals(msgspec.Struct, frozen=True):
    """An hour that was read: eligible trajectories, mean steps and window P&L (dollars) of its episodes, its usable episodes."""

    window: str
    trajectories: int
    mean_steps: float | None
    mean_pnl: float | None
    usable_episodes: int


class RecentTrajectory(msgspec.Struct, frozen=True, rename="camel"):
    """A row of public.trajectories without its steps; times are naive UTC."""

    trajectory_id: str
    agent_id: str
    window_id: str | None
    start_time: datetime
    episode_length: int
    total_reward: float
    final_pnl: float | None = msgspec.field(name="finalPnL")
    final_status: str
    created_at: datetime


def trajectory_totals(connection: Connection, now: datetime) -> TrajectoryTotals:
    """Count all trajectories, and those of the last day and week."""
    since = {"day": now - timedelta(days=1), "week": now - timedelta(days=7)}
    row = connection.execute(_TOTALS, since).fetchone()
    assert row is not None  # an aggregate always has a row
    return TrajectoryTotals(*row)


def hour_totals(connection: Connection, first: str, end: str) -> list[HourTotals]:
    """Return the hours from ``first`` up to ``end`` (exclusive) that were read, newest first."""
    return [HourTotals(*row) for row in connection.execute(_HOURS, [first, end])]


def recent_trajectories(connection: Connection, limit: int) -> list[RecentTrajectory]:
    """Return the trajectories that came last, newest first."""
    return [RecentTrajectory(*row) for row in connection.execute(_RECENT, [limit])]


def lock_trigger(connection: Connection) -> None:
    """Let one trigger at a time check and freeze, until the end of the transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('babylon_rl trigger'))")
