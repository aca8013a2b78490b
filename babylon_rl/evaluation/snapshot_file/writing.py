"""Writing a snapshot file: a scenario played without agents, as the game's states and events.

A post or a piece of news can be read when its tick begins; prices and trades are dated when it ends, as the state after it is. What was
worth reading is listed with the dollars that following it with 1,000 $ would have brought: buying what the text speaks for when it can be
read, unlevered, and selling when its effect is over, fees paid, at the prices on the screen.
"""

import gzip
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from babylon_rl.evaluation.snapshot_file.best_plan import PolicyClass, best_plan
from babylon_rl.evaluation.snapshot_file.optimality import listed, optimum
from babylon_rl.evaluation.snapshot_file.schema import (
    MARKET_TRADE,
    POST_CREATED,
    PRICE_UPDATED,
    VERSION,
    Generator,
    GroundTruth,
    PerpetualMarket,
    Person,
    PredictionMarket,
    PricePoint,
    SnapshotDocument,
    SnapshotEvent,
    SocialOpportunity,
    State,
    Tick,
    camel_fields,
    encode,
)
from babylon_rl.market.simulation.config import MarketModel
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.perps import PerpBook
from babylon_rl.market.simulation.pools import Pool
from babylon_rl.market.simulation.scenario import FORMAT, Scenario

DAY_S = 86_400
PRICE_DECIMALS, PROBABILITY_DECIMALS, SHARE_DECIMALS, USD_DECIMALS = 6, 6, 4, 2
CROWD, NEWS = "crowd", "news"


class MarketRecording:
    """The market of a scenario, played without agents; ``states`` and ``ticks`` come in order, once."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.exchange = Exchange(scenario, [])
        self.people = people(scenario)
        self.initial_state = self._state({}, ())
        self._ids = {person.name: person.id for person in self.people}

    def ticks(self) -> Iterator[Tick]:
        """All ticks, from number 0 on."""
        state, volumes = self.initial_state, dict.fromkeys((question.id for question in self.scenario.questions), 0.0)
        for number in range(self.scenario.ticks):
            now = self.scenario.timestamp_ms(number + 1)
            before = {name: (pool.yes, pool.no) for name, pool in self.exchange.pools.items() if pool.resolved is None}
            self.exchange.advance()
            trades = [trade for name, shares in before.items() if (trade := self._trade(name, shares, now, volumes)) is not None]
            after = self._state(volumes, state.prediction_markets)
            moved = [
                SnapshotEvent(PRICE_UPDATED, now, {"ticker": new.ticker, "oldPrice": old.price, "newPrice": new.price})
                for old, new in zip(state.perpetual_markets, after.perpetual_markets, strict=True)
            ]
            yield Tick(number, now, (*self._texts(number), *moved, *trades), after)
            state = after

    def _state(self, volumes: dict[str, float], before: tuple[PredictionMarket, ...]) -> State:
        exchange = self.exchange
        shown = {market.id: market for market in before}
        questions = tuple(
            shown[name] if name in shown and shown[name].resolved else self._question(pool, volumes.get(name, 0.0))
            for name, pool in exchange.pools.items()
        )
        stocks = tuple(self._stock(book) for book in exchange.books.values())
        return State(exchange.tick, self.scenario.timestamp_ms(exchange.tick), questions, stocks, self.people)

    def _question(self, pool: Pool, volume: float) -> PredictionMarket:
        question, yes = pool.question, round(pool.yes_price, PROBABILITY_DECIMALS)
        return PredictionMarket(
            id=question.id,
            question=question.text,
            yes_shares=round(pool.yes, SHARE_DECIMALS),
            no_shares=round(pool.no, SHARE_DECIMALS),
            yes_price=yes,
            no_price=round(1.0 - yes, PROBABILITY_DECIMALS),
            total_volume=round(volume, USD_DECIMALS),
            liquidity=round(pool.yes + pool.no, SHARE_DECIMALS),
            resolved=pool.resolved is not None,
            created_at=self.scenario.timestamp_ms(question.created_tick),
            resolve_at=self.scenario.timestamp_ms(question.resolve_tick),
        )

    def _stock(self, book: PerpBook) -> PerpetualMarket:
        scenario, tick, asset = self.scenario, self.exchange.tick, book.asset
        number = tick // scenario.funding_ticks
        day = asset.prices[max(0, tick - DAY_S // scenario.tick_seconds)]
        return PerpetualMarket(
            ticker=asset.ticker,
            price=round(book.mark, PRICE_DECIMALS),
            price_change_24h=round(100.0 * (book.mark / day - 1.0), PRICE_DECIMALS),
            volume_24h=0.0,
            open_interest=0.0,
            funding_rate=asset.funding[number] if number < len(asset.funding) else 0.0,
            next_funding_time=scenario.timestamp_ms((number + 1) * scenario.funding_ticks),
        )

    def _trade(self, name: str, before: tuple[float, float], now: int, volumes: dict[str, float]) -> SnapshotEvent | None:
        """Trade by which the crowd moved a question as its belief moved; it pays YES by adding to the maker's NO shares."""
        pool = self.exchange.pools[name]
        amount = round(max(pool.yes - before[0], pool.no - before[1]), USD_DECIMALS) if pool.resolved is None else 0.0
        if amount <= 0.0:
            return None
        volumes[name] += amount
        outcome = "YES" if pool.no > before[1] else "NO"
        return SnapshotEvent(MARKET_TRADE, now, {"marketId": name, "agentId": CROWD, "outcome": outcome, "amount": amount})

    def _texts(self, tick: int) -> Iterator[SnapshotEvent]:
        now = self.scenario.timestamp_ms(tick)
        for event in self.scenario.events_at(tick):
            said = {"authorId": NEWS, "authorName": "News", "content": event.text, "about": event.about}
            yield SnapshotEvent(POST_CREATED, now, {**said, "clarity": event.clarity, "rumour": event.rumour})
        for post in self.scenario.posts_at(tick):
            author = self._ids.get(post.author, "unknown")
            yield SnapshotEvent(
                POST_CREATED,
                now,
                {"authorId": author, "authorName": post.author, "content": post.text, "about": post.about, "trust": post.trust},
            )


def people(scenario: Scenario) -> tuple[Person, ...]:
    """People who post, and silent ones up to the number of agents that the scenario was made for."""
    found = {author.name: author.trust for author in scenario.authors}
    for post in scenario.posts:
        found.setdefault(post.author, post.trust)
    wanted = scenario.config.agents if scenario.config is not None else 0
    found |= {f"Agent {number}": 0.5 for number in range(len(found) + 1, wanted + 1)}
    return tuple(Person(f"agent-{number}", name, round(100.0 * trust, 2), 0.0) for number, (name, trust) in enumerate(found.items(), 1))


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


ID_CHARACTERS = 16


def from_scenario(scenario: Scenario, policy: PolicyClass | None = None) -> SnapshotDocument:
    """Write a scenario as a snapshot; the same scenario gives the same bytes. Nothing is read from the clock.

    A scenario without a config (a recorded one) becomes a snapshot that is replayed from its states.
    """
    recording, config = MarketRecording(scenario), scenario.config
    plan = best_plan(scenario, policy=policy)
    return SnapshotDocument(
        id=_id(scenario),
        version=VERSION,
        created_at=scenario.start_ms,
        duration=scenario.ticks * scenario.tick_seconds,
        tick_interval=scenario.tick_seconds,
        initial_state=recording.initial_state,
        ticks=tuple(recording.ticks()),
        ground_truth=GroundTruth(
            market_outcomes={question.id: question.answer for question in scenario.questions},
            price_history=_price_history(scenario),
            optimal_actions=listed(plan),
            social_opportunities=opportunities(scenario),
            optimum=optimum(scenario, plan),
        ),
        seed=config.seed if config is not None else None,
        config=camel_fields(config) if config is not None else None,
        generator=_generator(scenario),
    )


def _generator(scenario: Scenario) -> Generator | None:
    if scenario.config is None:
        return None
    return Generator(FORMAT, scenario.digest, camel_fields(scenario.model if scenario.model is not None else MarketModel()))


def _price_history(scenario: Scenario) -> dict[str, tuple[PricePoint, ...]]:
    times = [scenario.timestamp_ms(tick) for tick in range(scenario.ticks + 1)]
    return {
        asset.ticker: tuple(
            PricePoint(tick, time, round(price, PRICE_DECIMALS)) for tick, (time, price) in enumerate(zip(times, asset.prices, strict=True))
        )
        for asset in scenario.assets
    }


def _id(scenario: Scenario) -> str:
    """From everything in the market, its config and seed included: two markets never share one."""
    return f"snapshot-{hashlib.sha256(f'{VERSION}/{scenario.digest}'.encode()).hexdigest()[:ID_CHARACTERS]}"


COMPRESSION = 6


def save(snapshot: SnapshotDocument, path: Path) -> int:
    """Write a snapshot, all of it or nothing; returns the bytes of the file.

    The JSON is the same everywhere; its compressed form depends on the zlib that compresses.
    """
    raw = encode(snapshot)
    if path.name.endswith(".gz"):
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=packed, mtime=0) as file:
            file.write(raw)
        raw = packed.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(raw)
    os.replace(part, path)
    return len(raw)
