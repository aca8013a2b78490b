"""What the fit reads: a recorded game, straight from its own tables, and a simulated market, as the same rows.

In the sample, events, posts, questions, organizations and tick times are real; prices, probabilities and trades are simulated.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.store.connection import Connection
from benchmarks.market_fit.rows import EventRow, PostRow, PriceRow, ProbabilityRow, QuestionRow, Recording, TradeRow

Row = TypeVar("Row")

_COMPANIES = """SELECT name FROM public."Organization" ORDER BY name"""
_QUESTIONS = """SELECT "questionNumber", text, outcome, "createdDate" FROM public."Question" ORDER BY "questionNumber" """
_EVENTS = """
SELECT "timestamp", "eventType", description, cardinality(actors), "relatedQuestion",
       CASE "pointsToward" WHEN 'YES' THEN 1 WHEN 'NO' THEN -1 ELSE 0 END
FROM public."WorldEvent" ORDER BY "timestamp", id
"""
_POSTS = """
SELECT "timestamp", "authorId", content, CASE sentiment WHEN 'positive' THEN 1 WHEN 'negative' THEN -1 WHEN 'neutral' THEN 0 END,
       "commentOnPostId" IS NOT NULL OR "originalPostId" IS NOT NULL
FROM public."Post" WHERE "deletedAt" IS NULL ORDER BY "timestamp", id
"""
# A price row within 10 ms of an order for that stock, under any of its names, is the order's impact.
_PRICES = """
SELECT price."timestamp", organization.name, price.price, EXISTS (
    SELECT FROM public."AgentTrade" AS trade
    WHERE trade."marketType" = 'perp'
      AND trade."executedAt" BETWEEN price."timestamp" - interval '10 ms' AND price."timestamp" + interval '10 ms'
      AND upper(replace(trade.ticker, '-', '')) IN (
          upper(organization.name), upper(replace(organization.name, '-', '')), upper(replace(organization.id, '-', '')),
          left(upper(replace(organization.id, '-', '')), 12)))
FROM public."StockPrice" AS price JOIN public."Organization" AS organization ON organization.id = price."organizationId"
ORDER BY price."timestamp", price.id
"""
_PROBABILITIES = """
SELECT history."createdAt", question."questionNumber", history."yesPrice", sqrt(history."yesShares" * history."noShares")::float8
FROM public."PredictionPriceHistory" AS history
JOIN public."Market" AS market ON market.id = history."marketId"
JOIN public."Question" AS question ON question.id = market.id OR question.text = market.question
ORDER BY history."createdAt", history.id
"""
_TRADES = """
SELECT "executedAt", "marketType", amount::float8, NULL::float8, NULL::float8
FROM public."AgentTrade" WHERE "marketType" = 'prediction'
UNION ALL
SELECT "openedAt", 'perp', size::float8, leverage::float8, extract(epoch FROM "closedAt" - "openedAt")::float8 / 60
FROM public."PerpPosition"
ORDER BY 1
"""


def recorded(connection: Connection) -> Recording:
    """Everything that the database's game recorded."""

    def rows(make: Callable[..., Row], sql: str) -> tuple[Row, ...]:
        return tuple(make(*row) for row in connection.execute(sql))

    return Recording(
        companies=rows(str, _COMPANIES),
        questions=rows(QuestionRow, _QUESTIONS),
        events=rows(EventRow, _EVENTS),
        posts=rows(PostRow, _POSTS),
        prices=rows(PriceRow, _PRICES),
        probabilities=rows(ProbabilityRow, _PROBABILITIES),
        trades=rows(TradeRow, _TRADES),
    )


def simulated(scenario: Scenario) -> Recording:
    """The same rows of a simulated market, as it is before any agent trades.

    A move between the moments t and t + 1 belongs to tick t, at which its event was read.
    """
    start = datetime(1970, 1, 1) + timedelta(milliseconds=scenario.start_ms)
    numbers = {question.id: question.number for question in scenario.questions}

    def at(tick: float) -> datetime:
        return start + timedelta(seconds=tick * scenario.tick_seconds)

    return Recording(
        companies=tuple(asset.name for asset in scenario.assets),
        questions=tuple(QuestionRow(one.number, one.text, one.answer, at(one.created_tick)) for one in scenario.questions),
        events=tuple(EventRow(at(one.tick), one.category, one.text, 0, numbers.get(one.about), one.direction) for one in scenario.events),
        posts=tuple(PostRow(at(one.tick), one.author, one.text, one.direction, False) for one in scenario.posts),
        prices=tuple(
            PriceRow(at(moment - 0.5), asset.name, price) for asset in scenario.assets for moment, price in enumerate(asset.prices)
        ),
        probabilities=tuple(
            ProbabilityRow(at(moment - 0.5), question.number, yes, 0.0)
            for question in scenario.questions
            for moment, yes in enumerate(question.crowd)
            if question.open_at(moment)
        ),
        ticks=tuple(at(tick) for tick in range(scenario.ticks)),
    )
