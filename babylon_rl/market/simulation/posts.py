"""Posts: some by people who know what an event will do, most by people who guess; nothing but their author tells them apart."""

from babylon_rl.market.simulation.arithmetic import stream
from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from babylon_rl.market.simulation.events import times
from babylon_rl.market.simulation.questions import Asked
from babylon_rl.market.simulation.scenario import Author, Post, WorldEvent
from babylon_rl.market.simulation.wording import WORDS, take


def authors(config: ScenarioConfig, model: MarketModel) -> tuple[Author, ...]:
    """Who writes, and how often each knows what they write about."""
    names = list(WORDS[config.edition].authors)
    stream(config.seed, config.edition, "authors").shuffle(names)
    return tuple(Author(name, round(stream(config.seed, config.edition, "trust", name).random(), 2)) for name in names[: model.authors])


def write(
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
                text = take(WORDS[config.edition], author.name, event.text, texts.get(event.about), direction, rng.random())
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
    texts = WORDS[config.edition].of(direction, question=about not in companies)
    text = texts[int(at * len(texts))].format(m=companies.get(about, about))
    return Post(tick, author.name, author.trust, text, about, direction, informed)
