"""Validation of a snapshot file: completeness, and agreement of states, events and ground truth.

Errors make it unusable; warnings are what the game's own snapshots are known for.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file.schema import (
    EVENT_TYPES,
    MARKET_TRADE,
    PRICE_UPDATED,
    PerpetualMarket,
    PredictionMarket,
    PricePoint,
    SnapshotDocument,
    State,
    Tick,
    read_fields,
)
from babylon_rl.market.simulation.config import ScenarioConfig

Fault = tuple[str, str, str]  # ERROR or WARNING, the kind, and a sentence without a full stop
ERROR, WARNING = "error", "warning"
RELATIVE = 1e-9


def _check_events(tick: Tick, began: int) -> Iterator[Fault]:
    """Check that events of a tick name known markets, lie in it, and match the state after it."""
    prices = {market.ticker: market.price for market in tick.state.perpetual_markets}
    questions = {market.id for market in tick.state.prediction_markets}
    updated: dict[str, object] = {}
    for event in tick.events:
        if event.type not in EVENT_TYPES:
            yield WARNING, "type", f"Tick {tick.number} has an event of type {event.type!r}, which is passed over"
        if not began <= event.timestamp <= tick.timestamp:
            yield WARNING, "event time", f"An event of tick {tick.number} is dated {event.timestamp}, outside {began} to {tick.timestamp}"
        if event.type == PRICE_UPDATED:
            ticker = event.data.get("ticker")
            if isinstance(ticker, str) and ticker in prices:
                updated[ticker] = event.data.get("newPrice")
            else:
                yield ERROR, "event stock", f"Tick {tick.number} moves the price of {ticker!r}, which is no stock"
        elif event.type == MARKET_TRADE:
            market = event.data.get("marketId")
            if not isinstance(market, str) or market not in questions:
                yield ERROR, "event question", f"Tick {tick.number} trades {market!r}, which is no question"
    # The last price of a tick is that of the state after it.
    for ticker, price in updated.items():
        if not isinstance(price, int | float) or abs(price - prices[ticker]) > RELATIVE * prices[ticker]:
            yield ERROR, "event price", f"{ticker} moves to {price} in tick {tick.number}, the state after it says {prices[ticker]}"


UNCLEAR = (0.01, 0.99)  # prices of a resolved question that do not tell its answer


def _check_truth(snapshot: SnapshotDocument) -> Iterator[Fault]:
    """Check that outcomes and prices are those of the states, for every market and no other."""
    states = snapshot.states()
    # Questions may be created and resolved within the market.
    questions = {market.id for state in (states[0], states[-1]) for market in state.prediction_markets}
    stocks = {market.ticker for market in states[0].perpetual_markets}
    truth = snapshot.ground_truth
    for name in sorted(questions - truth.market_outcomes.keys()):
        yield ERROR, "no outcome", f"The ground truth has no outcome of question {name}"
    for name in sorted(truth.market_outcomes.keys() - questions):
        yield ERROR, "unknown outcome", f"The ground truth has an outcome of {name!r}, which is no question of the snapshot"
    for name in sorted(stocks - truth.price_history.keys()):
        yield ERROR, "no history", f"The ground truth has no price history of stock {name}"
    for name in sorted(truth.price_history.keys() - stocks):
        yield ERROR, "unknown history", f"The ground truth has a price history of {name!r}, which is no stock of the snapshot"
    for name in sorted(stocks & truth.price_history.keys()):
        yield from _check_history(name, truth.price_history[name], states)
    yield from _check_outcomes(snapshot, states)
    yield from _check_actions(snapshot, questions | stocks)


def _check_outcomes(snapshot: SnapshotDocument, states: Sequence[State]) -> Iterator[Fault]:
    for state in states:
        for market in state.prediction_markets:
            if not market.resolved or market.id not in snapshot.ground_truth.market_outcomes:
                continue
            answer = snapshot.ground_truth.market_outcomes[market.id]
            # A resolved price near the middle says nothing about the answer.
            if UNCLEAR[0] < market.yes_price < UNCLEAR[1]:
                yield WARNING, "unclear", f"Question {market.id} is resolved at tick {state.tick} at a price of {market.yes_price}"
            elif (market.yes_price > 0.5) != answer:
                says, truth = ("YES" if yes else "NO" for yes in (market.yes_price > 0.5, answer))
                yield ERROR, "outcome", f"Question {market.id} is resolved {says} at tick {state.tick}, the ground truth says {truth}"


def _check_history(ticker: str, history: Sequence[PricePoint], states: Sequence[State]) -> Iterator[Fault]:
    """Check a price history against the states.

    A point's tick is a moment, or, in the game's own snapshots, the number of the tick that ends with it; one of both throughout.
    """
    recorded = {state.tick: market for state in states for market in state.perpetual_markets if market.ticker == ticker}
    times = {state.tick: state.timestamp for state in states}
    readings = (([point for point in history if not _same(point, recorded.get(point.tick + by))], by) for by in (0, 1))
    # Either counting may be meant: that with fewer faults is taken, and its faults are reported.
    wrong_points, shift = min(readings, key=lambda reading: len(reading[0]))
    for point in wrong_points:
        shown = recorded[point.tick + shift].price if point.tick + shift in recorded else None
        why = f"the state says {shown}" if shown is not None else "there is no such tick"
        yield ERROR, f"history {ticker}", f"The price history of {ticker} has {point.price} at tick {point.tick}, {why}"
    ticks = [point.tick for point in history]
    if ticks != list(range(len(ticks))) or len(ticks) < len(states) - 1:
        yield ERROR, f"gaps {ticker}", f"The price history of {ticker} has {len(ticks)} points, not one for each of {len(states) - 1} ticks"
    zero = sum(point.timestamp == 0 for point in history)
    if zero:
        yield WARNING, "history zero", f"{zero} of {len(history)} points in the price history of {ticker} are dated 0"
    elif off := [point for point in history if times.get(point.tick + shift, point.timestamp) != point.timestamp]:
        yield WARNING, "history time", f"The price history of {ticker} dates tick {off[0].tick} {off[0].timestamp}, its state another time"


def _same(point: PricePoint, market: PerpetualMarket | None) -> bool:
    return market is not None and abs(market.price - point.price) <= RELATIVE * abs(market.price)


def _check_actions(snapshot: SnapshotDocument, markets: set[str]) -> Iterator[Fault]:
    truth = snapshot.ground_truth
    for action in truth.optimal_actions:
        if action.target not in markets:
            yield ERROR, "target", f"An optimal action trades {action.target!r}, which is no market of the snapshot"
        if not 0 <= action.tick <= len(snapshot.ticks):
            yield ERROR, "action tick", f"An optimal action is at tick {action.tick}, the snapshot ends with {len(snapshot.ticks)}"
    if any(action.side is None for action in truth.optimal_actions if not action.type.startswith("close")):
        yield WARNING, "no side", "Optimal actions name no side and no budget; they are computed anew where they are needed"
    for chance in truth.social_opportunities:
        if not 0 <= chance.tick <= len(snapshot.ticks):
            yield ERROR, "chance tick", f"A social opportunity is at tick {chance.tick}, the snapshot ends with {len(snapshot.ticks)}"


TOLERANCE = 1e-5


def validate(snapshot: SnapshotDocument) -> tuple[list[str], list[str]]:
    """Errors and warnings, a sentence each. A snapshot without errors can be turned into a scenario."""
    sentences, counts = dict[tuple[str, str], str](), Counter[tuple[str, str]]()
    for severity, kind, sentence in _faults(snapshot):
        # Of each kind the first case is told, with the count.
        sentences.setdefault((severity, kind), sentence)
        counts[severity, kind] += 1
    found: dict[str, list[str]] = {ERROR: [], WARNING: []}
    for key, sentence in sentences.items():
        found[key[0]].append(f"{sentence} ({counts[key]} cases like it in all)." if counts[key] > 1 else f"{sentence}.")
    return found[ERROR], found[WARNING]


def _faults(snapshot: SnapshotDocument) -> Iterator[Fault]:
    yield from _check_frame(snapshot)
    yield from _check_times(snapshot)
    for state in snapshot.states():
        yield from _check_state(state)
    yield from _check_course(snapshot.states())
    began = snapshot.initial_state.timestamp
    for tick in snapshot.ticks:
        yield from _check_events(tick, began)
        began = tick.timestamp
    yield from _check_truth(snapshot)


def _check_frame(snapshot: SnapshotDocument) -> Iterator[Fault]:
    if not snapshot.id:
        yield ERROR, "id", "It has no id"
    if snapshot.tick_interval <= 0 or snapshot.duration <= 0:
        yield ERROR, "length", f"It lasts {snapshot.duration} s in ticks of {snapshot.tick_interval} s; both must be positive"
        return
    expected, rest = divmod(snapshot.duration, snapshot.tick_interval)
    if len(snapshot.ticks) < expected or not snapshot.ticks:
        yield ERROR, "truncated", f"It is cut off: {len(snapshot.ticks)} ticks are there, {expected} belong to its duration"
    elif len(snapshot.ticks) > expected + bool(rest):
        yield ERROR, "too long", f"It has {len(snapshot.ticks)} ticks, {expected + bool(rest)} belong to its duration"
    if not snapshot.initial_state.prediction_markets and not snapshot.initial_state.perpetual_markets:
        yield WARNING, "empty", "Nothing can be traded at its start"
    yield from _check_origin(snapshot)


def _check_origin(snapshot: SnapshotDocument) -> Iterator[Fault]:
    """Check our snapshot against its config, without generating it again. `to_scenario` compares the rest."""
    if snapshot.config is None and snapshot.generator is None:
        return
    if snapshot.config is None or snapshot.generator is None:
        yield ERROR, "origin", "It has a config without its generator, or a generator without its config"
        return
    try:
        config = read_fields(snapshot.config, ScenarioConfig, "config")
    except MarketError as error:
        yield ERROR, "config", str(error).rstrip(".")
        return
    first = snapshot.initial_state
    for what, configured, actual in (
        ("ticks", config.ticks, len(snapshot.ticks)),
        ("seconds a tick", config.tick_seconds, snapshot.tick_interval),
        ("stocks", config.perps, len(first.perpetual_markets)),
        ("questions", config.predictions, len(snapshot.ground_truth.market_outcomes)),
        ("milliseconds at its start", config.start_ms, first.timestamp),
        ("as its seed", config.seed, snapshot.seed),
    ):
        if configured != actual:
            yield ERROR, "config", f"Its config says {configured} {what}, it has {actual}"


def _check_times(snapshot: SnapshotDocument) -> Iterator[Fault]:
    first, ms = snapshot.initial_state, snapshot.tick_interval * 1000
    if first.tick != 0:
        yield ERROR, "first tick", f"Its first state is that of tick {first.tick}, not 0"
    # Known of the game's own snapshots: a warning, no error.
    if first.timestamp != snapshot.created_at:
        yield WARNING, "created", f"It was created at {snapshot.created_at}, its market begins at {first.timestamp}"
    last = first.timestamp
    for number, tick in enumerate(snapshot.ticks):
        if tick.number != number:
            yield ERROR, "numbers", f"Its ticks are not consecutive: number {tick.number} comes where {number} belongs"
        if tick.state.tick != tick.number + 1:
            yield ERROR, "state tick", f"Tick {tick.number} ends with the state of tick {tick.state.tick}, not {tick.number + 1}"
        if tick.state.timestamp != tick.timestamp:
            yield WARNING, "state time", f"Tick {tick.number} is dated {tick.timestamp}, its state {tick.state.timestamp}"
        if tick.timestamp <= last:
            yield ERROR, "time", f"Time stands still or runs backwards at tick {tick.number}: {tick.timestamp} after {last}"
        elif tick.timestamp != (due := first.timestamp + (number + 1) * ms):
            yield WARNING, "interval", f"Tick {tick.number} is dated {tick.timestamp}, by the interval it is {due}"
        last = tick.timestamp


def _check_state(state: State) -> Iterator[Fault]:
    where = f"at tick {state.tick}"
    yield from _check_unique("question", [market.id for market in state.prediction_markets], where)
    yield from _check_unique("stock", [market.ticker for market in state.perpetual_markets], where)
    yield from _check_unique("agent", [person.id for person in state.agents], where)
    for question in state.prediction_markets:
        yield from _check_question(question, state, where)
    for stock in state.perpetual_markets:
        yield from _check_stock(stock, where)


def _check_unique(kind: str, names: list[str], where: str) -> Iterator[Fault]:
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        yield ERROR, f"twice {kind}", f"The {kind} {twice[0]!r} is there twice {where}"


def _check_question(market: PredictionMarket, state: State, where: str) -> Iterator[Fault]:
    yes, no = market.yes_price, market.no_price
    if not 0.0 <= yes <= 1.0 or not 0.0 <= no <= 1.0:
        yield ERROR, "probability", f"Question {market.id} costs {yes} for YES and {no} for NO {where}, outside 0 to 1"
    elif abs(yes + no - 1.0) > TOLERANCE:
        yield ERROR, "sum", f"YES and NO of {market.id} cost {yes} and {no} {where}, which is not 1 together"
    if negative := [name for name in ("yes_shares", "no_shares", "total_volume", "liquidity") if getattr(market, name) < 0.0]:
        yield ERROR, "negative", f"Question {market.id} has negative {negative[0].replace('_', ' ')} {where}"
    # The game's own snapshots count shares sold instead of the maker's.
    elif not market.resolved and not _near(market.no_shares, market, yes):
        why = "its shares are those sold, not a maker's" if _near(market.yes_shares, market, yes) else "which its shares do not explain"
        yield WARNING, "shares", f"YES of {market.id} costs {yes} {where}: {why}"
    if market.resolve_at <= market.created_at:
        yield ERROR, "life", f"Question {market.id} is resolved at {market.resolve_at}, not after it was created at {market.created_at}"
    elif not market.resolved and state.timestamp >= market.resolve_at:
        yield WARNING, "open too long", f"Question {market.id} is still open {where}, its answer was due at {market.resolve_at}"


def _near(part: float, market: PredictionMarket, price: float) -> bool:
    shares = market.yes_shares + market.no_shares
    return shares == 0.0 or abs(part / shares - price) <= TOLERANCE


def _check_stock(market: PerpetualMarket, where: str) -> Iterator[Fault]:
    if market.price <= 0.0:
        yield ERROR, "price", f"Stock {market.ticker} costs {market.price} $ {where}; a price is positive and finite"
    if market.volume_24h < 0.0 or market.open_interest < 0.0:
        yield ERROR, "negative stock", f"Stock {market.ticker} has a negative volume or open interest {where}"
    if not -1.0 < market.funding_rate < 1.0:
        yield WARNING, "funding", f"The funding rate of {market.ticker} is {market.funding_rate} {where}; it is taken as 0"


def _check_course(states: Sequence[State]) -> Iterator[Fault]:
    """Check from state to state: markets stay, answers stay, and prices move."""
    moved: dict[str, bool] = {}
    before = states[0]
    for state in states[1:]:
        now = {market.id: market for market in state.prediction_markets}
        for old in before.prediction_markets:
            if old.id not in now:
                yield ERROR, "gone", f"Question {old.id} is missing from the state of tick {state.tick}"
                continue
            moved[old.id] = moved.get(old.id, False) or old.yes_price != now[old.id].yes_price
            if old.resolved and not now[old.id].resolved:
                yield ERROR, "reopened", f"Question {old.id} is open again at tick {state.tick}"
        if [market.ticker for market in before.perpetual_markets] != [market.ticker for market in state.perpetual_markets]:
            yield ERROR, "stocks", f"The stocks of tick {state.tick} are not those of the tick before"
            continue  # the next state is compared with the one before
        for old_stock, new_stock in zip(before.perpetual_markets, state.perpetual_markets, strict=True):
            moved[old_stock.ticker] = moved.get(old_stock.ticker, False) or old_stock.price != new_stock.price
        before = state
    still = [name for name, has in moved.items() if not has]
    if still:
        yield WARNING, "still", f"{len(still)} of {len(moved)} markets never move: {', '.join(still[:8])}"
