"""What was worth reading: news and posts of authors who knew, each with the dollars that following it with 1,000 $ would have brought.

Following means buying what the text speaks for when it can be read, unlevered, and selling when its effect is over, fees paid, at the
prices on the screen.
"""

from collections.abc import Iterator

from babylon_rl.evaluation.snapshot_file.schema import SocialOpportunity
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.scenario import Scenario

STAKE_USD = 1_000.0
VALUE_DECIMALS = 2


def opportunities(scenario: Scenario, model: MarketModel | None = None) -> tuple[SocialOpportunity, ...]:
    """Texts that were worth something, in the order of ticks."""
    model = model or scenario.model or MarketModel()
    return tuple(sorted((found for found in _all(scenario, model) if found.value > 0.0), key=lambda found: found.tick))


def _all(scenario: Scenario, model: MarketModel) -> Iterator[SocialOpportunity]:
    lasts = max(1, round(model.event_minutes * 60 / scenario.tick_seconds))
    for event in scenario.events:
        value = _value(scenario, model, event.about, event.direction, event.tick, event.tick + event.ticks)
        kind = "rumour" if event.rumour else "news"
        yield SocialOpportunity(event.tick, kind, value, f"{event.text} ({event.about})", event.about)
    for post in scenario.posts:
        if post.informed:
            value = _value(scenario, model, post.about, post.direction, post.tick, post.tick + lasts)
            yield SocialOpportunity(post.tick, "informed_post", value, f"{post.author}: {post.text}", post.about)


def _value(scenario: Scenario, model: MarketModel, about: str, direction: int, tick: int, until: int) -> float:
    """Dollars brought by going ``direction`` in a market from ``tick`` to ``until``; 0 when it cannot be traded then."""
    stocks = {asset.ticker for asset in scenario.assets}
    until = min(until, scenario.ticks)
    if about in stocks:
        prices = scenario.asset(about).prices
        ratio = prices[until] / prices[tick]
        return round(STAKE_USD * (direction * (ratio - 1.0) - model.fee * (1.0 + ratio)), VALUE_DECIMALS) if direction else 0.0
    question = next((question for question in scenario.questions if question.id == about), None)
    if question is None or not direction or not question.created_tick <= tick < question.resolve_tick:
        return 0.0
    until = min(until, question.resolve_tick - 1)
    bought, sold = ((p if direction > 0 else 1.0 - p) for p in (question.crowd[tick], question.crowd[until]))
    ratio = sold / bought
    return round(STAKE_USD * (ratio - 1.0 - model.fee * (1.0 + ratio)), VALUE_DECIMALS)
