"""Conversion between scenarios and snapshot files: write, save, load and replay.

Writing plays a scenario without agents, as the game's states and events. A post or a piece of news can be read when its tick begins; prices
and trades are dated when it ends, as the state after it is. Reading writes a snapshot of ours again from its config and compares, so that
the hidden parts come back and changes are found. Any other snapshot is replayed: its stocks and questions follow its recorded prices,
whatever agents do on top.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file import schema
from babylon_rl.evaluation.snapshot_file.validation import validate
from babylon_rl.files.durable import write_atomically
from babylon_rl.market.simulation.config import START_BALANCE, MarketModel, ScenarioConfig
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.ledger import Fill, Settlement
from babylon_rl.market.simulation.record import AgentRecord
from babylon_rl.market.simulation.scenario import FORMAT, Asset, Post, Question, Scenario, from_paths
from babylon_rl.market.simulation.strategies import oracle_play
from babylon_rl.market.simulation.venue import PerpBook, Pool

DAY_S = 86_400
PRICE_DECIMALS, PROBABILITY_DECIMALS, SHARE_DECIMALS, USD_DECIMALS = 6, 6, 4, 2
CROWD, NEWS = "crowd", "news"
STAKE_USD = 1_000.0  # behind each listed opportunity
COMPRESSION = 6
GZIP_MAGIC = b"\x1f\x8b"
CERTAIN = 1e-6  # prices of 0 and 1 are replayed as this far from them: a pool cannot hold them
LEANING_WORDS = {"bullish": 1, "bearish": -1}  # words of the direction in the game's posts


class MarketRecording:
    """The market of a scenario, played without agents; ``ticks`` come in order, once."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.exchange = Exchange(scenario, [])
        self.people = people(scenario)
        self.initial_state = self._state({}, ())
        self._ids = {person.name: person.id for person in self.people}

    def ticks(self) -> Iterator[schema.Tick]:
        state, volumes = self.initial_state, dict.fromkeys((question.id for question in self.scenario.questions), 0.0)
        for number in range(self.scenario.ticks):
            now = self.scenario.timestamp_ms(number + 1)
            # Resolved questions do not trade any more.
            before = {name: (pool.yes, pool.no) for name, pool in self.exchange.pools.items() if pool.resolved is None}
            self.exchange.advance()
            trades = [trade for name, shares in before.items() if (trade := self._trade(name, shares, now, volumes)) is not None]
            after = self._state(volumes, state.prediction_markets)
            moved = [
                schema.SnapshotEvent(schema.PRICE_UPDATED, now, {"ticker": new.ticker, "oldPrice": old.price, "newPrice": new.price})
                for old, new in zip(state.perpetual_markets, after.perpetual_markets, strict=True)
            ]
            yield schema.Tick(number, now, (*self._texts(number), *moved, *trades), after)
            state = after

    def _state(self, volumes: dict[str, float], before: tuple[schema.PredictionMarket, ...]) -> schema.State:
        exchange = self.exchange
        shown = {market.id: market for market in before}
        questions = tuple(
            # A resolved question keeps its last prices.
            shown[name] if name in shown and shown[name].resolved else self._question(pool, volumes.get(name, 0.0))
            for name, pool in exchange.pools.items()
        )
        stocks = tuple(self._stock(book) for book in exchange.books.values())
        return schema.State(exchange.tick, self.scenario.timestamp_ms(exchange.tick), questions, stocks, self.people)

    def _question(self, pool: Pool, volume: float) -> schema.PredictionMarket:
        # NO from the rounded YES, so that both are 1 together.
        question, yes = pool.question, round(pool.yes_price, PROBABILITY_DECIMALS)
        return schema.PredictionMarket(
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

    def _stock(self, book: PerpBook) -> schema.PerpetualMarket:
        scenario, tick, asset = self.scenario, self.exchange.tick, book.asset
        number = tick // scenario.funding_ticks
        # Change over 24 hours, or since the start of a shorter market.
        day = asset.prices[max(0, tick - DAY_S // scenario.tick_seconds)]
        return schema.PerpetualMarket(
            ticker=asset.ticker,
            price=round(book.mark, PRICE_DECIMALS),
            price_change_24h=round(100.0 * (book.mark / day - 1.0), PRICE_DECIMALS),
            volume_24h=0.0,
            open_interest=0.0,
            funding_rate=asset.funding[number] if number < len(asset.funding) else 0.0,
            next_funding_time=scenario.timestamp_ms((number + 1) * scenario.funding_ticks),
        )

    def _trade(self, name: str, before: tuple[float, float], now: int, volumes: dict[str, float]) -> schema.SnapshotEvent | None:
        """The crowd's trade that moved a question to its belief. It pays YES by adding to the maker's NO shares."""
        pool = self.exchange.pools[name]
        # A move that rounds to nothing is no trade.
        amount = round(max(pool.yes - before[0], pool.no - before[1]), USD_DECIMALS) if pool.resolved is None else 0.0
        if amount <= 0.0:
            return None
        volumes[name] += amount
        outcome = "YES" if pool.no > before[1] else "NO"
        return schema.SnapshotEvent(schema.MARKET_TRADE, now, {"marketId": name, "agentId": CROWD, "outcome": outcome, "amount": amount})

    def _texts(self, tick: int) -> Iterator[schema.SnapshotEvent]:
        now = self.scenario.timestamp_ms(tick)
        for event in self.scenario.events_at(tick):
            content = {"authorId": NEWS, "authorName": "News", "content": event.text, "about": event.about}
            yield schema.SnapshotEvent(schema.POST_CREATED, now, {**content, "clarity": event.clarity, "rumour": event.rumour})
        for post in self.scenario.posts_at(tick):
            author = self._ids.get(post.author, "unknown")
            yield schema.SnapshotEvent(
                schema.POST_CREATED,
                now,
                {"authorId": author, "authorName": post.author, "content": post.text, "about": post.about, "trust": post.trust},
            )


def people(scenario: Scenario) -> tuple[schema.Person, ...]:
    """Authors of posts, and silent people up to the scenario's number of agents."""
    trust_by_name = {author.name: author.trust for author in scenario.authors}
    for post in scenario.posts:
        trust_by_name.setdefault(post.author, post.trust)
    count = scenario.config.agents if scenario.config is not None else 0
    trust_by_name |= {f"Agent {number}": 0.5 for number in range(len(trust_by_name) + 1, count + 1)}
    return tuple(
        schema.Person(f"agent-{number}", name, round(100.0 * trust, 2), 0.0)
        for number, (name, trust) in enumerate(trust_by_name.items(), 1)
    )


def opportunities(scenario: Scenario) -> tuple[schema.SocialOpportunity, ...]:
    """Posts and news with a profitable direction, in order of ticks.

    The value is that of following a text with STAKE_USD: buying what it speaks for when it can be read, unlevered, and selling when its
    effect is over, fees paid, at the prices on the screen.
    """
    model, found = scenario.model or MarketModel(), list[schema.SocialOpportunity]()
    lasts = max(1, round(model.event_minutes * 60 / scenario.tick_seconds))
    for event in scenario.events:
        value = _value(scenario, model, event.about, event.direction, event.tick, event.tick + event.ticks)
        kind = "rumour" if event.rumour else "news"
        found.append(schema.SocialOpportunity(event.tick, kind, value, f"{event.text} ({event.about})", event.about))
    for post in (post for post in scenario.posts if post.informed):
        value = _value(scenario, model, post.about, post.direction, post.tick, post.tick + lasts)
        found.append(schema.SocialOpportunity(post.tick, "informed_post", value, f"{post.author}: {post.text}", post.about))
    return tuple(sorted((one for one in found if one.value > 0.0), key=lambda opportunity: opportunity.tick))


def _value(scenario: Scenario, model: MarketModel, about: str, direction: int, tick: int, until: int) -> float:
    """Dollars from holding ``direction`` in a market from ``tick`` to ``until``. 0 when it cannot be traded then."""
    stocks = {asset.ticker for asset in scenario.assets}
    until = min(until, scenario.ticks)
    # Fees are paid on both trades, the second at the new price.
    if about in stocks:
        prices = scenario.asset(about).prices
        ratio = prices[until] / prices[tick]
        return round(STAKE_USD * (direction * (ratio - 1.0) - model.fee * (1.0 + ratio)), USD_DECIMALS) if direction else 0.0
    question = next((question for question in scenario.questions if question.id == about), None)
    if question is None or not direction or not question.open_at(tick):
        return 0.0
    # The last tick at which it can be sold: at the next one it is answered.
    until = min(until, question.resolve_tick - 1)
    # NO costs the complement of the crowd's probability.
    bought, sold = ((p if direction > 0 else 1.0 - p) for p in (question.crowd[tick], question.crowd[until]))
    ratio = sold / bought
    return round(STAKE_USD * (ratio - 1.0 - model.fee * (1.0 + ratio)), USD_DECIMALS)


def from_scenario(scenario: Scenario) -> schema.SnapshotDocument:
    """Write a scenario as a snapshot; the same scenario gives the same bytes.

    A scenario without a config (a recorded one) becomes a snapshot that is replayed from its states.
    """
    recording, config = MarketRecording(scenario), scenario.config
    record, times = oracle_play(scenario), [scenario.timestamp_ms(tick) for tick in range(scenario.ticks + 1)]
    # From the whole content of the market, so that two markets never share an id.
    digest = hashlib.sha256(f"{schema.VERSION}/{scenario.digest}".encode()).hexdigest()
    return schema.SnapshotDocument(
        id=f"snapshot-{digest[:16]}",
        version=schema.VERSION,
        created_at=scenario.start_ms,
        duration=scenario.ticks * scenario.tick_seconds,
        tick_interval=scenario.tick_seconds,
        initial_state=recording.initial_state,
        ticks=tuple(recording.ticks()),
        ground_truth=schema.GroundTruth(
            market_outcomes={question.id: question.answer for question in scenario.questions},
            price_history={
                asset.ticker: tuple(
                    schema.PricePoint(tick, time, round(price, PRICE_DECIMALS))
                    for tick, (time, price) in enumerate(zip(times, asset.prices, strict=True))
                )
                for asset in scenario.assets
            },
            optimal_actions=optimal_actions(record),
            social_opportunities=opportunities(scenario),
            optimum=optimum(record),
        ),
        seed=config.seed if config is not None else None,
        config=schema.camel_fields(config) if config is not None else None,
        generator=schema.Generator(FORMAT, scenario.digest, schema.camel_fields(scenario.model or MarketModel()))
        if config is not None
        else None,
    )


def save(snapshot: schema.SnapshotDocument, path: Path) -> int:
    """Write a snapshot file atomically; returns its size in bytes.

    The JSON is the same everywhere; its compressed form depends on the zlib that compresses.
    """
    raw = schema.encode(snapshot)
    if path.name.endswith(".gz"):
        # Without a time stamp, so that the same market gives the same file.
        raw = gzip.compress(raw, COMPRESSION, mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, raw)
    return len(raw)


def load(path: Path) -> schema.SnapshotDocument:
    """Read a snapshot, ours or the game's, and check it.

    Raises:
        MarketError: there is no such file, it is not a snapshot of this version, or it contradicts itself; a sentence per problem.
    """
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MarketError(f"There is no snapshot {path}; `babylon-rl benchmark generate --out {path}` writes one.") from error
    try:
        snapshot = schema.decode(gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MarketError(f"The snapshot {path} is damaged or cut off: {error}. Copy or generate it again.") from error
    except MarketError as error:
        raise MarketError(f"The snapshot {path} cannot be read. {error}") from error
    errors, _ = validate(snapshot)
    if errors:
        raise MarketError("\n".join([f"The snapshot {path} contradicts itself:", *(f"- {error}" for error in errors)]))
    return snapshot


def to_scenario(snapshot: schema.SnapshotDocument) -> Scenario:
    """The market of a snapshot that `validate` finds no errors in.

    Raises:
        MarketError: a snapshot of ours that its config does not give: written by another version, or changed since.
    """
    generator = snapshot.generator
    if snapshot.config is None or generator is None:
        return _replayed(snapshot)
    config = schema.read_fields(snapshot.config, ScenarioConfig, "config")
    # Cheap checks before the market is generated again.
    if config.ticks != len(snapshot.ticks):
        raise MarketError(f"Snapshot {snapshot.id} has {len(snapshot.ticks)} ticks, its config asks for {config.ticks}. Generate it again.")
    scenario = generate(config, schema.read_fields(generator.model, MarketModel, "market model"))
    if generator.format != FORMAT or scenario.digest != generator.scenario:
        raise MarketError(
            f"Snapshot {snapshot.id} was written by another version of the generator (format {generator.format}, this is {FORMAT}; its "
            "market comes out differently now). Generate it again, or play it with the version that wrote it."
        )
    outcomes = {question.id: question.answer for question in scenario.questions}
    if snapshot.ground_truth.market_outcomes != outcomes:
        raise MarketError(f"Snapshot {snapshot.id} was changed: its outcomes are not those of its config. Generate it again.")
    recording = MarketRecording(scenario)
    changed = (f"at tick {given.number}" for given, expected in zip(snapshot.ticks, recording.ticks(), strict=True) if given != expected)
    where = next(changed, None) if recording.initial_state == snapshot.initial_state else "at its start"
    if where is not None:
        raise MarketError(f"Snapshot {snapshot.id} was changed {where}: its config gives another market. Generate it again.")
    return scenario


def optimum_of(snapshot: schema.SnapshotDocument) -> schema.Optimum:
    """Optimum of a snapshot, from its ground truth or its recorded market. The game's own snapshots say none."""
    if snapshot.ground_truth.optimum is not None:
        return snapshot.ground_truth.optimum
    return optimum(oracle_play(to_scenario(snapshot)))


def _replayed(snapshot: schema.SnapshotDocument) -> Scenario:
    states = snapshot.states()
    first = states[0]
    ms = snapshot.tick_interval * 1000
    # The first funding time tells the funding interval.
    ahead = min((market.next_funding_time for market in first.perpetual_markets), default=0) - first.timestamp
    every = max(1, (ahead + ms // 2) // ms if ahead > 0 else 8 * 3600 // snapshot.tick_interval)
    stocks = [
        Asset(
            market.ticker,
            market.ticker,
            tuple(state.perpetual_markets[row].price for state in states),
            funding=tuple(_rate(states[tick - 1], row) for tick in range(every, len(states), every)),
        )
        for row, market in enumerate(first.perpetual_markets)
    ]
    return from_paths(
        tick_seconds=snapshot.tick_interval,
        assets=stocks,
        questions=_questions(snapshot, states),
        posts=[post for tick in snapshot.ticks for event in tick.events if (post := _post(snapshot, tick.number, event)) is not None],
        start_ms=first.timestamp,
        funding_ticks=every,
    )


def _rate(state: schema.State, row: int) -> float:
    rate = state.perpetual_markets[row].funding_rate
    return rate if -1.0 < rate < 1.0 else 0.0


def _questions(snapshot: schema.SnapshotDocument, states: tuple[schema.State, ...]) -> list[Question]:
    """Questions of all states, each from the first state that shows it. Before it and after its answer the last price stands."""
    seen: dict[str, dict[int, schema.PredictionMarket]] = {}
    for tick, state in enumerate(states):
        for market in state.prediction_markets:
            seen.setdefault(market.id, {})[tick] = market
    questions, start, ms = [], states[0].timestamp, snapshot.tick_interval * 1000
    for number, (name, shown) in enumerate(seen.items(), 1):
        created = min(shown)
        # A question without an answer in the market ends after it.
        answered = next((tick for tick, market in shown.items() if market.resolved), None)
        # Rounded up: an answer that is due within a tick comes at its end.
        resolve = answered if answered is not None else -((start - shown[created].resolve_at) // ms)
        price, crowd = shown[created].yes_price, []
        for tick in range(len(states)):
            if tick in shown and not shown[tick].resolved:
                price = shown[tick].yes_price
            crowd.append(min(1.0 - CERTAIN, max(CERTAIN, price)))
        answer = snapshot.ground_truth.market_outcomes[name]
        questions.append(Question(name, number, shown[created].question, answer, tuple(crowd), created, max(created + 1, resolve)))
    return questions


def _post(snapshot: schema.SnapshotDocument, tick: int, event: schema.SnapshotEvent) -> Post | None:
    """A post from a game's event. Market and direction are read from its text where the event does not state them."""
    if event.type != schema.POST_CREATED:
        return None
    texts = {name: value for name, value in event.data.items() if isinstance(value, str)}
    text, author = texts.get("content", ""), texts.get("authorName", texts.get("authorId", "unknown"))
    first = snapshot.initial_state
    # The game's posts name their market only in the text.
    names = {market.question: market.id for market in first.prediction_markets} | {m.ticker: m.ticker for m in first.perpetual_markets}
    about = texts.get("about") or next((name for words, name in names.items() if words in text), "")
    trust = event.data.get("trust")
    if not isinstance(trust, int | float):
        trust = next((person.reputation / 100.0 for person in first.agents if person.id == texts.get("authorId")), 0.5)
    direction = next((sign for word, sign in LEANING_WORDS.items() if word in text.lower().split()), 0)
    return Post(tick, author, min(1.0, max(0.0, float(trust))), text, about, direction, False)


_REASONS = {"one-tick": "The best order for one tick", "free": "A swing that is larger than what entering and leaving cost"}


def optimum(record: AgentRecord) -> schema.Optimum:
    """The play's P&L in dollars, with its start balance."""
    return schema.Optimum(pnl=round(record.pnl_usd, USD_DECIMALS), start_balance=START_BALANCE, policy=f"oracle, {record.mandate}")


def optimal_actions(record: AgentRecord) -> tuple[schema.OptimalAction, ...]:
    """Trades of a play in the form of a snapshot, in order of ticks.

    An opening's value is the profit of its position after fees; 0 for one that is open at the end.
    """
    fills = [outcome for outcome in record.outcomes if isinstance(outcome, Fill) and outcome.market]
    fills += [fill for closed in record.closed.values() for fill in closed]
    profits: dict[str, list[float]] = {}
    ends: list[Fill | Settlement] = [*fills, *record.settled]
    for end in ends:
        profits.setdefault(end.position, []).append(end.profit or 0.0)
    actions = []
    for fill in sorted(fills, key=lambda fill: fill.tick):
        value, reason, usd = 0.0, "Closes the position", None
        if fill.profit is None:
            value, reason = round(math.fsum(profits[fill.position]), USD_DECIMALS), _REASONS[record.mandate]
            usd = round(fill.usd, USD_DECIMALS)
        actions.append(schema.OptimalAction(fill.tick, fill.kind, fill.market, value, reason, fill.side, usd))
    return tuple(actions)
