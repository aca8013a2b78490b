"""Rows of babylon_rl.windows, episodes and rejections, and the lock of an hour.

They hold the last reading of each hour. Rows are written in sets; an hour with an unchanged row version is not touched. One query per kind
serves any number of hours, each found by the key of its table.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from babylon_rl.store.connection import Connection
from babylon_rl.versions import content_version

# Limits of one transaction: hours written, hours read, and rows read (memory).
HOURS_AT_ONCE = 168
HOURS_READ_AT_ONCE = 1000
ROWS_READ_AT_ONCE = 100_000


class StoredEpisode(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One row of babylon_rl.episodes, without its window."""

    agent_id: str
    trajectory_ids: list[str]
    used_ids: list[str]
    steps: int
    start_pnl: float
    end_pnl: float
    window_pnl: float
    wins: int
    losses: int
    win_rate: float | None
    trades: int
    posts: int
    message_sources: dict[str, int]
    usable: bool
    trainable_sequences: int
    actions: dict[str, int]
    content: str


class StoredRejection(msgspec.Struct, frozen=True, rename="camel"):
    """One row of babylon_rl.rejections, without its window."""

    trajectory_id: str
    reason: str
    detail: str


class StoredWindow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One row of babylon_rl.windows with its episodes and rejections.

    ``state`` is not overwritten while a window is quarantined.
    """

    window: str
    rows: int
    eligible: int
    new_trainable: int
    agents: int
    usable_episodes: int
    ready: bool
    state: str
    rejected: dict[str, int]
    message_sources: dict[str, int]
    avg_pnl: float | None
    trainable_sequences: int
    quality: dict[str, Any]
    data_version: str
    group_version: str
    episodes: list[StoredEpisode]
    rejections: list[StoredRejection]


ROW_COUNTS = """
    SELECT "windowId", count(*) FROM public.trajectories WHERE "windowId" = ANY(%s) GROUP BY 1
"""

# Advisory locks in order of their keys; OFFSET 0 keeps the sort below the lock calls.
_LOCK = """
    SELECT pg_advisory_xact_lock(key)
    FROM (SELECT DISTINCT hashtext('babylon_rl/' || hour) AS key FROM unnest(%s::text[]) AS given (hour) ORDER BY key OFFSET 0) wanted
"""

_ROW_VERSIONS = """SELECT "window", "rowVersion" FROM babylon_rl.windows WHERE "window" = ANY(%s)"""

_FORGET = """DELETE FROM babylon_rl.windows WHERE "window" = ANY(%s) AND "state" <> 'quarantined' RETURNING "window\""""

# The windows arrive as one JSON document. A quarantined window keeps its state.
_UPSERT_WINDOWS = """
    INSERT INTO babylon_rl.windows AS held ("window", "rows", "eligible", "newTrainable", "agents", "episodes", "usableEpisodes", "ready",
        "state", "rejected", "messageSources", "avgPnl", "trainableSequences", "quality", "dataVersion", "groupVersion", "rowVersion",
        "computedAt")
    SELECT "window", "rows", "eligible", "newTrainable", "agents", jsonb_array_length("episodes"), "usableEpisodes", "ready",
        "state", "rejected", "messageSources", "avgPnl", "trainableSequences", "quality", "dataVersion", "groupVersion", "rowVersion",
        %(now)s
    FROM jsonb_to_recordset(%(windows)s) AS given ("window" text, "rows" int, "eligible" int, "newTrainable" int, "agents" int,
        "episodes" jsonb, "usableEpisodes" int, "ready" bool, "state" text, "rejected" jsonb, "messageSources" jsonb, "avgPnl" float8,
        "trainableSequences" int, "quality" jsonb, "dataVersion" text, "groupVersion" text, "rowVersion" text)
    ON CONFLICT ("window") DO UPDATE SET
        "rows" = excluded."rows", "eligible" = excluded."eligible", "newTrainable" = excluded."newTrainable",
        "agents" = excluded."agents", "episodes" = excluded."episodes", "usableEpisodes" = excluded."usableEpisodes",
        "ready" = excluded."ready", "state" = CASE held."state" WHEN 'quarantined' THEN held."state" ELSE excluded."state" END,
        "rejected" = excluded."rejected", "messageSources" = excluded."messageSources", "avgPnl" = excluded."avgPnl",
        "trainableSequences" = excluded."trainableSequences", "quality" = excluded."quality", "dataVersion" = excluded."dataVersion",
        "groupVersion" = excluded."groupVersion", "rowVersion" = excluded."rowVersion", "computedAt" = excluded."computedAt"
"""

_CLEAR_EPISODES = """DELETE FROM babylon_rl.episodes WHERE "window" = ANY(%s)"""
_CLEAR_REJECTIONS = """DELETE FROM babylon_rl.rejections WHERE "window" = ANY(%s)"""

_INSERT_EPISODES = """
    INSERT INTO babylon_rl.episodes ("window", "agentId", "trajectoryIds", "usedIds", "steps", "startPnl", "endPnl", "windowPnl", "wins",
        "losses", "winRate", "trades", "posts", "messageSources", "usable", "trainableSequences", "actions", "content")
    SELECT given."window", e."agentId", e."trajectoryIds", e."usedIds", e."steps", e."startPnl", e."endPnl", e."windowPnl", e."wins",
        e."losses", e."winRate", e."trades", e."posts", e."messageSources", e."usable", e."trainableSequences", e."actions", e."content"
    FROM jsonb_to_recordset(%(windows)s) AS given ("window" text, "episodes" jsonb)
    CROSS JOIN LATERAL jsonb_to_recordset(given."episodes") AS e ("agentId" text, "trajectoryIds" text[], "usedIds" text[], "steps" int,
        "startPnl" float8, "endPnl" float8, "windowPnl" float8, "wins" int, "losses" int, "winRate" float8, "trades" int, "posts" int,
        "messageSources" jsonb, "usable" bool, "trainableSequences" int, "actions" jsonb, "content" text)
"""

_INSERT_REJECTIONS = """
    INSERT INTO babylon_rl.rejections ("window", "trajectoryId", "reason", "detail")
    SELECT given."window", r."trajectoryId", r."reason", r."detail"
    FROM jsonb_to_recordset(%(windows)s) AS given ("window" text, "rejections" jsonb)
    CROSS JOIN LATERAL jsonb_to_recordset(given."rejections") AS r ("trajectoryId" text, "reason" text, "detail" text)
"""

# States can change while the content stays, so they are set for all hours.
_SET_STATES = """
    UPDATE babylon_rl.windows held SET "state" = given."state"
    FROM unnest(%s::text[], %s::text[]) AS given ("window", "state")
    WHERE held."window" = given."window" AND held."state" NOT IN (given."state", 'quarantined')
"""

_QUARANTINED = """SELECT "window" FROM babylon_rl.windows WHERE "state" = 'quarantined' AND "window" = ANY(%s)"""
_OURS = "SELECT to_regclass('babylon_rl.windows') IS NOT NULL"


def chunks(windows: Iterable[str]) -> Iterator[list[str]]:
    """Yield the distinct windows in order, at most HOURS_AT_ONCE per transaction."""
    ordered = sorted(set(windows))
    for start in range(0, len(ordered), HOURS_AT_ONCE):
        yield ordered[start : start + HOURS_AT_ONCE]


def reading_chunks(connection: Connection, windows: Iterable[str]) -> list[list[str]]:
    """Split windows into chunks of at most HOURS_READ_AT_ONCE hours and ROWS_READ_AT_ONCE rows.

    For readers of the hours' trajectories. An hour with more rows is a chunk of its own. Rows without a canonical "windowId" are few and
    not counted.
    """
    ordered = sorted(set(windows))
    with connection.transaction():
        counts: dict[str, int] = dict(connection.execute(ROW_COUNTS, (ordered,)).fetchall())
    portions: list[list[str]] = []
    rows = 0
    for window in ordered:
        rows += counts.get(window, 0)
        if not portions or len(portions[-1]) == HOURS_READ_AT_ONCE or rows > ROWS_READ_AT_ONCE:
            portions.append([])
            rows = counts.get(window, 0)
        portions[-1].append(window)
    return portions


def lock_windows(connection: Connection, windows: Sequence[str]) -> None:
    """Take the locks of ``windows`` until the transaction ends.

    Always in the same order, which prevents deadlocks.
    """
    connection.execute(_LOCK, (list(windows),))


def replace_hours(connection: Connection, windows: Sequence[StoredWindow], now: datetime) -> set[str]:
    """Write ``windows`` where their content changed, and return the changed ones.

    Windows without rows are deleted. The caller holds the hours' locks.
    """
    # An hour without rows leaves no row behind, unless it is in quarantine.
    full = [entry for entry in windows if entry.rows]
    empty = [entry.window for entry in windows if not entry.rows]
    forgotten = {window for (window,) in connection.execute(_FORGET, (empty,)).fetchall()}
    stored_versions: dict[str, str] = dict(connection.execute(_ROW_VERSIONS, ([entry.window for entry in full],)).fetchall())
    documents = []
    for entry in full:
        document = msgspec.to_builtins(entry)
        version = content_version({name: value for name, value in document.items() if name != "state"})
        # The state is not part of the row version.
        if stored_versions.get(entry.window) != version:
            documents.append({**document, "rowVersion": version})
    if documents:
        # Episodes and rejections of a changed hour are written anew.
        changed = [document["window"] for document in documents]
        parameters = {"windows": Jsonb(documents), "now": now}
        connection.execute(_UPSERT_WINDOWS, parameters)
        connection.execute(_CLEAR_EPISODES, (changed,))
        connection.execute(_CLEAR_REJECTIONS, (changed,))
        connection.execute(_INSERT_EPISODES, parameters)
        connection.execute(_INSERT_REJECTIONS, parameters)
    connection.execute(_SET_STATES, ([entry.window for entry in full], [entry.state for entry in full]))
    return forgotten | {document["window"] for document in documents}


def quarantined(connection: Connection, windows: Sequence[str]) -> set[str]:
    """Return those of ``windows`` that are quarantined; empty without our tables."""
    if connection.execute(_OURS).fetchone() != (True,):
        return set()
    return {window for (window,) in connection.execute(_QUARANTINED, (list(windows),)).fetchall()}


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


_DATA_VERSIONS = 'SELECT "window", "dataVersion" FROM babylon_rl.windows WHERE "window" = ANY(%s)'


def read_versions(connection: Connection, windows: Sequence[str]) -> dict[str, str]:
    """Return the data version of the last reading of each window.

    A window that was never read is absent.
    """
    return {window: version for window, version in connection.execute(_DATA_VERSIONS, [list(windows)])}
