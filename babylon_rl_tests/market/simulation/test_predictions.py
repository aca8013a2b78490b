"""Prediction markets: prices, the crowd, answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.simulation.actions import BuyPrediction, SellPrediction, WritePost
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Fill, Refusal
from babylon_rl_tests.market.simulation.markets import MARKET, OTHER_MARKET, filled, make_market
from babylon_rl_tests.repeatable import repeatable

outcomes = st.sampled_from(("yes", "no"))


@repeatable(60)
@given(trades=st.lists(st.tuples(outcomes, st.floats(1.0, 1_000_000.0), st.booleans()), max_size=30))
def test_the_pools_product_never_falls_and_yes_and_no_cost_a_dollar(trades: list[tuple[str, float, bool]]) -> None:
    exchange = Exchange(make_market(), ("me",), start_balance=1e9)
    pool = exchange.pools[MARKET]
    for side, usd, back in trades:
        product, chosen = pool.yes * pool.no, "yes" if side == "yes" else "no"
        if back and (MARKET, side) in exchange.accounts["me"].shares:
            filled(exchange, "me", SellPrediction(MARKET, "yes" if chosen == "yes" else "no", 0.7))
        else:
            filled(exchange, "me", BuyPrediction(MARKET, "yes" if chosen == "yes" else "no", usd))
        assert pool.yes * pool.no == pytest.approx(product, rel=1e-9)
        assert 0.0 < pool.yes_price < 1.0


@repeatable(60)
@given(side=outcomes, usd=st.floats(1.0, 9_000.0))
def test_buying_a_side_raises_its_price_and_selling_lowers_it(side: str, usd: float) -> None:
    exchange = Exchange(make_market(), ("me",))
    pool, chosen = exchange.pools[MARKET], "yes" if side == "yes" else "no"

    def price() -> float:
        return pool.yes_price if side == "yes" else 1.0 - pool.yes_price

    before = price()
    fill = filled(exchange, "me", BuyPrediction(MARKET, "yes" if chosen == "yes" else "no", usd))
    bought = price()
    assert before < fill.price < bought
    filled(exchange, "me", SellPrediction(MARKET, "yes" if chosen == "yes" else "no"))
    assert before == pytest.approx(price())


def test_the_pool_follows_the_crowd_and_the_crowd_takes_back_what_agents_did() -> None:
    crowd = [0.4, 0.7, 0.7, 0.2] + [0.2] * 60
    exchange = Exchange(make_market([100.0] * 64, crowd), ("me",))
    exchange.advance()
    assert exchange.pools[MARKET].yes_price == pytest.approx(0.7)
    assert exchange.pools[OTHER_MARKET].yes_price == pytest.approx(0.3)
    filled(exchange, "me", BuyPrediction(MARKET, "yes", 5_000.0))
    pushed = exchange.pools[MARKET].yes_price
    exchange.advance()
    assert 0.7 < exchange.pools[MARKET].yes_price < pushed
    while not exchange.over:
        exchange.advance()
    assert exchange.pools[MARKET].yes_price == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize(("answer", "side"), [(True, "yes"), (False, "no")])
def test_the_right_side_is_paid_a_dollar_a_share_and_the_wrong_one_nothing(answer: bool, side: str) -> None:
    exchange = Exchange(make_market(answer=answer, resolve_tick=2), ("right", "wrong"))
    right = filled(exchange, "right", BuyPrediction(MARKET, "yes" if side == "yes" else "no", 1_000.0))
    filled(exchange, "wrong", BuyPrediction(MARKET, "no" if side == "yes" else "yes", 1_000.0))
    assert exchange.advance() == []
    won, lost = exchange.advance()
    assert (won.agent, won.usd, won.price) == ("right", right.quantity, 1.0)
    assert won.profit == pytest.approx(right.quantity - 1_001.0)
    assert (lost.agent, lost.usd, lost.price, lost.profit) == ("wrong", 0.0, 0.0, -1_001.0)
    assert exchange.accounts["right"].balance == pytest.approx(8_999.0 + right.quantity)
    assert exchange.pools[MARKET].yes_price == float(answer)
    assert MARKET not in {quote.market for quote in exchange.quotes().questions}
    refused = exchange.apply("right", BuyPrediction(MARKET, "yes", 10.0))
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.reason) == ("resolved", f"Q1 is resolved: {'YES' if answer else 'NO'}")


def test_a_question_opens_at_its_first_tick_at_the_crowds_price() -> None:
    exchange = Exchange(make_market(created_tick=2, crowd=[0.6] * 21), ("me",))
    refused = exchange.apply("me", BuyPrediction(MARKET, "yes", 10.0))
    assert isinstance(refused, Refusal) and refused.code == "not_open"
    exchange.advance()
    exchange.advance()
    assert exchange.pools[MARKET].yes_price == pytest.approx(0.6)
    filled(exchange, "me", BuyPrediction(MARKET, "yes", 10.0))


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        (BuyPrediction("Q9", "yes", 10.0), "unknown_market", "there is no market 'Q9'; there are Q1, Q2"),
        (BuyPrediction(MARKET, "maybe", 10.0), "side", "not 'maybe'"),  # type: ignore[arg-type]
        (BuyPrediction(MARKET, "yes", 9_995.0), "balance", "9995.00 $ with a fee of"),
        (BuyPrediction(MARKET, "yes", -5.0), "amount", "-5.0 $"),
        (BuyPrediction(MARKET, "yes", math.nan), "amount", "nan"),
        (SellPrediction(MARKET, "yes"), "nothing_to_close", "no yes shares of Q1 are held"),
    ],
)
def test_refusals_say_why(action: BuyPrediction | SellPrediction, code: str, words: str) -> None:
    refused = Exchange(make_market(), ("me",)).apply("me", action)
    assert isinstance(refused, Refusal)
    assert (refused.code, words in refused.reason) == (code, True), refused.reason


def test_selling_nothing_or_more_than_all_is_refused_and_dust_is_sold_with_the_rest() -> None:
    exchange = Exchange(make_market(), ("me",))
    filled(exchange, "me", BuyPrediction(MARKET, "yes", 10.0))
    for share in (0.0, -1.0, 1.5, math.nan, 1e-300):
        refused = exchange.apply("me", SellPrediction(MARKET, "yes", share))
        assert isinstance(refused, Refusal) and refused.code == "amount"
    filled(exchange, "me", SellPrediction(MARKET, "yes", 0.9999))
    assert exchange.accounts["me"].shares == {}


def test_posts_are_kept_with_who_said_them_and_when() -> None:
    exchange = Exchange(make_market(), ("me",))
    exchange.advance()
    assert isinstance(exchange.apply("me", WritePost("Acme to the moon")), Fill)
    refused = exchange.apply("me", WritePost(" "))
    assert isinstance(refused, Refusal) and refused.code == "text"
    assert exchange.posted == [(1, "me", "Acme to the moon")]
