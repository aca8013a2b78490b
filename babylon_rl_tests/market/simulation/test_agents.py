"""Agents on the real engine: who earns more than whom, what each does with what it sees, and that the same seed decides the same."""

import math
from statistics import mean

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.actions import BuyPrediction, ClosePerp, Hold, OpenPerp
from babylon_rl.market.simulation.agents import FREE, ONE_TICK, Mandate, question_profit, stock_profit
from babylon_rl.market.simulation.config import MarketModel, preset
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.news_reader import Beliefs
from babylon_rl.market.simulation.observation import Headline, Heard, Newsroom, observe
from babylon_rl.market.simulation.record import AgentRecord
from babylon_rl.market.simulation.run import encode_run, play
from babylon_rl.market.simulation.scenario import Post, Scenario, WorldEvent, from_paths
from babylon_rl.market.simulation.strategies import NAMES, STRATEGIES, factory
from babylon_rl_tests.market.simulation.audit import check
from babylon_rl_tests.market.simulation.markets import MARKET, OTHER_STOCK, STOCK, make_market


def mean_pnl(name: str, mandate: Mandate, seeds: int, market: str = "hour") -> float:
    found = []
    for seed in range(seeds):
        scenario = generate(preset(market, seed=seed, edition="held-out"))
        run = play(scenario, {"a": factory(name, scenario, mandate)})
        check(run.exchange)
        found.append(run.pnl_usd["a"])
    return mean(found)


@pytest.mark.slow
@pytest.mark.parametrize("mandate", [ONE_TICK, FREE])
def test_foresight_beats_reading_beats_nothing_beats_chance(mandate: Mandate) -> None:
    oracle, reader, chance = (mean_pnl(name, mandate, 150) for name in ("oracle", "news-reader", "random"))
    assert oracle > reader + 100 > 100 > 0 > chance
    assert mean_pnl("nothing", mandate, 3) == 0.0


@pytest.mark.slow
def test_reading_with_the_true_rates_is_worth_more_than_any_script() -> None:
    reader = mean_pnl("news-reader", ONE_TICK, 150)
    assert all(mean_pnl(name, ONE_TICK, 150) < reader for name in STRATEGIES)


@pytest.mark.parametrize("mandate", [ONE_TICK, FREE])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_decides_the_same(name: str, mandate: Mandate) -> None:
    scenario = generate(preset("quick", seed=3))
    one, other = (play(scenario, {"a": factory(name, scenario, mandate)}, seed=0) for _ in range(2))
    assert encode_run(one) == encode_run(other)
    assert one.records["a"].name == name and one.records["a"].mandate == (mandate if name != "nothing" else FREE)
    assert not one.records["a"].invalid
    check(one.exchange)


def test_another_seed_decides_otherwise_where_there_is_chance() -> None:
    scenario = generate(preset("hour", seed=3))
    actions = [play(scenario, {"a": factory("random", scenario)}, seed=seed).records["a"].actions for seed in (0, 1)]
    assert actions[0] != actions[1]


def test_no_agent_of_another_name() -> None:
    scenario = make_market()
    with pytest.raises(MarketError, match="there are conservative"):
        factory("genius", scenario)


def news_market(*events: WorldEvent, tick_seconds: int = 300) -> Scenario:
    base = make_market(tick_seconds=tick_seconds)
    return from_paths(tick_seconds=tick_seconds, assets=base.assets, questions=base.questions, events=events)


def event(tick: int, about: str, direction: int, *, rumour: bool = False) -> WorldEvent:
    return WorldEvent(tick, about, "told", direction, 0.9, rumour, "deal", 1.0, "rumour" if rumour else "true", 0.02 * direction, 1)


def test_conservative_trades_on_reports_alone() -> None:
    scenario = news_market(event(1, STOCK, 1), event(2, OTHER_STOCK, -1, rumour=True), event(3, MARKET, -1), event(4, STOCK, 0))
    actions = play(scenario, {"a": factory("conservative", scenario)}).records["a"].actions
    assert actions[:5] == [Hold(), OpenPerp(STOCK, "long", 1000.0), Hold(), BuyPrediction(MARKET, "no", 350.0), Hold()]


def test_momentum_follows_the_largest_move_and_contrarian_goes_against_it() -> None:
    prices = (100.0, 103.0, *[103.0] * 19)
    scenario = make_market(prices)
    followed = play(scenario, {"a": factory("momentum", scenario)}).records["a"].actions
    assert followed[:3] == [Hold(), OpenPerp(STOCK, "long", 1500.0), Hold()]
    against = play(scenario, {"a": factory("contrarian", scenario)}).records["a"].actions
    assert against[1] == OpenPerp(STOCK, "short", 1500.0)


def test_positions_last_as_long_as_their_style_says_and_turn_with_the_news() -> None:
    scenario = news_market(event(1, STOCK, 1), event(3, STOCK, 1), event(9, STOCK, -1), event(10, STOCK, -1))
    actions = play(scenario, {"a": factory("conservative", scenario, FREE)}).records["a"].actions
    opened = {tick: action for tick, action in enumerate(actions) if action != Hold()}
    assert opened == {
        1: OpenPerp(STOCK, "long", 1000.0),
        4: ClosePerp(STOCK),  # fifteen minutes later
        9: OpenPerp(STOCK, "short", 1000.0),
        12: ClosePerp(STOCK),
    }
    quick = news_market(event(1, STOCK, 1), event(3, STOCK, -1), event(4, STOCK, -1), tick_seconds=60)
    actions = play(quick, {"a": factory("conservative", quick, FREE)}).records["a"].actions
    assert actions[1:5] == [OpenPerp(STOCK, "long", 1000.0), Hold(), ClosePerp(STOCK), OpenPerp(STOCK, "short", 1000.0)]


def test_agents_without_money_hold_or_are_refused_and_never_owe() -> None:
    scenario = generate(preset("quick", seed=1))
    run = play(scenario, {name: factory(name, scenario, FREE) for name in NAMES}, start_balance=40.0)
    assert all(record.equity[-1] >= 0.0 and min(record.balance) >= 0.0 for record in run.records.values())
    one_tick = play(scenario, {"oracle": factory("oracle", scenario)}, start_balance=40.0)
    assert one_tick.records["oracle"].refused == {"balance": len([a for a in one_tick.records["oracle"].actions if a != Hold()])}


def test_the_oracle_knows_answers_and_does_not_pay_more_than_it_gains() -> None:
    flat = make_market()
    assert play(flat, {"a": factory("oracle", flat)}).pnl_usd == {"a": 0.0}
    assert play(flat, {"a": factory("oracle", flat, FREE)}).pnl_usd == {"a": 0.0}
    answered = make_market(resolve_tick=10, answer=True)
    for mandate in (ONE_TICK, FREE):
        run = play(answered, {"a": factory("oracle", answered, mandate)})
        assert run.pnl_usd["a"] > 500.0
        assert all(settled.price == 1.0 for settled in run.records["a"].settled)


@pytest.mark.parametrize("direction", [1, -1])
def test_an_order_weighed_is_an_order_filled(direction: int) -> None:
    model = MarketModel(recovery_per_hour=0.0)
    scenario = make_market((100.0, 104.0, *[104.0] * 19), (0.4, 0.46, *[0.46] * 19))
    exchange = Exchange(scenario, ["a"], model=model)
    stock = exchange.apply("a", OpenPerp(STOCK, "long" if direction > 0 else "short", 1500.0))
    shares = exchange.apply("a", BuyPrediction(MARKET, "yes" if direction > 0 else "no", 525.0))
    assert isinstance(stock, Fill) and isinstance(shares, Fill)
    exchange.advance()
    perp, share = exchange.accounts["a"].perps[STOCK], exchange.accounts["a"].shares[MARKET, shares.side]
    moved = math.log(0.46 / 0.54) - math.log(0.4 / 0.6)
    assert exchange.worth(perp) - 1500.0 - perp.paid == pytest.approx(stock_profit(direction, 1500.0, math.log(1.04), model.fee), abs=0.1)
    assert exchange.worth(share) - share.cost == pytest.approx(
        question_profit(direction, 525.0, 0.4, moved, model.fee, model.pool_shares), abs=0.1
    )


def test_beliefs_weigh_news_by_how_often_they_are_true_and_posts_by_trust() -> None:
    exchange = Exchange(make_market(), ["a"])
    seen = observe(exchange, Newsroom(exchange.scenario), AgentRecord("a", "me", "free", exchange.accounts["a"]))
    beliefs = Beliefs(MarketModel())

    def up(direction: int, rumour: bool, *posts: tuple[float, int]) -> float:
        heard = [Heard(0, "Ada", trust, "", STOCK, way) for trust, way in posts]
        return beliefs.probability_up(Headline(0, STOCK, "told", direction, 0.9, rumour, "deal"), heard, seen)

    assert up(1, False) == pytest.approx(0.90) and up(-1, False) == pytest.approx(0.10)
    assert up(1, True) == pytest.approx(0.62)
    assert up(1, True, (0.0, -1)) == pytest.approx(0.62)  # nobody who knows nothing
    assert up(1, True, (0.9, -1)) < 0.25 < up(1, True, (0.3, -1)) < 0.62 < up(1, True, (0.9, 1))
    assert up(1, False, (0.9, -1)) > up(1, True, (0.9, -1))


def test_beliefs_are_calibrated() -> None:
    """Of the events whose market is believed to rise with a probability, that share does."""
    beliefs, pairs = Beliefs(MarketModel()), []
    for seed in range(250):
        scenario = generate(preset("hour", seed=seed))
        exchange, newsroom = Exchange(scenario, ["a"]), Newsroom(scenario)
        record = AgentRecord("a", "me", "free", exchange.accounts["a"])
        for told in scenario.events:
            while exchange.tick < told.tick:
                exchange.advance()
            if told.direction:
                seen = observe(exchange, newsroom, record)
                posts = [post for post in seen.recent_posts(10.0) if post.about == told.about and post.tick >= told.tick - 1]
                headline = next(one for one in seen.headlines if one.about == told.about and one.text == told.text)
                pairs.append((beliefs.probability_up(headline, posts, seen), told.effect > 0))
    for low, high in ((0.0, 0.08), (0.08, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 0.92), (0.92, 1.0)):
        group = [pair for pair in pairs if low <= pair[0] < high]
        believed, happened = mean(p for p, _ in group), mean(risen for _, risen in group)
        assert abs(believed - happened) < 3.5 * math.sqrt(believed * (1 - believed) / len(group)) + 0.01, (low, len(group))


def test_the_news_reader_reads_the_posts_too() -> None:
    rumour = event(1, STOCK, 1, rumour=True)
    base = make_market()
    against = [Post(1, name, 0.95, "no", STOCK, -1, True) for name in ("Ada", "Bo", "Cleo")]
    quiet = from_paths(tick_seconds=300, assets=base.assets, questions=base.questions, events=[rumour])
    loud = from_paths(tick_seconds=300, assets=base.assets, questions=base.questions, events=[rumour], posts=against)
    assert play(quiet, {"a": factory("news-reader", quiet)}).records["a"].actions[1] == OpenPerp(STOCK, "long", 1500.0)
    assert play(loud, {"a": factory("news-reader", loud)}).records["a"].actions[1] == OpenPerp(STOCK, "short", 1500.0)
