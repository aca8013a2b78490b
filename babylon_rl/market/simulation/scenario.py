"""Scenario: the course of a market without agents: prices, the crowd's beliefs, events, posts, answers and funding rates.

Moments are numbered 0 to ``ticks``; agents act at 0 to ``ticks - 1``. What is published at a tick can be read at that tick and moves
the market only after it. Fields marked hidden are for the judge and the oracle, never for agents.
"""

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Literal, TypeVar

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.config import START_MS, MarketModel, ScenarioConfig

FORMAT = 1  # of a scenario's bytes; grows when the same config gives another market

_BY_TICK = attrgetter("tick")

EventKind = Literal["true", "noise", "rumour", "decoy"]


class Asset(msgspec.Struct, frozen=True):
    """A stock, traded as a perpetual.

    Attributes:
        prices: dollars at moments 0..ticks, as they would be without agents.
        fundamental: hidden; what the price returns to, in dollars at the same moments; empty when not known.
        regimes: hidden; the regime's name at the same moments; empty when not known.
        funding: the rate settled at each funding moment (every ``Scenario.funding_ticks``); longs pay shorts when it is positive.
    """

    ticker: str
    name: str
    prices: tuple[float, ...]
    fundamental: tuple[float, ...] = ()
    regimes: tuple[str, ...] = ()
    funding: tuple[float, ...] = ()


class Question(msgspec.Struct, frozen=True):
    """A yes/no question.

    Attributes:
        id: what agents call its market, such as ``Q17``; number: the question's number.
        answer: hidden until ``resolve_tick``.
        crowd: the probability of YES at moments 0..ticks that everybody but the agents trades towards.
        created_tick, resolve_tick: traded from the one to before the other; past the scenario's end it stays open.
    """

    id: str
    number: int
    text: str
    answer: bool
    crowd: tuple[float, ...]
    created_tick: int
    resolve_tick: int

    def open_at(self, tick: int) -> bool:
        return self.created_tick <= tick < self.resolve_tick


class WorldEvent(msgspec.Struct, frozen=True):
    """A piece of news about one market.

    Attributes:
        about: a ticker or a question's id.
        direction: what the text says: +1 (good, YES), -1 or 0.
        clarity: how plainly it says so, 0 to 1; rumour: it is told as one.
        strength: hidden; how much it matters, about 1.
        kind: hidden; effect: hidden; the log price or log-odds that it really moves, over ``ticks`` ticks after its own.
    """

    tick: int
    about: str
    text: str
    direction: int
    clarity: float
    rumour: bool
    category: str
    strength: float
    kind: EventKind
    effect: float
    ticks: int


class Author(msgspec.Struct, frozen=True):
    """Author of posts; ``trust`` is the share of posts written from knowledge, 0 to 1."""

    name: str
    trust: float


class Post(msgspec.Struct, frozen=True):
    """A post about one market. ``informed`` is hidden: its author knows the effect that is on its way."""

    tick: int
    author: str
    trust: float
    text: str
    about: str
    direction: int
    informed: bool


T = TypeVar("T", WorldEvent, Post)


class Scenario(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One market from its first moment to its last, its events and posts in the order of ticks.

    ``config`` and ``model`` are what it was generated from, None for a market that was recorded; an exchange trades by ``model``.
    """

    format: int = FORMAT
    config: ScenarioConfig | None = None
    model: MarketModel | None = None
    ticks: int
    tick_seconds: int
    start_ms: int = START_MS
    assets: tuple[Asset, ...] = ()
    questions: tuple[Question, ...] = ()
    authors: tuple[Author, ...] = ()
    events: tuple[WorldEvent, ...] = ()
    posts: tuple[Post, ...] = ()
    funding_ticks: int = 480

    def timestamp_ms(self, tick: int) -> int:
        """The time of a moment in milliseconds since 1970, UTC."""
        return self.start_ms + tick * self.tick_seconds * 1000

    def events_at(self, tick: int) -> tuple[WorldEvent, ...]:
        return _at(self.events, tick)

    def posts_at(self, tick: int) -> tuple[Post, ...]:
        return _at(self.posts, tick)

    def asset(self, ticker: str) -> Asset:
        """The stock with that ticker; KeyError when there is none."""
        return {asset.ticker: asset for asset in self.assets}[ticker]

    def question(self, market: str) -> Question:
        """The question with that id; KeyError when there is none."""
        return {question.id: question for question in self.questions}[market]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the scenario as JSON, hidden parts included, in hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def _at(items: tuple[T, ...], tick: int) -> tuple[T, ...]:
    """The items of a tick, of items in the order of ticks."""
    return items[bisect_left(items, tick, key=_BY_TICK) : bisect_right(items, tick, key=_BY_TICK)]


def from_paths(
    *,
    tick_seconds: int,
    assets: Sequence[Asset] = (),
    questions: Sequence[Question] = (),
    events: Iterable[WorldEvent] = (),
    posts: Iterable[Post] = (),
    start_ms: int = START_MS,
    funding_ticks: int | None = None,
) -> Scenario:
    """A market whose prices and probabilities are given, such as a recorded one.

    All paths have the same length, ticks + 1.

    Raises:
        MarketError: paths of different lengths, a price that is not positive, a probability outside (0, 1), or names given twice.
    """
    paths = [asset.prices for asset in assets] + [question.crowd for question in questions]
    if not paths:
        raise MarketError("A market needs at least one stock or question.")
    scenario = Scenario(
        ticks=len(paths[0]) - 1,
        tick_seconds=tick_seconds,
        start_ms=start_ms,
        assets=tuple(assets),
        questions=tuple(questions),
        events=tuple(sorted(events, key=_BY_TICK)),
        posts=tuple(sorted(posts, key=_BY_TICK)),
        funding_ticks=funding_ticks if funding_ticks is not None else max(1, 8 * 3600 // max(1, tick_seconds)),
    )
    if wrong := list(faults(scenario)):
        raise MarketError(f"This market cannot be played: {'; '.join(wrong[:5])}.")
    return scenario


def opening(scenario: Scenario, ticks: int) -> Scenario:
    """The scenario's first ``ticks`` ticks, as a market of its own. The scenario itself when it has no more."""
    if ticks >= scenario.ticks:
        return scenario
    moments, replace = slice(ticks + 1), msgspec.structs.replace
    assets = (
        replace(asset, prices=asset.prices[moments], fundamental=asset.fundamental[moments], regimes=asset.regimes[moments])
        for asset in scenario.assets
    )
    questions = (replace(question, crowd=question.crowd[moments]) for question in scenario.questions)
    return replace(scenario, ticks=ticks, assets=tuple(assets), questions=tuple(questions))


def faults(scenario: Scenario) -> Iterator[str]:
    """Where a scenario contradicts itself, in words."""
    if scenario.ticks < 1 or scenario.tick_seconds < 1 or scenario.funding_ticks < 1:
        yield f"{scenario.ticks} ticks of {scenario.tick_seconds} s, funding every {scenario.funding_ticks}: each must be 1 or more"
    moments = scenario.ticks + 1
    for asset in scenario.assets:
        if len(asset.prices) != moments:
            yield f"{asset.ticker} has {len(asset.prices)} prices, there are {moments} moments"
        if not all(0.0 < price < math.inf for price in asset.prices):
            yield f"a price of {asset.ticker} is not a positive number"
        if not all(-1.0 < rate < 1.0 for rate in asset.funding):
            yield f"a funding rate of {asset.ticker} is not between -1 and 1"
    for question in scenario.questions:
        if len(question.crowd) != moments:
            yield f"{question.id} has {len(question.crowd)} probabilities, there are {moments} moments"
        if not all(0.0 < probability < 1.0 for probability in question.crowd):
            yield f"a probability of {question.id} is not between 0 and 1"
        if not 0 <= question.created_tick < question.resolve_tick:
            yield f"{question.id} is created at tick {question.created_tick} and resolved at {question.resolve_tick}"
    names = [asset.ticker for asset in scenario.assets] + [question.id for question in scenario.questions]
    if len(set(names)) != len(names):
        yield f"a market's name is given twice among {', '.join(sorted(names))}"
