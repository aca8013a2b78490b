"""Market outcomes: read from the game's tables, and written to market_outcomes.

A window's rows are replaced as a whole, clamped to the range of the columns; equal content is not touched.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace as with_changes
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

import msgspec

from babylon_rl.market.outcomes import CHANGE, PRICE, PROBABILITY, VOLUME, WindowOutcomes, window_outcomes
from babylon_rl.settings import HourSettings
from babylon_rl.store import outcomes as store
from babylon_rl.store.connection import Connection
from babylon_rl.store.market import MarketEvent, QuestionSpan, StockSpan, events, question_spans, stock_spans
from babylon_rl.store.outcomes import MarketWindowRow, OutcomeRow
from babylon_rl.store.windows import chunks, lock_windows
from babylon_rl.windows import is_complete


def read_outcomes(connection: Connection, window: str, settings: HourSettings) -> WindowOutcomes:
    """The market of one window from the game's tables. Raises UsageError: ``window`` is not a window id."""
    return read_many_outcomes(connection, [window], settings)[window]


def read_many_outcomes(connection: Connection, windows: Iterable[str], settings: HourSettings) -> dict[str, WindowOutcomes]:
    """The markets of some windows, in order, from three queries; empty markets included.

    Raises:
        UsageError: one of ``windows`` is not a window id.
    """
    ordered = sorted(set(windows))
    stocks: defaultdict[str, list[StockSpan]] = defaultdict(list)
    questions: defaultdict[str, list[QuestionSpan]] = defaultdict(list)
    event_rows: defaultdict[str, list[MarketEvent]] = defaultdict(list)
    for event in events(connection, ordered):
        event_rows[event.window].append(event)
    for stock in stock_spans(connection, ordered):
        stocks[stock.window].append(stock)
    for question in question_spans(connection, ordered):
        questions[question.window].append(question)
    return {window: window_outcomes(window, stocks[window], questions[window], event_rows[window], settings) for window in ordered}


def stored_outcomes(connection: Connection, windows: Sequence[str], settings: HourSettings) -> dict[str, WindowOutcomes]:
    """The markets of some windows as ``sync_outcomes`` stored them.

    A market that is not stored is read from the game's tables.

    Raises:
        UsageError: one of ``windows`` is not a window id.
    """
    rows = store.read_market_windows(connection, windows)
    held = {window: msgspec.convert(json.loads(row.outcomes), WindowOutcomes) for window, row in rows.items() if row.outcomes is not None}
    return held | read_many_outcomes(connection, set(windows) - held.keys(), settings)


def sync_outcomes(connection: Connection, windows: Iterable[str], settings: HourSettings, now: datetime) -> dict[str, WindowOutcomes]:
    """Update market_outcomes and babylon_rl.market_windows for some windows.

    Equal content is not touched. Windows that are not complete at ``now`` are never written and are absent from the result. A window's
    rows are replaced whole or not at all, under its lock, up to a week of windows in one transaction. ``connection`` should not be inside
    a transaction, which would put off the commit.

    Raises:
        UsageError: one of ``windows`` is not a window id.
    """
    synced: dict[str, WindowOutcomes] = {}
    for some in chunks(window for window in windows if is_complete(window, now)):
        with connection.transaction():
            lock_windows(connection, some)
            outcomes = read_many_outcomes(connection, some, settings)
            synced |= _write(connection, outcomes, now)
    return synced


def _write(connection: Connection, outcomes: dict[str, WindowOutcomes], now: datetime) -> dict[str, WindowOutcomes]:
    rows = {window: outcome_rows(market) for window, market in outcomes.items()}
    held = store.read_rows(connection, list(rows))
    # Compare as the columns store it, so that rounding alone never rewrites a window.
    differing = {window: some for window, some in rows.items() if held[window] != {store.comparable(row) for row in some}}
    if differing:
        store.replace_rows(connection, differing, now)
    # Windows without rows lose their market_windows row, too.
    full = [_market_window(market) for market in outcomes.values() if rows[market.window]]
    store.replace_windows(connection, full, [window for window, some in rows.items() if not some], now)
    return {window: with_changes(market, changed=window in differing) for window, market in outcomes.items()}


def _market_window(market: WindowOutcomes) -> MarketWindowRow:
    counts = (len(market.stocks), len(market.predictions))
    # by json: it keeps numbers that are not finite
    whole = json.dumps(msgspec.to_builtins(with_changes(market, changed=False)), ensure_ascii=False)
    return MarketWindowRow(market.window, market.mean_change, market.volatility, *counts, market.flags, market.data_version, whole)


def outcome_rows(market: WindowOutcomes) -> list[OutcomeRow]:
    """The rows of market_outcomes for one window, rounded and clamped to the columns."""
    stocks = [
        OutcomeRow(
            # The id follows from window and subject, so that a rewrite keeps it.
            id=f"{market.window}/stock/{stock.organization_id}",
            window=market.window,
            ticker=stock.ticker,
            start_price=_decimal(stock.start_price, PRICE),
            end_price=_decimal(stock.end_price, PRICE),
            change_percent=_decimal(stock.change_percent, CHANGE),
            sentiment=stock.sentiment,
            news=list(stock.news),
            volume=_decimal(stock.volume, VOLUME) if stock.volume is not None else None,
        )
        for stock in market.stocks
    ]
    predictions = [
        OutcomeRow(
            id=f"{market.window}/prediction/{prediction.market_id}",
            window=market.window,
            news=list(prediction.news),
            market_id=prediction.market_id,
            question=prediction.question,
            outcome=prediction.outcome,
            probability=_decimal(prediction.end_probability, PROBABILITY),
        )
        for prediction in market.predictions
    ]
    return stocks + predictions


def _decimal(value: float, column: tuple[int, int]) -> Decimal:
    precision, scale = column
    most = Decimal(10**precision - 1).scaleb(-scale)
    # By its shortest decimal form: Decimal(value) would carry the binary digits, and round halves another way.
    return min(most, max(-most, Decimal(repr(value)))).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)
