"""Hand-made markets and orders for the tests of the engine."""

from collections.abc import Sequence

from hypothesis import strategies as st

from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, Hold, OpenPerp, SellPrediction
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario, from_paths

STOCK, OTHER_STOCK = "ACME", "BOLT"
MARKET, OTHER_MARKET = "Q1", "Q2"


def make_market(
    prices: Sequence[float] = (100.0,) * 21,
    crowd: Sequence[float] = (0.4,) * 21,
    *,
    answer: bool = True,
    created_tick: int = 0,
    resolve_tick: int = 100,
    funding: Sequence[float] = (),
    funding_ticks: int = 100,
    tick_seconds: int = 300,
) -> Scenario:
    """Two stocks and two questions; the second of each moves against the first."""
    return from_paths(
        tick_seconds=tick_seconds,
        assets=(
            Asset(STOCK, "Acme", tuple(prices), funding=tuple(funding)),
            Asset(OTHER_STOCK, "Bolt", tuple(prices[0] * prices[0] / price for price in prices)),
        ),
        questions=(
            Question(MARKET, 1, "Will it?", answer, tuple(crowd), created_tick, resolve_tick),
            Question(OTHER_MARKET, 2, "Won't it?", not answer, tuple(1.0 - probability for probability in crowd), 0, resolve_tick + 3),
        ),
        funding_ticks=funding_ticks,
    )


def filled(exchange: Exchange, agent: str, action: Action) -> Fill:
    """The fill of an action that must not be refused."""
    fill = exchange.apply(agent, action)
    assert isinstance(fill, Fill), fill
    return fill


def close_everything(exchange: Exchange, agent: str) -> list[Fill]:
    """Close all positions of an agent."""
    account = exchange.accounts[agent]
    closings: list[Action] = [ClosePerp(ticker) for ticker in account.perps]
    closings += [SellPrediction(market, side) for market, side in account.shares]
    return [filled(exchange, agent, action) for action in closings]


def actions(usd: st.SearchStrategy[float]) -> st.SearchStrategy[Action]:
    """Any action on the markets of `make_market`."""
    stocks, markets = st.sampled_from((STOCK, OTHER_STOCK)), st.sampled_from((MARKET, OTHER_MARKET))
    share = st.one_of(st.just(1.0), st.floats(1e-6, 1.0))
    outcomes = st.sampled_from(("yes", "no"))
    return st.one_of(
        st.builds(Hold),
        st.builds(BuyPrediction, markets, outcomes, usd),
        st.builds(SellPrediction, markets, outcomes, share),
        st.builds(OpenPerp, stocks, st.sampled_from(("long", "short")), usd, st.floats(1.0, 10.0)),
        st.builds(ClosePerp, stocks, share),
    )
