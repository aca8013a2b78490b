"""Which episodes a batch may take: one SQL text for counting them and for freezing them.

The text gives one row per episode of the complete hours in a range, with the reason why it is not freezable (NULL: it is). The
hours and episodes are those that window_groups last wrote, their calls less those in which hindsight found a leak; what a training has
used is read from the trajectories themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.windows import window_end, window_start

# The first reason that holds is the one that is counted, so the order matters: what time or a person can cure comes last.
FREEZABLE = """
WITH hour AS (
    SELECT w."window", w."state" = 'quarantined' AS "quarantined", w."window" <= %(settled)s AS "settled",
           COALESCE(g."spread" < 1e-6, FALSE) AS "flat"
    FROM babylon_rl.windows w
    LEFT JOIN babylon_rl.group_scores g ON g."window" = w."window" AND NOT g."stale"
    WHERE w."window" >= %(first)s AND w."window" < %(end)s AND w."window" <= %(complete)s
), leaked AS (
    SELECT l."window", l."trajectoryId", count(DISTINCT l."sequence") AS "calls"
    FROM hour h JOIN babylon_rl.leaks l ON l."window" = h."window" GROUP BY 1, 2
), member AS (
    SELECT e."window", e."agentId", i."trajectoryId", i."position", COALESCE(l."calls", 0) AS "leakedCalls",
           t."trajectoryId" IS NULL AS "gone", COALESCE(t."usedInTraining", FALSE) AS "used", b."trajectoryId" IS NOT NULL AS "held"
    FROM hour h
    JOIN babylon_rl.episodes e ON e."window" = h."window"
    CROSS JOIN LATERAL unnest(e."trajectoryIds") WITH ORDINALITY AS i("trajectoryId", "position")
    LEFT JOIN public.trajectories t ON t."trajectoryId" = i."trajectoryId"
    LEFT JOIN leaked l ON l."window" = e."window" AND l."trajectoryId" = i."trajectoryId"
    LEFT JOIN babylon_rl.batch_items b ON b."trajectoryId" = i."trajectoryId" AND b."live"
), stitched AS (
    SELECT "window", "agentId", array_agg("trajectoryId" ORDER BY "position") AS "trajectoryIds",
           count(*) FILTER (WHERE NOT "gone" AND NOT "used") AS "newRows",
           sum("leakedCalls") AS "leakedCalls", bool_or("gone") AS "gone", bool_or("used") AS "used", bool_or("held") AS "held"
    FROM member GROUP BY "window", "agentId"
), episode AS (
    SELECT s.*, h."quarantined", h."settled", h."flat", e."usable", e."trainableSequences",
           COALESCE((e."messageSources"->>'synthetic')::int, 0) AS "syntheticRows",
           d."reason" AS "left",
           count(*) FILTER (WHERE e."usable") OVER (PARTITION BY s."window") AS "usableInHour",
           count(*) FILTER (WHERE e."usable" AND d."reason" IS NULL) OVER (PARTITION BY s."window") AS "groupSize"
    FROM stitched s
    JOIN hour h ON h."window" = s."window"
    JOIN babylon_rl.episodes e ON e."window" = s."window" AND e."agentId" = s."agentId"
    LEFT JOIN babylon_rl.dropped_episodes d ON d."window" = s."window" AND d."agentId" = s."agentId"
), judged AS (
    SELECT *, CASE
        WHEN "used" THEN 'late_after_training'
        WHEN "held" THEN 'in a live batch'
        WHEN "left" = 'dropout' THEN 'left out by dropout'
        WHEN NOT "usable" THEN 'in short episodes'
        WHEN "trainableSequences" = 0 AND "syntheticRows" > 0 THEN 'synthetic'
        WHEN "trainableSequences" > 0 AND "trainableSequences" <= "leakedCalls" THEN 'leak'
        WHEN "trainableSequences" = 0 OR "left" IS NOT NULL THEN 'without a call that trains'
        WHEN "usableInHour" < %(min_agents)s THEN 'in thin hours'
        WHEN "quarantined" THEN 'in quarantined hours'
        WHEN "flat" THEN 'in groups without spread'
        WHEN "gone" THEN 'changed since the hour was read'
        WHEN NOT "settled" THEN 'in hours not settled'
    END AS "reason"
    FROM episode
)
"""

_COUNT = FREEZABLE + 'SELECT "window", "reason", count(*), sum("newRows") FROM judged WHERE "newRows" > 0 GROUP BY 1, 2 ORDER BY 1, 2'

_TAKE = (
    FREEZABLE
    + 'SELECT "window", "agentId", "trajectoryIds", "groupSize" FROM judged WHERE "reason" IS NULL ORDER BY "window" DESC, "agentId"'
)

# Rows that no hour has been made of yet; only those that a first look already rejects are left out. Hour by hour and agent by agent, each
# by its index: the table is never scanned.
_UNREAD = """
WITH unread AS (
    SELECT given."window", given."start" FROM (
        SELECT to_char("start", 'YYYY-MM-DD"T"HH24":00"') AS "window", "start"
        FROM generate_series(%(start)s::timestamp, %(stop)s::timestamp - interval '1 hour', interval '1 hour') AS hour ("start")
    ) given
    WHERE NOT EXISTS (SELECT FROM babylon_rl.windows w WHERE w."window" = given."window")
)
SELECT count(*) FROM unread CROSS JOIN LATERAL (
    SELECT "isTrainingData", "isEvaluation", "usedInTraining", "windowId", "scenarioId"
    FROM public.trajectories WHERE "windowId" = unread."window"
    UNION ALL
    SELECT odd.* FROM public."User" agent CROSS JOIN LATERAL (
        SELECT "isTrainingData", "isEvaluation", "usedInTraining", "windowId", "scenarioId"
        FROM public.trajectories
        WHERE "agentId" = agent.id AND "startTime" >= unread."start" AND "startTime" < unread."start" + interval '1 hour'
          AND COALESCE("windowId", '') !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:00$'
        OFFSET 0
    ) odd
) row
WHERE row."isTrainingData" AND NOT row."isEvaluation" AND NOT row."usedInTraining"
  AND COALESCE(row."windowId", '') NOT LIKE 'benchmark-%%' AND COALESCE(row."scenarioId", '') NOT LIKE 'benchmark-%%'
"""


@dataclass(frozen=True, slots=True)
class FreezeBounds:
    """Which hours are looked at: ``first`` <= window < ``end``, complete at ``complete``, settled at ``settled`` (window ids)."""

    first: str
    end: str
    complete: str
    settled: str
    min_agents: int

    @property
    def parameters(self) -> dict[str, Any]:
        """What FREEZABLE binds."""
        return {
            "first": self.first,
            "end": self.end,
            "complete": self.complete,
            "settled": self.settled,
            "min_agents": self.min_agents,
            "start": window_start(self.first),
            "stop": min(window_start(self.end), window_end(self.complete)),
        }


@dataclass(frozen=True, slots=True)
class Freezable:
    """What a batch could take now. ``windows`` counts freezable trajectories by window, ``not_trainable`` the other new ones by reason."""

    trajectories: int
    episodes: int
    windows: Mapping[str, int]
    not_trainable: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FreezableEpisode:
    """An episode that a batch may take; ``group_size`` counts the usable episodes of its hour that dropout has left."""

    window: str
    agent_id: str
    trajectory_ids: Sequence[str]
    group_size: int


def count_freezable_rows(connection: psycopg.Connection[Any], bounds: FreezeBounds) -> Freezable:
    """Count what ``take_freezable`` would give, and why the other new trajectories are not in it."""
    windows: dict[str, int] = {}
    reasons: dict[str, int] = {}
    episodes = 0
    for window, reason, number, rows in connection.execute(_COUNT, bounds.parameters):
        if reason is None:
            windows[window] = int(rows)
            episodes += number
        else:
            reasons[reason] = reasons.get(reason, 0) + int(rows)
    unread = connection.execute(_UNREAD, bounds.parameters).fetchone()
    if unread is not None and unread[0]:
        reasons["in hours not read yet"] = unread[0]
    ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    return Freezable(sum(windows.values()), episodes, windows, ordered)


def take_freezable(connection: psycopg.Connection[Any], bounds: FreezeBounds) -> list[FreezableEpisode]:
    """The freezable episodes, newest window first, then by agent; the caller holds the freeze lock."""
    rows = connection.execute(_TAKE, bounds.parameters).fetchall()
    return [FreezableEpisode(window, agent, tuple(ids), size) for window, agent, ids, size in rows]


def decided_windows(connection: psycopg.Connection[Any], windows: Sequence[str]) -> frozenset[str]:
    """Those of ``windows`` whose dropout was decided by an earlier batch: it is decided once per group."""
    rows = connection.execute('SELECT DISTINCT "window" FROM babylon_rl.batch_episodes WHERE "window" = ANY(%s)', [list(windows)])
    return frozenset(row[0] for row in rows)


def record_dropped(
    connection: psycopg.Connection[Any], batch_id: str, reason: str, episodes: Sequence[tuple[str, str]], now: datetime
) -> None:
    """Keep ``episodes`` (window, agent id) out of all later batches, for ``reason``."""
    if not episodes:
        return
    connection.execute(
        """
        INSERT INTO babylon_rl.dropped_episodes ("window", "agentId", "batchId", "reason", "createdAt")
        SELECT e."window", e."agentId", %s, %s, %s FROM unnest(%s::text[], %s::text[]) AS e("window", "agentId")
        ON CONFLICT DO NOTHING
        """,
        [batch_id, reason, now, [window for window, _ in episodes], [agent for _, agent in episodes]],
    )


def read_dropped(connection: psycopg.Connection[Any], windows: Sequence[str], reason: str) -> set[tuple[str, str]]:
    """(window, agent id) of the episodes of these windows that were left out for a reason."""
    found = connection.execute(
        'SELECT "window", "agentId" FROM babylon_rl.dropped_episodes WHERE "window" = ANY(%s) AND "reason" = %s', (list(windows), reason)
    )
    return {(window, agent_id) for window, agent_id in found}
