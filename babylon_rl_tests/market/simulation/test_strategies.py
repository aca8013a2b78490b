"""What each script likes, on observations made by hand."""

from collections.abc import Sequence
from random import Random

import pytest

from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.observation import Newsroom, Observation, observe
from babylon_rl.market.simulation.record import AgentRecord
from babylon_rl.market.simulation.scenario import WorldEvent, from_paths
from babylon_rl.market.simulation.strategies import SCRIPTS, STAKES_USD, STRATEGIES
from babylon_rl_tests.market.simulation.markets import MARKET, OTHER_STOCK, STOCK, make_market


def news(about: str = STOCK, direction: int = 1, *, rumour: bool = False) -> WorldEvent:
    return WorldEvent(1, about, f"news about {about}", direction, 0.9, rumour, "deal", 1.0, "true", 0.0, 1)


GOOD, BAD, RUMOUR, NEUTRAL = news(), news(OTHER_STOCK, -1), news(rumour=True), news(direction=0)


def seen_at_tick_1(*told: WorldEvent, prices: Sequence[float] = (100.0, 100.0), crowd: Sequence[float] = (0.4, 0.4)) -> Observation:
    """The market of `make_market` after one tick; its second stock and question move against the first."""
    base = make_market([*prices, *[prices[-1]] * 19], [*crowd, *[crowd[-1]] * 19])
    scenario = from_paths(tick_seconds=300, assets=base.assets, questions=base.questions[:1], events=told)
    exchange = Exchange(scenario, ["a"])
    exchange.advance()
    return observe(exchange, Newsroom(scenario), AgentRecord("a", "me", "one-tick", exchange.accounts["a"]))


def shares(name: str, seen: Observation, draws: int = 400) -> dict[str, float]:
    """How often a script says what."""
    rng = Random(0)
    choices = [SCRIPTS[name](seen, rng) for _ in range(draws)]
    texts = [" ".join((choice.action, choice.market or "")).strip() for choice in choices]
    return {text: texts.count(text) / draws for text in set(texts)}


def test_conservative_trades_reports_alone() -> None:
    assert shares("conservative", seen_at_tick_1(GOOD)) == {f"buy {STOCK}": 1.0}
    for told in ((RUMOUR,), (NEUTRAL,), ()):
        assert shares("conservative", seen_at_tick_1(*told)) == {"hold": 1.0}
    assert shares("conservative", seen_at_tick_1(RUMOUR, BAD)) == {f"sell {OTHER_STOCK}": 1.0}


def test_balanced_follows_the_news_whatever_it_is_and_guesses_without_any() -> None:
    assert shares("balanced", seen_at_tick_1(RUMOUR))[f"buy {STOCK}"] > 0.8
    assert shares("balanced", seen_at_tick_1(BAD))[f"sell {OTHER_STOCK}"] > 0.8
    assert len(shares("balanced", seen_at_tick_1())) == 6


def test_aggressive_never_holds() -> None:
    for told in ((), (GOOD,), (BAD,), (NEUTRAL,)):
        assert "hold" not in shares("aggressive", seen_at_tick_1(*told))
    assert shares("aggressive", seen_at_tick_1(BAD))[f"sell {OTHER_STOCK}"] > 0.3


@pytest.mark.parametrize(("name", "sign"), [("momentum", 1), ("contrarian", -1)])
def test_momentum_goes_with_the_strongest_move_and_contrarian_against_it(name: str, sign: int) -> None:
    up, down = ("buy", "sell") if sign > 0 else ("sell", "buy")
    assert shares(name, seen_at_tick_1(prices=(100.0, 103.0))) == {f"{up} {STOCK}": 1.0}
    assert shares(name, seen_at_tick_1(prices=(100.0, 101.0), crowd=(0.4, 0.3))) == {f"{down} {MARKET}": 1.0}
    assert shares(name, seen_at_tick_1()) == {"hold": 1.0}


def test_contrarian_trades_against_the_news_half_of_the_time() -> None:
    found = shares("contrarian", seen_at_tick_1(GOOD, crowd=(0.4, 0.3)))
    assert found[f"sell {STOCK}"] == pytest.approx(0.5, abs=0.1)
    assert found[f"buy {MARKET}"] == pytest.approx(0.5, abs=0.1)


def test_every_strategy_has_a_stake() -> None:
    assert set(STAKES_USD) == {*STRATEGIES, "random"} and min(STAKES_USD.values()) > 0
