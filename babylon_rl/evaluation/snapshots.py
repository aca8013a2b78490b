"""Benchmark markets: hours of the held-out edition that no training hour can equal.

A market's bytes follow from its edition, its seed and its window. Benchmarks take the edition that training never uses, seeds with
a prefix that no training seed has, and windows before the game began; ``require_unseen`` asserts all three.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC
from functools import cache, cached_property

from babylon_rl.errors import MarketError
from babylon_rl.market.headlines import HELD_OUT, TRAINING
from babylon_rl.market.simulation import roster
from babylon_rl.market.simulation.agents import ONE_TICK, STAKE_USD
from babylon_rl.market.simulation.config import ScenarioConfig, preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.prompting import TRADER_V1
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.simulation.wording import WORDS
from babylon_rl.versions import content_version
from babylon_rl.windows import HOUR, window_of, window_start

FIRST = "2000-01-01T00:00"
SEED_PREFIX = "benchmark/"
PRESET = "hour"
PROMPT_VERSION = TRADER_V1
PLAYER_ID = "benchmark-player"
_PROBES = ("balanced", "momentum", "contrarian")


@dataclass(frozen=True)
class Snapshot:
    """One benchmark market; ``seed`` fixes it and every draw in it."""

    index: int

    @property
    def id(self) -> str:
        """What results are stored under."""
        return f"benchmark-{self.index:04d}"

    @property
    def seed(self) -> str:
        """The generator's seed."""
        return f"{SEED_PREFIX}{self.index}"

    @property
    def window(self) -> str:
        """The hour that the market is said to lie in."""
        return window_of(window_start(FIRST) + self.index * HOUR)

    @property
    def config(self) -> ScenarioConfig:
        """What the market is generated from."""
        start_ms = round(window_start(self.window).replace(tzinfo=UTC).timestamp() * 1000)
        return preset(PRESET, edition=HELD_OUT.name, seed=self.seed, start_ms=start_ms)

    @cached_property
    def scenario(self) -> Scenario:
        """The market itself."""
        return generate(self.config)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that players see and earn in this market: it changes with the market's code, prompts, fees or stakes."""
        seats = {name: roster.factory(name, self.scenario, ONE_TICK, stake_usd=STAKE_USD) for name in _PROBES}
        seen = []
        for name, factory in seats.items():
            record = play(self.scenario, {PLAYER_ID: factory}, seed=self.seed, script_prompts=PROMPT_VERSION).records[PLAYER_ID]
            calls = [[call.messages, call.response_format, call.response] for call in record.calls.values()]
            seen.append([name, calls, [round(usd, 6) for usd in record.equity]])
        return content_version([PROMPT_VERSION, self.scenario.digest, seen])


@cache
def benchmark_snapshots(count: int) -> tuple[Snapshot, ...]:
    """The first ``count`` benchmark markets; a larger benchmark contains the smaller one."""
    return tuple(_snapshot(index) for index in range(count))


@cache
def _snapshot(index: int) -> Snapshot:
    return Snapshot(index)


def require_unseen(snapshots: Sequence[Snapshot], trained_windows: Iterable[str] = ()) -> None:
    """Assert that no training hour can be one of these markets.

    Raises:
        MarketError: an edition, seed or window could belong to training, two markets are the same, or the editions share a wording.
    """
    shared = sorted(_words(HELD_OUT.name) & _words(TRAINING.name))
    if shared:
        raise MarketError(f"The held-out edition shares wordings with the training edition: {', '.join(shared[:5])}. Change one of them.")
    like_training = [snapshot.id for snapshot in snapshots if not _held_out(snapshot.config)]
    trained = sorted({snapshot.window for snapshot in snapshots} & set(trained_windows))
    if like_training or trained:
        raise MarketError(f"Benchmark markets overlap with training: {', '.join([*like_training, *trained][:5])}.")
    for what in (
        [snapshot.window for snapshot in snapshots],
        [tuple(asset.prices for asset in snapshot.scenario.assets) for snapshot in snapshots],
    ):
        if len(set(what)) < len(snapshots):
            raise MarketError("Two benchmark markets are the same.")


def _held_out(config: ScenarioConfig) -> bool:
    from babylon_rl.market.spawn import SEED_PREFIX as TRAINING_SEEDS  # brings the recorder along

    seed = str(config.seed)
    return config.edition == HELD_OUT.name and seed.startswith(SEED_PREFIX) and not seed.startswith(TRAINING_SEEDS)


@cache
def _words(edition: str) -> frozenset[str]:
    """Every company, question, headline, post and author of an edition."""
    found = HELD_OUT if edition == HELD_OUT.name else TRAINING
    texts = {company for company, _ in found.companies}
    for words in (found, WORDS[edition]):
        for field in fields(words):
            value = getattr(words, field.name)
            texts |= {text for text in value if isinstance(text, str)} if isinstance(value, tuple) else set()
    return frozenset(texts)
