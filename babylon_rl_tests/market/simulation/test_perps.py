"""Perpetuals: sides, leverage, impact, fees, funding, liquidation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.simulation.actions import ClosePerp, OpenPerp
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Refusal
from babylon_rl_tests.market.simulation import audit
from babylon_rl_tests.market.simulation.markets import STOCK, filled, make_market
from babylon_rl_tests.repeatable import repeatable


def trade(side: str, leverage: float, move: float, usd: float = 1_000.0) -> float:
    """The profit before fees of a position over one tick in which the price moves by a factor."""
    exchange = Exchange(make_market([100.0, 100.0 * move, 100.0 * move], [0.4] * 3), ("me",))
    filled(exchange, "me", OpenPerp(STOCK, "long" if side == "long" else "short", usd, leverage))
    exchange.advance()
    if STOCK in exchange.accounts["me"].perps:
        filled(exchange, "me", ClosePerp(STOCK))
    account = exchange.accounts["me"]
    return account.balance - 10_000.0 + account.fees


@repeatable(60)
@given(move=st.floats(1.001, 1.05), leverage=st.floats(1.0, 9.0))
def test_longs_gain_when_the_price_rises_and_shorts_when_it_falls(move: float, leverage: float) -> None:
    assert trade("long", leverage, move) > 0.0 > trade("short", leverage, move)
    assert trade("short", leverage, 1.0 / move) > 0.0 > trade("long", leverage, 1.0 / move)


@repeatable(60)
@given(move=st.floats(0.95, 1.05), leverage=st.floats(1.0, 9.0))
def test_profit_is_the_move_times_the_dollars_times_the_leverage_but_for_impact(move: float, leverage: float) -> None:
    assert trade("long", leverage, move) == pytest.approx(1_000.0 * leverage * (move - 1.0), abs=5.0)
    assert trade("short", leverage, move) == pytest.approx(1_000.0 * leverage * (1.0 - move), abs=5.0)


def test_a_short_of_1000_dollars_in_a_stock_that_falls_a_tenth_gains_100() -> None:
    assert trade("short", 1.0, 0.9) == pytest.approx(100.0, abs=0.1)


def test_impact_is_linear_in_the_log_price_and_fades() -> None:
    exchange = Exchange(make_market(), ("me",))
    filled(exchange, "me", OpenPerp(STOCK, "long", 5_000.0, 10.0))
    units = exchange.accounts["me"].perps[STOCK].units
    pushed = math.log(exchange.books[STOCK].mark / 100.0)
    assert pushed == pytest.approx(exchange.model.impact_per_usd * 100.0 * units)
    exchange.advance()
    after = math.log(exchange.books[STOCK].mark / 100.0)
    assert after == pytest.approx(pushed * math.exp(-exchange.model.recovery_per_hour / 12))


def test_adding_to_a_position_averages_its_price_and_keeps_its_id() -> None:
    exchange = Exchange(make_market(), ("me",))
    first = filled(exchange, "me", OpenPerp(STOCK, "long", 1_000.0, 1.0))
    second = filled(exchange, "me", OpenPerp(STOCK, "long", 1_000.0, 3.0))
    position = exchange.accounts["me"].perps[STOCK]
    assert (second.position, position.margin, position.notional, position.leverage) == (first.position, 2_000.0, 4_000.0, 2.0)
    assert position.entry_price == pytest.approx(4_000.0 / (first.quantity + second.quantity))


def test_a_liquidated_position_loses_its_margin_and_no_more() -> None:
    exchange = Exchange(make_market([100.0, 91.0, 50.0], [0.4] * 3), ("long", "short"))
    filled(exchange, "long", OpenPerp(STOCK, "long", 1_000.0, 10.0))
    filled(exchange, "short", OpenPerp(STOCK, "short", 1_000.0, 10.0))
    price = exchange.accounts["long"].perps[STOCK].liquidation_price(exchange.model.maintenance)
    assert 91.0 < price < 96.0
    (settled,) = exchange.advance()
    assert (settled.kind, settled.agent, settled.side, settled.usd, settled.profit) == ("liquidation", "long", "long", 0.0, -1_010.0)
    account = exchange.accounts["long"]
    assert (account.balance, account.liquidations, account.perps) == (8_990.0, 1, {})
    assert audit.equity(exchange, "short") > 10_000.0


@repeatable(60)
@given(leverage=st.one_of(st.just(1.0), st.floats(1.01, 10.0)), side=st.sampled_from(("long", "short")))
def test_positions_are_liquidated_at_their_liquidation_price(leverage: float, side: str) -> None:
    for past, gone in ((0.999, False), (1.001, True)):
        exchange = Exchange(make_market([100.0, 100.0], [0.4] * 2), ("me",))
        filled(exchange, "me", OpenPerp(STOCK, "long" if side == "long" else "short", 100.0, leverage))
        price = exchange.accounts["me"].perps[STOCK].liquidation_price(exchange.model.maintenance)
        if price <= 0.0:
            assert (side, leverage < 1.06) == ("long", True)
            continue
        book = exchange.books[STOCK]
        book.pressure = 0.0
        book.asset = type(book.asset)(STOCK, "Acme", (100.0, price * (1 / past if side == "long" else past)))
        exchange.advance()
        assert (STOCK not in exchange.accounts["me"].perps) == gone


def test_a_gap_beyond_the_margin_is_borne_by_the_house() -> None:
    exchange = Exchange(make_market([100.0, 10.0], [0.4] * 2), ("me",))
    cash = exchange.house_cash
    filled(exchange, "me", OpenPerp(STOCK, "long", 1_000.0, 10.0))
    exchange.advance()
    assert exchange.accounts["me"].balance == 8_990.0
    audit.check(exchange)  # the house has the margin and the fee, and no more
    assert exchange.house_cash - cash == 1_010.0


def test_funding_goes_from_longs_to_shorts_at_its_interval() -> None:
    exchange = Exchange(make_market(funding=(0.001, -0.002), funding_ticks=2), ("long", "short"))
    filled(exchange, "long", OpenPerp(STOCK, "long", 1_000.0, 2.0))
    filled(exchange, "short", OpenPerp(STOCK, "short", 1_000.0, 2.0))
    assert exchange.quotes().stocks[0].funding_rate == 0.001
    assert exchange.advance() == []
    paid, received = exchange.advance()
    assert (paid.kind, paid.agent, received.agent) == ("funding", "long", "short")
    assert paid.usd == pytest.approx(-2.0, rel=1e-3)
    assert received.usd == pytest.approx(2.0, rel=1e-3)
    assert exchange.accounts["long"].balance == pytest.approx(8_998.0 - 2.0, rel=1e-6)
    exchange.advance()
    paid, received = exchange.advance()
    assert paid.usd == pytest.approx(4.0, rel=1e-3)
    fill = filled(exchange, "long", ClosePerp(STOCK))
    account = exchange.accounts["long"]
    assert fill.profit == pytest.approx(account.balance - 10_000.0)
    assert account.funding == pytest.approx(-2.0, rel=1e-2)


def test_funding_that_the_balance_does_not_cover_comes_out_of_the_margin() -> None:
    exchange = Exchange(make_market(funding=(0.05,), funding_ticks=1), ("me",), start_balance=1_010.0)
    filled(exchange, "me", OpenPerp(STOCK, "long", 1_000.0, 5.0))
    assert exchange.accounts["me"].balance == pytest.approx(5.0)
    exchange.advance()
    account = exchange.accounts["me"]
    assert account.balance == 0.0
    assert account.perps[STOCK].margin == pytest.approx(1_000.0 + 5.0 - 250.0, rel=1e-3)
    assert filled(exchange, "me", ClosePerp(STOCK)).profit == pytest.approx(account.balance - 1_010.0)


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        (OpenPerp("NOPE", "long", 10.0), "unknown_market", "there is no market 'NOPE'; there are ACME, BOLT"),
        (OpenPerp(STOCK, "long", 10.0, 11.0), "leverage", "leverage 11 is not between 1 and 10"),
        (OpenPerp(STOCK, "long", 10.0, 0.5), "leverage", "leverage 0.5 is not"),
        (OpenPerp(STOCK, "long", 10.0, math.nan), "leverage", "leverage nan is not"),
        (OpenPerp(STOCK, "up", 10.0), "side", "sides long and short, not 'up'"),  # type: ignore[arg-type]
        (OpenPerp(STOCK, "long", 0.5), "amount", "less than the smallest order"),
        (OpenPerp(STOCK, "long", math.nan), "amount", "nan $"),
        (OpenPerp(STOCK, "long", 10_000.0), "balance", "10000.00 $ with a fee of 10.00 $ are more than the balance of 10000.00 $"),
        (OpenPerp(STOCK, "long", math.inf), "balance", "more than the balance"),
        (ClosePerp(STOCK), "nothing_to_close", "no position in ACME is open"),
        (ClosePerp("NOPE"), "unknown_market", "there is no market"),
    ],
)
def test_refusals_say_why(action: OpenPerp | ClosePerp, code: str, words: str) -> None:
    refused = Exchange(make_market(), ("me",)).apply("me", action)
    assert isinstance(refused, Refusal)
    assert (refused.code, words in refused.reason) == (code, True), refused.reason


def test_the_other_side_a_wrong_share_and_a_position_too_large_are_refused() -> None:
    exchange = Exchange(make_market(), ("me",), start_balance=1_000_000.0)
    filled(exchange, "me", OpenPerp(STOCK, "long", 1_000.0))
    for action, code in (
        (OpenPerp(STOCK, "short", 10.0), "opposite_side"),
        (ClosePerp(STOCK, 0.0), "amount"),
        (ClosePerp(STOCK, 1.1), "amount"),
        (OpenPerp(STOCK, "long", 253_000.0), "too_large"),
        (OpenPerp(STOCK, "long", 90_000.0, 10.0), "too_large"),
    ):
        refused = exchange.apply("me", action)
        assert isinstance(refused, Refusal) and refused.code == code


def test_nothing_can_be_traded_once_the_market_is_over() -> None:
    exchange = Exchange(make_market([100.0, 100.0], [0.4] * 2), ("me",))
    exchange.advance()
    refused = exchange.apply("me", OpenPerp(STOCK, "long", 10.0))
    assert isinstance(refused, Refusal) and refused.code == "over"
    assert exchange.advance() == [] and exchange.tick == 1


def test_a_market_without_impact_takes_any_order_at_its_price() -> None:
    exchange = Exchange(make_market([100.0] * 3, [0.4] * 3), ("me",), 1e9, MarketModel(impact_per_usd=0.0))
    bought = filled(exchange, "me", OpenPerp(STOCK, "short", 5e8, 1.0))
    assert bought.price == pytest.approx(100.0) and exchange.books[STOCK].mark == 100.0
    assert filled(exchange, "me", ClosePerp(STOCK)).profit == pytest.approx(-1e6)  # the fee of each side
