"""Read queries for pages and checks of an hour.

The tables are those that the hourly assets wrote. One query per kind serves any number of hours, each found by the key of its table.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from babylon_rl.store.connection import Connection

_EPISODES = """
    SELECT "window", "agentId", cardinality("trajectoryIds"), "steps", "windowPnl", "winRate", "trades", "posts", "usable",
           "trainableSequences"
    FROM babylon_rl.episodes WHERE "window" = ANY(%s) ORDER BY "window", "windowPnl" DESC, "agentId"
"""

# Ordered so that the first row of every reason comes before the second of any: a page shows every kind of fault.
_REJECTIONS = """
    SELECT "window", "trajectoryId", "reason", "detail" FROM (
        SELECT "window", "trajectoryId", "reason", left("detail", %(characters)s) AS "detail",
               row_number() OVER (PARTITION BY "window", "reason" ORDER BY "trajectoryId") AS of_reason
        FROM babylon_rl.rejections WHERE "window" = ANY(%(windows)s)
    ) AS numbered WHERE of_reason <= %(most)s ORDER BY "window", of_reason, "reason"
"""

_COUNTS = """
    SELECT "window", "rows", "rejected", "messageSources", "ready", "trainableSequences", "quality"::text
    FROM babylon_rl.windows WHERE "window" = ANY(%s) ORDER BY 1
"""

_SPREADS = 'SELECT "window", "spread" FROM babylon_rl.group_scores WHERE "window" = ANY(%s) ORDER BY 1'

# A ticker that two organizations share was stored with a suffix ~2.
_MARKETS = """
    SELECT market."window", market."stocks", market."predictions", market."flags",
           ARRAY(SELECT outcome."stockTicker" FROM public.market_outcomes outcome
                 WHERE outcome."windowId" = market."window" AND outcome."stockTicker" LIKE '%%~%%' ORDER BY 1)
    FROM babylon_rl.market_windows market WHERE market."window" = ANY(%s) ORDER BY 1
"""

REJECTIONS_PER_REASON = 5
DETAIL_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class EpisodeLine:
    """One episode on an hour's page.

    ``pnl_usd`` is the window P&L in dollars.
    """

    agent_id: str
    trajectories: int
    steps: int
    pnl_usd: float
    win_rate: float | None
    trades: int
    posts: int
    usable: bool
    trainable_sequences: int


def episode_lines(connection: Connection, windows: Sequence[str]) -> dict[str, list[EpisodeLine]]:
    """Return the episodes by window, highest P&L first.

    A window without episodes has an empty list.
    """
    lines: defaultdict[str, list[EpisodeLine]] = defaultdict(list)
    for window, *columns in connection.execute(_EPISODES, [list(windows)]):
        lines[window].append(EpisodeLine(*columns))
    return {window: lines[window] for window in windows}


@dataclass(frozen=True, slots=True)
class RejectionLine:
    """One rejected row on an hour's page.

    ``detail`` is cut to DETAIL_CHARACTERS.
    """

    trajectory_id: str
    reason: str
    detail: str


def rejection_lines(connection: Connection, windows: Sequence[str]) -> dict[str, list[RejectionLine]]:
    """Return the first rejected rows by window, at most REJECTIONS_PER_REASON per reason.

    A window without rejections has an empty list.
    """
    lines: defaultdict[str, list[RejectionLine]] = defaultdict(list)
    parameters = {"windows": list(windows), "most": REJECTIONS_PER_REASON, "characters": DETAIL_CHARACTERS}
    for window, *columns in connection.execute(_REJECTIONS, parameters):
        lines[window].append(RejectionLine(*columns))
    return {window: lines[window] for window in windows}


class Quality(msgspec.Struct, frozen=True, rename="camel"):
    """Counts of odd rows or agents in an hour, with first ids per kind.

    Of ``prompts`` rows with a recorded call, ``short_prompts`` have a first prompt that is too short.
    """

    short_prompts: int = 0
    prompts: int = 0
    duplicates: tuple[str, ...] = ()
    duplicate_rows: int = 0
    clock_skew: tuple[str, ...] = ()
    skewed_rows: int = 0
    pnl_jumps: tuple[str, ...] = ()
    jumping_agents: int = 0
    other_lengths: int = 0


@dataclass(frozen=True, slots=True)
class HourCounts:
    """Counts of one hour that its checks use.

    ``rejected`` counts rows by reason, ``message_sources`` eligible rows by source.
    """

    window: str
    rows: int
    rejected: Mapping[str, int]
    message_sources: Mapping[str, int]
    ready: bool
    trainable_sequences: int
    quality: Quality


def hour_counts(connection: Connection, windows: Sequence[str]) -> list[HourCounts]:
    """Return the counts of those ``windows`` that hold rows, in order.

    An hour read before its quality was recorded has a quality of zeros.
    """
    counts = []
    for *columns, quality in connection.execute(_COUNTS, [list(windows)]):
        columns.append(msgspec.json.decode(quality or "{}", type=Quality))
        counts.append(HourCounts(*columns))
    return counts


@dataclass(frozen=True, slots=True)
class MarketFlags:
    """Flags on an hour's market.

    A flag is ``{"subject": ticker or market id, "flag": name}``; ``shared_tickers`` are tickers made distinct by ``~2``.
    """

    window: str
    stocks: int
    predictions: int
    flags: Sequence[Mapping[str, str]]
    shared_tickers: Sequence[str]


def market_flags(connection: Connection, windows: Sequence[str]) -> list[MarketFlags]:
    """Return the market flags of those ``windows`` with recorded market data, in order."""
    return [MarketFlags(*row) for row in connection.execute(_MARKETS, [list(windows)])]


def group_spreads(connection: Connection, windows: Sequence[str]) -> dict[str, float]:
    """Return the population standard deviation of scores by judged window."""
    return dict(connection.execute(_SPREADS, [list(windows)]).fetchall())
