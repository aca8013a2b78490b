"""Markets from given paths: what cannot be played is refused with its reason."""

import math

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.scenario import Asset, Post, Question, from_paths
from babylon_rl_tests.market.simulation.markets import STOCK, make_market


def test_a_recorded_market_is_played_at_its_own_prices() -> None:
    made = make_market([100.0, 103.0, 99.5], [0.4, 0.55, 0.3])
    exchange = Exchange(made, ())
    exchange.advance()
    assert exchange.books[STOCK].mark == 103.0
    assert exchange.pools["Q1"].yes_price == pytest.approx(0.55)
    exchange.advance()
    assert exchange.books[STOCK].path == [100.0, 103.0, 99.5]
    assert exchange.pools["Q1"].path == pytest.approx([0.4, 0.55, 0.3])
    quote = exchange.quotes().stocks[0]
    assert (quote.price, quote.change) == (99.5, pytest.approx(100 * (99.5 / 103.0 - 1)))


def test_events_and_posts_are_found_by_tick() -> None:
    posts = [Post(2, "Bo", 0.5, "later", "A", 1, False), Post(1, "Bo", 0.5, "sooner", "A", 1, False)]
    made = from_paths(tick_seconds=60, assets=[Asset("A", "A", (1.0, 2.0, 3.0))], posts=posts, start_ms=5_000)
    assert [post.text for post in made.posts] == ["sooner", "later"]
    assert made.posts_at(2) == (posts[0],) and made.posts_at(0) == () and made.events_at(1) == ()
    assert made.timestamp_ms(2) == 125_000


def question(crowd: tuple[float, ...], created: int = 0, resolved: int = 9) -> Question:
    return Question("Q1", 1, "Will it?", True, crowd, created, resolved)


@pytest.mark.parametrize(
    ("assets", "questions", "words"),
    [
        ([], [], "at least one stock or question"),
        ([Asset("A", "A", (1.0,))], [], "0 ticks of 60 s"),
        ([Asset("A", "A", (1.0, 2.0)), Asset("B", "B", (1.0,))], [], "B has 1 prices, there are 2 moments"),
        ([Asset("A", "A", (1.0, 0.0))], [], "a price of A is not a positive number"),
        ([Asset("A", "A", (1.0, math.nan))], [], "a price of A is not a positive number"),
        ([Asset("A", "A", (1.0, 1.0), funding=(1.5,))], [], "a funding rate of A is not between -1 and 1"),
        ([Asset("A", "A", (1.0, 1.0))] * 2, [], "name is given twice among A, A"),
        ([], [question((0.5, 1.0))], "a probability of Q1 is not between 0 and 1"),
        ([Asset("A", "A", (1.0, 1.0))], [question((0.5,))], "Q1 has 1 probabilities, there are 2 moments"),
        ([], [question((0.5, 0.5), 3, 3)], "Q1 is created at tick 3 and resolved at 3"),
    ],
)
def test_what_contradicts_itself_is_refused(assets: list[Asset], questions: list[Question], words: str) -> None:
    with pytest.raises(MarketError, match=words):
        from_paths(tick_seconds=60, assets=assets, questions=questions)


def test_agents_are_named_once_and_start_with_money() -> None:
    with pytest.raises(MarketError, match="'a' cannot start with 10000"):
        Exchange(make_market(), ("a", "a"))
    with pytest.raises(MarketError, match="'b' cannot start with -1"):
        Exchange(make_market(), ("a", "b"), {"a": 5.0})
    assert Exchange(make_market(), ("a",), {"a": 5.0}).accounts["a"].balance == 5.0
