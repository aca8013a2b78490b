"""Rows of market_outcomes and babylon_rl.market_windows, replaced whole by window.

market_outcomes has no unique key, so its rows are read and compared as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.structs import astuple
from psycopg.types.json import Jsonb

from babylon_rl.store.columns import columns_of, listed, updates
from babylon_rl.store.connection import Connection


class OutcomeRow(msgspec.Struct, frozen=True):
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
    window: str
    mean_change: float | None
    volatility: float | None
    stocks: int
    predictions: int
    flags: list[dict[str, Any]]
    data_version: str
    outcomes: str | None  # JSON of the whole market, unrounded


_COLUMNS = (
    "id", "windowId", "stockTicker", "startPrice", "endPrice", "changePercent", "sentiment", "newsEvents", "predictionMarketId",
    "question", "outcome", "finalProbability", "volume",
)  # fmt: skip

_READ = f"""SELECT {listed(_COLUMNS)} FROM public.market_outcomes WHERE "windowId" = ANY(%s)"""
_WINDOWS = columns_of(MarketWindowRow)
# An unchanged hour is not written, so its computedAt says since when it has been as it is.
_UPSERT_WINDOWS = f"""
    INSERT INTO babylon_rl.market_windows AS held ({listed(_WINDOWS)}, "computedAt")
    SELECT {listed(_WINDOWS)}, %(now)s FROM jsonb_populate_recordset(NULL::babylon_rl.market_windows, %(windows)s)
    ON CONFLICT ("window") DO UPDATE SET {updates((*_WINDOWS[1:], "computedAt"))}
    WHERE held."dataVersion" <> excluded."dataVersion" OR held."outcomes" IS NULL
"""


def read_rows(connection: Connection, windows: Sequence[str]) -> dict[str, set[bytes]]:
    """Return the rows of market_outcomes by window, each as comparable bytes."""
    rows: dict[str, set[bytes]] = {window: set() for window in windows}
    for values in connection.execute(_READ, (list(windows),)).fetchall():
        row = OutcomeRow(*values)
        rows[row.window].add(comparable(row))
    return rows


def comparable(row: OutcomeRow) -> bytes:
    """Encode a row as bytes: equal rows give equal bytes."""
    return msgspec.json.encode(row)


def replace_rows(connection: Connection, rows: Mapping[str, Sequence[OutcomeRow]], now: datetime) -> None:
    """Replace the rows of market_outcomes for the windows in ``rows``. Runs in the caller's transaction."""
    connection.execute("""DELETE FROM public.market_outcomes WHERE "windowId" = ANY(%s)""", (list(rows),))
    # Lists are JSON columns.
    values = ([Jsonb(value) if isinstance(value, list) else value for value in astuple(row)] for own in rows.values() for row in own)
    connection.copy_rows("public.market_outcomes", (*_COLUMNS, "createdAt"), ([*row, now] for row in values))


def replace_windows(connection: Connection, windows: Sequence[MarketWindowRow], empty: Sequence[str], now: datetime) -> None:
    """Update babylon_rl.market_windows; ``empty`` windows are deleted. Unchanged rows are not touched."""
    connection.delete_hours("babylon_rl.market_windows", empty)
    connection.execute(_UPSERT_WINDOWS, {"windows": Jsonb([msgspec.to_builtins(row) for row in windows]), "now": now})


_READ_WINDOWS = f"""SELECT {listed(_WINDOWS)} FROM babylon_rl.market_windows WHERE "window" = ANY(%s)"""


def read_market_windows(connection: Connection, windows: Sequence[str]) -> dict[str, MarketWindowRow]:
    """Return the rows of babylon_rl.market_windows; windows without outcomes are absent."""
    return {row[0]: MarketWindowRow(*row) for row in connection.execute(_READ_WINDOWS, [list(windows)])}


# A ticker that two organizations share was stored with a suffix ~2.
_FLAGS = """
    SELECT market."window", market."flags",
           ARRAY(SELECT outcome."stockTicker" FROM public.market_outcomes outcome
                 WHERE outcome."windowId" = market."window" AND outcome."stockTicker" LIKE '%%~%%' ORDER BY 1)
    FROM babylon_rl.market_windows market WHERE market."window" = ANY(%s) ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class MarketFlags:
    """Flags on the subjects (tickers, market ids) of an hour's market, and tickers made distinct by ``~2``."""

    window: str
    flags: Sequence[Mapping[str, str]]
    shared_tickers: Sequence[str]


def market_flags(connection: Connection, windows: Sequence[str]) -> list[MarketFlags]:
    """Return the market flags of those ``windows`` with recorded market data, in order."""
    return [MarketFlags(*row) for row in connection.execute(_FLAGS, [list(windows)])]
