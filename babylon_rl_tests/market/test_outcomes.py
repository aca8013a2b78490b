"""The rules of market outcomes, held against a second and plain reading of generated records, on the real Postgres."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given

from babylon_rl.market.outcomes import WindowOutcomes, read_many_outcomes, read_outcomes, sync_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl_tests.faulty_market import markets
from babylon_rl_tests.faulty_rows import copy_in
from babylon_rl_tests.market_oracle import Tables, market_of
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.rows import AFTER

pytestmark = pytest.mark.long

WINDOWS = ["2025-11-15T08:00", "2025-11-15T09:00", "2025-11-15T10:00", "2025-11-15T11:00"]
PLAIN = Settings.model_construct(**{name: field.default for name, field in Settings.model_fields.items()})
STOCK = ("ticker", "organization_id", "start_price", "end_price", "change_percent", "sentiment")
PREDICTION = ("market_id", "question_number", "question", "start_probability", "end_probability", "outcome", "resolved_at")


@contextmanager
def written(connection: Connection, tables: Tables) -> Iterator[None]:
    """These records and no others, until the block ends."""
    connection.execute("SAVEPOINT example")
    try:
        for table, rows in tables.items():
            copy_in(connection, table, rows)
        yield
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT example")


def near(ours: float | None, theirs: float | None) -> bool:
    """True where both are absent, or equal but for the order in which they were summed."""
    return ours is theirs if ours is None or theirs is None else math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)


def check(found: WindowOutcomes, answer: dict[str, Any]) -> None:
    """Everything that the rules define of one hour's market."""
    for ours, theirs, names in ((found.stocks, answer["stocks"], STOCK), (found.predictions, answer["predictions"], PREDICTION)):
        assert [{name: getattr(row, name) for name in names} for row in ours] == [{name: row[name] for name in names} for row in theirs]
        assert [list(row.news) for row in ours] == [row["news"] for row in theirs]
    assert all(near(ours.volume, theirs["volume"]) for ours, theirs in zip(found.stocks, answer["stocks"], strict=True))
    assert ["start_from_first_price" in stock.flags for stock in found.stocks] == [stock["from_first"] for stock in answer["stocks"]]
    assert near(found.mean_change, answer["mean"]) and near(found.volatility, answer["volatility"])


def fits(written: Decimal | None, value: float | None, digits: int, after_point: int) -> bool:
    """True where a column holds ``value`` rounded, and clamped to its range."""
    if written is None or value is None:
        return written is None and value is None
    most: float = (10**digits - 1) / 10**after_point
    clamped = max(-most, min(most, value))
    return abs(float(written) - clamped) <= float(0.5000001 / 10**after_point + abs(clamped) * 1e-15)


def told(row: dict[str, Any]) -> Any:
    return row["market_id"], row["question"], row["outcome"]


def check_rows(connection: Connection, window: str, answer: dict[str, Any], found: WindowOutcomes) -> None:
    """market_outcomes holds the same, rounded and clamped, with a flag where it was."""
    columns = '"stockTicker", "startPrice", "endPrice", "changePercent", sentiment, "newsEvents", volume'
    where = f"FROM market_outcomes WHERE \"windowId\" = '{window}' AND"
    stocks = connection.execute(f'SELECT {columns} {where} "stockTicker" IS NOT NULL').fetchall()
    held = {ticker: values for ticker, *values in stocks}
    assert len(stocks) == len(held) and set(held) == {stock["ticker"] for stock in answer["stocks"]}
    flags = {(flag["subject"], flag["flag"]) for flag in found.flags}
    for stock in answer["stocks"]:
        start, end, change, sentiment, news, volume = held[stock["ticker"]]
        assert fits(start, stock["start_price"], 10, 2) and fits(end, stock["end_price"], 10, 2) and fits(volume, stock["volume"], 15, 2)
        assert fits(change, stock["change_percent"], 5, 2) and (sentiment, news) == (stock["sentiment"], stock["news"])
        assert ((stock["ticker"], "change_clamped") in flags) == (abs(round(stock["change_percent"], 2)) >= 1000)
    predictions = connection.execute(
        f'SELECT "predictionMarketId", question, outcome, "newsEvents", "finalProbability" {where} "predictionMarketId" IS NOT NULL'
    ).fetchall()
    assert sorted(row[:3] for row in predictions) == sorted(told(row) for row in answer["predictions"])
    expected = {row["market_id"]: row for row in answer["predictions"]}
    for market_id, _, _, news, probability in predictions:
        assert news == expected[market_id]["news"] and fits(probability, expected[market_id]["end_probability"], 5, 4)


@repeatable(150)
@given(tables=markets())
def test_every_hour_of_the_market_is_read_as_the_rules_say(connection: Connection, tables: Tables) -> None:
    with written(connection, tables):
        outcomes = read_many_outcomes(connection, WINDOWS, PLAIN)
    for window in WINDOWS:
        check(outcomes[window], market_of(window, tables))


@repeatable(60)
@given(tables=markets())
def test_what_is_written_is_what_was_read_once(connection: Connection, tables: Tables) -> None:
    with written(connection, tables):
        assert read_many_outcomes(connection, WINDOWS, PLAIN) == {window: read_outcomes(connection, window, PLAIN) for window in WINDOWS}
        first = sync_outcomes(connection, WINDOWS, PLAIN, AFTER)
        again = sync_outcomes(connection, reversed(WINDOWS), PLAIN, AFTER)
        for window in WINDOWS:
            check_rows(connection, window, market_of(window, tables), first[window])
        assert not any(found.changed for found in again.values())
        assert {window: found.data_version for window, found in again.items()} == {window: first[window].data_version for window in WINDOWS}
