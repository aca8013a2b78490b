"""Trading by itself earns nothing: who opens and closes while nothing happens pays at least the fees."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, OpenPerp, SellPrediction
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl_tests.market.simulation import audit
from babylon_rl_tests.market.simulation.markets import MARKET, STOCK, actions, close_everything, filled, make_market
from babylon_rl_tests.repeatable import repeatable

orders = st.lists(actions(st.floats(1.0, 10_000.0)), max_size=25)
START = 10_000.0


@repeatable(100)
@given(earlier=orders, orders=orders)
def test_a_round_trip_at_once_costs_exactly_the_fees_however_it_is_split(earlier: list[Action], orders: list[Action]) -> None:
    exchange = Exchange(make_market(), ("other", "me"))
    for action in earlier:
        exchange.apply("other", action)
    done = [exchange.apply("me", action) for action in orders] + close_everything(exchange, "me")
    account = exchange.accounts["me"]
    assert account.balance == pytest.approx(START - account.fees, abs=1e-6)
    profits = [fill.profit for fill in done if isinstance(fill, Fill) and fill.profit is not None]
    assert sum(profits) == pytest.approx(-account.fees, abs=1e-6)


@repeatable(100)
@given(orders=st.lists(st.one_of(st.none(), actions(st.floats(1.0, 10_000.0))), max_size=25))
def test_waiting_for_ones_own_impact_to_fade_earns_nothing(orders: list[Action | None]) -> None:
    exchange = Exchange(make_market([100.0] * 31, [0.4] * 31), ("me",))
    for action in orders:
        if action is None:
            exchange.advance()
        else:
            exchange.apply("me", action)
    close_everything(exchange, "me")
    account = exchange.accounts["me"]
    assert account.balance <= START - account.fees + 1e-6


@repeatable(100)
@given(orders=st.lists(st.tuples(st.sampled_from(("me", "you")), actions(st.floats(1.0, 10_000.0))), max_size=25))
def test_two_who_trade_into_each_others_hands_earn_nothing_together(orders: list[tuple[str, Action]]) -> None:
    exchange = Exchange(make_market(), ("me", "you"))
    for agent, action in orders:
        exchange.apply(agent, action)
    close_everything(exchange, "me")
    close_everything(exchange, "you")
    both = [exchange.accounts[agent] for agent in ("me", "you")]
    assert sum(account.balance for account in both) <= 2 * START - sum(account.fees for account in both) + 1e-6


@repeatable(100)
@given(orders=orders)
def test_no_order_makes_its_owner_richer_on_paper(orders: list[Action]) -> None:
    exchange = Exchange(make_market(), ("me",))
    for action in orders:
        before = audit.equity(exchange, "me")
        exchange.apply("me", action)
        assert audit.equity(exchange, "me") <= before + 1e-6


@repeatable(100)
@given(orders=orders)
def test_equity_is_what_closing_everything_brings(orders: list[Action]) -> None:
    exchange = Exchange(make_market(), ("me",))
    for action in orders:
        exchange.apply("me", action)
    equity = audit.equity(exchange, "me")
    close_everything(exchange, "me")
    assert exchange.accounts["me"].balance == pytest.approx(equity, abs=1e-6)


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_a_split_order_costs_what_the_whole_costs(parts: int) -> None:
    exchange = Exchange(make_market(), ("me",))
    for _ in range(parts):
        filled(exchange, "me", BuyPrediction(MARKET, "yes", 3_000.0 / parts))
        filled(exchange, "me", OpenPerp(STOCK, "short", 3_000.0 / parts, 10.0))
    account = exchange.accounts["me"]
    yes, no = 20_000.0 / math.sqrt(0.4 / 0.6), 20_000.0 * math.sqrt(0.4 / 0.6)
    per_unit = exchange.model.impact_per_usd * 100.0
    assert account.shares[MARKET, "yes"].shares == pytest.approx(yes + 3_000.0 - 20_000.0**2 / (no + 3_000.0))
    assert account.perps[STOCK].units == pytest.approx(-math.log(1.0 - per_unit * 30_000.0 / 100.0) / per_unit)
    for _ in range(parts - 1):
        filled(exchange, "me", SellPrediction(MARKET, "yes", 0.1))
        filled(exchange, "me", ClosePerp(STOCK, 0.1))
    close_everything(exchange, "me")
    assert account.balance == pytest.approx(START - account.fees, abs=1e-6)
