"""Agents by name, for harness, benchmark and command line.

Under the one-tick mandate all trade a fixed stake for one tick, as policies are trained to; under the free one they hold positions.
"""

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.agents import (
    FREE,
    ONE_TICK,
    STAKE_USD,
    Agent,
    AgentFactory,
    Mandate,
    Nothing,
    OneTickTrader,
    PositionTrader,
    Strategy,
)
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.news_reader import NewsReader, NewsTrader
from babylon_rl.market.simulation.oracle import Oracle, SwingOracle
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.simulation.strategies import STAKES_USD, STRATEGIES, STYLES, Scripted

NAMES = (*STRATEGIES, "nothing", "random", "news-reader", "oracle")


def factory(
    name: str, scenario: Scenario, mandate: Mandate = ONE_TICK, *, model: MarketModel | None = None, stake_usd: float | None = None
) -> AgentFactory:
    """Return the factory of the agent of that name in a scenario.

    Args:
        model: the market's constants, which the oracle and the news reader know.
        stake_usd: dollars of an order; the strategy's own by default.

    Raises:
        MarketError: there is no agent of that name.
    """
    if name not in NAMES:
        raise MarketError(f"There is no agent {name!r}; there are {', '.join(NAMES)}.")
    market = model if model is not None else MarketModel()
    stake = stake_usd if stake_usd is not None else STAKES_USD.get(name, STAKE_USD)

    def make(agent_id: str, seed: int | str) -> Agent:
        if name == "nothing":
            return Nothing()
        if name == "oracle" and mandate == FREE:
            return SwingOracle(scenario, market, stake)
        if name == "news-reader" and mandate == FREE:
            return NewsTrader(market, stake)
        if mandate == ONE_TICK:
            return OneTickTrader(_strategy(name, scenario, market, stake, agent_id, seed), stake)
        return PositionTrader(Scripted(name, agent_id, seed), msgspec.structs.replace(STYLES[name], stake_usd=stake))

    return make


def _strategy(name: str, scenario: Scenario, model: MarketModel, stake_usd: float, agent_id: str, seed: int | str) -> Strategy:
    if name == "oracle":
        return Oracle(scenario, model, stake_usd)
    return NewsReader(model, stake_usd) if name == "news-reader" else Scripted(name, agent_id, seed)
