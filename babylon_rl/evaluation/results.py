"""Result of one agent in one snapshot, in the shape of the game's own benchmark, and the files and rows that keep it.

Fields of ours are optional there. Dollars, milliseconds since 1970 (UTC) in the market's own time, response times in milliseconds. Every
number is finite or null: null says that there was nothing to measure, never 0. A result of scripted agents is the same bytes for the same
seed. Files are written atomically:

    NAME-KEY.json                the result of a finished run
    NAME-KEY.partial.json        of one that ended early; the next call goes on with it
    NAME-KEY.decisions.jsonl.gz  every decision with its prompt, answer, fill and money
    NAME-KEY.answers.jsonl       while a model plays: its answers so far, by a hash of the request

    <home>/benchmarks/<name>/benchmark-0003-gate.json                result of a market of the gate
    <home>/benchmarks/<name>/benchmark-0003-gate.decisions.jsonl.gz  its decisions; 11 KB in all
    <home>/benchmarks/<name>/benchmark-0003-gate-posts.json          the same of another game than one-tick

An interrupted run of a model is played again up to where it was with the answers that it had, and asks only from there on. The gate's
files are for looking at only: a market that a name plays again, with other weights or since the market's code changed, replaces its files.

Rows are one trajectory per run, marked so that none trains: ``scenarioId`` and ``windowId`` are ``benchmark-<snapshot>``, isEvaluation is
true, isTrainingData false. Ids come from the result's, so a run that is recorded twice is there once.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.files.durable import write_atomically
from babylon_rl.llm.client import ChatAnswer, ChatClient
from babylon_rl.market.game_rows import record_call
from babylon_rl.market.headlines import TRAINING_EDITIONS
from babylon_rl.market.model_endpoints import ACTION_TYPE
from babylon_rl.market.simulation.actions import Action
from babylon_rl.market.simulation.games import ONE_TICK_GAME
from babylon_rl.market.simulation.record import Call
from babylon_rl.recorder import Recording, TrajectoryRecorder
from babylon_rl.store import recording as rows
from babylon_rl.store.connection import Connection
from babylon_rl.versions import content_version

BENCHMARK = "benchmark-"
SUFFIX, PARTIAL = ".json", ".partial.json"
SEEN = "Some of these markets have the words of a training edition: they are not unseen, and show nothing of a model."


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
    """Metrics of positions in stocks. ``max_drawdown`` is the largest fall of the equity from its peak, in dollars."""

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
        expected_usd: of the decisions on average, without the luck of prices; ceiling_usd: of the best play from what the prompt shows.
            Null of recorded markets, of positions that last until a question is answered, and of players that know more.
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
    expected_usd: float | None = None
    ceiling_usd: float | None = None


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
    """An agent's money at a moment: free, and including its open positions. Open positions count at the proceeds of closing them."""

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
        edition: whose companies and words the market has; empty for one that the game recorded.
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
        """True when its market has companies and words of a training edition."""
        return self.edition in TRAINING_EDITIONS

    @property
    def pnl_usd(self) -> float:
        return self.metrics.total_pnl

    @property
    def expected_usd(self) -> float | None:
        return self.metrics.expected_usd

    @property
    def ceiling_usd(self) -> float | None:
        return self.metrics.ceiling_usd

    @property
    def profits(self) -> list[float]:
        """P&L of every position, in the order of opening."""
        return [action.correctness["pnl"] for action in self.actions if action.correctness is not None]

    @property
    def orders(self) -> list[tuple[Action, str]]:
        """The order of every tick, and whether it was filled, refused or invalid."""
        taken = zip(self.trajectory.actions, self.actions, strict=True)
        return [(msgspec.convert(order, Action), str(action.data["outcome"])) for order, action in taken]

    @property
    def pnl_path(self) -> list[float]:
        """Dollars earned so far, at moments 0 to the last one played."""
        equity = self.equity
        return [value - equity[0] for value in equity]

    @property
    def equity(self) -> list[float]:
        """Dollars at moments 0 to the last one played."""
        return [moment.equity for moment in self.trajectory.states]


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


DECISIONS, ANSWERS = ".decisions.jsonl.gz", ".answers.jsonl"
DIRECTORY = "benchmarks"  # of the gate
COMPRESSION = 6
KEPT = 20  # models whose runs of the gate stay, those that were compared last
_GATE_KEY = "gate"
WINDOW_CHARACTERS = 50


class RunFiles:
    """The files of one run in ``directory``."""

    def __init__(self, directory: Path, name: str, key: str) -> None:
        self._directory, self._stem = directory, f"{slug(name)}-{key}"

    def path(self, suffix: str) -> Path:
        return self._directory / f"{self._stem}{suffix}"

    def finished(self) -> Result | None:
        """The result of a run that was finished before; None without one that can be read."""
        try:
            return read_result(self.path(SUFFIX))
        except MarketError:
            return None

    def keep(self, result: Result, decisions: Iterable[bytes]) -> None:
        """Write a run, decisions first: a result that is there has its decisions."""
        self._directory.mkdir(parents=True, exist_ok=True)
        # Without a time stamp, so that the same decisions give the same bytes.
        write_atomically(self.path(DECISIONS), gzip.compress(b"".join(decisions), COMPRESSION, mtime=0))
        write_atomically(self.path(SUFFIX if result.complete else PARTIAL), msgspec.json.encode(result))
        if result.complete:
            # After the result: a crash before leaves more than is needed, never less.
            self.path(PARTIAL).unlink(missing_ok=True)
            self.path(ANSWERS).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the files of the run, its result first. So no result is ever found without its decisions."""
        for suffix in (SUFFIX, PARTIAL, ANSWERS, DECISIONS):
            self.path(suffix).unlink(missing_ok=True)


def gate_files(home: Path, name: str, snapshot: str, game: str = ONE_TICK_GAME.name) -> RunFiles:
    """The files of a model's run in a market of the gate, played as the game of that name."""
    return RunFiles(runs_directory(home, name), snapshot, _GATE_KEY if game == ONE_TICK_GAME.name else f"{_GATE_KEY}-{game}")


def runs_directory(home: Path, name: str) -> Path:
    """Directory of a model's runs; it need not exist."""
    return home / DIRECTORY / name


def forget_old_runs(home: Path, names: Iterable[str]) -> None:
    """Mark ``names`` as compared now, and remove the gate's runs of older models. The KEPT models that were compared last stay."""
    for name in names:
        if runs_directory(home, name).is_dir():
            with suppress(OSError):  # a directory that cannot be written to
                os.utime(runs_directory(home, name))
    # The newest modification is the newest comparison.
    directories = [path for path in (home / DIRECTORY).glob("*") if path.is_dir()]
    for old in sorted(directories, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def resumable_client(client: ChatClient, path: Path) -> ChatClient:
    """A client that reads known answers from a file and appends new ones to it.

    For one run, which sends one request at a time. A last line that an interruption cut off is dropped.
    """
    answers, lines = dict[str, ChatAnswer](), msgspec.json.Encoder().encode_lines
    if path.is_file():
        raw = path.read_bytes()
        answers = {line.key: line.answer for line in msgspec.json.Decoder(_KeyedAnswer).decode_lines(raw[: raw.rfind(b"\n") + 1])}
        write_atomically(path, lines([_KeyedAnswer(key, answer) for key, answer in answers.items()]))

    def complete_now(messages: Sequence[dict[str, Any]], **options: Any) -> ChatAnswer:
        # Equal requests have equal answers: temperature and seed are part of the key.
        request = [client.model, list(messages), *(options[name] for name in ("response_format", "temperature", "seed", "max_tokens"))]
        key = hashlib.sha256(msgspec.json.encode(request)).hexdigest()
        if key not in answers:
            answers[key] = client.complete_now(messages, **options)
            with path.open("ab") as file:
                file.write(lines([_KeyedAnswer(key, answers[key])]))
        return answers[key]

    # A copy shares the connections, and the given client keeps its own method.
    resumable = copy(client)
    resumable.complete_now = complete_now  # type: ignore[method-assign]
    return resumable


def slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "agent"


class _KeyedAnswer(msgspec.Struct):
    key: str
    answer: ChatAnswer


def record_runs(connection: Connection, files: Sequence[Path]) -> int:
    """Write runs with their decisions as rows; returns the number of new ones.

    Raises:
        MarketError: a file holds no result.
        SchemaMismatch: the database lacks the tables.
    """
    rows.require_recording_tables(connection)
    written = 0
    for path in files:
        # One transaction a run: an interrupted call leaves whole runs only.
        with connection.transaction():
            result = read_result(path)
            agent = f"{BENCHMARK}{slug(result.agent_id)}"
            with gzip.open(path.with_name(path.name.removesuffix(SUFFIX) + DECISIONS), "rt", encoding="utf-8") as lines:
                recording = _recording_of(result, agent, map(json.loads, lines))
            if rows.stored_rows(connection, [recording.columns["id"]]):
                continue
            rows.add_agents(connection, [(agent, result.agent_id)], _moment(result.start_time))
            rows.copy_rows(connection, "trajectories", [recording.columns])
            rows.copy_rows(connection, "llm_call_logs", list(recording.calls))
            written += 1
    return written


def _recording_of(result: Result, agent: str, decisions: Iterable[dict[str, Any]]) -> Recording:
    """A run as one trajectory with a step for every tick; rewards are dollars. Times are the market's own."""
    clock, recordings, number = [_moment(result.start_time)], list[Recording](), count()
    recorder = TrajectoryRecorder(
        recordings.append, lambda: str(uuid5(NAMESPACE_URL, f"babylon-rl/benchmark/{result.id}/{next(number)}")), lambda: clock[0]
    )
    name = f"{BENCHMARK}{result.benchmark_id}"
    window = name if len(name) <= WINDOW_CHARACTERS else f"{BENCHMARK}{content_version(result.benchmark_id)}"
    trajectory = recorder.start_trajectory(agent, window=window, scenario=name[:100])
    for turn in decisions:
        tick = int(turn["tick"])
        # The state at the tick's beginning; moments are counted from 0, before the first decision.
        state = result.trajectory.states[tick]
        # The recorder reads this clock; its times are the market's.
        clock[0] = _moment(state.timestamp)
        pnl = state.equity - result.start_balance
        recorder.start_step(trajectory, balance=state.balance, pnl=pnl, open_positions=state.open_positions)
        if turn["call"] is not None:
            call = msgspec.convert(turn["call"], Call)
            record_call(recorder, trajectory, call, call.latency_ms)
        outcome, action = turn["outcome"], turn["action"]
        kind, filled = action["action"], outcome["outcome"] == "filled"
        recorder.complete_step(
            trajectory,
            {"hold": "HOLD", "post": "POST"}.get(kind, ACTION_TYPE),
            {"method": kind, **{name: value for name, value in action.items() if name != "action"}},
            success=filled,
            reward=result.trajectory.rewards[tick],
            result={name: value for name, value in outcome.items() if name != "outcome"} or {"held": True} if filled else None,
            error=None if filled else outcome["reason"],
        )
    clock[0] = _moment(result.end_time)
    last = result.trajectory.states[-1]
    recorder.end_trajectory(trajectory, balance=last.balance, pnl=result.metrics.total_pnl, evaluation=True)
    return recordings[0]


def _moment(timestamp_ms: int) -> datetime:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).replace(tzinfo=None)
