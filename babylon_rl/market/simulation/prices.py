"""Prices of stocks without agents: a fundamental that news moves, and a price that wanders around it as its regime has it."""

import math
from random import Random

from babylon_rl.market.simulation.arithmetic import exp, normal, stream
from babylon_rl.market.simulation.config import HOUR_S, MarketModel, Regime, ScenarioConfig
from babylon_rl.market.simulation.scenario import Asset, WorldEvent

LOG_LIMIT = 2.5  # a fundamental stays within e^-2.5 and e^2.5 of where it started


def pressed(ticks: int, about: str, events: tuple[WorldEvent, ...]) -> list[float]:
    """What events about a market add to its log price or log-odds in each tick: an effect spreads evenly over its ticks."""
    pressure = [0.0] * ticks
    for event in events:
        if event.about == about and event.effect:
            for tick in range(event.tick, min(ticks, event.tick + event.ticks)):
                pressure[tick] += event.effect / event.ticks
    return pressure


def funding_ticks(config: ScenarioConfig, model: MarketModel) -> int:
    """Ticks between fundings, 1 or more."""
    return max(1, round(model.funding_hours * HOUR_S / config.tick_seconds))


def stock(config: ScenarioConfig, model: MarketModel, name: str, ticker: str, start: float, events: tuple[WorldEvent, ...]) -> Asset:
    """One stock's prices, fundamental, regimes and funding rates."""
    noise, temper = stream(config.seed, config.edition, "noise", name), stream(config.seed, config.edition, "regime", name)
    hours = config.tick_hours
    restless = 1.0 + model.volatility_spread * (2.0 * temper.random() - 1.0)
    volatility = model.volatility * restless * math.sqrt(hours)
    own, around = volatility * math.sqrt(model.fundamental_share), volatility * math.sqrt(1.0 - model.fundamental_share)
    value = distance = 0.0
    regime = _draw(model.regimes, temper.random())
    trend = restless * _trend(regime, temper)
    prices, fundamental, regimes = [round(start, model.price_decimals)], [round(start, model.price_decimals)], [regime.name]
    every, funding = funding_ticks(config, model), []
    for tick, push in enumerate(pressed(config.ticks, ticker, events), 1):
        value = max(-LOG_LIMIT, min(LOG_LIMIT, value + push + own * normal(noise)))
        kept, fresh = _reverting(regime.reversion_per_hour * hours)
        distance = distance * kept + trend * hours + regime.volatility * around * fresh * normal(noise)
        prices.append(max(10.0**-model.price_decimals, round(start * exp(value + distance), model.price_decimals)))
        fundamental.append(max(10.0**-model.price_decimals, round(start * exp(value), model.price_decimals)))
        if temper.random() < hours / model.regime_hours:
            before, regime = regime, _draw(model.regimes, temper.random())
            trend = restless * _trend(regime, temper)
            if regime != before:  # what the last one made of the price is believed: a reverting market takes nothing back from before
                value, distance = max(-LOG_LIMIT, min(LOG_LIMIT, value + distance)), 0.0
        regimes.append(regime.name)
        if tick % every == 0:
            funding.append(round(max(-model.max_funding, min(model.max_funding, model.funding_per_premium * distance)), 8))
    return Asset(ticker, name, tuple(prices), tuple(fundamental), tuple(regimes), tuple(funding))


def _trend(regime: Regime, temper: Random) -> float:
    size = 0.5 + temper.random()
    return regime.trend_per_hour * size * (1.0 if temper.random() < 0.5 else -1.0)


def _reverting(closed: float) -> tuple[float, float]:
    """The share of a distance that a tick leaves, and the noise of that tick that is left of 1: the same for any length of a tick."""
    if closed <= 0.0:
        return 1.0, 1.0
    return exp(-closed), math.sqrt((1.0 - exp(-2.0 * closed)) / (2.0 * closed))


def _draw(regimes: tuple[Regime, ...], at: float) -> Regime:
    left = 0.0
    for regime in regimes:  # not sum(), which rounds otherwise in other versions of Python
        left += at * regime.share
    for regime in regimes:
        left -= regime.share
        if left < 0.0:
            return regime
    return regimes[-1]
