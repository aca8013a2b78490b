"""Scripted strategies: the choice of each at a tick, and all agents by name, for harness, benchmark and command line.

Strategies see no more than a language model does. ``news`` is what was told at this very tick. Where a strategy acts without a reason, it
does so once in five minutes of market time, so that shorter ticks do not make it busier. Under the one-tick mandate all agents trade a
fixed stake for one tick, as policies are trained to; under the free one they hold positions.
"""

from collections.abc import Callable
from functools import partial
from random import Random

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.actions import Action, Invalid
from babylon_rl.market.simulation.agents import (
    FREE,
    HOLDING,
    LEVERAGES,
    ONE_TICK,
    QUESTION_STAKE,
    STAKE_USD,
    Agent,
    AgentFactory,
    Choice,
    Mandate,
    Nothing,
    OneTickTrader,
    PositionTrader,
    Style,
    choose,
    leveraged,
)
from babylon_rl.market.simulation.arithmetic import stream
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.games import Game
from babylon_rl.market.simulation.news_reader import Beliefs, Forecaster, NewsTrader
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.oracle import SwingOracle, coming_moves
from babylon_rl.market.simulation.prompt_reader import CEILINGS, PromptReader
from babylon_rl.market.simulation.prompting import choice_of, on_menu
from babylon_rl.market.simulation.record import AgentRecord
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.scenario import Scenario

STRATEGIES = ("conservative", "balanced", "aggressive", "momentum", "contrarian")
STYLES = {
    "conservative": Style(1000.0, 1.0, 15.0, 2),
    "balanced": Style(1500.0, 1.0, 30.0, 3),
    "aggressive": Style(2000.0, 3.0, 60.0, 4),
    "momentum": Style(1500.0, 2.0, 20.0, 3),
    "contrarian": Style(1500.0, 2.0, 30.0, 3),
    "random": Style(STAKE_USD, 1.0, 5.0, 1),
}
STAKES_USD = {name: style.stake_usd for name, style in STYLES.items()}
MOMENTUM_THRESHOLD = 2.0  # percent, or points of probability
IMPULSE_MINUTES = 5.0

Script = Callable[[Observation, Random], Choice]


class Scripted:
    """A ``Strategy`` by name. The same name, agent and seed choose the same from the same observations."""

    def __init__(self, name: str, agent_id: str, seed: int | str) -> None:
        self.name = name
        self._script = SCRIPTS[name]
        self._rng = stream(seed, "agent", agent_id)

    def choose(self, seen: Observation) -> Choice:
        return self._script(seen, self._rng)


def markets(seen: Observation) -> list[str]:
    """Everything that can be traded now, stocks first."""
    return [stock.ticker for stock in seen.stocks] + [question.market for question in seen.questions]


def _strongest_move(seen: Observation) -> tuple[float, str]:
    moves = [(stock.change, stock.ticker) for stock in seen.stocks] + [(question.change, question.market) for question in seen.questions]
    return max(moves, key=lambda move: (abs(move[0]), move[1]), default=(0.0, ""))


def _impulse(seen: Observation, rng: Random) -> bool:
    return rng.random() < seen.tick_seconds / (IMPULSE_MINUTES * 60.0)


def _conservative(seen: Observation, rng: Random) -> Choice:
    solid = [news for news in seen.headlines if not news.rumour and news.direction]
    return choose(solid[0].direction, solid[0].about) if solid else HOLDING


def _balanced(seen: Observation, rng: Random) -> Choice:
    news, open_markets = seen.headlines, markets(seen)
    if open_markets and _impulse(seen, rng) and (not news or rng.random() < 0.08):
        return choose(rng.choice((1, -1)), rng.choice(open_markets))
    return choose(news[0].direction, news[0].about) if news else HOLDING


def _aggressive(seen: Observation, rng: Random) -> Choice:
    news, open_markets = seen.headlines, markets(seen)
    if news and rng.random() < 0.4:
        return choose(news[0].direction or 1, news[0].about)
    return choose(rng.choice((1, 1, -1)), rng.choice(open_markets)) if open_markets and _impulse(seen, rng) else HOLDING


def _momentum(seen: Observation, rng: Random) -> Choice:
    change, market = _strongest_move(seen)
    return HOLDING if abs(change) < MOMENTUM_THRESHOLD else choose(change, market)


def _contrarian(seen: Observation, rng: Random) -> Choice:
    news = seen.headlines
    if news and rng.random() < 0.5:
        return choose(-news[0].direction, news[0].about)
    change, market = _strongest_move(seen)
    return choose(-change, market) if _impulse(seen, rng) else HOLDING


def _random(seen: Observation, rng: Random) -> Choice:
    """Any possible answer, all equally likely, once per impulse."""
    answers = [HOLDING] + [Choice(action, market) for market in markets(seen) for action in ("buy", "sell")]
    return rng.choice(answers) if _impulse(seen, rng) else HOLDING


SCRIPTS: dict[str, Script] = {
    "conservative": _conservative,
    "balanced": _balanced,
    "aggressive": _aggressive,
    "momentum": _momentum,
    "contrarian": _contrarian,
    "random": _random,
}


NAMES = (*STRATEGIES, "nothing", "random", "news-reader", "oracle")
PLAYERS = (*NAMES, *CEILINGS)  # the latter each under its own mandate


def factory(
    name: str, scenario: Scenario, mandate: Mandate = ONE_TICK, *, model: MarketModel | None = None, stake_usd: float | None = None
) -> AgentFactory:
    """Return the factory of the agent of that name in a scenario.

    Args:
        model: the market's constants, which the oracle and the news reader know.
        stake_usd: dollars of an order; the strategy's own by default.

    Raises:
        MarketError: there is no agent of that name, or none under that mandate.
    """
    if name not in PLAYERS:
        raise MarketError(f"There is no agent {name!r}; there are {', '.join(PLAYERS)}.")
    if name in CEILINGS and mandate != CEILINGS[name].mandate:
        raise MarketError(f"{name} is the best play under the mandate {CEILINGS[name].mandate}: it has none under {mandate}.")
    market = model if model is not None else MarketModel()
    stake = stake_usd if stake_usd is not None else STAKES_USD.get(name, STAKE_USD)

    def make(agent_id: str, seed: int | str) -> Agent:
        if name == "nothing":
            return Nothing()
        if name in CEILINGS:
            return PromptReader(CEILINGS[name], market, stake)
        if name == "oracle" and mandate == FREE:
            return SwingOracle(scenario, market, stake)
        if name == "news-reader" and mandate == FREE:
            return NewsTrader(market, stake)
        if mandate == ONE_TICK:
            moves = {"oracle": partial(coming_moves, scenario), "news-reader": partial(Beliefs(market).moves, horizon_ticks=1)}
            strategy = Forecaster(name, moves[name], market, stake) if name in moves else Scripted(name, agent_id, seed)
            return OneTickTrader(strategy, stake)
        return PositionTrader(Scripted(name, agent_id, seed), msgspec.structs.replace(STYLES[name], stake_usd=stake))

    return make


class _Sized:
    """An agent of positions whose orders get their size from ``sized``."""

    mandate: Mandate = FREE

    def __init__(self, agent: Agent, sized: Callable[[Action, Observation], Action]) -> None:
        self.name, self._agent, self._sized = agent.name, agent, sized

    def decide(self, seen: Observation) -> Action | Invalid:
        action = self._agent.decide(seen)
        return action if isinstance(action, Invalid) else self._sized(action, seen)


def player(name: str, scenario: Scenario, game: Game, stake_usd: float | None = None) -> AgentFactory:
    """The factory of a strategy in a game, such that an answer of the game can name each of its orders.

    Args:
        stake_usd: dollars of an order, times leverage. By default the usual stake in the game with sizes for one tick, else the strategy's
            own: where positions last, the nearest that an answer can name.

    Raises:
        MarketError: there is no agent of that name.
    """
    if game.mandate == ONE_TICK:
        return factory(name, scenario, stake_usd=STAKE_USD if game.names_size and stake_usd is None else stake_usd)
    own = factory(name, scenario, game.mandate)
    if stake_usd is None:
        return lambda agent_id, seed: _Sized(own(agent_id, seed), on_menu)
    # With the most leverage, so that a balance opens as many positions as an answer's largest size. Whether an answer could name this one
    # does not count here.
    most, market = max(LEVERAGES.values()), MarketModel()

    def at_stake(action: Action, seen: Observation) -> Action:
        choice = choice_of(action)
        return action if choice.market is None else leveraged(choice, seen, stake_usd, most)

    def make(agent_id: str, seed: int | str) -> Agent:
        if name == "oracle":
            return _Sized(SwingOracle(scenario, market, stake_usd / most, most, QUESTION_STAKE * most), at_stake)
        if name == "news-reader":
            return NewsTrader(market, stake_usd, most)
        if name in STYLES:
            style = msgspec.structs.replace(STYLES[name], stake_usd=stake_usd / most, leverage=most)
            return _Sized(PositionTrader(Scripted(name, agent_id, seed), style), at_stake)
        return own(agent_id, seed)

    return make


def oracle_play(scenario: Scenario) -> AgentRecord:
    """The oracle's better play of a scenario: alone, with the usual stake and start balance, once under each mandate.

    That is no upper bound: an agent that stakes more may earn more.
    """
    agents = [{"oracle": factory("oracle", scenario, mandate, model=scenario.model)} for mandate in (ONE_TICK, FREE)]
    return max((play(scenario, agent).records["oracle"] for agent in agents), key=lambda record: record.pnl_usd)
