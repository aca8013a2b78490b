"""Money: fills cost what they should, nobody trades for free, and none of it is made or lost on the way."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.trading import FEE, START_BALANCE, Account, Exchange, Order, Pool
from babylon_rl.market.world import TICKS
from babylon_rl_tests.market.builders import OTHER, QUESTION, STOCK, make_hour

logits = st.floats(-3.5, 3.5)
dollars = st.floats(1.0, 5_000.0)
sides = st.booleans()


def trade(exchange: Exchange, market: str, direction: int, usd: float = 1000.0, ticks: int = TICKS) -> Account:
    account = Account()
    assert exchange.open(account, Order(market, direction, usd), 0) is not None
    for tick in range(1, ticks + 1):
        exchange.crowd_trades(tick)
    exchange.close(account, ticks)
    return account


@given(logits, sides, dollars)
def test_a_round_trip_through_a_quiet_pool_gives_the_money_back_and_leaves_the_pool_as_it_was(logit: float, side: bool, usd: float) -> None:
    pool = Pool.at(logit)
    before = (pool.yes, pool.no)
    assert pool.sell(side, pool.buy(side, usd)) == pytest.approx(usd, rel=1e-9)
    assert (pool.yes, pool.no) == pytest.approx(before, rel=1e-9)


@given(logits, st.sampled_from((1, -1)), dollars)
def test_a_round_trip_on_the_exchange_loses_exactly_the_fees(logit: float, direction: int, usd: float) -> None:
    for market in (STOCK, QUESTION):
        account = trade(Exchange(make_hour(logit=logit)), market, direction, usd)
        fees = usd * FEE + usd * FEE
        assert account.pnl == pytest.approx(-fees, rel=1e-6)
        assert account.balance == pytest.approx(START_BALANCE - fees, rel=1e-9)


@given(logits, st.lists(st.tuples(sides, dollars), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_traders_win_from_each_other_and_never_from_the_pool(logit: float, orders: list[tuple[bool, float]], rng: object) -> None:
    pool = Pool.at(logit)
    held = [(side, pool.buy(side, usd)) for side, usd in orders]
    rng.shuffle(held)  # type: ignore[attr-defined]
    back = sum(pool.sell(side, shares) for side, shares in held)
    assert back == pytest.approx(sum(usd for _, usd in orders), rel=1e-9)


@given(logits, logits, sides, dollars)
def test_an_order_pays_more_than_the_marginal_price_and_moves_it_against_itself(logit: float, other: float, side: bool, usd: float) -> None:
    pool = Pool.at(logit)
    price = pool.yes_price if side else 1 - pool.yes_price
    shares = pool.buy(side, usd)
    assert usd / shares > price
    assert (pool.yes_price if side else 1 - pool.yes_price) > price
    product = pool.yes * pool.no
    pool.move_to(other)
    assert math.log(pool.no / pool.yes) == pytest.approx(other, abs=1e-9)
    assert pool.yes * pool.no == pytest.approx(product, rel=1e-9)


@given(logits)
def test_prices_of_a_pool_lie_between_0_and_1(logit: float) -> None:
    pool = Pool.at(logit)
    assert 0 < pool.yes_price < 1
    assert math.log(pool.yes_price / (1 - pool.yes_price)) == pytest.approx(logit, abs=1e-9)


@pytest.mark.parametrize("change", [10.0, -10.0])
def test_longs_gain_what_shorts_lose_when_a_stock_rises(change: float) -> None:
    long, short = (trade(Exchange(make_hour(change=change)), STOCK, direction).pnl for direction in (1, -1))
    assert math.copysign(1, long) == math.copysign(1, change) == -math.copysign(1, short)
    assert long + short == pytest.approx(-4 * 1000 * FEE, rel=0.01)


@pytest.mark.parametrize("change", [1.0, -1.0])
def test_yes_gains_when_the_crowd_believes_it_and_no_when_it_does_not(change: float) -> None:
    yes, no = (trade(Exchange(make_hour(logit_change=change)), QUESTION, direction).pnl for direction in (1, -1))
    assert (yes > 0) == (no < 0) == (change > 0)


@given(st.lists(st.tuples(st.sampled_from((STOCK, OTHER, QUESTION)), st.sampled_from((1, -1)), st.floats(1.0, 20_000.0)), max_size=TICKS),
       st.floats(-100.0, 100.0), st.floats(-2.0, 2.0))  # fmt: skip
def test_a_balance_is_never_negative_and_always_the_start_plus_the_profit(
    orders: list[tuple[str, int, float]], change: float, logit: float
) -> None:
    exchange, account = Exchange(make_hour(change=change, logit_change=logit)), Account()
    for tick, (market, direction, usd) in enumerate(orders):
        before = account.balance
        filled = exchange.open(account, Order(market, direction, usd), tick)
        assert (filled is None) == (usd * (1 + FEE) > before)
        assert account.balance >= 0
        exchange.crowd_trades(tick + 1)
        exchange.close(account, tick + 1)
        assert account.balance >= 0
        assert account.balance == pytest.approx(START_BALANCE + account.pnl, abs=1e-6)
    assert account.wins + account.losses <= account.trades


def test_an_order_that_the_balance_does_not_cover_changes_nothing() -> None:
    exchange, account = Exchange(make_hour()), Account(balance=1000.0)
    price = exchange.pool.yes_price
    assert exchange.open(account, Order(QUESTION, 1, 1000.0), 0) is None
    assert (account.balance, account.trades, exchange.pool.yes_price) == (1000.0, 0, price)
    assert exchange.close(account, 1) is None


def test_a_question_that_opens_far_out_stands_still_when_the_crowd_does() -> None:
    exchange = Exchange(make_hour(logit=3.8))
    before = exchange.pool.yes_price
    for tick in range(1, TICKS + 1):
        exchange.crowd_trades(tick)
    assert exchange.pool.yes_price == pytest.approx(before, abs=1e-12)


def test_the_last_result_is_told_in_dollars() -> None:
    assert trade(Exchange(make_hour(change=10.0)), STOCK, 1).last == "+$98"
    assert trade(Exchange(make_hour(change=10.0)), STOCK, -1).last == "-$102"
