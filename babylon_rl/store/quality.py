"""Queries on recorded rows: newest trainable ones, unscored windows, logged calls."""

from collections.abc import Sequence

from babylon_rl.store.connection import Connection
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

# Windows without current scores of any judge.
_UNSCORED = """
SELECT w."window" FROM unnest(%s::text[]) AS w("window")
WHERE NOT EXISTS (SELECT FROM babylon_rl.group_scores g WHERE g."window" = w."window" AND NOT g."stale")
"""

# Windows without current scores of this judge. A window consumed by a training keeps its scores.
_OTHERS_SCORES = """
SELECT w."window" FROM unnest(%s::text[]) AS w("window")
WHERE NOT EXISTS (
    SELECT FROM babylon_rl.group_scores g
    WHERE g."window" = w."window" AND NOT g."stale" AND g."judge" = %s AND g."judgeVersion" = %s
) AND NOT EXISTS (SELECT FROM babylon_rl.batch_items i WHERE i."window" = w."window" AND i."consumed")
"""

# The columns are NOT NULL, but can be empty.
_FIRST_LOGGED = """
SELECT DISTINCT ON ("trajectoryId") "trajectoryId", "systemPrompt" <> '' AND "userPrompt" <> '' AND response <> ''
FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%s) ORDER BY "trajectoryId", "timestamp", "callId" COLLATE "C"
"""

_AT_ONCE = 5000


def newest_new_trainable(connection: Connection, first: str, end: str, complete: str, limit: int) -> list[TrajectoryRow]:
    """Return the newest eligible unused rows of complete windows, newest first.

    ``first`` <= window < ``end``, window <= ``complete``.
    """
    rows = connection.execute(_NEWEST, [first, end, complete, limit]).fetchall()
    return [TrajectoryRow(*(*columns, metrics.encode(), steps.encode())) for *columns, metrics, steps in rows]


def unscored_windows(connection: Connection, windows: list[str]) -> set[str]:
    """Return those of ``windows`` without current scores."""
    return {row[0] for row in connection.execute(_UNSCORED, [windows])}


def windows_not_by(connection: Connection, windows: list[str], judge: str, version: str) -> set[str]:
    """Return those of ``windows`` without current scores of this judge.

    Windows with an episode consumed by a training are left out.
    """
    return {row[0] for row in connection.execute(_OTHERS_SCORES, [windows, judge, version])}


def first_logged_calls(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, bool]:
    """Return for each trajectory with logged calls whether the first one is complete.

    Complete: it has both prompts and a response.
    """
    complete: dict[str, bool] = {}
    for start in range(0, len(trajectory_ids), _AT_ONCE):
        complete.update(connection.execute(_FIRST_LOGGED, [list(trajectory_ids[start : start + _AT_ONCE])]).fetchall())
    return complete
