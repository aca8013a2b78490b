"""What a recorded market is measured from: its events, posts, questions, prices, probabilities and trades as plain rows.

Recorded and simulated markets give the same rows, so that one set of functions measures both. Times are naive UTC; a stretch in
which nothing was recorded for more than ``LONGEST_PAUSE`` ticks is a pause of the game and counts as no time at all.
"""

import statistics
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise

SAME_TICK_S = 5.0
LONGEST_PAUSE = 5


@dataclass(frozen=True, slots=True)
class EventRow:
    """A world event; ``points`` is +1 (the answer is YES, or the stock rises), -1, or 0 where nothing is said."""

    at: datetime
    kind: str
    text: str
    actors: int
    question: int | None
    points: int


@dataclass(frozen=True, slots=True)
class PostRow:
    """A post; ``sentiment`` is +1, -1, 0 as the game recorded it, None where it did not."""

    at: datetime
    author: str
    text: str
    sentiment: int | None
    reply: bool


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A yes/no question with its hidden answer."""

    number: int
    text: str
    answer: bool
    created: datetime


@dataclass(frozen=True, slots=True)
class PriceRow:
    """A stock's price after a change; ``traded`` says that an order moved it."""

    at: datetime
    company: str
    price: float
    traded: bool = False


@dataclass(frozen=True, slots=True)
class ProbabilityRow:
    """A question's probability of YES after a change; ``depth`` is the square root of the pool's product, in shares (0: no pool)."""

    at: datetime
    question: int
    yes: float
    depth: float


@dataclass(frozen=True, slots=True)
class TradeRow:
    """An order: ``market`` is prediction or perp, ``leverage`` and ``held_minutes`` are known of perps alone."""

    at: datetime
    market: str
    usd: float
    leverage: float | None = None
    held_minutes: float | None = None


@dataclass(frozen=True)
class Recording:
    """Everything that was recorded of one market; ``companies`` are the names that texts may mention.

    ``ticks`` are the starts of its ticks where they are known; else they are taken from the events and posts.
    """

    companies: tuple[str, ...]
    questions: tuple[QuestionRow, ...]
    events: tuple[EventRow, ...]
    posts: tuple[PostRow, ...]
    prices: tuple[PriceRow, ...]
    probabilities: tuple[ProbabilityRow, ...]
    trades: tuple[TradeRow, ...] = ()
    ticks: tuple[datetime, ...] = ()

    @cached_property
    def clock(self) -> "Clock":
        """The ticks that rates are counted by."""
        return Clock.of(self.ticks or [*(event.at for event in self.events), *(post.at for post in self.posts)])


@dataclass(frozen=True)
class Clock:
    """The start of every tick, split where the game paused; ``tick_s`` is the usual distance in seconds."""

    sessions: tuple[tuple[datetime, ...], ...]
    tick_s: float

    @classmethod
    def of(cls, times: Iterable[datetime]) -> "Clock":
        """Times less than ``SAME_TICK_S`` seconds after the one before them belong to its tick."""
        ordered = sorted(times)
        starts = ordered[:1] + [now for before, now in pairwise(ordered) if _seconds(before, now) >= SAME_TICK_S]
        gaps = [_seconds(before, now) for before, now in pairwise(starts)]
        tick_s = statistics.median(gaps) if gaps else 60.0
        sessions: list[list[datetime]] = [starts[:1]] if starts else []
        for start, gap in zip(starts[1:], gaps, strict=True):
            if gap > LONGEST_PAUSE * tick_s:
                sessions.append([])
            sessions[-1].append(start)
        return cls(tuple(tuple(session) for session in sessions), tick_s)

    @cached_property
    def starts(self) -> tuple[datetime, ...]:
        """Every tick of every session."""
        return tuple(start for session in self.sessions for start in session)

    @property
    def hours(self) -> float:
        """Hours played, pauses left out."""
        seconds = sum(_seconds(session[0], session[-1]) + self.tick_s for session in self.sessions)
        return seconds / 3600

    def tick(self, at: datetime) -> int:
        """The number of the tick that was running; -1 before the first."""
        return bisect_right(self.starts, at) - 1

    def grid(self, moves: Sequence[tuple[datetime, float]]) -> list[list[float]]:
        """Moves summed by tick, a list for each session; what moved during a pause is left out."""
        sums = [[0.0] * len(session) for session in self.sessions]
        for at, move in moves:
            for session, values in zip(self.sessions, sums, strict=True):
                if session[0] <= at < session[-1] + timedelta(seconds=self.tick_s):
                    values[bisect_right(session, at) - 1] += move
                    break
        return sums


def _seconds(before: datetime, now: datetime) -> float:
    return (now - before).total_seconds()
