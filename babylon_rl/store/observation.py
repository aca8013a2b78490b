"""Data version of each hour of recorded trajectories and market data.

A version changes when, and only when, the hour must be read again. It counts the hour's rows and sums a hash of each: of a trajectory its
id and the producer's last change, never a column that this pipeline writes; of a logged call, which has no such time, the transaction that
last wrote it. So edits, deletions and swaps are detected without reading texts.

A market hour's version covers the inputs of its outcomes: prices, probabilities and events of the hour; names and start prices of
organizations; questions open in the hour, their answers and start probabilities. A start price is found by its index however old it is, so
a late price reaches every hour up to the next price and no further. The predicates are those of market.py.

A watermark tells in a millisecond, however long the tables are, whether anything was written: it is made of Postgres' own row counters.
The server counts inserted, updated and deleted rows of committed and aborted transactions; a session reports its counts when idle, at most
a minute after the commit. So equal marks say that nothing was written until shortly before, and a later mark will show the rest. Counters
that went back (a crash, a reset) give another mark too.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from babylon_rl.store.connection import Connection
from babylon_rl.store.market import ASKED, FINITE, PRICE_BEFORE, PROBABILITY_BEFORE
from babylon_rl.store.trajectories import BETWEEN, FIRST_POSSIBLE, newest_window_with_rows, with_unnamed
from babylon_rl.versions import content_version, counted_version
from babylon_rl.windows import HOUR, is_window_id, window_of, window_start

# A truncation counts no rows, but gives the table another file node. Partitions and child tables have counters of their own.
_COUNTERS = """
    SELECT current_setting('track_counts')::bool AND bool_and(c.relkind = 'r' AND NOT c.relhassubclass) AND count(*) = %(number)s,
           array_agg(concat_ws(' ', c.oid, pg_relation_filenode(c.oid),
               CASE WHEN c.oid = ANY(SELECT to_regclass(name)::oid FROM unnest(%(tables)s::text[]) name) THEN
                   pg_stat_get_tuples_inserted(c.oid) END,
               pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_deleted(c.oid)) ORDER BY c.oid)::text,
           pg_stat_get_bgwriter_stat_reset_time()::text,
           (SELECT pg_stat_get_db_stat_reset_time(oid)::text FROM pg_database WHERE datname = current_database())
    FROM pg_class c WHERE c.oid = ANY(SELECT to_regclass(name)::oid FROM unnest(%(tables)s::text[] || %(without_inserts)s::text[]) name)
"""


def watermark(connection: Connection, tables: Sequence[str], *of: Any, without_inserts: Sequence[str] = ()) -> str | None:
    """Hash all writes to ``tables`` (qualified, quoted) and the values ``of``; None if unknown.

    Of ``without_inserts`` only updates and deletions count. Read the mark before its data: a write in between changes the next mark.
    """
    parameters = {"tables": list(tables), "without_inserts": list(without_inserts), "number": len(tables) + len(without_inserts)}
    # ``counted`` is false if counting is off, a table is missing, or a table has partitions or children.
    counted, *counters = connection.row(_COUNTERS, parameters)
    return content_version([*counters, *of]) if counted else None


NOTHING = "nothing recorded"
MARKET_TABLES = tuple(
    f'public."{name}"' for name in ("StockPrice", "PredictionPriceHistory", "WorldEvent", "Organization", "Question", "Market")
)

# Each query gives (hour, rows, sum of row hashes). The hash of a record is linear in its columns, so two rows that swap a value would give
# the same sum: the second hash prevents that, here and in TRAJECTORIES. Seed 1, because with seed 0 NULL and the number 0 would hash alike.
PRICE_VERSIONS = """
    SELECT date_trunc('hour', "timestamp"), count(*),
           sum(hashint8extended(hash_record_extended(ROW(id, "organizationId", price, "timestamp", volume), 1), 0))
    FROM public."StockPrice" WHERE "timestamp" >= %(start)s AND "timestamp" < %(stop)s GROUP BY 1
"""

# The game has no index on "createdAt" alone. OFFSET 0 makes the planner read market by market on ("marketId", "createdAt").
PROBABILITY_VERSIONS = """
    SELECT date_trunc('hour', history."createdAt"), count(*),
           sum(hashint8extended(hash_record_extended(
               ROW(history.id, market.id, history."yesPrice", history."eventType", history."createdAt"), 1), 0))
    FROM public."Market" market CROSS JOIN LATERAL (
        SELECT id, "yesPrice", "eventType", "createdAt" FROM public."PredictionPriceHistory"
        WHERE "marketId" = market.id AND "createdAt" >= %(start)s AND "createdAt" < %(stop)s
        OFFSET 0
    ) history
    GROUP BY 1
"""

EVENT_VERSIONS = """
    SELECT date_trunc('hour', "timestamp"), count(*),
           sum(hashint8extended(hash_record_extended(ROW(id, description, actors, "relatedQuestion", "timestamp"), 1), 0))
    FROM public."WorldEvent" WHERE "timestamp" >= %(start)s AND "timestamp" < %(stop)s GROUP BY 1
"""

# An organization counts from its first price on; its initial price counts only without a positive price at the hour's start.
# priced: as in market.py, the form of the condition forces the index on ("organizationId", "timestamp").
START_PRICES = f"""
    WITH priced AS MATERIALIZED (
        SELECT id, name, "initialPrice" FROM public."Organization" organization
        WHERE (
            SELECT true FROM public."StockPrice" WHERE "organizationId" = ANY(ARRAY[organization.id]) AND "timestamp" < %(stop)s
            ORDER BY "organizationId", "timestamp" DESC LIMIT 1
        )
    )
    SELECT hour.start, count(*), sum(hashint8extended(hash_record_extended(ROW(organization.id, organization.name, before.price,
               CASE WHEN before.price > 0 THEN NULL ELSE organization."initialPrice" END), 1), 0))
    FROM unnest(%(starts)s::timestamp[]) AS hour (start)
    CROSS JOIN priced organization
    {PRICE_BEFORE}
    WHERE before.price IS NOT NULL OR EXISTS (
        SELECT FROM public."StockPrice"
        WHERE "organizationId" = organization.id AND "timestamp" > hour.start AND "timestamp" < hour.start + interval '1 hour'
          AND price {FINITE}
    )
    GROUP BY 1
"""

# A question answered before the first hour is left out early, unless its price history goes on: that alone can show it was open later.
OPEN_QUESTIONS = f"""
    WITH {ASKED}, timed AS MATERIALIZED (
        SELECT asked.id, number, text, created, answer, COALESCE((
            SELECT min("createdAt") FROM public."PredictionPriceHistory" WHERE "marketId" = asked.id AND "eventType" = 'resolution'
        ), answered) AS resolved
        FROM asked WHERE created < %(stop)s AND (answered IS NULL OR answered >= %(start)s OR EXISTS (
            SELECT FROM public."PredictionPriceHistory" WHERE "marketId" = asked.id AND "createdAt" >= %(start)s
        ))
    )
    SELECT hour.start, count(*), sum(hashint8extended(hash_record_extended(
               ROW(timed.id, timed.number, timed.text, timed.answer,
                   COALESCE(timed.resolved < hour.start + interval '1 hour', false), before.probability), 1), 0))
    FROM unnest(%(starts)s::timestamp[]) AS hour (start)
    JOIN timed ON timed.created < hour.start + interval '1 hour' AND (timed.resolved IS NULL OR timed.resolved >= hour.start)
    {PROBABILITY_BEFORE}
    GROUP BY 1
"""

# Both maxima come from an index on "timestamp".
NEWEST_MARKET_ROW = """
    SELECT max(newest) FROM (
        SELECT max("timestamp") AS newest FROM public."StockPrice" WHERE "timestamp" < %(stop)s
        UNION ALL SELECT max("timestamp") FROM public."WorldEvent" WHERE "timestamp" < %(stop)s
    ) newest
"""

# The first three kinds tell which hours hold anything; the last two are read for these hours only.
KINDS = {
    "prices": PRICE_VERSIONS, "probabilities": PROBABILITY_VERSIONS, "events": EVENT_VERSIONS, "start_prices": START_PRICES,
    "open_questions": OPEN_QUESTIONS,
}  # fmt: skip


def market_versions(connection: Connection, first: str, end: str) -> dict[str, str]:
    """Return the data versions of hours with market data from ``first`` (inclusive) to ``end`` (exclusive), by window."""
    bounds = {"start": window_start(first), "stop": window_start(end)}
    hours: dict[datetime, dict[str, tuple[int, int]]] = {}
    for kind, statement in KINDS.items():
        for hour, rows, content in connection.execute(statement, bounds | {"starts": sorted(hours)}):
            hours.setdefault(hour, {})[kind] = rows, int(content)
    return {window_of(hour): counted_version(**{kind: hours[hour].get(kind, (0, 0)) for kind in KINDS}) for hour in sorted(hours)}


# Length of the range that is observed at every tick.
RECENT = timedelta(days=7)
# Changes of "User" need no watching: an agent without trajectories has no rows, and deleting an agent deletes its rows.
TABLES = ("public.trajectories", "public.llm_call_logs", *MARKET_TABLES)

# Markets that belong to no question are answered by their own row.
_ANSWERED_LATE = """
    SELECT count(*) FROM (
        SELECT id FROM public."Question" WHERE "createdDate" < %(asked)s AND "updatedAt" >= %(since)s AND "resolvedOutcome" IS NOT NULL
        UNION SELECT id FROM public."Market" WHERE "createdAt" < %(asked)s AND "updatedAt" >= %(since)s AND resolved
    ) answered
"""


def answered_late(connection: Connection, asked_before: datetime, since: datetime) -> int:
    """Count the questions asked before a moment whose answer came or changed ``since`` another."""
    return int(connection.value(_ANSWERED_LATE, {"asked": asked_before, "since": since}) or 0)


TRAJECTORIES = """
    SELECT t."windowId", to_char(t."startTime", 'YYYY-MM-DD"T"HH24:00'), count(*),
           least(greatest(max(t."updatedAt"), timestamp '0001-01-01'), timestamp '9999-12-31'),
           sum(hashint8extended(hash_record_extended(ROW(t."trajectoryId", t."updatedAt"), 1), 0)),
           sum(calls.number), sum(calls.fingerprint)
    FROM (
        SELECT "trajectoryId", "windowId", "startTime", "updatedAt" FROM public.trajectories
        WHERE "windowId" >= %(first)s AND "windowId" < %(end)s
        UNION
        SELECT * FROM {unnamed} odd
    ) t
    CROSS JOIN LATERAL (
        SELECT count(*) AS number, COALESCE(sum(hashint8extended(hash_record_extended(ROW(id, xmin), 1), 0)), 0) AS fingerprint
        FROM public.llm_call_logs WHERE "trajectoryId" = t."trajectoryId"
    ) calls
    GROUP BY 1, 2
"""


def trajectory_versions(connection: Connection, first: str, end: str) -> dict[str, str]:
    """Return the data versions of hours with trajectories, by window. From ``first`` (inclusive) to ``end`` (exclusive)."""
    bounds = {"first": first, "end": end, "start": window_start(first), "stop": window_start(end)}
    hours: dict[str, tuple[datetime, list[int]]] = {}
    statement = with_unnamed(connection, TRAJECTORIES, '"trajectoryId", "windowId", "startTime", "updatedAt"', BETWEEN)
    for window_id, hour, rows, newest, *sums in connection.execute(statement, bounds):
        # A row without a canonical window id belongs to the hour of its start time.
        window = window_id if is_window_id(window_id) else hour
        if is_window_id(window) and first <= window < end:
            before = hours.get(window, (newest, [0, 0, 0, 0]))
            hours[window] = max(before[0], newest), [a + int(b) for a, b in zip(before[1], (rows, *sums), strict=True)]
    return {window: _version(*hours[window]) for window in sorted(hours)}


def _version(newest: datetime, sums: list[int]) -> str:
    rows, content, calls, logs = sums
    return counted_version(rows=(rows, content), logged_calls=(calls, logs)) + f", last changed {newest.isoformat(timespec='milliseconds')}"


def recent_hours(connection: Connection, end: str) -> tuple[str, str]:
    """Start of RECENT for trajectories and for market data, counted back from the newest hour of each before ``end``."""
    # Counted from the newest data, not from now: a game may have stopped some time ago.
    rows = newest_window_with_rows(connection, window_of(window_start(end) - HOUR)) or end
    market: datetime = connection.value(NEWEST_MARKET_ROW, {"stop": window_start(end)}) or window_start(end)
    return _back_from(window_start(rows)), _back_from(window_start(window_of(market)))


def _back_from(hour: datetime) -> str:
    return max(FIRST_POSSIBLE, window_of(hour - RECENT + HOUR))
