"""Snapshots: markets of comparisons, from files, presets, or the gate's held-out series.

A market's bytes follow from its edition, its seed and its window. The gate takes an edition that training never uses, seeds with a prefix
that no training seed has, and windows before the game began; ``require_unseen`` asserts all three.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from babylon_rl.errors import MarketError, UsageError
from babylon_rl.evaluation.snapshot_file import SnapshotDocument, benchmark_scenario, from_scenario, load, optimum_of, to_scenario
from babylon_rl.market.headlines import HELD_OUT, HELD_OUT_EDITIONS, TRAINING, TRAINING_EDITIONS, edition_named
from babylon_rl.market.simulation import strategies
from babylon_rl.market.simulation.agents import ONE_TICK, STAKE_USD
from babylon_rl.market.simulation.config import START_BALANCE, ScenarioConfig, preset
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.simulation.strategies import oracle_play
from babylon_rl.versions import content_version
from babylon_rl.windows import HOUR, window_of, window_start

FIRST = "2000-01-01T00:00"  # before any game began, so that no training hour is one of these
CONFIRMATION_HOUR = 100_000  # hours after FIRST, in 2011: before any game, after all hours of the gate
SEED_PREFIX = "benchmark/"
GATE_ID, CONFIRMATION_ID = "benchmark-", "confirmation-"  # the ids of these markets begin so
PRESET = "hour"  # of the gate's markets
GATE_PLAYER_ID = "benchmark-player"  # of the player in the gate's markets
FRESH_HOURS = 24
NAMED_PRESET = "preset:"
MOST_SEEDS = 10_000
_PROBES = ("balanced", "momentum", "contrarian")
_FIELDS = ("minutes", "tick_seconds", "predictions", "perps", "agents")
_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class Snapshot:
    """A market to play; every player has it alone, with the same start balance.

    Attributes:
        id: in results; ``digest`` says which market it is, whatever it is called.
        known_best: the oracle's dollars, where a snapshot file says them.
        game: what is played in a market of the gate.
    """

    id: str
    scenario: Scenario
    known_best: float | None = None
    start_balance: float = START_BALANCE
    game: Game = ONE_TICK_GAME

    @property
    def digest(self) -> str:
        return self.scenario.digest[:16]

    @property
    def seed(self) -> str:
        """The generator's seed; empty for a recorded market."""
        return "" if self.scenario.config is None else str(self.scenario.config.seed)

    @property
    def window(self) -> str:
        """The hour that the market begins in."""
        return window_of(datetime.fromtimestamp(self.scenario.start_ms / 1000, UTC).replace(tzinfo=None))

    @cached_property
    def best_pnl(self) -> float:
        """Dollars that the oracle earns; optimality is measured against them."""
        return oracle_play(self.scenario).pnl_usd if self.known_best is None else self.known_best

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that players see and earn in this market. It changes with the market's code, prompts, fees or stakes."""
        # A few strategies stand for all players: they see every prompt and fill.
        stake = STAKE_USD if self.game.mandate == ONE_TICK else None
        factories = {name: strategies.player(name, self.scenario, self.game, stake) for name in _PROBES}
        seen = []
        for name, factory in factories.items():
            record = play(self.scenario, {GATE_PLAYER_ID: factory}, seed=self.seed, game=self.game).records[GATE_PLAYER_ID]
            calls = [[call.messages, call.response_format, call.response] for call in record.calls.values()]
            seen.append([name, calls, [round(usd, 6) for usd in record.equity]])
        return content_version([self.game.prompt_version, self.scenario.digest, seen])


def snapshots_named(names: Sequence[str]) -> list[Snapshot]:
    """The markets that ``names`` stand for, in their order, each once: snapshot files, or ``preset:quick:seeds=1-24``.

    Raises:
        UsageError: no name, or one that is no file and cannot be understood.
        MarketError: a file is not a sound snapshot.
    """
    snapshots: dict[str, Snapshot] = {}
    for name in names:
        for snapshot in _named(name):
            # The same market under two names is played once.
            snapshots.setdefault(snapshot.digest, snapshot)
    if not snapshots:
        raise UsageError("Name a snapshot: a file of `babylon-rl benchmark generate`, or preset:quick:seeds=1-24.")
    return list(snapshots.values())


def snapshot_of(document: SnapshotDocument, scenario: Scenario | None = None) -> Snapshot:
    """The market in a snapshot file; ``scenario`` where it is at hand."""
    best = optimum_of(document)
    return Snapshot(document.id, scenario or to_scenario(document), best.pnl, best.start_balance)


def _named(name: str) -> Iterator[Snapshot]:
    if not name.startswith(NAMED_PRESET):
        yield snapshot_of(load(Path(name)))
        return
    for config in configs_of(name):
        scenario = benchmark_scenario(config)
        yield snapshot_of(from_scenario(scenario), scenario)


def configs_of(name: str) -> list[ScenarioConfig]:
    """The configs of ``preset:NAME[:seeds=A-B|A,B,...][:minutes=N][:edition=held-out]...``, of the gate's edition where none is named.

    Raises:
        UsageError: it cannot be read, or asks for what a market cannot be.
    """
    preset_name, *options = name.removeprefix(NAMED_PRESET).split(":")
    seeds, changes = [12345], dict[str, Any](edition=HELD_OUT)
    for option in options:
        key, _, value = option.partition("=")
        field = key.replace("-", "_")
        if key in ("seed", "seeds"):
            seeds = list(_seeds(value, name))
        elif field in _FIELDS and value.isdecimal():
            changes[field] = int(value)
        elif key == "edition":
            changes[key] = value
        else:
            raise UsageError(
                f"{option!r} in {name!r} is not understood: give seeds=1-24, an edition, or one of {', '.join(_FIELDS)} with a number."
            )
    try:
        return [preset(preset_name, seed=seed, **changes) for seed in seeds]
    except MarketError as error:
        raise UsageError(str(error)) from error


def _seeds(text: str, name: str) -> Iterator[int]:
    for part in text.split(","):
        ends = _RANGE.fullmatch(part)
        if ends is not None and 0 <= int(ends[2]) - int(ends[1]) < MOST_SEEDS:
            yield from range(int(ends[1]), int(ends[2]) + 1)
        elif part.isdecimal():
            yield int(part)
        else:
            raise UsageError(f"The seeds {text!r} of {name!r} are not understood: give numbers, as 7, 1-24 or 1-8,20.")


def benchmark_snapshots(count: int, game: Game = ONE_TICK_GAME) -> tuple[Snapshot, ...]:
    """The first ``count`` markets of the gate, played as ``game``; a larger benchmark contains the smaller one."""
    return tuple(_benchmark_snapshot(index, game) for index in range(count))


@cache
def _benchmark_snapshot(index: int, game: Game) -> Snapshot:
    return Snapshot(f"{GATE_ID}{index:04d}", _held_out_scenario(str(index), index), game=game)


def confirmation_snapshots(first: int, count: int, game: Game = ONE_TICK_GAME) -> tuple[Snapshot, ...]:
    """Fresh markets for a confirmation, from number ``first``; none is a gate's market."""
    return tuple(
        Snapshot(f"{CONFIRMATION_ID}{index:06d}", _held_out_scenario(f"confirmation/{index}", CONFIRMATION_HOUR + index), game=game)
        for index in range(first, first + count)
    )


def _held_out_scenario(seed: str, hour: int) -> Scenario:
    start = window_start(FIRST) + hour * HOUR
    start_ms = round(start.replace(tzinfo=UTC).timestamp() * 1000)
    return generate(preset(PRESET, edition=HELD_OUT, seed=f"{SEED_PREFIX}{seed}", start_ms=start_ms))


@cache
def fresh_hours(game: Game = ONE_TICK_GAME) -> tuple[Snapshot, ...]:
    """Generated hours of the training edition that nothing trains on: their seeds have a prefix that no training, gate or confirmation has.

    They are the same for all versions, so a parent's results in them are known.
    """
    scenarios = (generate(preset(PRESET, edition=TRAINING, seed=f"kept/{index}")) for index in range(FRESH_HOURS))
    return tuple(Snapshot(f"fresh-{index:04d}", scenario, game=game) for index, scenario in enumerate(scenarios))


def require_unseen(snapshots: Sequence[Snapshot], trained_windows: Iterable[str] = ()) -> None:
    """Assert that no training hour can be one of these markets.

    Raises:
        MarketError: an edition, seed or window could belong to training, two markets are the same, or the editions share a wording.
    """
    # Words: a model must not know the companies of these markets.
    held_out, training = (_wordings(editions) for editions in (HELD_OUT_EDITIONS, TRAINING_EDITIONS))
    if shared := sorted(held_out & training):
        raise MarketError(f"A held-out edition shares wordings with a training edition: {', '.join(shared[:5])}. Change one of them.")
    like_training = [snapshot.id for snapshot in snapshots if not _held_out(snapshot)]
    trained = sorted({snapshot.window for snapshot in snapshots} & set(trained_windows))
    if like_training or trained:
        raise MarketError(f"Benchmark markets overlap with training: {', '.join([*like_training, *trained][:5])}.")
    # Prices: two seeds must not give one market.
    prices = {tuple(asset.prices for asset in snapshot.scenario.assets) for snapshot in snapshots}
    for distinct in ({snapshot.window for snapshot in snapshots}, prices):
        if len(distinct) < len(snapshots):
            raise MarketError("Two benchmark markets are the same.")


def _held_out(snapshot: Snapshot) -> bool:
    from babylon_rl.market.spawn import SEED_PREFIX as TRAINING_SEEDS  # brings the recorder along

    config, seed = snapshot.scenario.config, snapshot.seed
    held_out = config is not None and config.edition in HELD_OUT_EDITIONS
    return held_out and seed.startswith(SEED_PREFIX) and not seed.startswith(TRAINING_SEEDS)


@cache
def _wordings(editions: tuple[str, ...]) -> frozenset[str]:
    return frozenset().union(*(edition_named(name).wordings for name in editions))
