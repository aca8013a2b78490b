"""Freezing of a batch: the SQL of counting and choosing, and its rows.

One SQL text for both gives a row per episode of the complete hours in a range, with the reason why no batch may take it (NULL: one may).
The rules behind the reasons are training/freezing.py's, handed in as SQL conditions. Hours and episodes are those that window_groups last
wrote; calls in which hindsight found a leak do not count. Use in a training is read from the trajectories themselves, except for episodes
that had no rows left when their hour was last read.

An hour is flat if what trains of it has no advantage: its answer groups or parts where CREDIT trains by them, else the hour itself. It is
not flat before it was judged, and replayed where answers train.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.errors import BatchConflict
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.trajectories import with_unnamed
from babylon_rl.types import NO_SPREAD
from babylon_rl.windows import next_window, window_end, window_start

# Our tables that the statement reads. It reads trajectories too, but new ones change nothing before their hour is read.
READ_TABLES = tuple(
    f"babylon_rl.{name}" for name in (
        "windows", "episodes", "group_scores", "episode_scores", "part_scores", "answer_groups", "replayed_hours", "batch_items", "leaks",
        "dropped_episodes",
    )
)  # fmt: skip
BarRules = Mapping[str, str]  # SQL condition by reason, in the order in which they are tried

# hour: complete hours in the range. held: trajectories in live batches. leaked: leaking calls per trajectory. answered: trajectories with
# answer groups.
# member: one row per trajectory of an episode. stitched: member per episode. episode: stitched with the counts of its hour; the rules'
# conditions read its columns. ruled: the first reason that holds, NULL for an episode that a batch may take.
# An hour with an episode consumed by a training is not judged again automatically: later episodes in it get no score ("judgedForGood").
_FREEZABLE = """
WITH hour AS (
    SELECT w."window", w."state" = 'quarantined' AS "quarantined", w."window" <= %(settled)s AS "settled",
           COALESCE(NOT g."stale" AND COALESCE(parts."flat", g."spread" < %(no_spread)s), FALSE)
               AND (%(credit)s <> 'answers' OR replayed."window" IS NOT NULL) AS "flat",
           g."window" IS NOT NULL AND consumed."one" IS NOT NULL AS "judgedForGood"
    FROM babylon_rl.windows w
    LEFT JOIN babylon_rl.group_scores g ON g."window" = w."window"
    CROSS JOIN LATERAL (
        SELECT bool_and(p."advantage" = 0) AS "flat" FROM babylon_rl.part_scores p WHERE %(credit)s = 'part' AND p."window" = w."window"
    ) parts
    LEFT JOIN babylon_rl.replayed_hours replayed ON replayed."window" = w."window"
    LEFT JOIN LATERAL (
        SELECT TRUE AS "one" FROM babylon_rl.batch_items i WHERE i."window" = w."window" AND i."consumed" LIMIT 1
    ) consumed ON TRUE
    WHERE w."window" >= %(first)s AND w."window" < %(end)s AND w."window" <= %(complete)s
), held AS MATERIALIZED (
    SELECT b."trajectoryId" FROM hour h JOIN babylon_rl.batch_items b ON b."window" = h."window" WHERE b."live"
), leaked AS (
    SELECT l."window", l."trajectoryId", count(DISTINCT l."sequence") AS "calls"
    FROM hour h JOIN babylon_rl.leaks l ON l."window" = h."window" GROUP BY 1, 2
), answered AS (
    SELECT a."window", a."trajectoryId", bool_or(a."modelVersion" IS NOT NULL) AS "ours", bool_or(a."differ") AS "differ"
    FROM hour h JOIN babylon_rl.answer_groups a ON a."window" = h."window" WHERE %(credit)s = 'answers' GROUP BY 1, 2
), member AS (
    SELECT e."window", e."agentId", COALESCE(l."calls", 0) AS "leakedCalls",
           t."trajectoryId" IS NULL AS "gone", COALESCE(t."usedInTraining", FALSE) AS "used", b."trajectoryId" IS NOT NULL AS "held",
           a."ours", a."differ"
    FROM hour h
    JOIN babylon_rl.episodes e ON e."window" = h."window" AND cardinality(e."usedIds") < cardinality(e."trajectoryIds")
    CROSS JOIN LATERAL unnest(e."trajectoryIds") AS i("trajectoryId")
    LEFT JOIN public.trajectories t ON t."trajectoryId" = i."trajectoryId"
    LEFT JOIN leaked l ON l."window" = e."window" AND l."trajectoryId" = i."trajectoryId"
    LEFT JOIN held b ON b."trajectoryId" = i."trajectoryId"
    LEFT JOIN answered a ON a."window" = e."window" AND a."trajectoryId" = i."trajectoryId"
), stitched AS (
    SELECT "window", "agentId", count(*)::int AS "trajectories",
           count(*) FILTER (WHERE NOT "gone" AND NOT "used") AS "newRows",
           sum("leakedCalls") AS "leakedCalls", bool_or("gone") AS "gone", bool_or("used") AS "used", bool_or("held") AS "held",
           bool_or("ours") AS "ours", bool_or("differ") AS "differ"
    FROM member GROUP BY "window", "agentId"
), episode AS (
    SELECT e."window", e."agentId", s."trajectories", s."newRows", s."leakedCalls", s."gone", s."used", s."held",
           h."quarantined", h."settled", e."usable", e."trainableSequences",
           -- An hour trains by its answer groups where a version of ours was asked in an episode that a batch may take.
           CASE WHEN bool_or(s."ours" AND "open") OVER hours THEN NOT bool_or(s."differ" AND "open") OVER hours ELSE h."flat" END AS "flat",
           COALESCE(s."ours", FALSE) AS "answered", COALESCE((e."messageSources"->>'synthetic')::int, 0) AS "syntheticRows",
           d."reason" AS "left", h."judgedForGood" AND own."one" IS NULL AS "unjudged",
           count(*) FILTER (WHERE e."usable") OVER hours AS "usableInHour",
           count(*) FILTER (WHERE e."usable" AND d."reason" IS NULL) OVER hours AS "groupSize"
    FROM hour h
    JOIN babylon_rl.episodes e ON e."window" = h."window"
    LEFT JOIN stitched s ON s."window" = e."window" AND s."agentId" = e."agentId"
    LEFT JOIN babylon_rl.dropped_episodes d ON d."window" = e."window" AND d."agentId" = e."agentId"
    CROSS JOIN LATERAL (SELECT e."usable" AND d."reason" IS NULL AND NOT s."used" AND NOT s."held" AS "open") taken
    LEFT JOIN LATERAL (
        SELECT TRUE AS "one" FROM babylon_rl.episode_scores o
        WHERE h."judgedForGood" AND s."newRows" > 0 AND o."window" = e."window" AND o."agentId" = e."agentId" LIMIT 1
    ) own ON TRUE
    WINDOW hours AS (PARTITION BY e."window")
)
"""

_RULED = """, ruled AS (SELECT *, {} AS "reason" FROM episode WHERE "newRows" > 0)"""
_COUNT = 'SELECT "window", "reason", count(*)::int, sum("newRows")::int FROM ruled GROUP BY 1, 2 ORDER BY 1, 2'

# Two results in one: a row per freezable episode, and counts of the others by window and reason.
_LOOK = """
SELECT "window", "reason", NULL AS "agentId", 0 AS "trajectories", 0 AS "groupSize", FALSE AS "answered", sum("newRows")::int AS "newRows"
FROM ruled WHERE "reason" IS NOT NULL GROUP BY 1, 2
UNION ALL
SELECT "window", NULL, "agentId", "trajectories", "groupSize", "answered", "newRows" FROM ruled WHERE "reason" IS NULL
ORDER BY 1 DESC, 2, 3
"""

_HOURS = """
SELECT "window" FROM babylon_rl.windows
WHERE "window" >= %(first)s AND "window" < %(end)s AND "window" <= %(complete)s ORDER BY 1 DESC
"""
HOURS_LOOKED_AT_FIRST = 6

# Rows of hours that were never read, without those that their flags already reject. Read hour by hour, each by its index: the table is
# never scanned.
_FLAGS = '"isTrainingData", "isEvaluation", "usedInTraining", "windowId", "scenarioId"'
_IN_UNREAD = """"startTime" >= unread."start" AND "startTime" < unread."start" + interval '1 hour'
    AND COALESCE("windowId", '') !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:00$'"""
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
    SELECT * FROM {unnamed} odd
) row
WHERE row."isTrainingData" AND NOT row."isEvaluation" AND NOT row."usedInTraining"
  AND COALESCE(row."windowId", '') NOT LIKE 'benchmark-%%' AND COALESCE(row."scenarioId", '') NOT LIKE 'benchmark-%%'
"""


@dataclass(frozen=True, slots=True)
class FreezeBounds:
    """The range of hours to examine, as window ids: from ``first``, before ``end``, complete and settled up to two others.

    ``credit`` is CREDIT, but ``hour`` where it asks for answers and none can be made.
    """

    first: str
    end: str
    complete: str
    settled: str
    min_agents: int
    credit: str

    @property
    def parameters(self) -> dict[str, Any]:
        # Hours that are not over cannot have been read.
        stop = min(window_start(self.end), window_end(self.complete))
        return asdict(self) | {"no_spread": NO_SPREAD, "start": window_start(self.first), "stop": stop}


@dataclass(frozen=True, slots=True)
class FreezableEpisode:
    """An episode that a batch may take. ``group_size`` counts its hour's usable episodes after dropout."""

    window: str
    agent_id: str
    trajectories: int
    group_size: int
    answered: bool = False


def reason_case(rules: BarRules) -> str:
    return "CASE " + " ".join(f"WHEN {condition} THEN '{reason}'" for reason, condition in rules.items()) + " END"


def count_episodes(connection: Connection, bounds: FreezeBounds, rules: BarRules) -> list[tuple[str, str | None, int, int]]:
    """Return (window, reason, episodes, new trajectories) of the episodes in range. Without a reason a batch may take them."""
    return connection.execute(_statement(_COUNT, rules), bounds.parameters).fetchall()


def _statement(query: str, rules: BarRules) -> str:
    return _FREEZABLE + _RULED.format(reason_case(rules)) + query


def look_at_newest(
    connection: Connection, bounds: FreezeBounds, rules: BarRules
) -> Iterator[tuple[list[FreezableEpisode], dict[str, int]]]:
    """Yield freezable episodes, newest window first, then by agent, with the counts of other new trajectories by reason.

    The caller holds the freeze lock. Portions grow from HOURS_LOOKED_AT_FIRST hours, each twice the last: a caller may stop early.
    """
    hours = connection.column(_HOURS, bounds.parameters)
    statement = _statement(_LOOK, rules)
    start, size = 0, HOURS_LOOKED_AT_FIRST
    while start < len(hours):
        portion = hours[start : start + size]
        start, size = start + size, size * 2
        episodes: list[FreezableEpisode] = []
        reasons = Counter[str]()
        # ``hours`` is newest first: the last of the portion begins the range.
        inner = replace(bounds, first=portion[-1], end=next_window(portion[0]))
        for window, reason, agent, trajectories, group_size, answered, rows in connection.execute(statement, inner.parameters):
            if reason is None:
                # The same hours and agents stand in thousands of rows, and one text of each is enough.
                episodes.append(FreezableEpisode(sys.intern(window), sys.intern(agent), trajectories, group_size, answered))
            else:
                reasons[reason] += rows
        yield episodes, dict(reasons)


def count_unread(connection: Connection, bounds: FreezeBounds) -> int:
    """Count new trajectories in hours that were never read."""
    return int(connection.value(with_unnamed(connection, _UNREAD, _FLAGS, _IN_UNREAD), bounds.parameters) or 0)


def decided_windows(connection: Connection, windows: Sequence[str]) -> frozenset[str]:
    """Return those of ``windows`` with a dropout decision, of an earlier batch or before they were judged: it is made once per group."""
    decided = """
        SELECT "window" FROM babylon_rl.batch_episodes WHERE "window" = ANY(%(windows)s)
        UNION SELECT "window" FROM babylon_rl.dropout_decisions WHERE "window" = ANY(%(windows)s)
    """
    return frozenset(connection.column(decided, {"windows": list(windows)}))


def record_decisions(connection: Connection, windows: Sequence[str], rate: float, freezable: int, now: datetime) -> None:
    decision = {"rate": rate, "freezable": freezable, "decidedAt": now}
    connection.insert("babylon_rl.dropout_decisions", [{"window": window, **decision} for window in windows])


FREEZE_LOCK = 7_306_001  # key of an advisory lock: any number that nothing else in the database uses


@dataclass(frozen=True, slots=True)
class NewBatch:
    batch_id: str
    base_model: str
    backend: str
    parent_version: str | None
    version: str
    seed: int
    settings: Mapping[str, Any]
    dropout: Mapping[str, Any]
    now: datetime
    episodes: Sequence[FreezableEpisode]
    passes: int = 1


# Ids of trajectories stay in the database: they are taken from the episodes as last read, in the order in which these were chosen.
_INSERT_ITEMS = """
INSERT INTO babylon_rl.batch_items ("batchId", "window", "agentId", "trajectoryId", "position")
SELECT %s, e."window", e."agentId", i."trajectoryId", row_number() OVER (ORDER BY chosen."place", i."place")
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS chosen("window", "agentId", "place")
JOIN babylon_rl.episodes e ON e."window" = chosen."window" AND e."agentId" = chosen."agentId"
CROSS JOIN LATERAL unnest(e."trajectoryIds") WITH ORDINALITY AS i("trajectoryId", "place")
"""
_INSERT_GAMES_ROW = """
INSERT INTO public.training_batches
    (id, "batchId", "scenarioId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson", status, "createdAt")
SELECT %(batch)s, %(batch)s, %(scenario)s, %(base)s, %(version)s, COALESCE((
    SELECT json_agg("trajectoryId" ORDER BY "position")::text FROM babylon_rl.batch_items WHERE "batchId" = %(batch)s
), '[]'), '[]', 'pending', %(now)s
"""


def insert_batch(connection: Connection, new: NewBatch) -> None:
    """Write a batch with its items, inside the caller's transaction.

    Raises BatchConflict: one of the trajectories is in a live batch, or an hour was read anew since its episodes were chosen.
    """
    windows, agents = [episode.window for episode in new.episodes], [episode.agent_id for episode in new.episodes]
    own = document_of(new, "batch_id", "base_model", "backend", "parent_version", "version", "seed", "settings", "dropout", "passes")
    connection.insert("babylon_rl.batches", [own | {"createdAt": new.now, "heartbeatAt": new.now}])
    taken = [{"batchId": new.batch_id, **document_of(episode, "window", "agent_id", "trajectories")} for episode in new.episodes]
    connection.insert("babylon_rl.batch_episodes", taken)
    try:
        with connection.transaction():
            inserted = connection.execute(_INSERT_ITEMS, [new.batch_id, windows, agents]).rowcount
    # A unique index allows a trajectory in one live batch only.
    except psycopg.errors.UniqueViolation as held:
        detail = held.diag.message_detail
        raise BatchConflict(f"A trajectory of the new batch is already in a live batch ({detail}). Freeze again.") from None
    # The items are those of the episodes as they are now, the number is of when they were chosen.
    if inserted != sum(episode.trajectories for episode in new.episodes):
        raise BatchConflict("An hour of the new batch was read anew while it was frozen. Freeze again.")
    # The game's row lists the trajectories in the order of ours.
    hours = set(windows)
    connection.execute(
        _INSERT_GAMES_ROW,
        {"batch": new.batch_id, "scenario": windows[0] if len(hours) == 1 else None, "base": new.base_model, "version": new.version,
         "now": new.now},
    )  # fmt: skip
