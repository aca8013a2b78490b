"""Whatever anybody does and whatever happens, money is neither made nor lost, and nobody owes anything."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.simulation.actions import Action, OpenPerp
from babylon_rl.market.simulation.config import MarketModel, preset
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.ledger import Fill, Refusal
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl_tests.market.simulation import audit
from babylon_rl_tests.market.simulation.markets import STOCK, actions, close_everything, filled, make_market
from babylon_rl_tests.market.simulation.traders import trade_at_random
from babylon_rl_tests.repeatable import repeatable

AGENTS = ("a", "b", "c")
TICKS = 8
Step = tuple[str, Action] | None

moments = TICKS + 1
paths = st.lists(st.floats(0.2, 5.0), min_size=moments, max_size=moments).map(lambda moves: [100.0 * move for move in moves])
crowds = st.lists(st.floats(0.001, 0.999), min_size=moments, max_size=moments)
rates = st.lists(st.floats(-0.1, 0.1), min_size=TICKS, max_size=TICKS)
amounts = st.one_of(st.floats(1.0, 10_000.0), st.sampled_from([math.nan, math.inf, -1.0, 0.0, 1e300]))
steps = st.lists(st.one_of(st.none(), st.tuples(st.sampled_from(AGENTS), actions(amounts))), max_size=40)


def assert_sound(exchange: Exchange) -> None:
    assert audit.faults(exchange) == []
    started = sum(account.start for account in exchange.accounts.values())
    assert audit.conserved(exchange) == pytest.approx(started, rel=1e-6)
    for agent, account in exchange.accounts.items():
        assert account.balance >= 0.0
        assert 0.0 <= audit.equity(exchange, agent) < math.inf
    for pool in exchange.pools.values():
        assert 0.0 <= pool.yes_price <= 1.0
    for quote in exchange.quotes().stocks:
        assert 0.0 < quote.price < math.inf


@pytest.mark.slow
@repeatable(150)
@given(prices=paths, crowd=crowds, funding=rates, resolve_tick=st.integers(1, 2 * TICKS), steps=steps)
def test_money_is_conserved_through_orders_moves_funding_liquidations_and_answers(
    prices: list[float], crowd: list[float], funding: list[float], resolve_tick: int, steps: list[Step]
) -> None:
    market = make_market(prices, crowd, funding=funding, funding_ticks=1, resolve_tick=resolve_tick)
    exchange = Exchange(market, AGENTS)
    for step in steps:
        if step is None:
            exchange.advance()
        else:
            exchange.apply(*step)
        assert_sound(exchange)
    while not exchange.over:
        exchange.advance()
        assert_sound(exchange)


@pytest.mark.slow
@repeatable(150)
@given(steps=steps)
def test_a_refused_order_changes_nothing(steps: list[Step]) -> None:
    exchange = Exchange(make_market(), AGENTS)
    for step in steps:
        if step is None:
            exchange.advance()
            continue
        before = [(audit.equity(exchange, agent), exchange.accounts[agent].balance) for agent in AGENTS]
        quotes, cash = exchange.quotes(), exchange.house_cash
        result = exchange.apply(*step)
        if isinstance(result, Refusal):
            assert [(audit.equity(exchange, agent), exchange.accounts[agent].balance) for agent in AGENTS] == before
            assert (exchange.quotes(), exchange.house_cash) == (quotes, cash)
            assert result.reason and result.kind != "hold"


def test_a_generated_market_with_busy_agents_keeps_its_books_at_every_tick() -> None:
    wild = MarketModel(volatility=0.15)
    exchange = Exchange(generate(preset("quick", minutes=1_440, seed=4), wild), AGENTS)
    kinds = set()
    for _, settled in trade_at_random(exchange, seed=4):
        assert_sound(exchange)
        kinds |= {settlement.kind for settlement in settled}
    assert kinds == {"funding", "liquidation", "resolution"}


def test_no_two_positions_of_a_run_have_the_same_id() -> None:
    exchange = Exchange(generate(preset("quick", seed=4)), AGENTS)
    opened: dict[str, tuple[str, str, str]] = {}
    for fills, _ in trade_at_random(exchange, seed=4):
        for fill in fills:
            if isinstance(fill, Fill) and fill.position:
                whose = (fill.agent, fill.market, fill.side)
                assert opened.setdefault(fill.position, whose) == whose
    assert len(opened) > 20
    gone = filled_ids(make_market())
    assert len(set(gone)) == len(gone) == 6


def filled_ids(market: Scenario) -> list[str]:
    """The ids of positions that were opened and closed again and again."""
    exchange, found = Exchange(market, ("a", "b")), []
    for _ in range(3):
        for agent in ("a", "b"):
            found.append(filled(exchange, agent, OpenPerp(STOCK, "long", 100.0)).position)
            close_everything(exchange, agent)
    return found
