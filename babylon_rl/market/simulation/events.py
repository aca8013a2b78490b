"""World events by tick and market, their hidden effects, and posts about them, in the words of an edition.

An event's text has a direction; its market mostly goes there over the next ticks. Reports are right more often than rumours and move
more; a false report (``decoy``) moves its market the other way, a text without a direction (``noise``) moves nothing. What moves a
question goes to its answer a little more often than not; a stock goes either way.

Some posts are by people who know what an event will do, most by people who guess; nothing but their author tells them apart.

The frames are the game's: an event about a question reads ``Event related to: <question>``, a post about an event ``<author>'s take on:
<event>``. The game ends there; here a clause with a direction follows.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

from babylon_rl.market.headlines import edition_named
from babylon_rl.market.simulation.arithmetic import odds, stream
from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from babylon_rl.market.simulation.observation import Headline, Heard
from babylon_rl.market.simulation.questions import Crowd
from babylon_rl.market.simulation.scenario import Author, EventKind, Post, WorldEvent

T = TypeVar("T")


def one_of(items: Sequence[T], rng: Random) -> T:
    """Any of the items, each as likely."""
    return items[int(rng.random() * len(items))]


def times(per_tick: float, at: float) -> int:
    """Number of events in a tick. Their mean, up or down to a whole number as ``at`` (0..1) falls."""
    return int(per_tick) + (at < per_tick - int(per_tick))


def tell(config: ScenarioConfig, model: MarketModel, companies: dict[str, str], crowds: tuple[Crowd, ...]) -> tuple[WorldEvent, ...]:
    """All events in the order of ticks. ``companies`` are names by ticker. Plays the crowds of all questions to the end."""
    rate = config.events_per_hour if config.events_per_hour is not None else model.events_per_hour
    when = stream(config.seed, config.edition, "event times")
    found = []
    for tick in range(config.ticks):
        open_crowds = {crowd.id: crowd for crowd in crowds if crowd.open_at(tick)}
        count = times(rate * (len(companies) + len(open_crowds)) * config.tick_hours, when.random())
        found += [_event(config, model, companies, open_crowds, tick, number) for number in range(count)]
        for crowd in crowds:
            crowd.advance(tick)
    return tuple(found)


def _event(
    config: ScenarioConfig, model: MarketModel, companies: dict[str, str], crowds: dict[str, Crowd], tick: int, number: int
) -> WorldEvent:
    edition = edition_named(config.edition)
    rng = stream(config.seed, config.edition, "event", tick, number)
    markets = [*companies, *crowds]
    weights = [1.0 if market in companies else model.question_weight for market in markets]
    about = rng.choices(markets, weights)[0]
    company = companies.get(about)
    silent = rng.random() < (model.neutral_share if company else model.question_neutral_share)
    way_at = rng.random()
    rumour = rng.random() < model.rumour_share and not silent
    right = rng.random() < (model.rumour_truth if rumour else model.report_truth)
    strength = round(_strength(model, rumour, rng.random()), 4)
    clear = model.neutral_clarity if silent else model.rumour_clarity if rumour else model.report_clarity
    clarity = round(_within(clear, rng.random()), 3)
    category = rng.choices([name for name, _ in model.categories], [share for _, share in model.categories])[0]
    kind: EventKind = "noise" if silent else "rumour" if rumour else "true" if right else "decoy"
    lasts = max(1, round(model.event_minutes * 60 / config.tick_seconds))
    way, effect = 0, 0.0
    if not silent and company:
        way = 1 if way_at < 0.5 else -1
        effect = round(way * model.event_effect * strength, 6) + 0.0
    elif not silent:
        way, effect = crowds[about].told(tick, model.question_effect * strength, lasts, way_at)
    direction = way if right else -way
    if company:
        texts = {1: edition.good, -1: edition.bad, 0: edition.neutral}[direction]
        text = ("Rumour: " if rumour else "") + one_of(texts, rng).format(c=company)
    else:
        clauses = {1: edition.toward_yes, -1: edition.toward_no, 0: edition.no_news}[direction]
        text = f"{'Rumour' if rumour else 'Event'} related to: {crowds[about].text} {one_of(clauses, rng)}"
    return WorldEvent(tick, about, text, direction, clarity, rumour, category, strength, kind, effect, lasts)


def chance_up(event: Headline | WorldEvent, posts: Iterable[Heard | Post], model: MarketModel) -> float:
    """The probability that an event moves its market up (towards YES), given its text and those of the posts that quote it."""
    right = model.rumour_truth if event.rumour else model.report_truth
    up = odds(right) if event.direction > 0 else 1.0 / odds(right)
    for post in posts:
        quotes = post.about == event.about and post.text.startswith(f"{post.author}'s take on:")
        if quotes and post.direction and post.trust is not None:
            # It knows with probability trust, and guesses right with half of the rest.
            up *= odds((1.0 + post.trust) / 2.0) ** post.direction
    return up / (1.0 + up)


def effects(event: WorldEvent, posts: Iterable[Post], model: MarketModel, rng: Random, count: int) -> list[float]:
    """Effects that an event may have, given its text and posts: way and strength, each drawn evenly over its distribution."""
    if not event.effect:
        return [0.0] * count
    up = chance_up(event, posts, model)
    ways, strengths = (rng.sample(range(count), count) for _ in range(2))
    return [
        (1.0 if (way + rng.random()) / count < up else -1.0)
        * abs(event.effect / event.strength)
        * _strength(model, event.rumour, (strength + rng.random()) / count)
        for way, strength in zip(ways, strengths, strict=True)
    ]


def _strength(model: MarketModel, rumour: bool, at: float) -> float:
    return _within(model.strength, at) * (model.rumour_strength if rumour else 1.0)


def _within(bounds: tuple[float, float], at: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * at


def authors(config: ScenarioConfig, model: MarketModel) -> tuple[Author, ...]:
    """Authors of posts, with the share of events of which each knows the effect."""
    names = list(edition_named(config.edition).authors)
    stream(config.seed, config.edition, "authors").shuffle(names)
    return tuple(Author(name, round(stream(config.seed, config.edition, "trust", name).random(), 2)) for name in names[: model.authors])


def write_posts(
    config: ScenarioConfig,
    model: MarketModel,
    people: tuple[Author, ...],
    companies: dict[str, str],
    crowds: tuple[Crowd, ...],
    events: tuple[WorldEvent, ...],
) -> tuple[Post, ...]:
    """All posts in the order of ticks."""
    if not people:
        return ()
    edition, found = edition_named(config.edition), list[Post]()
    texts = {question.id: question.text for question in crowds}
    for number, event in enumerate(events):
        rng = stream(config.seed, config.edition, "post", event.tick, number)
        for _ in range(times(model.posts_per_event, rng.random())):
            early, delay = rng.random() < model.post_early, int(rng.random() * event.ticks)
            tick = max(0, event.tick - 1) if early else min(config.ticks - 1, event.tick + delay)
            author = one_of(people, rng)
            informed = rng.random() < author.trust
            guess = 1 if rng.random() < 0.5 else -1
            direction = (event.effect > 0) - (event.effect < 0) if informed else guess
            words = one_of(edition.posts_of(direction, question=event.about in texts, take=tick >= event.tick), rng)
            if tick < event.tick:
                text = words.format(m=companies.get(event.about, event.about))
            else:
                quoted = f"Event related to: {texts[event.about]}" if event.about in texts else f"{event.text}."
                text = f"{author.name}'s take on: {quoted} {words}"
            found.append(Post(tick, author.name, author.trust, text, event.about, direction, informed))
    when = stream(config.seed, config.edition, "chatter times")
    for tick in range(config.ticks):
        for number in range(times(model.chatter_per_hour * config.tick_hours, when.random())):
            rng = stream(config.seed, config.edition, "chatter", tick, number)
            markets = [*companies, *(question.id for question in crowds if question.open_at(tick))]
            if markets:
                about, author, direction = one_of(markets, rng), one_of(people, rng), int(rng.random() * 3) - 1
                text = one_of(edition.posts_of(direction, question=about not in companies), rng).format(m=companies.get(about, about))
                found.append(Post(tick, author.name, author.trust, text, about, direction, False))
    return tuple(sorted(found, key=lambda post: post.tick))
