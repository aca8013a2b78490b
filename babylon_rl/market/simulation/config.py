"""Configuration of a scenario (``ScenarioConfig``, with presets) and of its market (``MarketModel``).

Both are frozen values without defaults hidden elsewhere: the same config and model give the same scenario. All rates are per hour,
volatilities per square root of an hour, effects in log price or log-odds, so that none depends on the length of a tick.
"""

import math
from typing import Any

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.headlines import EDITIONS, TRAINING, edition_named

START_BALANCE = 10_000.0
START_MS = 1_735_689_600_000  # 2025-01-01T00:00Z, in milliseconds
HOUR_S = 3600.0


class ScenarioConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Size of a market to generate.

    Attributes:
        minutes: its length; tick_seconds: the length of a tick, in which every agent acts once.
        predictions, perps: how many questions and how many stocks (perpetuals) are traded.
        agents: how many agents the scenario is meant for; the engine takes any number.
        seed: an integer (0 included) or a text; ``7`` and ``"7"`` are the same seed.
        edition: whose words it is written in, one of EDITIONS.
        start_ms: the time of tick 0 in milliseconds since 1970, UTC.
        resolving: the share of the questions whose answer is published before the end; the others stay open past it.
        events_per_hour: of each market on average, instead of the model's.

    Raises:
        MarketError: a value is out of range.
    """

    minutes: int
    tick_seconds: int = 60
    predictions: int = 5
    perps: int = 3
    agents: int = 8
    seed: int | str = 12345
    edition: str = TRAINING
    start_ms: int = START_MS
    resolving: float = 1.0
    events_per_hour: float | None = None

    def __post_init__(self) -> None:
        wrong = [f"{name} is {value!r}, allowed is {allowed}" for name, value, allowed, good in self._limits() if not good]
        if wrong:
            raise MarketError(f"A scenario cannot be made so: {'; '.join(wrong)}.")

    def _limits(self) -> list[tuple[str, Any, str, bool]]:
        rate = self.events_per_hour
        words = edition_named(self.edition) if self.edition in EDITIONS else None
        questions = len(words.questions) * len(words.companies) if words else 0
        whole = self.tick_seconds > 0 and self.minutes > 0 and (self.minutes * 60) % self.tick_seconds == 0
        return [
            ("edition", self.edition, " or ".join(EDITIONS), words is not None),
            ("minutes", self.minutes, f"a positive number of whole ticks of {self.tick_seconds} s", whole),
            ("predictions", self.predictions, f"0 to {questions}", words is None or 0 <= self.predictions <= questions),
            ("perps", self.perps, f"0 to {len(words.companies) if words else 0}", words is None or 0 <= self.perps <= len(words.companies)),
            ("predictions + perps", self.predictions + self.perps, "1 or more", self.predictions + self.perps > 0),
            ("agents", self.agents, "0 or more", self.agents >= 0),
            ("start_ms", self.start_ms, "0 or more", self.start_ms >= 0),
            ("resolving", self.resolving, "0 to 1", 0.0 <= self.resolving <= 1.0),
            ("events_per_hour", rate, "0 or more, finite", rate is None or 0.0 <= rate < math.inf),
        ]

    @property
    def ticks(self) -> int:
        """How many ticks are played; the market has ``ticks + 1`` moments, 0 to ticks."""
        return self.minutes * 60 // self.tick_seconds

    @property
    def tick_hours(self) -> float:
        return self.tick_seconds / HOUR_S


PRESETS: dict[str, ScenarioConfig] = {
    "quick": ScenarioConfig(minutes=30, tick_seconds=60, predictions=5, perps=3, agents=8, seed=12345),
    "week": ScenarioConfig(minutes=10_080, tick_seconds=60, predictions=10, perps=5, agents=8, seed=12345),
    # an hour as policies are trained on: with four markets one event a tick, whose effect is over before the next one
    "hour": ScenarioConfig(minutes=60, tick_seconds=300, predictions=1, perps=3, agents=5, resolving=0.0),
}


def preset(name: str, **changes: Any) -> ScenarioConfig:
    """The preset of that name with some fields changed. Raises MarketError: there is no such preset, or a value is out of range."""
    if name not in PRESETS:
        raise MarketError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    return msgspec.structs.replace(PRESETS[name], **changes)


class Regime(msgspec.Struct, frozen=True):
    """How a stock moves while the regime ``name`` lasts.

    Attributes:
        share: how often it is entered, relative to the others.
        volatility: factor on the stock's noise.
        trend_per_hour: mean size of a drift of the usual stock's log price (sign and size drawn on entry).
        reversion_per_hour: how fast the distance to the fundamental closes; on entry the fundamental is where the price is.
    """

    name: str
    share: float
    volatility: float
    trend_per_hour: float
    reversion_per_hour: float


class MarketModel(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of the simulated market.

    Unless said otherwise a value is that of the small hour on which policies learnt to trade; docs say how each compares with a
    recorded game.

    Attributes (prices):
        volatility: of a log price, per square root of an hour, from noise around and of the fundamental together.
        fundamental_share: the share of that variance which is the fundamental's own walk, and stays in any regime.
        volatility_spread: a stock's volatility and trends are the common ones times 1 +- up to this.
        regimes: calm, trending and reverting markets; regime_hours: how long one lasts on average.
        price_decimals: to which prices are rounded.
    Attributes (events):
        events_per_hour: of each open market on average; question_weight: how often one is about a question, relative to a stock.
        neutral_share: events about a stock that say nothing (kind ``noise``); question_neutral_share: about a question.
        rumour_share: of the events with a direction; rumour_strength: their effect, relative to a report's.
        report_truth, rumour_truth: how often the market goes where the text says; else it goes the other way (a false report is a
            ``decoy``).
        strength: range of an event's strength, uniform; event_effect: log price moved by strength 1; question_effect: log-odds.
        event_minutes: how long an effect takes, evenly, from the tick after the text was read.
        report_clarity, rumour_clarity, neutral_clarity: ranges of how plainly a text speaks, 0 to 1.
        categories: types of events with their shares; they say nothing of a direction.
    Attributes (questions):
        question_start: starting log-odds lie evenly within +- this; question_limit: log-odds stay within +- this, and move less near it.
        question_volatility: of the crowd's log-odds per square root of an hour, beside what events make of them.
        pool_shares: the maker's depth, the root of YES times NO shares.
    Attributes (posts):
        posts_per_event: about an event while its effect lasts; a post of an author with trust t knows the effect with probability t,
            else it guesses. post_early: the share of them written a tick before the event.
        chatter_per_hour: posts that know nothing; authors: how many people write.
    Attributes (trading):
        fee: share of the dollars traded, on each side.
        impact_per_usd: log price moved by a dollar of stock bought, at the scenario's first price; max_impact: the largest distance
            in log price that orders may push a stock to, and the largest position in the same measure.
        recovery_per_hour: how fast what agents did to a price fades, in stocks and in pools.
        max_leverage, maintenance: a position is liquidated when its margin with its profit is at most ``maintenance`` of its worth.
        funding_hours: time between fundings; funding_per_premium: rate per log distance of price above fundamental; max_funding: its
            bound, per interval.
        min_order_usd: smaller orders are refused.
    """

    volatility: float = 0.0349  # 0.0045 per square root of a minute
    fundamental_share: float = 0.1
    volatility_spread: float = 0.6
    regimes: tuple[Regime, ...] = (
        Regime("calm", 0.5, 0.9, 0.0, 0.1),
        Regime("trending", 0.25, 0.95, 0.04, 0.0),
        Regime("reverting", 0.25, 1.1, 0.0, 3.0),
    )
    regime_hours: float = 2.0
    price_decimals: int = 6

    events_per_hour: float = 3.0
    question_weight: float = 0.64
    neutral_share: float = 0.15
    question_neutral_share: float = 0.3
    rumour_share: float = 0.15
    rumour_strength: float = 0.6
    report_truth: float = 0.90
    rumour_truth: float = 0.62
    strength: tuple[float, float] = (0.5, 1.5)
    event_effect: float = 0.024
    question_effect: float = 0.28
    event_minutes: float = 5.0
    report_clarity: tuple[float, float] = (0.7, 1.0)
    rumour_clarity: tuple[float, float] = (0.3, 0.6)
    neutral_clarity: tuple[float, float] = (0.0, 0.2)
    categories: tuple[tuple[str, float], ...] = (
        ("announcement", 1.0), ("conflict", 1.0), ("deal", 1.0), ("revelation", 1.0), ("scandal", 1.0),
    )  # fmt: skip

    question_start: float = 1.0
    question_limit: float = 3.5
    question_volatility: float = 0.232  # 0.03 per square root of a minute
    pool_shares: float = 20_000.0

    posts_per_event: float = 1.0
    post_early: float = 0.25
    chatter_per_hour: float = 6.0
    authors: int = 12

    fee: float = 0.001
    impact_per_usd: float = 2e-7
    max_impact: float = 0.05
    recovery_per_hour: float = 1.0
    max_leverage: float = 10.0
    maintenance: float = 0.05
    funding_hours: float = 8.0
    funding_per_premium: float = 0.02
    max_funding: float = 0.00075
    min_order_usd: float = 1.0
