"""What people are told of hours and batches: the groups of a batch as they were judged, and which hours have changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

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
_JUDGING = """
SELECT g."window", g."disagreement", (g."judgement" ->> 'usd')::float8 FROM babylon_rl.group_scores g
WHERE g."window" IN (SELECT e."window" FROM babylon_rl.batch_episodes e WHERE e."batchId" = %s)
"""
_VERSIONS = 'SELECT "window", "dataVersion" FROM babylon_rl.windows WHERE "window" = ANY(%s)'


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """One hour of a batch: its whole group, how many of it train, the scores' range and mean, and the best (P&L in dollars)."""

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
    """What market_outcomes holds of an hour."""

    stocks: int
    predictions: int
    version: str


def judged_groups(connection: psycopg.Connection[Any], batch_id: str) -> list[JudgedGroup]:
    """The groups of a batch that were judged for it, in order of window; ``dropped`` says why none of a group trains."""
    return [JudgedGroup(*row) for row in connection.execute(_GROUPS, [batch_id])]


def judging_of(connection: psycopg.Connection[Any], batch_id: str) -> dict[str, tuple[float, float | None]]:
    """By window of a batch, kept or dropped: how far the judge's orders were apart (0..1), and its dollars (None: no price is known)."""
    return {row[0]: (row[1], row[2]) for row in connection.execute(_JUDGING, [batch_id])}


def market_hours(connection: psycopg.Connection[Any], windows: Sequence[str]) -> dict[str, MarketHour]:
    """Those of ``windows`` that have outcomes."""
    return {row[0]: MarketHour(*row[1:]) for row in connection.execute(_MARKET, [list(windows)])}


def read_versions(connection: psycopg.Connection[Any], windows: Sequence[str]) -> dict[str, str]:
    """The data version with which each of ``windows`` was last read; an hour that was not is absent."""
    return {window: version for window, version in connection.execute(_VERSIONS, [list(windows)])}
