"""World events by tick and market, their hidden effects, and posts about them, in the words of an edition.

An event's text has a direction; its market mostly goes there over the next ticks. Reports are right more often than rumours and move
more; a false report (``decoy``) moves its market the other way, a text without a direction (``noise``) moves nothing. What moves a
question goes to its answer a little more often than not; a stock goes either way.

Some posts are by people who know what an event will do, most by people who guess; nothing but their author tells them apart.

The frames are the game's: an event about a question reads ``Event related to: <question>``, a post about an event ``<author>'s take on:
<event>``. The game ends there; here a clause with a direction follows.
"""

from babylon_rl.market.headlines import Edition, edition_named
from babylon_rl.market.simulation.arithmetic import stream
from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from babylon_rl.market.simulation.questions import Asked, Crowd
from babylon_rl.market.simulation.scenario import Author, EventKind, Post, WorldEvent


def headline(edition: Edition, company: str, direction: int, rumour: bool, at: float) -> str:
    """An event about a company; ``at`` (0..1) chooses the text."""
    texts = {1: edition.good, -1: edition.bad, 0: edition.neutral}[direction]
    return ("Rumour: " if rumour else "") + texts[int(at * len(texts))].format(c=company)


def related(edition: Edition, question: str, direction: int, rumour: bool, at: float) -> str:
    """An event about a question, in the game's frame."""
    clauses = {1: edition.toward_yes, -1: edition.toward_no, 0: edition.no_news}[direction]
    return f"{'Rumour' if rumour else 'Event'} related to: {question} {clauses[int(at * len(clauses))]}"


def take(edition: Edition, author: str, event: str, question: str | None, direction: int, at: float) -> str:
    """A post about an event, in the game's frame. The event's text, or its ``question`` alone, and the author's view of it."""
    clauses = edition.posts_of(direction, question=question is not None, take=True)
    subject = f"Event related to: {question}" if question is not None else f"{event}."
    return f"{author}'s take on: {subject} {clauses[int(at * len(clauses))]}"


def times(per_tick: float, at: float) -> int:
    """Number of events in a tick. Their mean, up or down to a whole number as ``at`` (0..1) falls."""
    return int(per_tick) + (at < per_tick - int(per_tick))


def tell(config: ScenarioConfig, model: MarketModel, companies: dict[str, str], crowds: tuple[Crowd, ...]) -> tuple[WorldEvent, ...]:
    """All events in the order of ticks. ``companies`` are names by ticker. Plays the crowds of all questions to the end."""
    rate = config.events_per_hour if config.events_per_hour is not None else model.events_per_hour
    when = stream(config.seed, config.edition, "event times")
    found = []
    for tick in range(config.ticks):
        open_crowds = {crowd.asked.id: crowd for crowd in crowds if crowd.asked.open_at(tick)}
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
    strength = round(_within(model.strength, rng.random()) * (model.rumour_strength if rumour else 1.0), 4)
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
        text = headline(edition, company, direction, rumour, rng.random())
    else:
        text = related(edition, crowds[about].asked.text, direction, rumour, rng.random())
    return WorldEvent(tick, about, text, direction, clarity, rumour, category, strength, kind, effect, lasts)


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
    asked: tuple[Asked, ...],
    events: tuple[WorldEvent, ...],
) -> tuple[Post, ...]:
    """All posts in the order of ticks."""
    if not people:
        return ()
    found, texts = [], {question.id: question.text for question in asked}
    for number, event in enumerate(events):
        rng = stream(config.seed, config.edition, "post", event.tick, number)
        for _ in range(times(model.posts_per_event, rng.random())):
            early, delay = rng.random() < model.post_early, int(rng.random() * event.ticks)
            tick = max(0, event.tick - 1) if early else min(config.ticks - 1, event.tick + delay)
            author = people[int(rng.random() * len(people))]
            informed = rng.random() < author.trust
            guess = 1 if rng.random() < 0.5 else -1
            direction = (event.effect > 0) - (event.effect < 0) if informed else guess
            if tick < event.tick:
                found.append(_post(config, companies, tick, author, event.about, direction, informed, rng.random()))
            else:
                text = take(edition_named(config.edition), author.name, event.text, texts.get(event.about), direction, rng.random())
                found.append(Post(tick, author.name, author.trust, text, event.about, direction, informed))
    when = stream(config.seed, config.edition, "chatter times")
    for tick in range(config.ticks):
        for number in range(times(model.chatter_per_hour * config.tick_hours, when.random())):
            rng = stream(config.seed, config.edition, "chatter", tick, number)
            markets = [*companies, *(question.id for question in asked if question.open_at(tick))]
            if markets:
                about, author = markets[int(rng.random() * len(markets))], people[int(rng.random() * len(people))]
                found.append(_post(config, companies, tick, author, about, int(rng.random() * 3) - 1, False, rng.random()))
    return tuple(sorted(found, key=lambda post: post.tick))


def _post(
    config: ScenarioConfig, companies: dict[str, str], tick: int, author: Author, about: str, direction: int, informed: bool, at: float
) -> Post:
    texts = edition_named(config.edition).posts_of(direction, question=about not in companies)
    text = texts[int(at * len(texts))].format(m=companies.get(about, about))
    return Post(tick, author.name, author.trust, text, about, direction, informed)
