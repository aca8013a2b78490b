"""What people are told of hours and batches: the groups of a batch as they were judged, and which hours have changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

_GROUPS = """
SELECT DISTINCT ON (e."window") e."window",
       count(*) OVER hour, min(e."score") OVER hour, max(e."score") OVER hour, avg(e."score") OVER hour,
       e."agentId", e."score", COALESCE(own."windowPnl", 0), COALESCE(g."judge", ''), e."dropped"
FROM babylon_rl.batch_episodes e
LEFT JOIN babylon_rl.episodes own ON own."window" = e."window" AND own."agentId" = e."agentId"
LEFT JOIN babylon_rl.group_scores g ON g."window" = e."window"
WHERE e."batchId" = %s AND e."score" IS NOT NULL
WINDOW hour AS (PARTITION BY e."window")
ORDER BY e."window", e."score" DESC, e."agentId"
"""

_MARKET = 'SELECT "window", "stocks", "predictions", "dataVersion" FROM babylon_rl.market_windows WHERE "window" = ANY(%s)'
_VERSIONS = 'SELECT "window", "dataVersion" FROM babylon_rl.windows WHERE "window" = ANY(%s)'


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """One hour of a batch: its episodes, the scores' range and mean, and the best of them (P&L in dollars)."""

    window: str
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
    """The groups of a batch that have scores, in order of window."""
    return [JudgedGroup(*row) for row in connection.execute(_GROUPS, [batch_id])]


def market_hours(connection: psycopg.Connection[Any], windows: Sequence[str]) -> dict[str, MarketHour]:
    """Those of ``windows`` that have outcomes."""
    return {row[0]: MarketHour(*row[1:]) for row in connection.execute(_MARKET, [list(windows)])}


def read_versions(connection: psycopg.Connection[Any], windows: Sequence[str]) -> dict[str, str]:
    """The data version with which each of ``windows`` was last read; an hour that was not is absent."""
    return {window: version for window, version in connection.execute(_VERSIONS, [list(windows)])}
