"""Market outcomes: the samples' answers, the rules by small cases, and writing once."""

from datetime import timedelta
from decimal import Decimal
from threading import Thread
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from babylon_rl.errors import UsageError
from babylon_rl.market.outcomes import MOST_NEWS, WindowOutcomes, read_many_outcomes, read_outcomes, sync_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl_tests.expected import SAMPLES, expected
from babylon_rl_tests.market_rows import HOUR_BEFORE, event, fill, history, market, organization, price, question
from babylon_rl_tests.rows import AFTER, START, WINDOW


def read(connection: Connection, settings: Settings, **tables: list[dict[str, Any]]) -> WindowOutcomes:
    fill(connection, **tables)
    return read_outcomes(connection, WINDOW, settings)


@pytest.mark.parametrize("fixture", SAMPLES)
def test_samples_come_out_as_expected(request: pytest.FixtureRequest, settings: Settings, fixture: str) -> None:
    answers = expected(fixture)["windows"]
    with request.getfixturevalue(fixture).connect() as connection:
        found = read_many_outcomes(connection, answers, settings)
    for window, answer in answers.items():
        stocks = {stock.ticker: stock for stock in found[window].stocks}
        assert set(stocks) == set(answer["stocks"])
        for ticker, theirs in answer["stocks"].items():
            ours = stocks[ticker]
            assert (ours.organization_id, ours.sentiment) == (theirs["org_id"], theirs["sentiment"])
            assert (ours.start_price, ours.end_price, ours.change_percent) == pytest.approx(
                (theirs["start_price"], theirs["end_price"], theirs["change_percent"]), abs=1e-6
            )
        predictions = {prediction.market_id: prediction for prediction in found[window].predictions}
        assert set(predictions) == set(answer["predictions"])
        for market_id, theirs in answer["predictions"].items():
            asked = predictions[market_id]
            assert (asked.question_number, asked.question, asked.outcome) == (
                theirs["question_number"], theirs["question"], theirs["outcome_now"],
            )  # fmt: skip
            assert (asked.start_probability, asked.end_probability) == pytest.approx(
                (theirs["start_probability"], theirs["end_probability"]), abs=1e-6
            )


def test_price_on_the_hour_opens_the_window_and_closes_none(connection: Connection, settings: Settings) -> None:
    prices = [price(1, "acme", 90, -1), price(2, "acme", 100, 0), price(3, "acme", 110, 59.99), price(4, "acme", 500, 60)]
    (stock,) = read(connection, settings, Organization=[organization("acme", initial=1)], StockPrice=prices).stocks
    assert (stock.start_price, stock.end_price, stock.change_percent, stock.sentiment) == (100, 110, pytest.approx(10), "BULLISH")


def test_equal_timestamps_are_ordered_by_id(connection: Connection, settings: Settings) -> None:
    prices = [price(9, "acme", 99, 5), price(1, "acme", 11, 5), price(8, "acme", 98, 0), price(2, "acme", 22, 0)]
    (stock,) = read(connection, settings, Organization=[organization("acme")], StockPrice=prices).stocks
    assert (stock.start_price, stock.end_price) == (98, 99)


@pytest.mark.parametrize(
    ("initial", "start", "flags"), [(80.0, 80, ()), (None, 50, ("start_from_first_price",)), (0.0, 50, ("start_from_first_price",))]
)
def test_start_falls_back_to_the_initial_price_then_to_the_first(
    connection: Connection, settings: Settings, initial: float | None, start: float, flags: tuple[str, ...]
) -> None:
    prices = [price(1, "acme", 50, 10), price(2, "acme", 60, 20)]
    (stock,) = read(connection, settings, Organization=[organization("acme", initial=initial)], StockPrice=prices).stocks
    assert (stock.start_price, stock.flags) == (start, flags)


def test_prices_that_are_no_numbers_and_organizations_without_prices_are_left_out(connection: Connection, settings: Settings) -> None:
    prices = [price(1, "acme", 100, 1), price(2, "acme", float("nan"), 2), price(3, "late", 5, 61)]
    found = read(connection, settings, Organization=[organization("acme"), organization("late"), organization("none")], StockPrice=prices)
    assert [(stock.organization_id, stock.end_price) for stock in found.stocks] == [("acme", 100)]


@pytest.mark.parametrize(("end", "label"), [(101.0, "NEUTRAL"), (101.01, "BULLISH"), (99.0, "NEUTRAL"), (98.99, "BEARISH")])
def test_band_of_sentiment(connection: Connection, settings: Settings, end: float, label: str) -> None:
    (stock,) = read(connection, settings, Organization=[organization("acme")], StockPrice=[price(1, "acme", end, 5)]).stocks
    assert stock.sentiment == label


def test_two_organizations_with_one_ticker_are_told_apart(connection: Connection, settings: Settings) -> None:
    slugs = ["big-brother-company", "bigbrothercompact", "big-brother-corp"]
    prices = [price(number, slug, 100 + number, 5) for number, slug in enumerate(slugs)]
    found = read(connection, settings, Organization=[organization(slug) for slug in slugs], StockPrice=prices)
    assert [(stock.ticker, stock.organization_id) for stock in found.stocks] == [
        ("BIGBROTHERCO", "big-brother-company"), ("BIGBROTHERCO~2", "big-brother-corp"), ("BIGBROTHERCO~3", "bigbrothercompact"),
    ]  # fmt: skip


def test_volume_is_summed_where_it_is_recorded(connection: Connection, settings: Settings) -> None:
    prices = [price(1, "acme", 1, -5, volume=100), price(2, "acme", 1, 5, volume=3), price(3, "acme", 1, 6), price(4, "zeta", 1, 6)]
    found = read(connection, settings, Organization=[organization("acme"), organization("zeta")], StockPrice=prices)
    assert [stock.volume for stock in found.stocks] == [3, None]


def test_market_as_a_whole_is_mean_and_population_deviation(connection: Connection, settings: Settings) -> None:
    prices = [price(1, "acme", 110, 5), price(2, "zeta", 90, 5), price(3, "iota", 130, 5)]
    found = read(connection, settings, Organization=[organization(slug) for slug in ("acme", "zeta", "iota")], StockPrice=prices)
    assert found.mean_change == pytest.approx(10)
    assert found.volatility == pytest.approx((800 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("text", "actors", "named"),
    [
        ("OpenLIE launches", None, True),
        ("openlie-inc. launches", None, True),
        ("The OPENLIEINC stock", None, True),
        ("nothing", ["openlie-inc"], True),
        ("OpenLIES everywhere", ["reopenlie"], False),
        ("OpenLIE_x", [], False),
    ],
)
def test_stock_news_names_the_organization_as_whole_words(
    connection: Connection, settings: Settings, text: str, actors: list[str] | None, named: bool
) -> None:
    tables = {"Organization": [organization("openlie-inc", "OpenLIE")], "StockPrice": [price(1, "openlie-inc", 1, 1)]}
    (stock,) = read(connection, settings, **tables, WorldEvent=[event(1, 5, text, actors)]).stocks
    assert stock.news == ((text,) if named else ())


def test_news_is_in_order_of_time_within_the_window_and_limited(connection: Connection, settings: Settings) -> None:
    events = [event(number, 59 - number, f"Acme {number}", about=1) for number in range(30)]
    outside = [event(98, -0.1, "Acme before", about=1), event(99, 60, "Acme after", about=1)]
    tables = {"Organization": [organization("acme")], "StockPrice": [price(1, "acme", 1, 1)], "Question": [question(1), question(2)]}
    found = read(connection, settings, **tables, WorldEvent=events + outside)
    first = tuple(f"Acme {number}" for number in range(29, 29 - MOST_NEWS, -1))
    assert found.stocks[0].news == first
    assert [prediction.news for prediction in found.predictions] == [first, ()]


def test_probabilities_are_the_last_before_the_edges(connection: Connection, settings: Settings) -> None:
    traded = [history(1, "q1", 0.2, -1), history(2, "q1", 0.3, 0), history(3, "q1", 0.6, 59), history(4, "q1", 0.9, 60)]
    found = read(connection, settings, Question=[question(1), question(2)], Market=[market("q1")], PredictionPriceHistory=traded)
    pairs = [(prediction.start_probability, prediction.end_probability) for prediction in found.predictions]
    assert pairs == [(0.3, 0.6), (0.5, 0.5)]


def test_questions_count_from_creation_to_resolution(connection: Connection, settings: Settings) -> None:
    late = START + timedelta(hours=1)
    asked = [
        question(1, created=late - timedelta(milliseconds=1)),
        question(2, created=late),
        question(3, answer=True, updated=HOUR_BEFORE),
        question(4, answer=False, updated=START),
        question(5, answer=True, updated=START + timedelta(days=2)),
        question(6, answer=True, updated=START + timedelta(days=2)),
    ]
    resolved = [history(1, "q6", 1.0, -1, "resolution")]
    found = read(connection, settings, Question=asked, Market=[market("q6")], PredictionPriceHistory=resolved, WorldEvent=[event(1, 1)])
    assert [(prediction.market_id, prediction.outcome) for prediction in found.predictions] == [
        ("q1", "UNRESOLVED"),
        ("q4", "NO"),
        ("q5", "YES"),
    ]


def test_an_answer_days_later_brings_the_window_up_to_date(connection: Connection, settings: Settings) -> None:
    fill(connection, Question=[question(1)], WorldEvent=[event(1, 1)])
    before = sync_outcomes(connection, [WINDOW], settings, AFTER)[WINDOW]
    connection.execute("""UPDATE "Question" SET "resolvedOutcome" = false, "updatedAt" = %s""", (AFTER + timedelta(days=3),))
    after = sync_outcomes(connection, [WINDOW], settings, AFTER + timedelta(days=4))[WINDOW]
    rows = connection.execute("SELECT outcome FROM market_outcomes").fetchall()
    assert (before.predictions[0].outcome, after.predictions[0].outcome, rows) == ("UNRESOLVED", "NO", [("NO",)])
    assert after.changed and before.data_version != after.data_version


def test_a_market_without_a_question_counts_by_itself(connection: Connection, settings: Settings) -> None:
    own = [market("m1"), market("m2", resolved=True, resolution=True), market("m3", createdAt=START + timedelta(hours=1))]
    found = read(connection, settings, Market=own, PredictionPriceHistory=[history(1, "m1", 0.7, 5)])
    assert [(p.market_id, p.question_number, p.question, p.end_probability, p.outcome) for p in found.predictions] == [
        ("m1", None, "Market m1?", 0.7, "UNRESOLVED"), ("m2", None, "Market m2?", 0.5, "YES"),
    ]  # fmt: skip


def test_hidden_answer_is_nowhere(connection: Connection, settings: Settings) -> None:
    fill(connection, Question=[question(1)], WorldEvent=[event(1, 1)])
    sync_outcomes(connection, [WINDOW], settings, AFTER)
    assert connection.execute("SELECT outcome FROM market_outcomes").fetchall() == [("UNRESOLVED",)]


def test_window_without_a_price_or_an_event_has_no_outcomes(connection: Connection, settings: Settings) -> None:
    tables = {"Organization": [organization("acme")], "StockPrice": [price(1, "acme", 1, -5)], "Question": [question(1)]}
    found = read(connection, settings, **tables, WorldEvent=[event(1, 60), event(2, -1)])
    assert (found.stocks, found.predictions, found.mean_change, found.volatility) == ((), (), None, None)


def rows_of(connection: Connection) -> list[Any]:
    return connection.execute('SELECT ctid::text, * FROM market_outcomes ORDER BY "windowId", id').fetchall()


def test_sync_writes_rounded_rows_once(connection: Connection, settings: Settings) -> None:
    prices = [
        price(1, "acme", 100, 0),
        price(2, "acme", 103.456, 5),
        price(3, "moon", 1, 0),
        price(4, "moon", 500, 5),
        price(5, "huge", 1e12, 5),
    ]
    tables = {"Organization": [organization(slug) for slug in ("acme", "moon", "huge")], "StockPrice": prices}
    fill(connection, **tables, Question=[question(1)], Market=[market("q1")], PredictionPriceHistory=[history(1, "q1", 0.123456, 5)])
    first = sync_outcomes(connection, [WINDOW], settings, AFTER)[WINDOW]
    before = rows_of(connection)
    again = sync_outcomes(connection, [WINDOW], settings, AFTER + timedelta(days=1))[WINDOW]
    after = rows_of(connection)
    stocks = connection.execute(
        'SELECT "stockTicker", "startPrice", "endPrice", "changePercent", "newsEvents" FROM market_outcomes WHERE "stockTicker" IS NOT NULL'
    ).fetchall()
    asked = connection.execute(
        'SELECT "finalProbability", "createdAt" FROM market_outcomes WHERE "predictionMarketId" = %s', ("q1",)
    ).fetchall()
    whole = connection.execute('SELECT "stocks", "predictions", "dataVersion", "flags" FROM babylon_rl.market_windows').fetchall()
    assert (first.changed, again.changed, after) == (True, False, before)
    assert sorted(stocks) == [
        ("ACME", Decimal("100.00"), Decimal("103.46"), Decimal("3.46"), []),
        ("HUGE", Decimal("100.00"), Decimal("99999999.99"), Decimal("999.99"), []),
        ("MOON", Decimal("1.00"), Decimal("500.00"), Decimal("999.99"), []),
    ]
    assert asked == [(Decimal("0.1235"), AFTER)]
    flags = [("HUGE", "change_clamped"), ("HUGE", "price_clamped"), ("MOON", "change_clamped")]
    assert whole == [(3, 1, first.data_version, [{"subject": subject, "flag": flag} for subject, flag in flags])]


@pytest.mark.parametrize("news", [None, "A text", [{"title": "An object"}], {"text": 1}, [1]])
def test_sync_replaces_what_others_wrote_and_clears_what_is_gone(connection: Connection, settings: Settings, news: object) -> None:
    foreign = {"id": "foreign", "windowId": WINDOW, "stockTicker": "ACME", "newsEvents": Jsonb(news), "createdAt": START}
    fill(connection, Organization=[organization("acme")], StockPrice=[price(1, "acme", 1, 5)], market_outcomes=[foreign])
    assert sync_outcomes(connection, [WINDOW], settings, AFTER)[WINDOW].changed
    assert [row[1] for row in rows_of(connection)] == [f"{WINDOW}/stock/acme"]
    connection.execute('DELETE FROM "StockPrice"')
    assert sync_outcomes(connection, [WINDOW], settings, AFTER)[WINDOW].changed
    assert rows_of(connection) == connection.execute("SELECT * FROM babylon_rl.market_windows").fetchall() == []


def test_current_hour_is_never_written_and_a_wrong_id_is_refused(connection: Connection, settings: Settings) -> None:
    fill(connection, Organization=[organization("acme")], StockPrice=[price(1, "acme", 1, 5)])
    assert sync_outcomes(connection, [WINDOW], settings, START + timedelta(minutes=59)) == {}
    with pytest.raises(UsageError):
        sync_outcomes(connection, ["2025-11-15T10:30"], settings, AFTER)
    assert rows_of(connection) == []


def test_two_writers_at_once_write_one_set_of_rows(sample_database: Database, settings: Settings) -> None:
    windows = sorted(expected("sample_database")["windows"])
    failures: list[BaseException] = []

    def write(order: list[str]) -> None:
        try:
            with sample_database.connect() as connection:
                sync_outcomes(connection, order, settings, AFTER)
        except BaseException as failure:
            failures.append(failure)

    threads = [Thread(target=write, args=(order,)) for order in (windows, windows[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with sample_database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM market_outcomes").fetchone() == (7 * (32 + 16),)
