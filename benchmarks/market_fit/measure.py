"""What a market is like, measured from its rows: ``measure(recording)`` gives a frozen ``MarketFit``.

The same function measures a recorded game and a simulated market, so that the two can be laid side by side.
docs/evidence/market-fit.md says which of the recorded rows are real and which were simulated. Rates are per hour actually played.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from babylon_rl.errors import MarketError
from benchmarks.market_fit.movements import QuestionFit, StockFit, TradeFit, fit_questions, fit_stocks, fit_trades
from benchmarks.market_fit.rows import Recording
from benchmarks.market_fit.series import share
from benchmarks.market_fit.texts import direction, names, template

EVENT_KINDS = ("announcement", "meeting", "leak", "development", "scandal", "rumor", "deal", "conflict", "revelation")
Shares = tuple[tuple[Any, float], ...]


@dataclass(frozen=True)
class TextFit:
    """Lengths are in words; ``templates`` are the commonest shapes with their shares; a tone is a text with a lexicon direction."""

    length_mean: float
    length_min: int
    length_max: int
    templates: Shares
    names_company: float
    toned: float
    positive: float | None


@dataclass(frozen=True)
class EventFit:
    """World events. ``dispersion`` is variance over mean of the events of a tick (1 for a Poisson process, above it bursts).

    ``pointed`` is the share with a direction, ``pointed_true`` how many of those point at the answer, ``tone_agrees`` how many of
    those whose text has a tone sound as they point.
    """

    count: int
    per_hour: float
    per_tick: Shares
    dispersion: float
    lag_one: float | None
    kinds: Shares
    misspelled: float
    with_question: float
    with_actors: float
    repeated_in_tick: float
    pointed: float
    pointed_true: float | None
    tone_agrees: float | None
    text: TextFit


@dataclass(frozen=True)
class PostFit:
    """Posts. ``authors_even`` is the number of equally busy authors with the same concentration (1 / sum of squared shares).

    ``about_event`` is the share that quotes an event of its tick, ``agrees`` the share of those about pointed events whose recorded
    sentiment is as the event points, ``author_spread`` chi-square over degrees of freedom of that share by author (1: no author
    knows more than another).
    """

    count: int
    per_hour: float
    per_event: float
    per_tick: Shares
    authors: int
    authors_even: float
    replies: float
    names_question: float
    about_event: float
    sentiment: Shares
    agrees: float | None
    agrees_error: float | None
    author_spread: float | None
    text: TextFit


@dataclass(frozen=True)
class MarketFit:
    """Everything measured of one market; None where it has no such rows."""

    hours: float
    sessions: int
    tick_s: float
    open_questions: int
    events: EventFit | None
    posts: PostFit | None
    stocks: StockFit | None
    questions: QuestionFit | None
    trades: tuple[TradeFit, ...]


def measure(recording: Recording) -> MarketFit:
    """Measure one market.

    Raises:
        MarketError: it has neither events nor posts nor ticks, so there is no time to measure by.
    """
    clock = recording.clock
    if not clock.starts:
        raise MarketError("A market without events, posts and ticks has no time to measure by; give rows of a game that ran.")
    return MarketFit(
        hours=clock.hours,
        sessions=len(clock.sessions),
        tick_s=clock.tick_s,
        open_questions=len(recording.questions),
        events=_fit_events(recording) if recording.events else None,
        posts=_fit_posts(recording) if recording.posts else None,
        stocks=fit_stocks(recording),
        questions=fit_questions(recording),
        trades=fit_trades(recording),
    )


def known_kind(kind: str) -> str:
    """The event type meant by one written with a slip of the keyboard ('announcment', 'annonce'); others stay as they are."""
    close = get_close_matches(kind.lower(), EVENT_KINDS, n=1, cutoff=0.7)
    return close[0] if close else kind


def _fit_events(recording: Recording) -> EventFit:
    events, clock = recording.events, recording.clock
    by_tick = Counter(clock.tick(event.at) for event in events)
    counts = [by_tick[tick] for tick in range(len(clock.starts))]
    answers = {question.number: question.answer for question in recording.questions}
    pointed = [event for event in events if event.points]
    checked = [event for event in pointed if event.question in answers]
    true = sum((event.points > 0) == answers[event.question] for event in checked if event.question is not None)
    toned = [event for event in pointed if direction(event.text)]
    linked = [event for event in events if event.question is not None]
    return EventFit(
        count=len(events),
        per_hour=len(events) / clock.hours,
        per_tick=shares_of(counts),
        dispersion=statistics.pvariance(counts) / statistics.mean(counts),
        lag_one=_correlation(counts[:-1], counts[1:]),
        kinds=shares_of(known_kind(event.kind) for event in events),
        misspelled=sum(event.kind != known_kind(event.kind) for event in events) / len(events),
        with_question=len(linked) / len(events),
        with_actors=sum(event.actors > 0 for event in events) / len(events),
        repeated_in_tick=1 - len({(clock.tick(event.at), event.question) for event in linked}) / max(1, len(linked)),
        pointed=len(pointed) / len(events),
        pointed_true=share(true, len(checked)),
        tone_agrees=share(sum(direction(event.text) == event.points for event in toned), len(toned)),
        text=_fit_texts([event.text for event in events], recording),
    )


def _fit_posts(recording: Recording) -> PostFit:
    posts, clock = recording.posts, recording.clock
    by_tick = Counter(clock.tick(post.at) for post in posts)
    authors = Counter(post.author for post in posts)
    told: dict[int, dict[str, int]] = defaultdict(dict)
    for event in recording.events:
        told[clock.tick(event.at)][event.text] = event.points
    about = [[points for text, points in told[clock.tick(post.at)].items() if text in post.text] for post in posts]
    agreeing: dict[str, list[bool]] = defaultdict(list)
    for post, points in zip(posts, about, strict=True):
        if post.sentiment and points and points[0]:
            agreeing[post.author].append(post.sentiment == points[0])
    agreements = [one for found in agreeing.values() for one in found]
    agrees = share(sum(agreements), len(agreements))
    questions = [question.text for question in recording.questions]
    return PostFit(
        count=len(posts),
        per_hour=len(posts) / clock.hours,
        per_event=len(posts) / max(1, len(recording.events)),
        per_tick=shares_of(by_tick[tick] for tick in range(len(clock.starts))),
        authors=len(authors),
        authors_even=len(posts) ** 2 / sum(count * count for count in authors.values()),
        replies=sum(post.reply for post in posts) / len(posts),
        names_question=sum(any(text in post.text for text in questions) for post in posts) / len(posts),
        about_event=sum(bool(points) for points in about) / len(posts),
        sentiment=shares_of(post.sentiment for post in posts if post.sentiment is not None),
        agrees=agrees,
        agrees_error=None if agrees is None else math.sqrt(agrees * (1 - agrees) / len(agreements)),
        author_spread=_spread(agreeing.values(), agrees),
        text=_fit_texts([post.text for post in posts], recording),
    )


def _fit_texts(texts: list[str], recording: Recording) -> TextFit:
    lengths = [len(text.split()) for text in texts]
    questions = [question.text for question in recording.questions]
    shapes = Counter(template(text, questions, recording.companies) for text in texts)
    tones = [tone for text in texts if (tone := direction(text))]
    return TextFit(
        length_mean=statistics.mean(lengths),
        length_min=min(lengths),
        length_max=max(lengths),
        templates=tuple((shape, count / len(texts)) for shape, count in shapes.most_common(5)),
        names_company=sum(bool(names(text, recording.companies)) for text in texts) / len(texts),
        toned=len(tones) / len(texts),
        positive=share(sum(tone > 0 for tone in tones), len(tones)),
    )


def _spread(found: Iterable[list[bool]], expected: float | None) -> float | None:
    """Chi-square of shares around a common one, over its degrees of freedom."""
    groups = [one for one in found if one]
    if expected is None or not 0 < expected < 1 or len(groups) < 2:
        return None
    chi = sum((sum(one) - len(one) * expected) ** 2 / (len(one) * expected * (1 - expected)) for one in groups)
    return chi / (len(groups) - 1)


def _correlation(one: list[int], two: list[int]) -> float | None:
    varied = len(one) > 2 and len(set(one)) > 1 and len(set(two)) > 1
    return statistics.correlation(one, two) if varied else None


def shares_of(values: Iterable[Any]) -> Shares:
    """Each value with its share, in the values' order."""
    counts = Counter(values)
    return tuple((value, counts[value] / counts.total()) for value in sorted(counts))
