"""Result of one agent in one snapshot, in the shape of the game's own benchmark.

Fields of ours are optional there.

Dollars, milliseconds since 1970 (UTC) in the market's own time, response times in milliseconds. Every number is finite or null: null
says that there was nothing to measure, never 0. A result of scripted agents is the same bytes for the same seed.
"""

from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.headlines import TRAINING

BENCHMARK = "benchmark-"
SUFFIX, PARTIAL = ".json", ".partial.json"
SEEN = "Some of these markets have the words of the training edition: they are not unseen, and show nothing of a model."


class CamelCase(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Base of shapes in JSON: camelCase names."""


class PredictionMetrics(CamelCase, frozen=True):
    """Metrics of positions in questions.

    A position is correct when its side is the question's answer, whether or not it was held until then.
    """

    total_positions: int
    correct_predictions: int
    incorrect_predictions: int
    accuracy: float | None
    avg_pnl_per_position: float | None
    pnl: float = 0.0


class PerpMetrics(CamelCase, frozen=True):
    """Metrics of positions in stocks.

    ``max_drawdown`` is the largest fall of the equity from its peak, in dollars.
    """

    total_trades: int
    profitable_trades: int
    win_rate: float | None
    avg_pnl_per_trade: float | None
    max_drawdown: float
    pnl: float = 0.0
    liquidations: int = 0


class SocialMetrics(CamelCase, frozen=True):
    """Posts written and read; snapshots have no groups, and no reputation changes."""

    posts_created: int
    groups_joined: int
    messages_received: int
    reputation_gained: float


class Timing(CamelCase, frozen=True):
    """Response times in milliseconds; scripts are not timed, theirs are 0."""

    avg_response_time: float
    max_response_time: float
    total_duration: float


class Bin(CamelCase, frozen=True):
    """Purchases at a price within ``low``..``high``: the mean price, and the share that was right."""

    low: float
    high: float
    count: int
    forecast: float
    observed: float


class Metrics(CamelCase, frozen=True):
    """Metrics of a run.

    Attributes:
        return_share: P&L of the start balance.
        sharpe: mean over standard deviation of the equity's changes by tick, times the root of their number; null without spread.
        max_drawdown_share: the largest fall of the equity from its peak, as a share of that peak.
        win_rate: of the positions that won or lost.
        brier, market_brier: mean squared error of the probability that the agent paid for being right, and of the crowd's at that moment.
        edge: how much more often purchases were right than their price said.
        invalid, refused: how often an answer could not be used, by reason, and an order was refused, by code.
        action_shares: by kind and side, ``invalid`` among them; they sum to 1. action_entropy: in bits.
        reaction_ticks: from news with a direction to the first purchase in it, while the news had an effect; reaction_share: of such news.
    """

    total_pnl: float
    prediction_metrics: PredictionMetrics
    perp_metrics: PerpMetrics
    social_metrics: SocialMetrics
    timing: Timing
    optimality_score: float
    return_share: float = msgspec.field(name="return", default=0.0)
    sharpe: float | None = None
    max_drawdown_share: float | None = None
    win_rate: float | None = None
    trades: int = 0
    fees: float = 0.0
    funding: float = 0.0
    brier: float | None = None
    market_brier: float | None = None
    edge: float | None = None
    calibration: list[Bin] = []
    invalid: dict[str, int] = {}
    refused: dict[str, int] = {}
    invalid_rate: float | None = None
    action_shares: dict[str, float] = {}
    action_entropy: float | None = None
    news_with_direction: int = 0
    reaction_ticks: float | None = None
    reaction_share: float | None = None


class ActionTaken(CamelCase, frozen=True, omit_defaults=True):
    """One decision: ``data`` is the order with its outcome, ``duration`` the response time in ms.

    ``correctness`` of a purchase: ``pnl`` in dollars, ``predictionCorrect`` or ``perpCorrect``.
    """

    tick: int
    timestamp: int
    type: str
    data: dict[str, Any]
    duration: float
    correctness: dict[str, Any] | None = None


class Moment(CamelCase, frozen=True):
    """An agent's money at a moment: free, and including its open positions.

    Open positions count at the proceeds of closing them.
    """

    tick: int
    timestamp: int
    balance: float
    equity: float
    open_positions: int = 0


class RunTrajectory(CamelCase, frozen=True):
    """States, actions and rewards of a run.

    ``states`` are at moments 0 to ticks, one more than ``actions`` (the orders as JSON) and ``rewards`` (changes of the equity).
    """

    states: list[Moment]
    actions: list[dict[str, Any]]
    rewards: list[float]
    window_id: str


class Forecast(CamelCase, frozen=True):
    """A purchase as a forecast: probability paid, the crowd's probability, and the outcome."""

    tick: int
    market: str
    side: str
    paid: float
    crowd: float
    right: bool


class Result(CamelCase, frozen=True):
    """One run: an agent, a snapshot, a repeat.

    Attributes:
        agent_id: the agent's name; identity: what decides (weights, prompt, script), as a hash; role: ``strategy`` or ``model``.
        snapshot: a digest of the market; ticks: how many it has. ``complete`` says whether all were played, ``stopped`` in words why not.
        optimum: the oracle's P&L in the snapshot, in dollars; engine: a hash of the code that moved the money.
        edition: whose companies and words the market has, ``held-out`` or ``training``; empty for one that the game recorded.
    """

    id: str
    agent_id: str
    benchmark_id: str
    start_time: int
    end_time: int
    ticks_processed: int
    actions: list[ActionTaken]
    metrics: Metrics
    trajectory: RunTrajectory
    identity: str = ""
    role: str = "strategy"
    mandate: str = "free"
    snapshot: str = ""
    seed: int | str = 0
    repeat: int = 0
    ticks: int = 0
    tick_interval: int = 0
    start_balance: float = 0.0
    optimum: float = 0.0
    engine: str = ""
    edition: str = ""
    complete: bool = True
    stopped: str | None = None
    forecasts: list[Forecast] = []

    @property
    def seen(self) -> bool:
        """True when its market has training companies and words."""
        return self.edition == TRAINING.name

    @property
    def pnl_usd(self) -> float:
        """Dollars earned."""
        return self.metrics.total_pnl

    @property
    def pnl_path(self) -> list[float]:
        """Dollars earned so far, at moments 0 to the last one played."""
        equity = self.equity
        return [value - equity[0] for value in equity]

    @property
    def equity(self) -> list[float]:
        """Dollars at moments 0 to the last one played."""
        return [moment.equity for moment in self.trajectory.states]


def encode_result(result: Result) -> bytes:
    """The result as JSON."""
    return msgspec.json.encode(result)


def decode_result(raw: bytes) -> Result:
    """The result in a JSON text.

    Raises:
        MarketError: it is not JSON, or not a result.
    """
    try:
        return msgspec.json.decode(raw, type=Result)
    except msgspec.ValidationError as error:
        raise MarketError(f"It does not have the shape of a result: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MarketError(f"It is not JSON, or breaks off: {error}.") from error


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        MarketError: there is no such file, or no result in it.
    """
    try:
        return decode_result(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MarketError(f"There is no result {path}; `babylon-rl benchmark run SNAPSHOT --model NAME` writes one.") from error
    except MarketError as error:
        raise MarketError(f"The result {path} cannot be read. {error}") from error
