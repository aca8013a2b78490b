"""What is asked of recorded rows beyond reading them: the newest that a training could use, and how whole and scored some are."""

from collections.abc import Sequence
from typing import Any

import psycopg

from babylon_rl.store.trajectories import TrajectoryRow

# Eligible rows are those that an hour's episodes hold; the hours' index bounds what is sorted.
_NEWEST = """
SELECT t."trajectoryId", t."agentId", t."startTime", t."endTime", t."windowId", t."windowHours", t."scenarioId", t."finalPnL",
       t."isTrainingData", t."isEvaluation", t."usedInTraining", t."metricsJson", t."stepsJson"
FROM babylon_rl.episodes e
CROSS JOIN LATERAL unnest(e."trajectoryIds") AS i("trajectoryId")
JOIN public.trajectories t ON t."trajectoryId" = i."trajectoryId"
WHERE e."window" >= %s AND e."window" < %s AND e."window" <= %s AND NOT t."usedInTraining"
ORDER BY t."startTime" DESC, t."trajectoryId" DESC
LIMIT %s
"""

_UNSCORED = """
SELECT w."window" FROM unnest(%s::text[]) AS w("window")
WHERE NOT EXISTS (SELECT FROM babylon_rl.group_scores g WHERE g."window" = w."window" AND NOT g."stale")
"""

_OTHERS_SCORES = """
SELECT w."window" FROM unnest(%s::text[]) AS w("window")
WHERE NOT EXISTS (
    SELECT FROM babylon_rl.group_scores g
    WHERE g."window" = w."window" AND NOT g."stale" AND g."judge" = %s AND g."judgeVersion" = %s
) AND NOT EXISTS (SELECT FROM babylon_rl.batch_items i WHERE i."window" = w."window" AND i."consumed")
"""

# The recorder's columns cannot be NULL, but they can be empty.
_FIRST_LOGGED = """
SELECT DISTINCT ON ("trajectoryId") "trajectoryId", "systemPrompt" <> '' AND "userPrompt" <> '' AND response <> ''
FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%s) ORDER BY "trajectoryId", "timestamp", "callId" COLLATE "C"
"""

_AT_ONCE = 5000


def newest_new_trainable(connection: psycopg.Connection[Any], first: str, end: str, complete: str, limit: int) -> list[TrajectoryRow]:
    """The newest eligible unused rows of the complete windows ``first`` <= window < ``end``, newest first."""
    rows = connection.execute(_NEWEST, [first, end, complete, limit]).fetchall()
    return [TrajectoryRow(*(*columns, metrics.encode(), steps.encode())) for *columns, metrics, steps in rows]


def unscored_windows(connection: psycopg.Connection[Any], windows: list[str]) -> set[str]:
    """Those of ``windows`` that hold no current scores."""
    return {row[0] for row in connection.execute(_UNSCORED, [windows])}


def windows_not_by(connection: psycopg.Connection[Any], windows: list[str], judge: str, version: str) -> set[str]:
    """Those of ``windows`` that hold no current scores of this judge, less those of which a training has consumed an episode."""
    return {row[0] for row in connection.execute(_OTHERS_SCORES, [windows, judge, version])}


def first_logged_calls(connection: psycopg.Connection[Any], trajectory_ids: Sequence[str]) -> dict[str, bool]:
    """Those of some trajectories that llm_call_logs holds calls of, and whether the first has both prompts and a response."""
    found: dict[str, bool] = {}
    for start in range(0, len(trajectory_ids), _AT_ONCE):
        found.update(connection.execute(_FIRST_LOGGED, [list(trajectory_ids[start : start + _AT_ONCE])]).fetchall())
    return found
