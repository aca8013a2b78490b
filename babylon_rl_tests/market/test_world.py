"""The simulated hour: the same arguments give the same hour, and its news carries a signal."""

import pytest

from babylon_rl.market.headlines import HELD_OUT, TRAINING, Edition
from babylon_rl.market.world import MINUTES, TICK_MINUTES, TICKS, Hour, generate_hour
from babylon_rl_tests.market.builders import WINDOW


def words(edition: Edition) -> dict[str, set[str]]:
    return {
        "companies": {name for name, _ in edition.companies},
        "questions": set(edition.questions),
        "headlines": {*edition.good, *edition.bad, *edition.neutral, *edition.toward_yes, *edition.toward_no},
    }


def test_the_same_arguments_give_the_same_hour_byte_for_byte() -> None:
    once, again = (repr(generate_hour(TRAINING, WINDOW, 3, previous={"Bluff Social": 61.0})) for _ in range(2))
    assert once.encode() == again.encode()


def test_another_seed_window_or_edition_gives_another_hour() -> None:
    hours = [
        generate_hour(TRAINING, WINDOW, 0),
        generate_hour(TRAINING, WINDOW, 1),
        generate_hour(TRAINING, "2025-11-15T11:00", 0),
        generate_hour(HELD_OUT, WINDOW, 0),
    ]
    assert len({hour.events for hour in hours}) == len({hour.stocks for hour in hours}) == 4


@pytest.mark.parametrize("kind", ["companies", "questions", "headlines"])
def test_what_is_held_out_stands_in_no_training_hour(kind: str) -> None:
    assert not words(TRAINING)[kind] & words(HELD_OUT)[kind]


@pytest.mark.parametrize("edition", [TRAINING, HELD_OUT], ids=lambda edition: edition.name)
def test_an_edition_says_nothing_twice_and_names_the_company_where_it_should(edition: Edition) -> None:
    names = [name for name, _ in edition.companies]
    about = [*edition.good, *edition.bad, *edition.neutral]
    assert len(set(names)) == len(names) and len(set(about)) == len(about)
    assert all("{c}" in text for text in (*about, *edition.questions))
    assert not any("{" in text for text in (*edition.toward_yes, *edition.toward_no))
    assert all(price > 0 for _, price in edition.companies)


@pytest.mark.parametrize("seed", range(20))
def test_an_hour_is_whole(seed: int) -> None:
    hour = generate_hour(TRAINING, WINDOW, seed)
    assert [event.tick for event in hour.events] == list(range(TICKS))
    assert {event.market for event in hour.events} <= set(hour.markets)
    assert len(set(hour.markets)) == len(hour.stocks) + 1
    assert all(len(stock.prices) == MINUTES + 1 and min(stock.prices) > 0 for stock in hour.stocks)
    assert len(hour.question.crowd_logit) == MINUTES + 1
    assert all(event.text.startswith("Rumour: ") == event.rumour for event in hour.events)


def test_prices_go_on_where_the_hour_before_left_them() -> None:
    known = {name: 2 * price for name, price in TRAINING.companies}
    hour = generate_hour(TRAINING, WINDOW, 0, previous=known, question_number=41)
    assert all(stock.prices[0] == known[stock.name] for stock in hour.stocks)
    assert hour.question.label == "Q41"


def moves(hour: Hour, *, rumours: bool) -> list[float]:
    """Log price changes of stocks in the five minutes after an event, along the event's direction."""
    prices = {stock.name: stock.prices for stock in hour.stocks}
    found = []
    for event in hour.events:
        if event.direction and event.market in prices and event.rumour == rumours:
            path = prices[event.market]
            found.append(event.direction * (path[(event.tick + 1) * TICK_MINUTES] / path[event.tick * TICK_MINUTES] - 1))
    return found


def test_markets_mostly_follow_the_news_and_reports_more_than_rumours() -> None:
    hours = [generate_hour(TRAINING, WINDOW, seed) for seed in range(200)]
    reports = [move for hour in hours for move in moves(hour, rumours=False)]
    rumours = [move for hour in hours for move in moves(hour, rumours=True)]
    right, right_rumours = (sum(move > 0 for move in some) / len(some) for some in (reports, rumours))
    assert right > 0.7
    assert right_rumours < right
    assert sum(reports) / len(reports) > sum(rumours) / len(rumours) > 0


def test_questions_follow_their_news_too() -> None:
    along = []
    for seed in range(300):
        hour = generate_hour(TRAINING, WINDOW, seed)
        logits = hour.question.crowd_logit
        for event in hour.events:
            if event.market == hour.question.label:
                along.append(event.direction * (logits[(event.tick + 1) * TICK_MINUTES] - logits[event.tick * TICK_MINUTES]))
    assert len(along) > 50
    assert sum(move > 0 for move in along) / len(along) > 0.6


def test_the_hidden_answer_is_likelier_when_the_crowd_ends_high() -> None:
    hours = [generate_hour(TRAINING, WINDOW, seed) for seed in range(600)]
    high = [hour.question.answer for hour in hours if hour.question.crowd_logit[-1] > 0.5]
    low = [hour.question.answer for hour in hours if hour.question.crowd_logit[-1] < -0.5]
    assert sum(high) / len(high) > 0.5 > sum(low) / len(low)
