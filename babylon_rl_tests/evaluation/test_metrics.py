"""Metrics against numbers that were worked out by hand, in markets made by hand."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.evaluation import metrics as m
from babylon_rl.evaluation.results import Metrics, Result
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, Invalid, OpenPerp, SellPrediction, WritePost
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.run import Run, play
from babylon_rl.market.simulation.scenario import Scenario, WorldEvent, from_paths
from babylon_rl_tests.market.simulation.agents import Script
from babylon_rl_tests.market.simulation.markets import MARKET, OTHER_MARKET, OTHER_STOCK, STOCK, make_market

RISING = tuple(100.0 + tick for tick in range(21))


def played(scenario: Scenario, actions: Mapping[int, Action]) -> Run:
    return play(scenario, {"a": lambda agent_id, seed: Script(actions)})


def result_in(run: Run) -> Result:
    label = m.RunLabel("a", "a", "strategy", "free", 0, 0, "key", "engine")
    return m.result_of(run, "a", Snapshot("market", run.scenario, known_best=1000.0), label)


def measured(scenario: Scenario, actions: Mapping[int, Action]) -> Metrics:
    return result_in(played(scenario, actions)).metrics


def test_a_long_gains_and_a_short_loses_when_prices_rise() -> None:
    long = measured(make_market(RISING), {0: OpenPerp(STOCK, "long", 1000.0), 5: ClosePerp(STOCK)})
    short = measured(make_market(RISING), {0: OpenPerp(STOCK, "short", 1000.0), 5: ClosePerp(STOCK)})
    assert long.total_pnl == pytest.approx(1000 * 0.05 - 1.0 - 1.05, abs=0.5) and short.total_pnl < -50
    assert (long.perp_metrics.total_trades, long.perp_metrics.profitable_trades, long.perp_metrics.win_rate) == (1, 1, 1.0)
    assert (short.perp_metrics.win_rate, short.win_rate) == (0.0, 0.0)
    assert short.perp_metrics.max_drawdown == pytest.approx(-short.total_pnl)
    assert long.return_share == pytest.approx(long.total_pnl / 10_000.0) and long.prediction_metrics.accuracy is None


def test_a_purchase_is_a_forecast_of_the_price_that_was_paid() -> None:
    scenario = make_market(crowd=(0.4,) * 21, answer=True, resolve_tick=10)
    found = measured(scenario, {0: BuyPrediction(MARKET, "yes", 100.0), 1: BuyPrediction(OTHER_MARKET, "yes", 100.0)})
    assert (found.prediction_metrics.correct_predictions, found.prediction_metrics.incorrect_predictions) == (1, 1)
    assert found.prediction_metrics.accuracy == 0.5
    assert found.market_brier == pytest.approx((0.6**2 + 0.6**2) / 2)  # YES of the first at 0.4 came true, YES of the second at 0.6 did not
    assert found.brier == pytest.approx(0.36, abs=0.01) and found.edge == pytest.approx((0.6 - 0.6) / 2, abs=0.01)
    assert [(one.count, one.observed) for one in found.calibration] == [(1, 1.0), (1, 0.0)]


def test_positions_together_are_the_whole_profit_even_when_some_stay_open() -> None:
    actions: dict[int, Action] = {
        0: OpenPerp(STOCK, "long", 500.0, 2.0),
        1: BuyPrediction(MARKET, "yes", 300.0),
        2: OpenPerp(STOCK, "long", 200.0),
        3: ClosePerp(STOCK, 0.4),
        4: SellPrediction(MARKET, "yes", 0.5),
        5: OpenPerp(OTHER_STOCK, "short", 400.0, 3.0),
        6: BuyPrediction(MARKET, "no", 50.0),
    }
    run = played(make_market(RISING), actions)
    result = result_in(run)
    assert math.fsum(result.profits) == pytest.approx(run.pnl_usd["a"], abs=1e-6)
    opened = [action.data for action in result.actions if action.correctness is not None]
    wanted = [(STOCK, "long"), (MARKET, "yes"), (OTHER_STOCK, "short"), (MARKET, "no")]
    assert [(order.get("ticker", order.get("market")), order["side"]) for order in opened] == wanted
    assert list(run.records["a"].held)[:9] == [0, 1, 2, 2, 2, 2, 3, 4, 4]


def test_positions_end_where_they_were_sold_answered_or_liquidated() -> None:
    falling = tuple(100.0 - 3 * tick for tick in range(21))
    scenario = make_market(falling, resolve_tick=10)
    actions: dict[int, Action] = {
        0: OpenPerp(STOCK, "long", 100.0, 10.0),
        1: BuyPrediction(MARKET, "yes", 50.0),
        2: OpenPerp(OTHER_STOCK, "long", 50.0),
        4: ClosePerp(OTHER_STOCK),
    }
    run = played(scenario, actions)
    held = list(run.records["a"].held)
    assert held[:6] == [0, 1, 1, 2, 2, 1] and held[9:11] == [1, 0], "liquidated at tick 2, sold at 4, answered at 10"
    found = result_in(run).metrics
    assert found.perp_metrics.liquidations == 1 and found.win_rate == pytest.approx(2 / 3)


def test_reaction_time_counts_ticks_from_news_to_a_purchase_in_its_direction() -> None:
    def news(tick: int, about: str, direction: int) -> WorldEvent:
        return WorldEvent(tick, about, "news", direction, 0.9, False, "deal", 1.0, "true", 0.01 * direction, 3)

    base = make_market()
    events = [news(1, STOCK, 1), news(4, STOCK, -1), news(8, OTHER_STOCK, 1), news(12, STOCK, 0)]
    scenario = from_paths(tick_seconds=300, assets=base.assets, questions=base.questions, events=events, funding_ticks=100)
    actions: dict[int, Action] = {3: OpenPerp(STOCK, "long", 100.0), 4: ClosePerp(STOCK), 12: OpenPerp(OTHER_STOCK, "long", 100.0)}
    found = measured(scenario, actions)
    assert found.news_with_direction == 3 and found.reaction_ticks == 2.0 and found.reaction_share == pytest.approx(1 / 3)


def test_actions_are_counted_by_kind_and_side_with_invalid_and_refused_ones() -> None:
    class Clumsy:
        name = "clumsy"

        def decide(self, seen: Observation) -> Action | Invalid:
            if seen.tick < 5:
                return Invalid("not JSON")
            return OpenPerp(STOCK, "long", 1e9) if seen.tick < 10 else WritePost("hello")

    run = play(make_market(), {"a": lambda agent_id, seed: Clumsy()})
    found = result_in(run).metrics
    assert found.action_shares == {"invalid": 0.25, "open_perp:long": 0.25, "post": 0.5} and found.action_entropy == pytest.approx(1.5)
    assert (found.invalid, found.refused, found.invalid_rate) == ({"not JSON": 5}, {"balance": 5}, 0.25)
    assert found.social_metrics.posts_created == 10 and found.sharpe is None and found.win_rate is None


def test_sharpe_and_drawdown_over_time() -> None:
    equity = [100.0, 110.0, 105.0, 120.0, 90.0]
    changes = [10.0, -5.0, 15.0, -30.0]
    mean = sum(changes) / 4
    spread = math.sqrt(sum((change - mean) ** 2 for change in changes) / 3)
    assert m.sharpe(equity) == pytest.approx(mean / spread * 2)
    assert m.drawdowns(equity) == [0.0, 0.0, 5.0, 0.0, 30.0] and m.drawdown_shares(equity)[-1] == 0.25
    assert m.sharpe([100.0, 101.0]) is None and m.sharpe([100.0] * 5) is None


@pytest.mark.slow
@given(st.lists(st.floats(1.0, 1e5), min_size=3, max_size=30))
def test_the_path_of_sharpe_ends_with_sharpe(equity: list[float]) -> None:
    path = m.sharpe_path(equity)
    assert len(path) == len(equity)
    if (whole := m.sharpe(equity)) is not None and path[-1] is not None:
        assert path[-1] == pytest.approx(whole, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("shares", "bits"), [({}, None), ({"hold": 1.0}, 0.0), ({"a": 0.5, "b": 0.5}, 1.0), ({"a": 0.25} | {c: 0.25 for c in "bcd"}, 2.0)]
)
def test_entropy_is_in_bits(shares: dict[str, float], bits: float | None) -> None:
    assert m.entropy_bits(shares) == bits
