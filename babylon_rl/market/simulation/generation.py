"""Generation of a scenario from a seed, with its stocks' prices without agents.

A stock has a fundamental that news moves, and a price that wanders around it as its regime has it.

Companies, texts, times, events, each stock's noise and each question's belief are drawn from generators of their own, so one question
more leaves the companies, the noise of prices and the other questions' words as they were.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.headlines import edition_named
from babylon_rl.market.simulation import events, questions
from babylon_rl.market.simulation.arithmetic import exp, normal, stream
from babylon_rl.market.simulation.config import HOUR_S, MarketModel, Regime, ScenarioConfig
from babylon_rl.market.simulation.questions import Luck
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario, WorldEvent

TICKER_CHARACTERS = 12
LOG_LIMIT = 2.5  # a fundamental stays within e^-2.5 and e^2.5 of where it started


def ticker_of(company: str) -> str:
    """A company's ticker as the game engine writes it. Capitals without spaces, at most 12 characters."""
    return company.upper().replace(" ", "").replace("-", "")[:TICKER_CHARACTERS]


def generate(
    config: ScenarioConfig,
    model: MarketModel | None = None,
    *,
    start_prices: Mapping[str, float] | None = None,
    question_numbers: Sequence[int] | None = None,
) -> Scenario:
    """Write one market; the same arguments give the same bytes.

    Args:
        start_prices: first prices by company name, such as those that an earlier market ended with; others start at their edition's.
        question_numbers: one per question, instead of numbers from the seed.

    Raises:
        MarketError: fewer numbers than questions, a number twice, or a first price that is not positive.
    """
    model = model if model is not None else MarketModel()
    numbers = None if question_numbers is None else question_numbers[: config.predictions]
    if numbers is not None and (len(numbers) != config.predictions or len(set(numbers)) != len(numbers)):
        raise MarketError(f"{config.predictions} questions need as many different numbers; given are {list(question_numbers or ())}.")
    listed = list(edition_named(config.edition).companies)
    stream(config.seed, config.edition, "companies").shuffle(listed)
    listed = listed[: config.perps]
    companies = {ticker_of(name): name for name, _ in listed}
    first = {name: (start_prices or {}).get(name, price) for name, price in listed}
    if wrong := [f"{name} at {price}" for name, price in first.items() if not 0.0 < price < float("inf")]:
        raise MarketError(f"A stock's first price must be a positive number of dollars: {', '.join(wrong)}.")
    crowds = questions.ask(config, model, numbers)
    told = events.tell(config, model, companies, crowds)
    people = events.authors(config, model)
    return Scenario(
        config=config,
        model=model,
        ticks=config.ticks,
        tick_seconds=config.tick_seconds,
        start_ms=config.start_ms,
        assets=tuple(stock(config, model, name, ticker, first[name], told) for ticker, name in companies.items()),
        questions=tuple(crowd.question() for crowd in crowds),
        authors=people,
        events=told,
        posts=events.write_posts(config, model, people, companies, crowds, told),
        funding_ticks=funding_ticks(config, model),
    )


def pressed(ticks: int, about: str, events: tuple[WorldEvent, ...]) -> list[float]:
    """Moves of a market's log price or log-odds by events, a tick each. An effect spreads evenly over its ticks."""
    pressure = [0.0] * ticks
    for event in events:
        if event.about == about and event.effect:
            for tick in range(event.tick, min(ticks, event.tick + event.ticks)):
                pressure[tick] += event.effect / event.ticks
    return pressure


def funding_ticks(config: ScenarioConfig, model: MarketModel) -> int:
    """Ticks between fundings, 1 or more."""
    return max(1, round(model.funding_hours * HOUR_S / config.tick_seconds))


def futures(scenario: Scenario, tick: int, most: int) -> list[dict[str, Asset | Question]]:
    """Futures of a tick: what differs in each, by ticker and question id.

    Until ``tick`` all is as it was, news and posts included. In the tick after it the noise is other, in pairs of opposite signs, so that
    it cancels in their mean; and what the news of ``tick`` moves is drawn again, as often the way its text says as its text and the posts
    that quote it let expect. A scenario that was recorded has one, without a difference.
    """
    config, model = scenario.config, scenario.model
    if config is None or model is None:
        return [{}]
    rng, posts, news = stream(config.seed, config.edition, "futures", tick), scenario.posts_at(tick), scenario.events_at(tick)
    drawn = [events.effects(event, posts, model, rng, most) for event in news]
    asked = [own for own in scenario.questions if own.open_at(tick)]
    found: list[dict[str, Asset | Question]] = []
    for number in range(most):
        luck = Luck(tick, number // 2, -1.0 if number % 2 else 1.0)
        moved = (msgspec.structs.replace(event, effect=of[number]) for event, of in zip(news, drawn, strict=True))
        told = (*(event for event in scenario.events if event.tick < tick), *moved)
        stocks = {own.ticker: stock(config, model, own.name, own.ticker, own.prices[0], told, luck) for own in scenario.assets}
        due = {own.id: pressed(config.ticks, own.id, told) for own in asked}
        found.append(stocks | {own.id: questions.otherwise(own, config, model, due[own.id], luck) for own in asked})
    return found


def stock(
    config: ScenarioConfig,
    model: MarketModel,
    name: str,
    ticker: str,
    start: float,
    events: tuple[WorldEvent, ...],
    luck: Luck | None = None,
) -> Asset:
    """One stock's prices, fundamental, regimes and funding rates, in a future with ``luck``."""
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
        sign = 1.0
        if luck is not None and tick == luck.tick + 1:
            sign = luck.sign
            noise = stream(config.seed, config.edition, "noise", name, luck.tick, luck.pair)
        value = max(-LOG_LIMIT, min(LOG_LIMIT, value + push + own * sign * normal(noise)))
        kept, fresh = _reverting(regime.reversion_per_hour * hours)
        distance = distance * kept + trend * hours + regime.volatility * around * fresh * sign * normal(noise)
        prices.append(max(10.0**-model.price_decimals, round(start * exp(value + distance), model.price_decimals)))
        fundamental.append(max(10.0**-model.price_decimals, round(start * exp(value), model.price_decimals)))
        if temper.random() < hours / model.regime_hours:
            before, regime = regime, _draw(model.regimes, temper.random())
            trend = restless * _trend(regime, temper)
            if regime != before:  # the price of the last regime stands: a reverting market takes nothing back from before
                value, distance = max(-LOG_LIMIT, min(LOG_LIMIT, value + distance)), 0.0
        regimes.append(regime.name)
        if tick % every == 0:
            funding.append(round(max(-model.max_funding, min(model.max_funding, model.funding_per_premium * distance)), 8))
    return Asset(ticker, name, tuple(prices), tuple(fundamental), tuple(regimes), tuple(funding))


def _trend(regime: Regime, temper: Random) -> float:
    size = 0.5 + temper.random()
    return regime.trend_per_hour * size * (1.0 if temper.random() < 0.5 else -1.0)


def _reverting(closed: float) -> tuple[float, float]:
    """The share of a distance that a tick leaves, and its share of noise. Both give the same for any length of a tick."""
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
