"""Market data of one recorded hour of a real game, minute by minute.

Simulated agents play against it.
"""

from datetime import datetime

from babylon_rl.store.connection import Connection


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
def minute_prices(connection: Connection, organization_id: str, start: datetime, minutes: int) -> list[float | None]:
    """Return the last price at or before each of ``minutes`` + 1 minutes, or None."""
    rows = connection.execute(
        """
        SELECT newest.price
        FROM generate_series(0, %(minutes)s) AS minute
        LEFT JOIN LATERAL (
            SELECT price FROM public."StockPrice"
            WHERE "organizationId" = %(id)s AND "timestamp" <= %(start)s::timestamp + minute * interval '1 minute'
            ORDER BY "timestamp" DESC, id DESC LIMIT 1
        ) AS newest ON true
        ORDER BY minute
        """,
        {"id": organization_id, "start": start, "minutes": minutes},
    )
    return [None if price is None else float(price) for (price,) in rows]


def busiest_question(connection: Connection, start: datetime, end: datetime) -> tuple[str, int, str, bool] | None:
    """Return the question with the most trades in the hour.

    (market id, number, text, hidden answer).
    """
    return connection.execute(
        """
        SELECT question.id, question."questionNumber", question.text, question.outcome
        FROM public."PredictionPriceHistory" AS history JOIN public."Question" AS question ON question.id = history."marketId"
        WHERE history."createdAt" >= %(start)s AND history."createdAt" < %(end)s
        GROUP BY question.id ORDER BY count(*) DESC, question.id LIMIT 1
        """,
        {"start": start, "end": end},
    ).fetchone()


def minute_probabilities(connection: Connection, market_id: str, start: datetime, minutes: int) -> list[float]:
    """Return the YES price at each of ``minutes`` + 1 minutes; 0.5 before the first."""
    rows = connection.execute(
        """
        SELECT coalesce(newest.price, 0.5)
        FROM generate_series(0, %(minutes)s) AS minute
        LEFT JOIN LATERAL (
            SELECT "yesPrice" AS price FROM public."PredictionPriceHistory"
            WHERE "marketId" = %(id)s AND "createdAt" <= %(start)s::timestamp + minute * interval '1 minute'
            ORDER BY "createdAt" DESC, id DESC LIMIT 1
        ) AS newest ON true
        ORDER BY minute
        """,
        {"id": market_id, "start": start, "minutes": minutes},
    )
    return [float(price) for (price,) in rows]


def events_between(connection: Connection, start: datetime, end: datetime) -> list[tuple[datetime, str, list[str], int | None, str | None]]:
    """Return the world events of an hour in time order.

    (time, description, actors, question number, direction).
    """
    return connection.execute(
        """
        SELECT "timestamp", description, actors, "relatedQuestion", "pointsToward" FROM public."WorldEvent"
        WHERE "timestamp" >= %(start)s AND "timestamp" < %(end)s ORDER BY "timestamp", id
        """,
        {"start": start, "end": end},
    ).fetchall()
