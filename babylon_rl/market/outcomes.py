"""One window's market: rules that derive it from the game's records, and its rows of market_outcomes.

Terms are those of docs/reference/glossary.md. Change and label come from unrounded prices; values beyond a column's range are flagged. The
hidden answers are never read here. A window's rows are replaced as a whole, clamped to the range of the columns; equal content is not
touched.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from itertools import islice
from typing import Any

import msgspec

from babylon_rl.settings import HourSettings
from babylon_rl.store import outcomes as store
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.market import MarketEvent, QuestionSpan, StockSpan, recorded
from babylon_rl.store.outcomes import MarketWindowRow, OutcomeRow
from babylon_rl.store.windows import chunks, lock_windows
from babylon_rl.versions import content_version
from babylon_rl.windows import is_complete

# A change of the rules below takes another version: every hour's outcomes are made again.
MARKET_RULES = "1"
MOST_NEWS = 20
TICKER_CHARACTERS = 12
UNKNOWN_PROBABILITY = 0.5
MOST_CHANGE = 1e12  # percent; between prices that are further apart the mean and the deviation of the hour would not be numbers
# Digits of market_outcomes' columns: all of them, and those after the point.
PRICE, CHANGE, PROBABILITY, VOLUME = (10, 2), (5, 2), (5, 4), (15, 2)
_STOCK_FIELDS = ("ticker", "organization_id", "start_price", "end_price", "change_percent", "sentiment", "news", "volume", "flags")
_PREDICTION_FIELDS = ("market_id", "question_number", "question", "start_probability", "end_probability", "outcome", "news", "flags")


@dataclass(frozen=True, kw_only=True)
class StockOutcome:
    """One organization's hour: prices in dollars, change in percent, unrounded. ``flags`` name unusual values."""

    ticker: str
    organization_id: str
    name: str
    start_price: float
    end_price: float
    change_percent: float
    sentiment: str
    news: tuple[str, ...] = ()
    volume: float | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PredictionOutcome:
    """One question's hour: probabilities 0 to 1, and the official answer. The answer is YES, NO, or UNRESOLVED while there is none."""

    market_id: str
    question_number: int | None
    question: str
    start_probability: float
    end_probability: float
    outcome: str
    resolved_at: datetime | None = None
    news: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class WindowOutcomes:
    """The market of one window; empty without any recorded price or event. ``changed``: the call that returned this value wrote rows."""

    window: str
    stocks: tuple[StockOutcome, ...] = ()
    predictions: tuple[PredictionOutcome, ...] = ()
    changed: bool = False

    @property
    def mean_change(self) -> float | None:
        """The overall trend: mean change of the stocks in percent."""
        changes = [stock.change_percent for stock in self.stocks]
        return math.fsum(changes) / len(changes) if changes else None

    @property
    def volatility(self) -> float | None:
        """Population standard deviation of the stocks' changes in percent."""
        mean = self.mean_change
        if mean is None:
            return None
        return math.sqrt(math.fsum((stock.change_percent - mean) ** 2 for stock in self.stocks) / len(self.stocks))

    @property
    def flags(self) -> list[dict[str, str]]:
        """Unusual values: ``{"subject": ticker or market id, "flag": name}``."""
        named = [(stock.ticker, stock.flags) for stock in self.stocks]
        named += [(prediction.market_id, prediction.flags) for prediction in self.predictions]
        return [{"subject": subject, "flag": flag} for subject, flags in named for flag in flags]

    @property
    def data_version(self) -> str:
        """Hash of the content, and of names and resolution times, which hindsight uses."""
        names = [stock.name for stock in self.stocks]
        resolved = [None if prediction.resolved_at is None else prediction.resolved_at.isoformat() for prediction in self.predictions]
        return content_version([self.document(), self.flags, names, resolved])

    def document(self) -> dict[str, Any]:
        """This market as a JSON-ready dict, as in ``babylon-rl outcomes``."""
        return {
            "window": self.window,
            "market": {"meanChange": self.mean_change, "volatility": self.volatility},
            "stocks": [document_of(stock, *_STOCK_FIELDS) for stock in self.stocks],
            "predictions": [document_of(prediction, *_PREDICTION_FIELDS) for prediction in self.predictions],
        }


def engine_ticker(organization_id: str) -> str:
    """The engine's ticker: the organization id in capitals without hyphens, at most 12 characters."""
    return organization_id.upper().replace("-", "")[:TICKER_CHARACTERS]


def window_outcomes(
    window: str, stocks: Sequence[StockSpan], questions: Sequence[QuestionSpan], happened: Sequence[MarketEvent], settings: HourSettings
) -> WindowOutcomes:
    """The market of one window from its records, given in the store's order."""
    recorded = bool(happened) or any(stock.moved for stock in stocks) or any(question.moved for question in questions)
    # A price from before the hour or a question that is merely open makes no market: something must have been recorded in it.
    if not recorded:
        return WindowOutcomes(window)
    # A second organization with the same ticker gets a suffix: TICKER~2.
    seen: defaultdict[str, int] = defaultdict(int)
    outcomes, plain = [], [plain_text(event) for event in happened]
    # By id, so that a suffix stays with its organization whatever order the rows come in.
    for span in sorted(stocks, key=lambda span: span.organization_id):
        ticker = engine_ticker(span.organization_id)
        seen[ticker] += 1
        name = ticker if seen[ticker] == 1 else f"{ticker}~{seen[ticker]}"
        outcomes.append(stock_outcome(span, name, stock_news(span, happened, plain), settings.sentiment_band_percent))
    return WindowOutcomes(window, tuple(outcomes), tuple(prediction_outcome(span, happened) for span in questions))


def stock_outcome(span: StockSpan, ticker: str, news: tuple[str, ...], band_percent: float) -> StockOutcome:
    """One stock's hour; changes within +- ``band_percent`` are NEUTRAL."""
    flags = []
    # The start is the last price before the hour, else the initial price, else the first one in the hour.
    start = next((price for price in (span.price_before, span.initial_price) if price is not None and 0 < price < math.inf), None)
    if span.price_before is not None and span.price_before != start:
        flags.append("price_before_not_positive")
    if start is None:
        start = span.first_price if span.first_price is not None else span.last_price
        flags.append("start_from_first_price")
    change = max(-MOST_CHANGE, min(MOST_CHANGE, (span.last_price - start) / start * 100)) if start > 0 else 0.0
    if start <= 0:
        flags.append("start_price_not_positive")
    # Flag values that the columns cannot hold; they are clamped only when written.
    if not _fits(change, CHANGE):
        flags.append("change_clamped")
    if not _fits(start, PRICE) or not _fits(span.last_price, PRICE):
        flags.append("price_clamped")
    if span.volume is not None and not _fits(span.volume, VOLUME):
        flags.append("volume_clamped")
    return StockOutcome(
        ticker=ticker,
        organization_id=span.organization_id,
        name=span.name,
        start_price=start,
        end_price=span.last_price,
        change_percent=change,
        sentiment="BULLISH" if change > band_percent else "BEARISH" if change < -band_percent else "NEUTRAL",
        news=news,
        volume=span.volume,
        flags=tuple(flags),
    )


def prediction_outcome(span: QuestionSpan, happened: Sequence[MarketEvent]) -> PredictionOutcome:
    start = span.probability_before if span.probability_before is not None else UNKNOWN_PROBABILITY
    end = span.last_probability if span.last_probability is not None else UNKNOWN_PROBABILITY
    number = span.question_number
    related = (event.description for event in happened if number is not None and event.related_question == number)
    return PredictionOutcome(
        market_id=span.market_id,
        question_number=span.question_number,
        question=span.question,
        start_probability=start,
        end_probability=end,
        outcome="UNRESOLVED" if span.answer is None else "YES" if span.answer else "NO",
        resolved_at=span.resolved_at,
        news=tuple(related)[:MOST_NEWS],
        flags=() if _fits(end, PROBABILITY) else ("probability_clamped",),
    )


def plain_text(event: MarketEvent) -> str | None:
    """An event's texts in small letters; None where they hold more than ASCII. Cases beyond ASCII are not one to one."""
    texts = "\0".join((event.description, *event.actors))
    return texts.lower() if texts.isascii() else None


def stock_news(span: StockSpan, happened: Sequence[MarketEvent], plain: Sequence[str | None]) -> tuple[str, ...]:
    """The first events, at most MOST_NEWS, that name the organization.

    Name, id and ticker count, as whole words in any case. ``plain`` is the plain text of each event: most do not hold the words
    at all, which is known much sooner than from the expression.
    """
    aliases = sorted({alias for alias in (span.name, span.organization_id, engine_ticker(span.organization_id)) if alias})
    needles = [alias.lower() for alias in aliases] if all(alias.isascii() for alias in aliases) else []
    named = re.compile(r"(?<!\w)(?:" + "|".join(re.escape(alias) for alias in aliases) + r")(?!\w)", re.IGNORECASE)
    possible = (
        event
        for event, text in zip(happened, plain, strict=True)
        if text is None or not needles or any(needle in text for needle in needles)
    )
    descriptions = (event.description for event in possible if any(named.search(text) for text in (event.description, *event.actors)))
    return tuple(islice(descriptions, MOST_NEWS))


def _fits(value: float, column: tuple[int, int]) -> bool:
    precision, scale = column
    most = float(10 ** (precision - scale))
    return abs(round(value, scale)) < most


def read_outcomes(connection: Connection, window: str, settings: HourSettings) -> WindowOutcomes:
    """The market of one window from the game's tables.

    Raises:
        UsageError: ``window`` is not a window id.
    """
    return read_many_outcomes(connection, [window], settings)[window]


def read_many_outcomes(connection: Connection, windows: Iterable[str], settings: HourSettings) -> dict[str, WindowOutcomes]:
    """The markets of some windows, in order, from three queries; empty markets included.

    Raises:
        UsageError: one of ``windows`` is not a window id.
    """
    ordered = sorted(set(windows))
    events, stocks = recorded(connection, MarketEvent, ordered), recorded(connection, StockSpan, ordered)
    questions = recorded(connection, QuestionSpan, ordered)
    return {window: window_outcomes(window, stocks[window], questions[window], events[window], settings) for window in ordered}


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
    differing = {window: some for window, some in rows.items() if held[window] != set(map(msgspec.json.encode, some))}
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
            news=stock.news,
            volume=_decimal(stock.volume, VOLUME) if stock.volume is not None else None,
        )
        for stock in market.stocks
    ]
    predictions = [
        OutcomeRow(
            id=f"{market.window}/prediction/{prediction.market_id}",
            window=market.window,
            news=prediction.news,
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
