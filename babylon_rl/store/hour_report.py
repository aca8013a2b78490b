"""What pages and checks of an hour show, read back from the tables that window_groups and scored_groups wrote."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

_EPISODES = """
    SELECT "window", "agentId", cardinality("trajectoryIds"), "steps", "windowPnl", "winRate", "trades", "posts", "usable",
           "trainableSequences"
    FROM babylon_rl.episodes WHERE "window" = ANY(%s) ORDER BY "window", "windowPnl" DESC, "agentId"
"""

_COUNTS = """
    SELECT "window", "rows", "rejected", "ready", "trainableSequences" FROM babylon_rl.windows WHERE "window" = ANY(%s) ORDER BY 1
"""

_SPREADS = 'SELECT "window", "spread" FROM babylon_rl.group_scores WHERE "window" = ANY(%s) ORDER BY 1'


@dataclass(frozen=True, slots=True)
class EpisodeLine:
    """One episode on an hour's page; ``pnl_usd`` is the window P&L."""

    agent_id: str
    trajectories: int
    steps: int
    pnl_usd: float
    win_rate: float | None
    trades: int
    posts: int
    usable: bool
    trainable_sequences: int


def episode_lines(connection: psycopg.Connection[Any], windows: Sequence[str]) -> dict[str, list[EpisodeLine]]:
    """The episodes of some windows, highest P&L first; an hour without episodes has an empty list."""
    lines: defaultdict[str, list[EpisodeLine]] = defaultdict(list)
    for window, *columns in connection.execute(_EPISODES, [list(windows)]):
        lines[window].append(EpisodeLine(*columns))
    return {window: lines[window] for window in windows}


@dataclass(frozen=True, slots=True)
class HourCounts:
    """What the checks of an hour look at; ``rejected`` counts rows by reason."""

    window: str
    rows: int
    rejected: Mapping[str, int]
    ready: bool
    trainable_sequences: int


def hour_counts(connection: psycopg.Connection[Any], windows: Sequence[str]) -> list[HourCounts]:
    """The counts of those windows that hold rows, in order."""
    return [HourCounts(*row) for row in connection.execute(_COUNTS, [list(windows)])]


def group_spreads(connection: psycopg.Connection[Any], windows: Sequence[str]) -> dict[str, float]:
    """The population standard deviation of the scores of those windows that are judged, in order."""
    return dict(connection.execute(_SPREADS, [list(windows)]).fetchall())
