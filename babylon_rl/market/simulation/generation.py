"""Writes a scenario from a seed.

Companies, texts, times, events, each stock's noise and each question's belief are drawn from generators of their own, so one question
more leaves the companies, the noise of prices and the other questions' words as they were.
"""

from collections.abc import Mapping, Sequence

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation import events, posts, prices, questions
from babylon_rl.market.simulation.arithmetic import stream
from babylon_rl.market.simulation.config import EDITIONS, MarketModel, ScenarioConfig
from babylon_rl.market.simulation.scenario import Scenario

TICKER_CHARACTERS = 12


def ticker_of(company: str) -> str:
    """A company's ticker as the game engine writes it: capitals without spaces, at most 12 characters."""
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
    edition = EDITIONS[config.edition]
    numbers = _numbers(config, question_numbers)
    listed = list(edition.companies)
    stream(config.seed, config.edition, "companies").shuffle(listed)
    listed = listed[: config.perps]
    companies = {ticker_of(name): name for name, _ in listed}
    first = {name: (start_prices or {}).get(name, price) for name, price in listed}
    if wrong := [f"{name} at {price}" for name, price in first.items() if not 0.0 < price < float("inf")]:
        raise MarketError(f"A stock's first price must be a positive number of dollars: {', '.join(wrong)}.")
    asked = questions.ask(config, edition, numbers)
    crowds = tuple(questions.Crowd(config, model, question, index) for index, question in enumerate(asked))
    told = events.tell(config, model, edition, companies, crowds)
    people = posts.authors(config, model)
    return Scenario(
        config=config,
        model=model,
        ticks=config.ticks,
        tick_seconds=config.tick_seconds,
        start_ms=config.start_ms,
        assets=tuple(prices.stock(config, model, name, ticker, first[name], told) for ticker, name in companies.items()),
        questions=tuple(crowd.question() for crowd in crowds),
        authors=people,
        events=told,
        posts=posts.write(config, model, people, companies, asked, told),
        funding_ticks=prices.funding_ticks(config, model),
    )


def _numbers(config: ScenarioConfig, given: Sequence[int] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    numbers = tuple(given[: config.predictions])
    if len(numbers) != config.predictions or len(set(numbers)) != len(numbers):
        raise MarketError(f"{config.predictions} questions need as many different numbers; given are {list(given)}.")
    return numbers
