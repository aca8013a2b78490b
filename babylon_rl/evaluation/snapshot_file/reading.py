"""Reading a snapshot file: load and check it, and turn it into a scenario that can be played.

Ours is written again from the config in it and compared with what it says, so that the hidden parts come back and nothing was changed on
the way. Any other is replayed: its stocks and questions follow the prices that its states recorded, whatever agents do on top.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file.best_plan import best_plan
from babylon_rl.evaluation.snapshot_file.optimality import optimality_score, optimum
from babylon_rl.evaluation.snapshot_file.schema import (
    POST_CREATED,
    Generator,
    Optimum,
    PredictionMarket,
    SnapshotDocument,
    SnapshotEvent,
    State,
    config_of,
    decode,
    model_of,
)
from babylon_rl.evaluation.snapshot_file.validation import validate
from babylon_rl.evaluation.snapshot_file.writing import MarketRecording
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.scenario import FORMAT, Asset, Post, Question, Scenario, from_paths

_GZIP = b"\x1f\x8b"


def load(path: Path) -> SnapshotDocument:
    """Read a snapshot, ours or the game's, and check it.

    Raises:
        MarketError: there is no such file, it is not a snapshot of this version, or it contradicts itself; a sentence per problem.
    """
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MarketError(f"There is no snapshot {path}; `babylon-rl benchmark generate --out {path}` writes one.") from error
    try:
        snapshot = decode(gzip.decompress(raw) if raw.startswith(_GZIP) else raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MarketError(f"The snapshot {path} is damaged or cut off: {error}. Copy or generate it again.") from error
    except MarketError as error:
        raise MarketError(f"The snapshot {path} cannot be read. {error}") from error
    errors, _ = validate(snapshot)
    if errors:
        raise MarketError("\n".join([f"The snapshot {path} contradicts itself:", *(f"- {error}" for error in errors)]))
    return snapshot


CERTAIN = 1e-6  # prices of 0 and 1 are replayed as this far from them: a pool cannot hold them
_WORDS = {"bullish": 1, "bearish": -1}  # how the game's posts say which way they lean


def to_scenario(snapshot: SnapshotDocument, *, compare: bool = True) -> Scenario:
    """The market of a snapshot that `validate` finds no errors in.

    Args:
        compare: check every tick of a snapshot of ours against the market that its config gives.

    Raises:
        MarketError: a snapshot of ours that its config does not give: written by another version, or changed since.
    """
    if snapshot.config is None or snapshot.generator is None:
        return _replayed(snapshot)
    return _regenerated(snapshot, snapshot.config, snapshot.generator, compare)


def optimum_of(snapshot: SnapshotDocument) -> Optimum:
    """The optimum in the snapshot's ground truth, or, as in the game's own snapshots that say none, that of its recorded market."""
    if snapshot.ground_truth.optimum is not None:
        return snapshot.ground_truth.optimum
    scenario = to_scenario(snapshot)
    return optimum(scenario, best_plan(scenario))


def optimality(pnl: float, snapshot: SnapshotDocument, best: Optimum | None = None) -> float:
    """0 for a loss or nothing earned, 100 for the best of the policy class or more, in between in proportion.

    Args:
        pnl: dollars earned from ``Optimum.start_balance``.
        best: the snapshot's optimum where it is known; else `optimum_of` looks it up, which replays a snapshot that does not say it.

    Where the class earns nothing, whoever loses nothing has 100.
    """
    return optimality_score(pnl, (best if best is not None else optimum_of(snapshot)).pnl)


def _regenerated(snapshot: SnapshotDocument, fields: dict[str, Any], generator: Generator, compare: bool) -> Scenario:
    config = config_of(fields)
    if config.ticks != len(snapshot.ticks):
        raise MarketError(f"Snapshot {snapshot.id} has {len(snapshot.ticks)} ticks, its config asks for {config.ticks}. Generate it again.")
    scenario = generate(config, model_of(generator.model))
    if generator.format != FORMAT or scenario.digest != generator.scenario:
        raise MarketError(
            f"Snapshot {snapshot.id} was written by another version of the generator (format {generator.format}, this is {FORMAT}; its "
            "market comes out differently now). Generate it again, or play it with the version that wrote it."
        )
    outcomes = {question.id: question.answer for question in scenario.questions}
    if snapshot.ground_truth.market_outcomes != outcomes:
        raise MarketError(f"Snapshot {snapshot.id} was changed: its outcomes are not those of its config. Generate it again.")
    if compare and (where := _first_difference(snapshot, scenario)):
        raise MarketError(f"Snapshot {snapshot.id} was changed {where}: its config gives another market. Generate it again.")
    return scenario


def _first_difference(snapshot: SnapshotDocument, scenario: Scenario) -> str:
    recording = MarketRecording(scenario)
    if recording.initial_state != snapshot.initial_state or len(snapshot.ticks) != scenario.ticks:
        return "at its start or in its length"
    for given, made in zip(snapshot.ticks, recording.ticks(), strict=True):
        if given != made:
            return f"at tick {given.number}"
    return ""


def _replayed(snapshot: SnapshotDocument) -> Scenario:
    states = snapshot.states()
    first = states[0]
    ms = snapshot.tick_interval * 1000
    ahead = min((market.next_funding_time for market in first.perpetual_markets), default=0) - first.timestamp
    funding_ticks = max(1, (ahead + ms // 2) // ms) if ahead > 0 else None
    every = funding_ticks if funding_ticks is not None else max(1, 8 * 3600 // snapshot.tick_interval)
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
        funding_ticks=funding_ticks,
    )


def _rate(state: State, row: int) -> float:
    rate = state.perpetual_markets[row].funding_rate
    return rate if -1.0 < rate < 1.0 else 0.0


def _questions(snapshot: SnapshotDocument, states: tuple[State, ...]) -> list[Question]:
    """Every question that a state shows, from the first one that does; before it and after its answer the last price stands."""
    seen: dict[str, dict[int, PredictionMarket]] = {}
    for tick, state in enumerate(states):
        for market in state.prediction_markets:
            seen.setdefault(market.id, {})[tick] = market
    found, start, ms = [], states[0].timestamp, snapshot.tick_interval * 1000
    for number, (name, shown) in enumerate(seen.items(), 1):
        created = min(shown)
        answered = next((tick for tick, market in shown.items() if market.resolved), None)
        resolve = answered if answered is not None else -((start - shown[created].resolve_at) // ms)
        price, crowd = shown[created].yes_price, []
        for tick in range(len(states)):
            if tick in shown and not shown[tick].resolved:
                price = shown[tick].yes_price
            crowd.append(min(1.0 - CERTAIN, max(CERTAIN, price)))
        answer = snapshot.ground_truth.market_outcomes[name]
        found.append(Question(name, number, shown[created].question, answer, tuple(crowd), created, max(created + 1, resolve)))
    return found


def _post(snapshot: SnapshotDocument, tick: int, event: SnapshotEvent) -> Post | None:
    """A post as the game records it; which market it is about and which way it leans are read from its text where it does not say."""
    if event.type != POST_CREATED:
        return None
    said = {name: value for name, value in event.data.items() if isinstance(value, str)}
    text, author = said.get("content", ""), said.get("authorName", said.get("authorId", "unknown"))
    first = snapshot.initial_state
    names = {market.question: market.id for market in first.prediction_markets} | {m.ticker: m.ticker for m in first.perpetual_markets}
    about = said.get("about") or next((name for words, name in names.items() if words in text), "")
    trust = event.data.get("trust")
    if not isinstance(trust, int | float):
        trust = next((person.reputation / 100.0 for person in first.agents if person.id == said.get("authorId")), 0.5)
    direction = next((sign for word, sign in _WORDS.items() if word in text.lower().split()), 0)
    return Post(tick, author, min(1.0, max(0.0, float(trust))), text, about, direction, False)
