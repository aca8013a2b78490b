"""Shapes of a snapshot file: names, nesting and units are those of the game's benchmark.

Ours says more in fields that the game lacks (``config``, ``generator``, ``groundTruth.optimum``, the side of an optimal action); a reader
of the game's format passes over them, and a snapshot without them is read all the same. Times are milliseconds since 1970, UTC.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.store.columns import camel

VERSION = "1.0.0"
PRICE_UPDATED, MARKET_TRADE, POST_CREATED = "price:updated", "market:trade", "post:created"
EVENT_TYPES = (PRICE_UPDATED, MARKET_TRADE, POST_CREATED)


class _SnapshotPart(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """Common to all parts: camelCase names, optional parts left out."""


class PredictionMarket(_SnapshotPart, frozen=True, gc=False):
    """A question at a moment. Prices are dollars per share, 0..1; shares, volume and liquidity as the market counts them."""

    id: str
    question: str
    yes_shares: float
    no_shares: float
    yes_price: float
    no_price: float
    total_volume: float
    liquidity: float
    resolved: bool
    created_at: int
    resolve_at: int


class PerpetualMarket(_SnapshotPart, frozen=True, gc=False):
    """A stock at a moment. Price in dollars, change in percent, volume and open interest in dollars; ``funding_rate`` is the next one's."""

    ticker: str
    price: float
    price_change_24h: float = msgspec.field(name="priceChange24h")
    volume_24h: float = msgspec.field(name="volume24h")
    open_interest: float
    funding_rate: float
    next_funding_time: int


class Person(_SnapshotPart, frozen=True, gc=False):
    """An agent of the world (not the one under test); ``reputation`` 0..100."""

    id: str
    name: str
    reputation: float
    total_pnl: float


class State(_SnapshotPart, frozen=True, gc=False):
    """The world at moment ``tick``, which is n + 1 after tick number n."""

    tick: int
    timestamp: int
    prediction_markets: tuple[PredictionMarket, ...]
    perpetual_markets: tuple[PerpetualMarket, ...]
    agents: tuple[Person, ...]


class SnapshotEvent(_SnapshotPart, frozen=True):
    """Event of a tick; ``data`` by type:

    price:updated ``{ticker, oldPrice, newPrice}``; market:trade ``{marketId, agentId, outcome: YES|NO, amount}``; post:created
    ``{authorId, authorName, content}``, in ours with ``about``, and ``trust`` of a person or ``clarity`` and ``rumour`` of a piece of news.
    """

    type: str
    timestamp: int
    data: dict[str, Any]


class Tick(_SnapshotPart, frozen=True):
    """Tick ``number`` (from 0) and the state after it."""

    number: int
    timestamp: int
    events: tuple[SnapshotEvent, ...]
    state: State


class PricePoint(_SnapshotPart, frozen=True, gc=False):
    """A stock's price at a tick. ``tick`` is a moment in ours (0 to the number of ticks), the tick's number in the game's."""

    tick: int
    timestamp: int
    price: float


class OptimalAction(_SnapshotPart, frozen=True, gc=False):
    """One trade of the oracle; ``expected_value`` is a round trip's, in dollars. ``side`` and ``usd`` (with leverage) are ours."""

    tick: int
    type: str
    target: str
    expected_value: float
    reason: str
    side: str | None = None
    usd: float | None = None


class SocialOpportunity(_SnapshotPart, frozen=True, gc=False):
    """Post or news worth reading; ``value`` in dollars, ``about`` (ours) the market it is about."""

    tick: int
    type: str
    value: float
    description: str
    about: str | None = None


class Optimum(_SnapshotPart, frozen=True):
    """P&L of the oracle that starts with ``start_balance``, in dollars.

    ``policy`` names the play in words; files of earlier versions have the best plan of a class there, with more fields, which are skipped.
    """

    pnl: float
    start_balance: float
    policy: str


class GroundTruth(_SnapshotPart, frozen=True):
    """Ground truth, known only afterwards."""

    market_outcomes: dict[str, bool]
    price_history: dict[str, tuple[PricePoint, ...]]
    optimal_actions: tuple[OptimalAction, ...]
    social_opportunities: tuple[SocialOpportunity, ...]
    optimum: Optimum | None = None


class Generator(_SnapshotPart, frozen=True):
    """Origin of our snapshot: constants of the market, and the scenario's digest."""

    format: int
    scenario: str
    model: dict[str, Any]


class SnapshotDocument(_SnapshotPart, frozen=True):
    """A benchmark market from start to end; ``duration`` and ``tick_interval`` in seconds.

    ``config`` is what the market was generated from, with its seed, in camelCase (`babylon_rl.market.simulation.config.ScenarioConfig`).
    """

    id: str
    version: str
    created_at: int
    duration: int
    tick_interval: int
    initial_state: State
    ticks: tuple[Tick, ...]
    ground_truth: GroundTruth
    seed: int | str | None = None
    config: dict[str, Any] | None = None
    generator: Generator | None = None

    def states(self) -> tuple[State, ...]:
        """The states at moments 0 to the number of ticks."""
        return (self.initial_state, *(tick.state for tick in self.ticks))


class _Head(msgspec.Struct):
    version: Any = None
    snapshot: msgspec.Raw = msgspec.Raw()


def encode(snapshot: SnapshotDocument) -> bytes:
    """The snapshot as JSON: the same snapshot gives the same bytes."""
    return msgspec.json.encode(snapshot)


def decode(raw: bytes) -> SnapshotDocument:
    """The snapshot in a JSON text, alone or as ``{"snapshot": ...}``.

    The game's own tool writes the second form.

    Raises:
        MarketError: not JSON, another version, or not a snapshot's shape; the message says where.
    """
    try:
        # The version is read before the shape, so that another version gets a clear message.
        inner = msgspec.json.decode(raw, type=_Head).snapshot
        body = bytes(inner) or raw
        version = msgspec.json.decode(body, type=_Head).version
        if version != VERSION:
            raise MarketError(f"It is a snapshot of version {version!r}; this reads version {VERSION!r}. Generate it again.")
        return msgspec.json.decode(body, type=SnapshotDocument)
    except msgspec.ValidationError as error:
        raise MarketError(f"It does not have the shape of a snapshot: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MarketError(f"It is not JSON, or breaks off: {error}.") from error


T = TypeVar("T")


def benchmark_scenario(config: ScenarioConfig) -> Scenario:
    """The market of a benchmark's config; its authors are the config's agents."""
    # ``7`` and ``"7"`` are one seed and give one file.
    if isinstance(config.seed, str) and re.fullmatch(r"0|-?[1-9]\d*", config.seed):
        config = msgspec.structs.replace(config, seed=int(config.seed))
    return generate(config, MarketModel(authors=config.agents))


def camel_fields(value: msgspec.Struct) -> dict[str, Any]:
    """JSON form of a config or model: camelCase names in declaration order, lists for tuples."""
    fields: dict[str, Any] = _renamed(msgspec.to_builtins(value), camel)
    return fields


def read_fields(fields: dict[str, Any], kind: type[T], what: str) -> T:
    """The config or model that `camel_fields` wrote. Raises MarketError: it is none, or a value is out of range."""
    try:
        return msgspec.convert(_renamed(fields, lambda name: re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()), kind)
    except msgspec.ValidationError as error:
        raise MarketError(f"The snapshot's {what} cannot be read: {error}.") from error


def _renamed(value: Any, new_name: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {new_name(name): _renamed(field, new_name) for name, field in value.items()}
    return [_renamed(item, new_name) for item in value] if isinstance(value, list | tuple) else value
