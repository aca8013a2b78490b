"""The simulated world of one hour: price paths, a constant-product maker, and events whose text carries a noisy signal.

An hour has 12 ticks of five minutes. The event of a tick is published just before agents act and moves its market during the
five minutes that follow: reports mostly as their text says, rumours less often and less far. Everything is derived from
(seed, window, edition), so the same arguments give the same hour on every platform.

Left out here: perpetuals with leverage, funding and liquidation; regimes; posts. An order lasts one tick (see trading.py).
"""

import math
import random
from dataclasses import dataclass

from babylon_rl.market.headlines import Edition

TICKS = 12
TICK_MINUTES = 5
MINUTES = TICKS * TICK_MINUTES
STOCKS = 3

_NOISE_PER_MINUTE = 0.0045  # one minute's standard deviation of a log price
_EFFECT = 0.024  # log price change of a true event of strength 1 over its five minutes
_QUESTION_EFFECT = 0.28  # the same in log-odds of YES
_QUESTION_NOISE = 0.03
_TRUE_REPORT, _TRUE_RUMOUR = 0.90, 0.62


@dataclass(frozen=True)
class Event:
    """One world event; ``direction`` is what the text says (+1, -1, 0), ``effect`` what really happens to the market."""

    tick: int
    market: str
    text: str
    direction: int
    rumour: bool
    effect: float


@dataclass(frozen=True)
class Stock:
    """A company's minute prices: ``prices[m]`` is the price at minute m of the hour, m = 0..60."""

    name: str
    prices: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """A yes/no question with its number, its hidden answer and the log-odds that the crowd moves the pool to at each minute."""

    number: int
    text: str
    answer: bool
    crowd_logit: tuple[float, ...]

    @property
    def label(self) -> str:
        """What agents call it."""
        return f"Q{self.number}"


@dataclass(frozen=True)
class Hour:
    """Everything that happens in one hour, apart from what agents do."""

    window: str
    stocks: tuple[Stock, ...]
    question: Question
    events: tuple[Event, ...]

    @property
    def markets(self) -> tuple[str, ...]:
        """What can be traded, in the order in which agents see it."""
        return (*(stock.name for stock in self.stocks), self.question.label)


def generate_hour(
    edition: Edition, window: str, seed: int | str, *, previous: dict[str, float] | None = None, question_number: int | None = None
) -> Hour:
    """Write one hour.

    Args:
        previous: last known prices by company name; companies not in it start at their edition's price.
        question_number: the question's number; by default derived from the window.
    """
    rng = random.Random(f"{edition.name}/{seed}/{window}")
    last = dict(previous or {})
    companies = rng.sample(edition.companies, STOCKS)
    number = question_number if question_number is not None else rng.randrange(10, 99)
    subject = rng.choice(edition.companies)[0]
    text = rng.choice(edition.questions).format(c=subject)
    label = f"Q{number}"
    names = [name for name, _ in companies]
    events = tuple(_event(rng, edition, tick, rng.choice([*names, label] if rng.random() < 0.7 else names), label) for tick in range(TICKS))
    stocks = tuple(Stock(name, _price_path(rng, last.get(name, start), name, events)) for name, start in companies)
    logits = _logit_path(rng, rng.uniform(-1.0, 1.0), label, events)
    answer = rng.random() < 1 / (1 + math.exp(-logits[-1]))
    return Hour(window, stocks, Question(number, text, answer, logits), events)


def _event(rng: random.Random, edition: Edition, tick: int, market: str, label: str) -> Event:
    direction = rng.choices((1, -1, 0), (0.46, 0.46, 0.08))[0]
    rumour = direction != 0 and rng.random() < 0.15
    if market == label:
        direction = direction or rng.choice((1, -1))
        text = rng.choice(edition.toward_yes if direction > 0 else edition.toward_no)
    else:
        text = rng.choice({1: edition.good, -1: edition.bad, 0: edition.neutral}[direction]).format(c=market)
    true = rng.random() < (_TRUE_RUMOUR if rumour else _TRUE_REPORT)
    strength = rng.uniform(0.5, 1.5) * (0.6 if rumour else 1.0)
    size = _QUESTION_EFFECT if market == label else _EFFECT
    effect = direction * size * strength * (1 if true else -1)
    return Event(tick, market, f"Rumour: {text}" if rumour else text, direction, rumour, effect)


def _drift(market: str, events: tuple[Event, ...]) -> list[float]:
    drift = [0.0] * MINUTES
    for event in events:
        if event.market == market:
            for minute in range(event.tick * TICK_MINUTES, (event.tick + 1) * TICK_MINUTES):
                drift[minute] += event.effect / TICK_MINUTES
    return drift


def _price_path(rng: random.Random, start: float, name: str, events: tuple[Event, ...]) -> tuple[float, ...]:
    prices = [start]
    for step in _drift(name, events):
        prices.append(round(prices[-1] * math.exp(step + rng.gauss(0.0, _NOISE_PER_MINUTE)), 6))
    return tuple(prices)


def _logit_path(rng: random.Random, start: float, label: str, events: tuple[Event, ...]) -> tuple[float, ...]:
    logits = [start]
    for step in _drift(label, events):
        logits.append(max(-2.5, min(2.5, logits[-1] + step + rng.gauss(0.0, _QUESTION_NOISE))))
    return tuple(logits)
