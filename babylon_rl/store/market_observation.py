"""Data version of each market hour, from the inputs of its outcomes.

The version changes when, and only when, these inputs change: prices, probabilities and events of the hour; names and start prices of
organizations; questions open in the hour, their answers and start probabilities. Each of the five kinds is counted and hashed. A start
price is found by its index however old it is, so a late price reaches every hour up to the next price and no further. The predicates are
those of market_data.py.
"""

from datetime import datetime
from typing import Any

from babylon_rl.store.connection import Connection
from babylon_rl.store.market_data import ASKED, FINITE, PRICE_BEFORE, PROBABILITY_BEFORE
from babylon_rl.versions import counted_version
from babylon_rl.windows import window_of, window_start

NOTHING = "nothing recorded"
TABLES = tuple(f'public."{name}"' for name in ("StockPrice", "PredictionPriceHistory", "WorldEvent", "Organization", "Question", "Market"))
KINDS = ("prices", "probabilities", "events", "start_prices", "open_questions")

# Each query gives (hour, rows, sum of row hashes). The hash of a record is linear in its columns, so two rows that swap a value would give
# the same sum: the second hash prevents that. Seed 1, because with seed 0 NULL and the number 0 would hash alike.
PRICES = """
    SELECT date_trunc('hour', "timestamp"), count(*),
           sum(hashint8extended(hash_record_extended(ROW(id, "organizationId", price, "timestamp", volume), 1), 0))
    FROM public."StockPrice" WHERE "timestamp" >= %(start)s AND "timestamp" < %(stop)s GROUP BY 1
"""

# The game has no index on "createdAt" alone. OFFSET 0 makes the planner read market by market on ("marketId", "createdAt").
PROBABILITIES = """
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

EVENTS = """
    SELECT date_trunc('hour', "timestamp"), count(*),
           sum(hashint8extended(hash_record_extended(ROW(id, description, actors, "relatedQuestion", "timestamp"), 1), 0))
    FROM public."WorldEvent" WHERE "timestamp" >= %(start)s AND "timestamp" < %(stop)s GROUP BY 1
"""

# An organization counts from its first price on; its initial price counts only without a positive price at the hour's start.
# priced: as in market_data.py, the form of the condition forces the index on ("organizationId", "timestamp").
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


def market_versions(connection: Connection, first: str, end: str) -> dict[str, str]:
    """Return the data versions of hours with prices, events or probabilities, by window.

    From ``first`` (inclusive) to ``end`` (exclusive).
    """
    bounds: dict[str, Any] = {"start": window_start(first), "stop": window_start(end)}
    hours: dict[datetime, dict[str, tuple[int, int]]] = {}
    # The first three kinds tell which hours hold anything; the last two are read for these hours only.
    for kind, statement in zip(KINDS[:3], (PRICES, PROBABILITIES, EVENTS), strict=True):
        for hour, rows, content in connection.execute(statement, bounds):
            hours.setdefault(hour, {})[kind] = rows, int(content)
    bounds["starts"] = sorted(hours)
    for kind, statement in zip(KINDS[3:], (START_PRICES, OPEN_QUESTIONS), strict=True):
        for hour, rows, content in connection.execute(statement, bounds):
            hours[hour][kind] = rows, int(content)
    return {window_of(hour): counted_version(**{kind: hours[hour].get(kind, (0, 0)) for kind in KINDS}) for hour in bounds["starts"]}


def newest_market_hour(connection: Connection, end: str) -> str | None:
    """Return the newest hour before ``end`` that holds a price or an event, or None."""
    row = connection.execute(NEWEST_MARKET_ROW, {"stop": window_start(end)}).fetchone()
    return window_of(row[0]) if row is not None and row[0] is not None else None
