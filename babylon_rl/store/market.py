"""Recorded market data: prices, probabilities, questions and events, by window or by minute.

One query per kind serves any number of hours; each price is found by its index. Equal timestamps are ordered by id. Prices that are not
finite numbers count as absent.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from babylon_rl.store.connection import Connection
from babylon_rl.windows import window_of, window_start


class StockSpan(msgspec.Struct, frozen=True):
    """Prices of one organization: the last up to a window's start, the first in it, the last before its end."""

    window: str
    organization_id: str
    name: str
    initial_price: float | None
    price_before: float | None
    first_price: float | None
    last_price: float
    moved: bool
    volume: float | None


class QuestionSpan(msgspec.Struct, frozen=True):
    """A question open in a window, with its probabilities around the window. A market without a question counts as one."""

    window: str
    market_id: str
    question_number: int | None
    question: str
    answer: bool | None
    resolved_at: datetime | None
    probability_before: float | None
    last_probability: float | None
    moved: bool


class MarketEvent(msgspec.Struct, frozen=True):
    window: str
    description: str
    actors: list[str]
    related_question: int | None


# To Postgres NaN is larger than every number, so one range leaves out NaN and both infinities.
FINITE = "BETWEEN '-1e300'::float8 AND '1e300'::float8"

# ANY(ARRAY[...]) and the ORDER BY force the index on ("organizationId", "timestamp"). On the index of "timestamp" alone, an organization
# without a recent price would cost a walk through the prices of all others.
PRICE_BEFORE = f"""LEFT JOIN LATERAL (
        SELECT price FROM public."StockPrice"
        WHERE "organizationId" = ANY(ARRAY[organization.id]) AND "timestamp" <= hour.start AND price {FINITE}
        ORDER BY "organizationId", "timestamp" DESC, id COLLATE "C" DESC LIMIT 1
    ) before ON true"""
PROBABILITY_BEFORE = f"""LEFT JOIN LATERAL (
        SELECT "yesPrice" AS probability FROM public."PredictionPriceHistory"
        WHERE "marketId" = timed.id AND "createdAt" <= hour.start AND "yesPrice" {FINITE}
        ORDER BY "createdAt" DESC, id COLLATE "C" DESC LIMIT 1
    ) before ON true"""

# last: newest price before the end. before: at or before the start. first: used if ``before`` is missing or not positive. traded: volume.
STOCKS = f"""
    SELECT hour.start, organization.id, organization.name, organization."initialPrice",
        before.price, first.price, last.price, last."timestamp" >= hour.start, traded.volume
    FROM unnest(%(starts)s::timestamp[]) AS hour (start)
    CROSS JOIN public."Organization" organization
    CROSS JOIN LATERAL (
        SELECT price, "timestamp" FROM public."StockPrice"
        WHERE "organizationId" = ANY(ARRAY[organization.id]) AND "timestamp" < hour.start + interval '1 hour' AND price {FINITE}
        ORDER BY "organizationId", "timestamp" DESC, id COLLATE "C" DESC LIMIT 1
    ) last
    {PRICE_BEFORE}
    LEFT JOIN LATERAL (
        SELECT price FROM public."StockPrice"
        WHERE "organizationId" = organization.id AND "timestamp" > hour.start AND "timestamp" < hour.start + interval '1 hour'
          AND price {FINITE}
        ORDER BY "timestamp", id COLLATE "C" LIMIT 1
    ) first ON before.price IS NULL OR before.price <= 0
    LEFT JOIN LATERAL (
        SELECT sum(volume) AS volume FROM public."StockPrice"
        WHERE "organizationId" = organization.id AND "timestamp" >= hour.start AND "timestamp" < hour.start + interval '1 hour'
          AND volume {FINITE}
    ) traded ON true
    ORDER BY hour.start, organization.id COLLATE "C"
"""

# Every question, and every market without one, with its official answer and the answer's time by the game's own tables.
ASKED = """asked AS (
        SELECT question.id, question."questionNumber" AS number, question.text, question."createdDate" AS created,
            COALESCE(question."resolvedOutcome", CASE WHEN market.resolved THEN market.resolution END) AS answer,
            CASE WHEN question."resolvedOutcome" IS NOT NULL THEN question."updatedAt" END AS answered
        FROM public."Question" question LEFT JOIN public."Market" market ON market.id = question.id
        UNION ALL
        SELECT market.id, NULL, market.question, market."createdAt", CASE WHEN market.resolved THEN market.resolution END,
            CASE WHEN market.resolved THEN market."endDate" END
        FROM public."Market" market WHERE NOT EXISTS (SELECT FROM public."Question" question WHERE question.id = market.id)
    )"""

# A resolution row in the price history dates the answer; without one, the game's own tables do.
QUESTIONS = f"""
    WITH {ASKED}, timed AS (
        SELECT asked.*, COALESCE((
            SELECT min("createdAt") FROM public."PredictionPriceHistory" WHERE "marketId" = asked.id AND "eventType" = 'resolution'
        ), answered) AS resolved FROM asked
    )
    SELECT hour.start, timed.id, timed.number, timed.text, timed.answer,
        CASE WHEN timed.resolved < timestamp '9999-12-31' THEN timed.resolved END,
        before.probability, last.probability, COALESCE(last.moment >= hour.start, false)
    FROM unnest(%(starts)s::timestamp[]) AS hour (start)
    JOIN timed ON timed.created < hour.start + interval '1 hour' AND (timed.resolved IS NULL OR timed.resolved >= hour.start)
    {PROBABILITY_BEFORE}
    LEFT JOIN LATERAL (
        SELECT "yesPrice" AS probability, "createdAt" AS moment FROM public."PredictionPriceHistory"
        WHERE "marketId" = timed.id AND "createdAt" < hour.start + interval '1 hour' AND "yesPrice" {FINITE}
        ORDER BY "createdAt" DESC, id COLLATE "C" DESC LIMIT 1
    ) last ON true
    ORDER BY hour.start, timed.number NULLS LAST, timed.id COLLATE "C"
"""

EVENTS = """
    SELECT hour.start, event.description,
        ARRAY(SELECT actor FROM unnest(event.actors) actor WHERE actor IS NOT NULL), event."relatedQuestion"
    FROM unnest(%(starts)s::timestamp[]) AS hour (start)
    JOIN public."WorldEvent" event ON event."timestamp" >= hour.start AND event."timestamp" < hour.start + interval '1 hour'
    ORDER BY event."timestamp", event.id COLLATE "C"
"""

Recorded = TypeVar("Recorded", StockSpan, QuestionSpan, MarketEvent)
_STATEMENTS = {StockSpan: STOCKS, QuestionSpan: QUESTIONS, MarketEvent: EVENTS}

# Probabilities are read market by market, because the game has an index on ("marketId", "createdAt") only.
RECORDED = """
    SELECT date_trunc('hour', "timestamp") FROM public."StockPrice" WHERE "timestamp" >= %(start)s AND "timestamp" < %(stop)s
    UNION
    SELECT date_trunc('hour', "timestamp") FROM public."WorldEvent" WHERE "timestamp" >= %(start)s AND "timestamp" < %(stop)s
    UNION
    SELECT date_trunc('hour', traded."createdAt") FROM public."Market" market CROSS JOIN LATERAL (
        SELECT "createdAt" FROM public."PredictionPriceHistory"
        WHERE "marketId" = market.id AND "createdAt" >= %(start)s AND "createdAt" < %(stop)s
    ) traded
"""


def windows_with_market(connection: Connection, first: str, end: str) -> list[str]:
    """Return the windows with a recorded price, probability or event, in order. From ``first`` (inclusive) to ``end`` (exclusive)."""
    return sorted(map(window_of, connection.column(RECORDED, {"start": window_start(first), "stop": window_start(end)})))


def recorded(connection: Connection, kind: type[Recorded], windows: Sequence[str]) -> dict[str, list[Recorded]]:
    """Return by window every organization with a price before its end, by id, the questions open in it, by number, or its events, by time.

    Open: created before the window's end and not resolved before its start.
    """
    found = {window: list[Recorded]() for window in windows}
    for start, *values in connection.execute(_STATEMENTS[kind], {"starts": [window_start(window) for window in windows]}):
        window = window_of(start)
        found[window].append(kind(window, *values))
    return found


Path = list[tuple[float, float]]

# The table of each series, with its columns of the key, the time and the value.
PRICES = {"table": '"StockPrice"', "key": '"organizationId"', "time": '"timestamp"', "value": "price"}
PROBABILITIES = {"table": '"PredictionPriceHistory"', "key": '"marketId"', "time": '"createdAt"', "value": '"yesPrice"'}

# One index range per series; the last of each minute counts, equal timestamps are ordered by id.
_PATHS = f"""
    SELECT wanted.start, wanted.id, moved.minute, moved.value
    FROM unnest(%(starts)s::timestamp[], %(ids)s::text[]) AS wanted (start, id)
    CROSS JOIN LATERAL (
        SELECT DISTINCT ON (minute) floor(extract(epoch FROM {{time}} - wanted.start) / 60)::int AS minute, {{value}} AS value
        FROM public.{{table}}
        WHERE {{key}} = wanted.id AND {{time}} >= wanted.start AND {{time}} < wanted.start + interval '1 hour' AND {{value}} {FINITE}
        ORDER BY minute, {{time}} DESC, id COLLATE "C" DESC
    ) moved
    ORDER BY 1, 2, 3
"""


def paths(connection: Connection, series: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """Return paths of (window, organization or market id) pairs in PRICES (dollars) or PROBABILITIES (of YES, 0..1).

    Each has at most 60 points (minutes since the start, value); without a row it is empty.
    """
    parameters = {"starts": [window_start(window) for window, _ in pairs], "ids": [name for _, name in pairs]}
    found: dict[tuple[str, str], Path] = {pair: [] for pair in pairs}
    for start, name, minute, value in connection.execute(_PATHS.format(**series), parameters):
        # A minute's last value stands at the minute's end.
        found[window_of(start), name].append((minute + 1.0, float(value)))
    return found


def busiest_stocks(connection: Connection, start: datetime, end: datetime, count: int) -> list[tuple[str, str]]:
    """Return (id, name) of the companies with the most price rows, names unique."""
    return connection.execute(
        """
        SELECT DISTINCT ON (organization.name) organization.id, organization.name
        FROM (
            SELECT "organizationId", count(*) AS rows FROM public."StockPrice"
            WHERE "timestamp" >= %(start)s AND "timestamp" < %(end)s GROUP BY "organizationId"
            ORDER BY rows DESC, "organizationId" LIMIT %(count)s
        ) AS found JOIN public."Organization" AS organization ON organization.id = found."organizationId"
        ORDER BY organization.name, found.rows DESC
        """,
        {"start": start, "end": end, "count": count},
    ).fetchall()


# One index look-up per minute, in one query.
_MINUTES = """
    SELECT newest.value FROM generate_series(0, %(minutes)s) AS minute
    LEFT JOIN LATERAL (
        SELECT {value} AS value FROM public.{table}
        WHERE {key} = %(id)s AND {time} <= %(start)s::timestamp + minute * interval '1 minute' ORDER BY {time} DESC, id DESC LIMIT 1
    ) AS newest ON true
    ORDER BY minute
"""


def by_minute(connection: Connection, series: Mapping[str, str], key: str, start: datetime, minutes: int) -> list[float | None]:
    """Return the last value in a series (see ``paths``) at or before each of ``minutes`` + 1 minutes, or None."""
    values = connection.column(_MINUTES.format(**series), {"id": key, "start": start, "minutes": minutes})
    return [None if value is None else float(value) for value in values]


def busiest_question(connection: Connection, start: datetime, end: datetime) -> tuple[str, int, str, bool] | None:
    """Return the question with the most trades in the hour. (market id, number, text, hidden answer)."""
    return connection.execute(
        """
        SELECT question.id, question."questionNumber", question.text, question.outcome
        FROM public."PredictionPriceHistory" AS history JOIN public."Question" AS question ON question.id = history."marketId"
        WHERE history."createdAt" >= %(start)s AND history."createdAt" < %(end)s
        GROUP BY question.id ORDER BY count(*) DESC, question.id LIMIT 1
        """,
        {"start": start, "end": end},
    ).fetchone()


def events_between(connection: Connection, start: datetime, end: datetime) -> list[tuple[datetime, str, list[str], int | None, str | None]]:
    """Return the world events of an hour in time order. (time, description, actors, question number, direction)."""
    return connection.execute(
        """
        SELECT "timestamp", description, actors, "relatedQuestion", "pointsToward" FROM public."WorldEvent"
        WHERE "timestamp" >= %(start)s AND "timestamp" < %(end)s ORDER BY "timestamp", id
        """,
        {"start": start, "end": end},
    ).fetchall()
