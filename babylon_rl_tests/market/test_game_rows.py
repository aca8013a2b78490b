"""A played hour's market as the game's rows: prices twice, one question with its pool, events."""

import math
from statistics import mean, stdev
from typing import Any

import pytest

from babylon_rl.market.game_rows import Ids, closing_prices, event_rows, question_rows, slug, stock_rows
from babylon_rl.market.simulation.scenario import WorldEvent, opening
from babylon_rl.windows import HOUR, window_start
from babylon_rl_tests.market.builders import QUESTION, STOCK, STOCK_NAME, WINDOW, make_event, make_hour, make_scenario

START = window_start(WINDOW)
SCENARIO = make_scenario()


def of(rows: list[dict[str, Any]], organization: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["organizationId"] == organization]


def test_ids_are_decimal_ascend_and_differ_between_hours() -> None:
    ids, later = Ids(START), Ids(START + HOUR)
    some = [ids() for _ in range(10_000)]
    assert all(one.isdigit() for one in some)
    assert some == sorted(some, key=int) and len(set(some)) == len(some)
    assert int(some[-1]) < int(later())
    assert Ids(START)() == some[0]


def test_every_price_update_is_written_twice_the_second_time_without_a_change() -> None:
    rows = stock_rows(SCENARIO, {}, Ids(START))
    assert len(rows) == len(SCENARIO.assets) * 60 * 2
    for real, again in zip(rows[::2], rows[1::2], strict=True):
        assert (again["organizationId"], again["price"], again["change"], again["changePercent"]) == (
            real["organizationId"], real["price"], 0.0, 0.0)  # fmt: skip
        assert again["timestamp"] > real["timestamp"]
        assert real["price"] - real["change"] == pytest.approx(real["price"] / (1 + real["changePercent"] / 100))
    assert all(START <= row["timestamp"] < START + HOUR for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_at_a_tick_the_price_is_the_one_that_agents_were_shown() -> None:
    asset = SCENARIO.assets[0]
    as_moved = [price * 1.01 for price in asset.prices[:6]]
    rows = of(stock_rows(SCENARIO, {asset.ticker: as_moved}, Ids(START)), slug(asset.name))[::2]
    assert [row["timestamp"].minute for row in rows] == [*range(1, 60), 59]
    assert [row["price"] for row in rows[4::5]] == pytest.approx([*as_moved[1:], *asset.prices[6:]], abs=1e-6)
    assert closing_prices(SCENARIO, {})[slug(asset.name)] == rows[-1]["price"]


def test_between_ticks_prices_move_as_within_them() -> None:
    moves: list[float] = []
    for seed in range(40):
        rows = stock_rows(make_scenario(seed=seed), {}, Ids(START))[::2]
        moves += [math.log(row["price"] / (row["price"] - row["change"])) for row in rows if row["timestamp"].minute % 5 == 2]
    assert abs(mean(moves)) < 0.0005
    assert stdev(moves) == pytest.approx(0.0045, rel=0.45)  # the noise of a minute, and a fifth of a headline's effect


def test_the_same_hour_gives_the_same_rows() -> None:
    assert stock_rows(make_scenario(), {}, Ids(START)) == stock_rows(make_scenario(), {}, Ids(START))


def test_a_question_is_also_a_market_and_its_history_starts_with_the_hour() -> None:
    hour = make_hour(crowd=0.4)
    prices = [0.4, 0.55, 0.7]
    rows = question_rows(hour, {QUESTION: prices}, Ids(START))
    (question,), (market,), (*history, resolution) = rows["Question"], rows["Market"], rows["PredictionPriceHistory"]
    assert question["id"] == market["id"] and {row["marketId"] for row in history} == {question["id"]}
    assert (question["questionNumber"], question["outcome"], question["createdAt"]) == (7, True, START)
    assert [row["yesPrice"] for row in history] == [*prices, *[0.4] * 10] and resolution["eventType"] == "resolution"
    assert history[0]["createdAt"] == START
    for row in [*history, market | {"yesPrice": 0.4, "noPrice": 0.6}]:
        assert row["noShares"] / (row["yesShares"] + row["noShares"]) == pytest.approx(row["yesPrice"], abs=1e-6)
        assert row["yesPrice"] + row["noPrice"] == pytest.approx(1.0)
        assert math.sqrt(row["yesShares"] * row["noShares"]) == pytest.approx(20_000.0, rel=1e-6)


def test_a_question_is_answered_when_its_hour_is_over() -> None:
    rows = question_rows(make_hour(), {}, Ids(START))
    (question,), (market,), (*_, last, resolution) = rows["Question"], rows["Market"], rows["PredictionPriceHistory"]
    assert (resolution["eventType"], resolution["yesPrice"], resolution["noPrice"]) == ("resolution", 1.0, 0.0)
    assert START < last["createdAt"] < resolution["createdAt"] < START + HOUR
    assert question["resolvedOutcome"] is market["resolution"] is question["outcome"] is True


def test_events_say_which_way_a_question_points_and_name_the_company_otherwise() -> None:
    rows = event_rows(make_hour(events=(make_event(0, STOCK, -1), make_event(3, QUESTION, -1), make_event(11, QUESTION, 1, rumour=True))))
    assert [(row["actors"], row["relatedQuestion"], row["pointsToward"]) for row in rows] == [
        ([slug(STOCK_NAME)], None, None), ([], 7, "NO"), ([], 7, "YES")]  # fmt: skip
    assert [row["eventType"] for row in rows] == ["deal", "deal", "rumor"]
    assert all(START <= row["timestamp"] < START + HOUR for row in rows)


def test_two_events_of_one_tick_are_two_rows() -> None:
    events: tuple[WorldEvent, ...] = (make_event(3), make_event(3))
    assert len({row["id"] for row in event_rows(make_hour(events=events))}) == 2


def test_an_hour_that_agents_leave_early_is_written_whole() -> None:
    played = {asset.ticker: asset.prices[:3] for asset in opening(SCENARIO, 2).assets}
    assert stock_rows(SCENARIO, played, Ids(START)) == stock_rows(SCENARIO, {}, Ids(START))


def test_a_companys_id_is_a_slug() -> None:
    assert slug("Gasly Motors") == "gasly-motors"
    assert slug("  Café & Söhne, Inc. ") == "caf-s-hne-inc"
