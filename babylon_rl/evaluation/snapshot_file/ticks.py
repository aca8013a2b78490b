"""A scenario as the game's states and events: what its market shows, tick by tick, while no agent trades.

A post or a piece of news can be read when its tick begins; prices and trades are dated when it ends, as the state after it is.
"""

from collections.abc import Iterator

from babylon_rl.evaluation.snapshot_file.schema import (
    MARKET_TRADE,
    POST_CREATED,
    PRICE_UPDATED,
    Event,
    PerpetualMarket,
    Person,
    PredictionMarket,
    State,
    Tick,
)
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.perps import PerpBook
from babylon_rl.market.simulation.pools import Pool
from babylon_rl.market.simulation.scenario import Scenario

DAY_S = 86_400
PRICE_DECIMALS, PROBABILITY_DECIMALS, SHARE_DECIMALS, USD_DECIMALS = 6, 6, 4, 2
CROWD, NEWS = "crowd", "news"


class Recording:
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
                Event(PRICE_UPDATED, now, {"ticker": new.ticker, "oldPrice": old.price, "newPrice": new.price})
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

    def _trade(self, name: str, before: tuple[float, float], now: int, volumes: dict[str, float]) -> Event | None:
        """What the crowd paid to move a question as its belief moved; it pays YES by adding to the maker's NO shares."""
        pool = self.exchange.pools[name]
        amount = round(max(pool.yes - before[0], pool.no - before[1]), USD_DECIMALS) if pool.resolved is None else 0.0
        if amount <= 0.0:
            return None
        volumes[name] += amount
        outcome = "YES" if pool.no > before[1] else "NO"
        return Event(MARKET_TRADE, now, {"marketId": name, "agentId": CROWD, "outcome": outcome, "amount": amount})

    def _texts(self, tick: int) -> Iterator[Event]:
        now = self.scenario.timestamp_ms(tick)
        for event in self.scenario.events_at(tick):
            said = {"authorId": NEWS, "authorName": "News", "content": event.text, "about": event.about}
            yield Event(POST_CREATED, now, {**said, "clarity": event.clarity, "rumour": event.rumour})
        for post in self.scenario.posts_at(tick):
            author = self._ids.get(post.author, "unknown")
            yield Event(
                POST_CREATED,
                now,
                {"authorId": author, "authorName": post.author, "content": post.text, "about": post.about, "trust": post.trust},
            )


def people(scenario: Scenario) -> tuple[Person, ...]:
    """Those who post, and silent ones up to the number of agents that the scenario was made for."""
    found = {author.name: author.trust for author in scenario.authors}
    for post in scenario.posts:
        found.setdefault(post.author, post.trust)
    wanted = scenario.config.agents if scenario.config is not None else 0
    found |= {f"Agent {number}": 0.5 for number in range(len(found) + 1, wanted + 1)}
    return tuple(Person(f"agent-{number}", name, round(100.0 * trust, 2), 0.0) for number, (name, trust) in enumerate(found.items(), 1))
