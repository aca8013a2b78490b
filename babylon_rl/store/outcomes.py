"""Rows of market_outcomes and babylon_rl.market_windows, replaced whole by window.

market_outcomes has no unique key, so its rows are read and compared as they are.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from babylon_rl.store.connection import Connection


class OutcomeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of market_outcomes without createdAt: a stock row or a prediction row."""

    id: str
    window: str
    ticker: str | None = None
    start_price: Decimal | None = None
    end_price: Decimal | None = None
    change_percent: Decimal | None = None
    sentiment: str | None = None
    news: list[str] | None = None
    market_id: str | None = None
    question: str | None = None
    outcome: str | None = None
    probability: Decimal | None = None
    volume: Decimal | None = None


class MarketWindowRow(msgspec.Struct, frozen=True, rename="camel"):
    """One row of babylon_rl.market_windows."""

    window: str
    mean_change: float | None
    volatility: float | None
    stocks: int
    predictions: int
    flags: list[dict[str, Any]]
    data_version: str


_COLUMNS = """id, "windowId", "stockTicker", "startPrice", "endPrice", "changePercent", sentiment, "newsEvents", "predictionMarketId",
    question, outcome, "finalProbability", volume"""

_READ = f"""SELECT {_COLUMNS} FROM public.market_outcomes WHERE "windowId" = ANY(%s)"""
_DELETE = """DELETE FROM public.market_outcomes WHERE "windowId" = ANY(%s)"""
_WRITE = f"""COPY public.market_outcomes ({_COLUMNS}, "createdAt") FROM STDIN"""

_DELETE_WINDOWS = """DELETE FROM babylon_rl.market_windows WHERE "window" = ANY(%s)"""
_UPSERT_WINDOWS = """
    INSERT INTO babylon_rl.market_windows AS held
        ("window", "meanChange", "volatility", "stocks", "predictions", "flags", "dataVersion", "computedAt")
    SELECT "window", "meanChange", "volatility", "stocks", "predictions", "flags", "dataVersion", %(now)s
    FROM jsonb_to_recordset(%(windows)s) AS given ("window" text, "meanChange" float8, "volatility" float8, "stocks" int,
        "predictions" int, "flags" jsonb, "dataVersion" text)
    ON CONFLICT ("window") DO UPDATE SET
        "meanChange" = excluded."meanChange", "volatility" = excluded."volatility", "stocks" = excluded."stocks",
        "predictions" = excluded."predictions", "flags" = excluded."flags", "dataVersion" = excluded."dataVersion",
        "computedAt" = excluded."computedAt"
    WHERE held."dataVersion" <> excluded."dataVersion"
"""


def read_rows(connection: Connection, windows: Sequence[str]) -> dict[str, set[bytes]]:
    """Return the rows of market_outcomes by window, each as comparable bytes."""
    rows: dict[str, set[bytes]] = {window: set() for window in windows}
    for values in connection.execute(_READ, (list(windows),)).fetchall():
        row = OutcomeRow(**dict(zip(OutcomeRow.__struct_fields__, values, strict=True)))
        rows[row.window].add(comparable(row))
    return rows


def comparable(row: OutcomeRow) -> bytes:
    """Encode a row as bytes: equal rows give equal bytes."""
    return msgspec.json.encode(row)


def replace_rows(connection: Connection, rows: Mapping[str, Sequence[OutcomeRow]], now: datetime) -> None:
    """Replace the rows of market_outcomes for the windows in ``rows``.

    Runs in the caller's transaction.
    """
    connection.execute(_DELETE, (list(rows),))
    with connection.cursor().copy(_WRITE) as copy:
        for window_rows in rows.values():
            for row in window_rows:
                # Lists are JSON columns.
                values = [getattr(row, name) for name in OutcomeRow.__struct_fields__]
                copy.write_row([Jsonb(value) if isinstance(value, list) else value for value in values] + [now])


def replace_windows(connection: Connection, windows: Sequence[MarketWindowRow], empty: Sequence[str], now: datetime) -> None:
    """Update babylon_rl.market_windows; ``empty`` windows are deleted.

    Unchanged rows are not touched.
    """
    connection.execute(_DELETE_WINDOWS, (list(empty),))
    connection.execute(_UPSERT_WINDOWS, {"windows": Jsonb([msgspec.to_builtins(row) for row in windows]), "now": now})
