"""The best plan of the policy class: nobody in the class beats it on the exchange, it can be played, and the bound lies above it."""

import itertools
import math
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file import PolicyClass, benchmark_scenario, from_scenario, optimality, optimum_of
from babylon_rl.evaluation.snapshot_file.best_plan import best_plan, played, upper_bound
from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, OpenPerp
from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig, preset
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.fills import Refusal
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario, from_paths

CENT = 0.01
NO_IMPACT = MarketModel(impact_per_usd=1e-15)


def earned(scenario: Scenario, actions: Mapping[int, Action], model: MarketModel | None = None) -> float:
    """Dollars that a script earns on the exchange; refused actions are passed over, as for any agent."""
    exchange = Exchange(scenario, ["scripted"], 10_000.0, model)
    while not exchange.over:
        if exchange.tick in actions:
            exchange.apply("scripted", actions[exchange.tick])
        exchange.advance()
    return exchange.equity("scripted") - 10_000.0


def market(prices: Sequence[Sequence[float]], questions: Sequence[Question] = ()) -> Scenario:
    assets = [Asset(f"S{row}", f"S{row}", tuple(path)) for row, path in enumerate(prices)]
    return from_paths(tick_seconds=60, assets=assets, questions=questions)


def question(number: int, crowd: Sequence[float], answer: bool, created: int = 0, resolve: int | None = None) -> Question:
    return Question(f"Q{number}", number, "?", answer, tuple(crowd), created, resolve if resolve is not None else len(crowd) - 1)


@st.composite
def scripted(draw: st.DrawFn) -> tuple[Scenario, dict[int, Action]]:
    """A small generated market and any script of the class in it: stocks at even ticks, each question once at an odd one."""
    config = ScenarioConfig(
        minutes=draw(st.integers(2, 40)), predictions=draw(st.integers(1, 4)), perps=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 10_000)), resolving=draw(st.sampled_from([0.0, 0.5, 1.0])), edition="held-out",
    )  # fmt: skip
    scenario, policy = benchmark_scenario(config), PolicyClass()
    tickers, left = [asset.ticker for asset in scenario.assets], [question.id for question in scenario.questions]
    actions: dict[int, Action] = {}
    held: str | None = None
    for tick in range(scenario.ticks):
        act = draw(st.integers(0, 3))
        if tick % 2 and left and act == 0:
            name = left.pop(draw(st.integers(0, len(left) - 1)))
            actions[tick] = BuyPrediction(name, draw(st.sampled_from(["yes", "no"])), policy.question_usd(config.predictions))
        elif tick % 2 == 0 and held is None and act < 2:
            held = draw(st.sampled_from(tickers))
            actions[tick] = OpenPerp(held, draw(st.sampled_from(["long", "short"])), policy.margin_usd, policy.leverage)
        elif tick % 2 == 0 and held is not None and act == 0:
            actions[tick], held = ClosePerp(held), None
    return scenario, actions


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(scripted())
def test_no_script_of_the_class_earns_more_on_the_exchange(case: tuple[Scenario, dict[int, Action]]) -> None:
    scenario, actions = case
    best = best_plan(scenario)
    assert earned(scenario, actions) <= best.pnl + 1e-6
    assert earned(scenario, actions, NO_IMPACT) <= best.pnl + 1e-6
    assert played(scenario, best) <= best.pnl + 1e-6
    assert best.pnl <= upper_bound(scenario) + 1e-6


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(scripted())
def test_the_plan_can_be_played_as_it_stands_and_earns_what_it_says_where_nobody_moves_prices(
    case: tuple[Scenario, dict[int, Action]],
) -> None:
    scenario, _ = case
    best = best_plan(scenario, NO_IMPACT)
    actions, exchange = best.actions(), Exchange(scenario, ["scripted"], 10_000.0, NO_IMPACT)
    while not exchange.over:
        if exchange.tick in actions:
            assert not isinstance(exchange.apply("scripted", actions[exchange.tick]), Refusal)
        exchange.advance()
    assert exchange.equity("scripted") - 10_000.0 == pytest.approx(best.pnl, abs=1e-5)
    assert exchange.account("scripted").liquidations == 0


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.7, 1.4), min_size=10, max_size=10), st.floats(0.1, 0.9), st.booleans(), st.sampled_from([2, 4, 9]))
def test_the_plan_is_the_best_of_all_scripts_one_by_one(moves: list[float], belief: float, answer: bool, resolve: int) -> None:
    """Every script of the class in a market of 5 ticks, two stocks and a question; moves of 40 % in a tick liquidate and tear gaps."""
    paths = [list(itertools.accumulate(moves[start : start + 5], lambda price, move: price * move, initial=50.0)) for start in (0, 5)]
    scenario = market(paths, [question(1, [belief, 0.5, 1.0 - belief, 0.4, 0.5, belief], answer, resolve=resolve)])
    policy, best = PolicyClass(), best_plan(scenario)
    scripts = [stocks | bought for stocks in _stock_scripts(policy) for bought in _question_scripts(policy)]
    assert best.pnl == pytest.approx(max(earned(scenario, script, NO_IMPACT) for script in scripts), abs=1e-6)
    assert best.pnl >= max(earned(scenario, script) for script in scripts) - 1e-6
    assert best.pnl <= upper_bound(scenario) + 1e-6


def _stock_scripts(policy: PolicyClass) -> list[dict[int, Action]]:
    """All that can be done at ticks 0, 2 and 4: positions one after another in either of two stocks."""
    opens: list[Action] = [
        OpenPerp(f"S{row}", "long" if sign > 0 else "short", policy.margin_usd, policy.leverage) for row in (0, 1) for sign in (1, -1)
    ]
    found: list[dict[int, Action]] = [{}]
    for action in opens:
        assert isinstance(action, OpenPerp)
        found += [{tick: action} for tick in (0, 2, 4)]
        close = ClosePerp(action.ticker)
        found += [{0: action, 2: close}, {0: action, 4: close}, {2: action, 4: close}]
        found += [{0: action, 2: close, 4: other} for other in opens]
    return found


def _question_scripts(policy: PolicyClass) -> list[dict[int, Action]]:
    usd = policy.question_usd(1)
    yes, no = BuyPrediction("Q1", "yes", usd), BuyPrediction("Q1", "no", usd)
    return [{}, {1: yes}, {3: yes}, {1: no}, {3: no}]


def test_a_loss_in_between_is_not_slept_through() -> None:
    plan = best_plan(market([[100.0, 100.0, 110.0, 110.0, 80.0, 80.0, 90.0]]))
    assert [(trip.direction, trip.opened, trip.closed) for trip in plan.trips] == [(1, 0, 2), (-1, 3, 4), (1, 5, 6)]


def test_small_moves_are_not_worth_their_fees() -> None:
    plan = best_plan(market([[100.0, 100.1, 100.0, 100.1, 100.0]]))
    assert plan.trips == () and plan.pnl == 0.0


def test_one_action_a_tick_is_all_that_a_plan_takes() -> None:
    """Each question is cheapest at tick 1, but only one of them can be bought then."""
    questions = [question(number, [0.5, 0.2, 0.5, 0.3 + number / 100, 0.5, 0.5], True) for number in (1, 2)]
    plan = best_plan(market([[100.0] * 6], questions))
    assert [(purchase.market, purchase.tick) for purchase in plan.purchases] == [("Q2", 1), ("Q1", 3)]
    assert all(purchase.usd == 2_500.0 and purchase.yes for purchase in plan.purchases)


def test_more_questions_do_not_bring_more_money_to_stake() -> None:
    for count in (1, 5, 20):
        scenario = benchmark_scenario(ScenarioConfig(minutes=60, predictions=count, perps=2, edition="held-out"))
        actions = best_plan(scenario).actions().values()
        assert sum(action.usd for action in actions if isinstance(action, BuyPrediction)) <= 5_000.0 + 1e-9


def test_holding_longer_than_the_class_allows_is_not_planned() -> None:
    rising = [100.0 * 1.01**tick for tick in range(13)]
    plan = best_plan(market([rising]), policy=PolicyClass(max_turns=4))
    assert plan.trips and all(trip.closed - trip.opened <= 4 for trip in plan.trips)
    assert len(best_plan(market([rising])).trips) == 1


def test_funding_is_part_of_what_a_position_earns() -> None:
    paths = [[100.0, 101.0, 102.0]]
    assets = [Asset("S0", "S0", tuple(paths[0]), funding=(0.005, 0.0))]
    with_funding = from_paths(tick_seconds=60, assets=assets, funding_ticks=1)
    plan, free = best_plan(with_funding, NO_IMPACT), best_plan(market(paths), NO_IMPACT)
    assert plan.pnl < free.pnl and earned(with_funding, plan.actions(), NO_IMPACT) == pytest.approx(plan.pnl)


def test_a_class_that_cannot_be_played_is_refused() -> None:
    scenario = market([[1.0, 2.0]])
    for policy in (PolicyClass(leverage=20.0), PolicyClass(stock_share=0.6), PolicyClass(question_share=-0.1)):
        with pytest.raises(MarketError, match="cannot be played"):
            best_plan(scenario, policy=policy)


def test_the_listed_actions_add_up_and_can_be_played() -> None:
    snapshot = from_scenario(benchmark_scenario(preset("quick", edition="held-out", seed=3)))
    best, listed = optimum_of(snapshot), snapshot.ground_truth.optimal_actions
    assert math.fsum(action.expected_value for action in listed) == pytest.approx(best.pnl, abs=CENT * len(listed))
    assert len({action.tick for action in listed}) == len(listed)
    assert best.played <= best.pnl <= best.upper_bound and "one action a tick" in best.policy


def test_optimality_counts_the_side_and_stays_between_0_and_100() -> None:
    snapshot = from_scenario(benchmark_scenario(preset("quick", edition="held-out", seed=4)))
    best = optimum_of(snapshot)
    assert optimality(best.pnl, snapshot) == 100.0 and optimality(best.pnl / 4, snapshot) == pytest.approx(25.0)
    assert optimality(0.0, snapshot) == 0.0 and optimality(-500.0, snapshot) == 0.0 and optimality(best.pnl * 9, snapshot) == 100.0
    scenario = benchmark_scenario(preset("quick", edition="held-out", seed=4))
    wrong = {
        tick: msgspec.structs.replace(action, side={"long": "short", "short": "long", "yes": "no", "no": "yes"}[action.side])
        for tick, action in best_plan(scenario).actions().items()
        if isinstance(action, OpenPerp | BuyPrediction)
    }
    assert optimality(earned(scenario, wrong), snapshot) == 0.0


def test_where_nothing_can_be_earned_who_loses_nothing_is_best() -> None:
    snapshot = from_scenario(market([[5.0, 5.0, 5.0]]))
    assert optimality(0.0, snapshot) == 100.0 and optimality(-1.0, snapshot) == 0.0
