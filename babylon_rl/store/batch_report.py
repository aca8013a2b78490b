"""Read queries for reports: judged groups of a batch, market hours, data versions."""

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.store.connection import Connection

# One row per window of the batch. The window functions aggregate over the whole group; DISTINCT ON keeps the row of the best agent.
_GROUPS = """
WITH mine AS (
    SELECT "window", count(*) FILTER (WHERE "dropped" IS NULL) AS "training", min("dropped") AS "dropped"
    FROM babylon_rl.batch_episodes WHERE "batchId" = %s AND "score" IS NOT NULL GROUP BY "window"
)
SELECT DISTINCT ON (s."window") s."window", mine."training",
       count(*) OVER hour, min(s."score") OVER hour, max(s."score") OVER hour, avg(s."score") OVER hour,
       s."agentId", s."score", COALESCE(own."windowPnl", 0), g."judge", CASE WHEN mine."training" = 0 THEN mine."dropped" END
FROM mine
JOIN babylon_rl.group_scores g ON g."window" = mine."window"
JOIN babylon_rl.episode_scores s ON s."window" = mine."window"
LEFT JOIN babylon_rl.episodes own ON own."window" = s."window" AND own."agentId" = s."agentId"
WINDOW hour AS (PARTITION BY s."window")
ORDER BY s."window", s."score" DESC, s."agentId"
"""

_MARKET = 'SELECT "window", "stocks", "predictions", "dataVersion" FROM babylon_rl.market_windows WHERE "window" = ANY(%s)'
# The cost in dollars is optional in the stored judgement.
_JUDGING = """
SELECT g."window", g."disagreement", (g."judgement" ->> 'usd')::float8 FROM babylon_rl.group_scores g
WHERE g."window" IN (SELECT e."window" FROM babylon_rl.batch_episodes e WHERE e."batchId" = %s)
"""
_VERSIONS = 'SELECT "window", "dataVersion" FROM babylon_rl.windows WHERE "window" = ANY(%s)'


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """One judged window of a batch: group size, score range and best agent.

    ``training`` counts the episodes that train, ``agents`` the whole group. ``best_pnl`` is in dollars. ``dropped`` says why none trains.
    """

    window: str
    training: int
    agents: int
    lowest: float
    highest: float
    mean: float
    best_agent: str
    best_score: float
    best_pnl: float
    judge: str
    dropped: str | None


@dataclass(frozen=True, slots=True)
class MarketHour:
    """Counts of market outcomes in one hour and their data version."""

    stocks: int
    predictions: int
    version: str


def judged_groups(connection: Connection, batch_id: str) -> list[JudgedGroup]:
    """Return the judged groups of a batch, ordered by window."""
    return [JudgedGroup(*row) for row in connection.execute(_GROUPS, [batch_id])]


def judging_of(connection: Connection, batch_id: str) -> dict[str, tuple[float, float | None]]:
    """Return disagreement and cost of the judgement for each window of a batch.

    Windows dropped from the batch are included. Disagreement: 0 to 1. Cost: dollars, None when no price is known.
    """
    return {row[0]: (row[1], row[2]) for row in connection.execute(_JUDGING, [batch_id])}


def market_hours(connection: Connection, windows: Sequence[str]) -> dict[str, MarketHour]:
    """Return the market hours of ``windows``; windows without outcomes are absent."""
    return {row[0]: MarketHour(*row[1:]) for row in connection.execute(_MARKET, [list(windows)])}


def read_versions(connection: Connection, windows: Sequence[str]) -> dict[str, str]:
    """Return the data version of the last reading of each window.

    A window that was never read is absent.
    """
    return {window: version for window, version in connection.execute(_VERSIONS, [list(windows)])}
