"""Rows of babylon_rl.windows, episodes and rejections, and the lock of an hour.

They hold the last reading of each hour; an hour with an unchanged row version is not written.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

from babylon_rl.store.columns import columns_of, in_parts, portions
from babylon_rl.store.connection import Connection
from babylon_rl.types import Episode, HourEpisodes, Rejection, WindowReading, WindowSummary
from babylon_rl.versions import content_version

# Limits of one transaction: hours written, hours read, and rows read (memory).
HOURS_AT_ONCE = 168
HOURS_READ_AT_ONCE = 1000
ROWS_READ_AT_ONCE = 100_000

ROW_COUNTS = """SELECT "windowId", count(*) FROM public.trajectories WHERE "windowId" = ANY(%s) GROUP BY 1"""

# Advisory locks in order of their keys; OFFSET 0 keeps the sort below the lock calls.
_LOCK = """
    SELECT pg_advisory_xact_lock(key)
    FROM (SELECT DISTINCT hashtext('babylon_rl/' || hour) AS key FROM unnest(%s::text[]) AS given (hour) ORDER BY key OFFSET 0) wanted
"""

_FORGET = """DELETE FROM babylon_rl.windows WHERE "window" = ANY(%s) AND "state" <> 'quarantined' RETURNING "window\""""

# Of a summary all but the mark of the call is stored, of an episode all but its texts.
_WINDOWS = columns_of(WindowSummary, but=("changed",))
_EPISODES = columns_of(Episode, but=("sequences",))
_REJECTIONS = columns_of(Rejection)

# A quarantined window keeps its state.
_KEPT_STATE = {"state": """CASE held."state" WHEN 'quarantined' THEN held."state" ELSE excluded."state" END"""}

# States can change while the content stays, so they are set for all hours.
_SET_STATES = """
    UPDATE babylon_rl.windows held SET "state" = given."state"
    FROM unnest(%s::text[], %s::text[]) AS given ("window", "state")
    WHERE held."window" = given."window" AND held."state" NOT IN (given."state", 'quarantined')
"""

_QUARANTINED = """SELECT "window" FROM babylon_rl.windows WHERE "state" = 'quarantined' AND "window" = ANY(%s)"""


def chunks(windows: Iterable[str]) -> Iterator[list[str]]:
    """Yield the distinct windows in order, at most HOURS_AT_ONCE per transaction."""
    yield from in_parts(sorted(set(windows)), HOURS_AT_ONCE)


def reading_chunks(connection: Connection, windows: Iterable[str]) -> list[list[str]]:
    """Split windows into chunks of at most HOURS_READ_AT_ONCE hours and ROWS_READ_AT_ONCE rows.

    An hour with more rows is a chunk of its own. Rows without a canonical "windowId" are few and not counted.
    """
    ordered = sorted(set(windows))
    with connection.transaction():
        counts: dict[str, int] = dict(connection.execute(ROW_COUNTS, (ordered,)).fetchall())
    by_rows = portions(ordered, lambda window: counts.get(window, 0), ROWS_READ_AT_ONCE)
    return [part for some in by_rows for part in in_parts(some, HOURS_READ_AT_ONCE)]


def lock_windows(connection: Connection, windows: Sequence[str]) -> None:
    """Take the locks of ``windows`` until the transaction ends. Always in the same order, which prevents deadlocks."""
    connection.execute(_LOCK, (list(windows),))


def replace_hours(connection: Connection, hours: Sequence[tuple[WindowSummary, WindowReading]], now: datetime) -> set[str]:
    """Write hours where their content changed, and return the changed windows. The caller holds the hours' locks."""
    # An hour without rows leaves no row behind, unless it is in quarantine.
    full = [(summary, reading) for summary, reading in hours if summary.rows]
    empty = [summary.window for summary, _ in hours if not summary.rows]
    forgotten = set(connection.column(_FORGET, (empty,)))
    windows = [summary.window for summary, _ in full]
    stored_versions = connection.of_hours("babylon_rl.windows", "rowVersion", windows)
    changed: dict[str, dict[str, Any]] = {}
    episodes: list[dict[str, Any]] = []
    rejections: list[dict[str, Any]] = []
    for summary, reading in full:
        hour = {"window": summary.window}
        own_episodes = [_document(episode, _EPISODES[1:]) for episode in reading.episodes]
        own_rejections = [_document(rejection, _REJECTIONS[1:]) for rejection in reading.rejections]
        document = _document(summary, _WINDOWS)
        # Without the state, which changes while the content stays.
        content = {name: value for name, value in document.items() if name != "state"}
        version = content_version({**content, "episodes": own_episodes, "rejections": own_rejections})
        if stored_versions.get(summary.window) != version:
            changed[summary.window] = {**document, "rowVersion": version, "computedAt": now}
            episodes += [hour | episode for episode in own_episodes]
            rejections += [hour | rejection for rejection in own_rejections]
    if changed:
        connection.upsert("babylon_rl.windows", list(changed.values()), but=_KEPT_STATE)
        for table, rows in (("babylon_rl.episodes", episodes), ("babylon_rl.rejections", rejections)):
            connection.delete_hours(table, list(changed))
            connection.insert(table, rows)
    connection.execute(_SET_STATES, (windows, [summary.state for summary, _ in full]))
    return forgotten | set(changed)


def _document(row: msgspec.Struct, columns: Sequence[str]) -> dict[str, Any]:
    document = msgspec.to_builtins(row)
    return {name: document[name] for name in columns}


def quarantined(connection: Connection, windows: Sequence[str]) -> set[str]:
    """Return those of ``windows`` that are quarantined; empty without our tables."""
    if not connection.has_table("babylon_rl.windows"):
        return set()
    return set(connection.column(_QUARANTINED, (list(windows),)))


_READ_EPISODES = 'babylon_rl.episodes WHERE "window" = ANY(%s) ORDER BY "window", "windowPnl" DESC, "agentId"'
# Ordered so that the first row of every reason comes before the second of any: a page shows every kind of fault.
REJECTIONS_PER_REASON = 5
DETAIL_CHARACTERS = 200
_FIRST_REJECTIONS = f"""
    (
        SELECT "window", "trajectoryId", "reason", left("detail", {DETAIL_CHARACTERS}) AS "detail",
               row_number() OVER (PARTITION BY "window", "reason" ORDER BY "trajectoryId") AS of_reason
        FROM babylon_rl.rejections WHERE "window" = ANY(%s)
    ) AS numbered WHERE of_reason <= {REJECTIONS_PER_REASON} ORDER BY "window", of_reason, "reason"
"""
_TRAJECTORIES = 'SELECT unnest("trajectoryIds") FROM babylon_rl.episodes WHERE "window" = ANY(%s)'


def stored_summaries(connection: Connection, windows: Sequence[str]) -> list[WindowSummary]:
    """Return the summaries of those ``windows`` that hold rows, in order."""
    source = 'babylon_rl.windows WHERE "window" = ANY(%s) ORDER BY "window"'
    return connection.rows(WindowSummary, source, [list(windows)], but=("changed",))


def stored_episodes(connection: Connection, windows: Sequence[str]) -> dict[str, list[Episode]]:
    """Return the episodes by window, highest P&L first, without their sequences. A window without episodes has an empty list."""
    return connection.by_window(Episode, _READ_EPISODES, windows, but=("sequences",))


def stored_hours(connection: Connection, windows: Sequence[str], min_agents: int) -> dict[str, HourEpisodes]:
    """Return the hours as ``window_groups`` stored them, by window; one that was never read has no episode."""
    return {
        window: HourEpisodes(window=window, episodes=tuple(sorted(episodes, key=lambda e: e.agent_id)), min_agents=min_agents)
        for window, episodes in stored_episodes(connection, windows).items()
    }


def trajectories_read(connection: Connection, windows: Sequence[str]) -> list[str]:
    """Return the ids of the eligible trajectories as ``window_groups`` stored them."""
    return connection.column(_TRAJECTORIES, [list(windows)])


def first_rejections(connection: Connection, windows: Sequence[str]) -> dict[str, list[Rejection]]:
    """Return the first rejected rows by window, REJECTIONS_PER_REASON per reason, their detail cut to DETAIL_CHARACTERS."""
    return connection.by_window(Rejection, _FIRST_REJECTIONS, windows)


# Whether a training took an hour is read from the versions: the state in the table is that of the last reading.
_STATES = """
WITH trained AS (SELECT DISTINCT unnest("windows") AS "window" FROM babylon_rl.model_lineage)
SELECT w."window", CASE WHEN w."state" IN ('ready', 'scored') AND t."window" IS NOT NULL THEN 'trained'
                        WHEN w."state" = 'ready' AND p."window" IS NOT NULL THEN 'waiting' ELSE w."state" END
FROM (SELECT "window", "state" FROM babylon_rl.windows ORDER BY "window" DESC LIMIT %s) w
LEFT JOIN trained t ON t."window" = w."window" LEFT JOIN babylon_rl.judge_pending p ON p."window" = w."window"
ORDER BY w."window"
"""


def newest_states(connection: Connection, limit: int) -> dict[str, str]:
    """Return the state of the newest hours that hold rows, oldest first; ``waiting``: the hour waits for its judge."""
    return dict(connection.execute(_STATES, [limit]).fetchall())


def hours_of_agent(connection: Connection, agent_id: str, limit: int) -> list[str]:
    newest = 'SELECT "window" FROM babylon_rl.episodes WHERE "agentId" = %s ORDER BY "window" DESC LIMIT %s'
    return connection.column(newest, [agent_id, limit])


def read_versions(connection: Connection, windows: Sequence[str]) -> dict[str, str]:
    """Return the data version of the last reading of each window. A window that was never read is absent."""
    return connection.of_hours("babylon_rl.windows", "dataVersion", windows)


# An hour that waits for its judge, or was set aside, is an hour of scored_groups too.
_HOURS_OF = {
    "window_groups": 'SELECT "window", "computedAt" AS at FROM babylon_rl.windows',
    "market_outcomes": 'SELECT "window", "computedAt" AS at FROM babylon_rl.market_windows',
    "hindsight": 'SELECT "window", "computedAt" AS at FROM babylon_rl.hindsight',
    "scored_groups": """
        SELECT "window", "judgedAt" AS at FROM babylon_rl.group_scores
        UNION ALL SELECT "window", at FROM babylon_rl.judge_quarantine
        UNION ALL SELECT "window", at FROM babylon_rl.judge_pending
    """,
}
_RECENT_HOURS = """
    WITH held AS (SELECT "window", max(at) AS at FROM ({hours}) AS rows GROUP BY "window")
    (SELECT "window" FROM held ORDER BY 1 DESC LIMIT %(count)s) UNION SELECT "window" FROM held WHERE at >= %(since)s
"""


def recent_hours(connection: Connection, asset: str, count: int, since: datetime) -> set[str]:
    """Return the newest ``count`` hours for which an hourly asset holds data, and those that it changed from ``since`` on."""
    statement = _RECENT_HOURS.format(hours=_HOURS_OF[asset])
    return set(connection.column(statement, {"count": count, "since": since}))
