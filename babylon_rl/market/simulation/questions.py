"""Questions: times, answers, and the beliefs of the crowd.

The answer is fixed first, and whatever moves the crowd's log-odds points to it just so much more often than away from it that the new
odds are right: a move of ``e`` goes towards the answer with probability 1 / (1 + exp(-e)), which is Bayes' rule read backwards. So the
crowd is calibrated at every moment, but for effects still on their way, drifts to the answer, and at a fair price nobody wins by holding.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from babylon_rl.market.headlines import edition_named
from babylon_rl.market.simulation.arithmetic import exp, log, normal, odds, stream
from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from babylon_rl.market.simulation.scenario import Question

LEAST_ROOM = 0.02


class Crowd:
    """A question, and the belief in it of the crowd, all but the agents, from moment to moment."""

    def __init__(self, config: ScenarioConfig, model: MarketModel, index: int, number: int, text: str) -> None:
        self.id, self.number, self.text = f"Q{number}", number, text
        self.created_tick, self.resolve_tick = _times(config, index)
        self._noise, fate = stream(config.seed, config.edition, "belief", index), stream(config.seed, config.edition, "answer", index)
        self._limit = model.question_limit
        self._spread = spread_of(config, model)
        self._log_odds = model.question_start * (2.0 * fate.random() - 1.0)
        self._known = self._log_odds  # with what events that were told are still to move
        self._due = [0.0] * config.ticks
        self._path = [_probability(self._log_odds, self._limit)]
        self._answer = fate.random() < self._path[0]

    def open_at(self, tick: int) -> bool:
        return self.created_tick <= tick < self.resolve_tick

    def told(self, tick: int, size: float, lasts: int, at: float) -> tuple[int, float]:
        """An event moves the log-odds by about ``size`` over ``lasts`` ticks.

        The way it goes (+1 YES, -1 NO) as ``at`` (0..1) falls, and its effect.
        """
        size = size * self._room()
        way = self._way(at < 1.0 / (1.0 + exp(-size)))
        effect = round(way * size, 6) + 0.0
        for later in range(tick, min(len(self._due), tick + lasts)):
            self._due[later] += effect / lasts
        self._known += effect
        return way, effect

    def advance(self, tick: int) -> None:
        """From a moment to the next one. Before it is open and after its answer the belief stands still."""
        if self.open_at(tick):
            spread = self._spread * self._room()
            # of this mean and variance, a move is worth what it moves, as an event is
            move = self._way(True) * spread * spread / 2.0 + spread * normal(self._noise)
            self._known += move
            self._log_odds += move + self._due[tick]
        self._path.append(_probability(self._log_odds, self._limit))

    def question(self) -> Question:
        return Question(self.id, self.number, self.text, self._answer, tuple(self._path), self.created_tick, self.resolve_tick)

    def _way(self, toward_answer: bool) -> int:
        return 1 if toward_answer == self._answer else -1

    def _room(self) -> float:
        return room(self._known, self._limit)


def ask(config: ScenarioConfig, model: MarketModel, numbers: Sequence[int] | None) -> tuple[Crowd, ...]:
    """The questions of a scenario, no text twice; ``numbers`` instead of the seed's own."""
    edition, words = edition_named(config.edition), stream(config.seed, config.edition, "question texts")
    first = words.randrange(10, 90)
    texts = [text.format(c=company) for text in edition.questions for company, _ in edition.companies]
    words.shuffle(texts)
    chosen = numbers if numbers is not None else range(first, first + config.predictions)
    return tuple(Crowd(config, model, index, number, texts[index]) for index, number in enumerate(chosen))


class Luck(NamedTuple):
    """Other noise of the tick after ``tick``, of a pair in which it has opposite signs (+1.0 and -1.0)."""

    tick: int
    pair: int
    sign: float


def otherwise(question: Question, config: ScenarioConfig, model: MarketModel, due: Sequence[float], luck: Luck) -> Question:
    """The question as another future of a tick moves it; ``due`` is what told events move in each tick."""
    tick, crowd = luck.tick, list(question.crowd)
    before = log(odds(crowd[tick]))
    known = before + math.fsum(due[tick:])
    spread = spread_of(config, model) * room(known, model.question_limit)
    # As likely towards each answer as the crowd believes.
    drift = (2.0 * _probability(known, model.question_limit) - 1.0) * spread * spread / 2.0
    move = spread * normal(stream(config.seed, config.edition, "belief", question.id, tick, luck.pair))
    crowd[tick + 1] = _probability(before + due[tick] + drift + luck.sign * move, model.question_limit)
    return msgspec.structs.replace(question, crowd=tuple(crowd))


def spread_of(config: ScenarioConfig, model: MarketModel) -> float:
    """Standard deviation of a tick's move in log-odds, where there is all the ``room``."""
    return model.question_volatility * math.sqrt(config.tick_hours)


def _times(config: ScenarioConfig, index: int) -> tuple[int, int]:
    """Times of questions: half open from the start, half beginning in the first half. Each lasts 40 to 100 % of the rest."""
    when = stream(config.seed, config.edition, "question times", index)
    later, lasts = when.random(), 0.4 + 0.6 * when.random()
    created = 0 if index < (config.predictions + 1) // 2 else int(later * config.ticks / 2)
    if index >= round(config.resolving * config.predictions):
        return created, config.ticks + 1 + int(lasts * config.ticks)
    return created, created + max(1, round(lasts * (config.ticks - created)))


def room(log_odds: float, limit: float) -> float:
    """The share of a move that these log-odds leave. All where opinions differ, next to nothing where nearly everybody is sure."""
    near = log_odds / limit
    return max(LEAST_ROOM, 1.0 - near * near * near * near)


def _probability(log_odds: float, limit: float) -> float:
    return round(1.0 / (1.0 + exp(-max(-limit, min(limit, log_odds)))), 6)
