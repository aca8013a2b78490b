"""Rows of market_outcomes and babylon_rl.market_windows, replaced whole by window.

market_outcomes has no unique key, so its rows are read and compared as they are.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from babylon_rl.store.columns import columns_of, listed
from babylon_rl.store.connection import Connection

_RENAMED = {
    "window": "windowId", "ticker": "stockTicker", "start_price": "startPrice", "end_price": "endPrice", "change_percent": "changePercent",
    "news": "newsEvents", "market_id": "predictionMarketId", "probability": "finalProbability",
}  # fmt: skip


class OutcomeRow(msgspec.Struct, frozen=True, rename=_RENAMED):
    """One row of market_outcomes without createdAt: a stock row or a prediction row."""

    id: str
    window: str
    ticker: str | None = None
    start_price: Decimal | None = None
    end_price: Decimal | None = None
    change_percent: Decimal | None = None
    sentiment: str | None = None
    news: tuple[str, ...] | None = None
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


_READ = f'SELECT {listed(columns_of(OutcomeRow))} FROM public.market_outcomes WHERE "windowId" = ANY(%s)'


def read_rows(connection: Connection, windows: Sequence[str]) -> dict[str, set[bytes]]:
    """Return the rows of market_outcomes by window, each as JSON: one of another producer may hold anything as news."""
    rows: dict[str, set[bytes]] = {window: set() for window in windows}
    for values in connection.execute(_READ, [list(windows)]):
        row = OutcomeRow(*values)
        rows[row.window].add(msgspec.json.encode(row))
    return rows


def replace_rows(connection: Connection, rows: Mapping[str, Sequence[OutcomeRow]], now: datetime) -> None:
    """Replace the rows of market_outcomes for the windows in ``rows``. Runs in the caller's transaction."""
    connection.execute("""DELETE FROM public.market_outcomes WHERE "windowId" = ANY(%s)""", (list(rows),))
    new = [{**msgspec.to_builtins(row), "createdAt": now} for own in rows.values() for row in own]
    connection.insert("public.market_outcomes", new)


def replace_windows(connection: Connection, windows: Sequence[MarketWindowRow], empty: Sequence[str], now: datetime) -> None:
    """Update babylon_rl.market_windows; ``empty`` windows are deleted. Unchanged rows are not touched."""
    connection.delete_hours("babylon_rl.market_windows", empty)
    # An unchanged hour is not written, so its computedAt says since when it has been as it is.
    changed = 'held."dataVersion" <> excluded."dataVersion" OR held."outcomes" IS NULL'
    rows = [{**msgspec.to_builtins(row), "computedAt": now} for row in windows]
    connection.upsert("babylon_rl.market_windows", rows, where=changed)


def read_market_windows(connection: Connection, windows: Sequence[str]) -> dict[str, MarketWindowRow]:
    """Return the rows of babylon_rl.market_windows; windows without outcomes are absent."""
    found = connection.rows(MarketWindowRow, 'babylon_rl.market_windows WHERE "window" = ANY(%s)', [list(windows)])
    return {row.window: row for row in found}


# A ticker that two organizations share was stored with a suffix ~2.
_FLAGS = """
    SELECT market."window", market."flags",
           ARRAY(SELECT outcome."stockTicker" FROM public.market_outcomes outcome
                 WHERE outcome."windowId" = market."window" AND outcome."stockTicker" LIKE '%%~%%' ORDER BY 1)
    FROM babylon_rl.market_windows market WHERE market."window" = ANY(%s) ORDER BY 1
"""


class MarketFlags(msgspec.Struct, frozen=True):
    """Flags on the subjects (tickers, market ids) of an hour's market, and tickers made distinct by ``~2``."""

    window: str
    flags: Sequence[Mapping[str, str]]
    shared_tickers: Sequence[str]


def market_flags(connection: Connection, windows: Sequence[str]) -> list[MarketFlags]:
    """Return the market flags of those ``windows`` with recorded market data, in order."""
    return [MarketFlags(*row) for row in connection.execute(_FLAGS, [list(windows)])]
