"""Prices of a moment: what the mandate closes belongs to it, and the beginning of a market is a market."""

from itertools import pairwise

import pytest

from babylon_rl.market.simulation.actions import BuyPrediction
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.run import encode_run, play
from babylon_rl.market.simulation.scenario import faults, opening
from babylon_rl_tests.market.simulation.agents import Scribe, Script
from babylon_rl_tests.market.simulation.markets import MARKET, make_market


def one_tick_scribe() -> Scribe:
    scribe = Scribe(Script({tick: BuyPrediction(MARKET, "yes", 3000.0) for tick in (0, 1, 4)}))
    scribe.mandate = ONE_TICK
    return scribe


def test_agents_see_prices_and_changes_without_what_was_closed_for_them() -> None:
    scribe = one_tick_scribe()
    run = play(make_market(), {"a": lambda agent_id, seed: scribe})
    quotes = [seen.questions[0] for seen in scribe.seen]
    assert [quote.yes for quote in quotes] == run.paths[MARKET][:20]
    for before, after in pairwise(quotes):
        assert after.change == pytest.approx(100 * (after.yes - before.yes), abs=1e-9)
    # three thousand dollars moved the price by points, but only while they were in it
    assert max(abs(quote.change) for quote in quotes) < 1.0


def test_the_beginning_of_a_market_is_a_market_of_its_own() -> None:
    whole = generate(preset("hour", seed=1))
    begun = opening(whole, 3)
    assert not list(faults(begun))
    assert begun.ticks == 3 and begun.digest != whole.digest
    assert [asset.prices for asset in begun.assets] == [asset.prices[:4] for asset in whole.assets]
    assert opening(whole, 12) is whole
    scribes = one_tick_scribe(), one_tick_scribe()
    for scribe, scenario in zip(scribes, (whole, begun), strict=True):
        play(scenario, {"a": lambda agent_id, seed, scribe=scribe: scribe})
    assert [seen.public() | {"ticks_left": 0} for seen in scribes[0].seen[:3]] == [
        seen.public() | {"ticks_left": 0} for seen in scribes[1].seen
    ]
    assert encode_run(play(begun, {})) != encode_run(play(whole, {}))
