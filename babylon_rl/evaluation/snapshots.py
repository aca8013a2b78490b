"""Benchmark markets: hours of the held-out edition that no training hour can equal.

A market's bytes follow from its edition, its seed and its window. Benchmarks take the edition that training never uses, seeds with
a prefix that no training seed (a number) has, and windows before the game began; ``require_unseen`` asserts all three.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import pairwise

from babylon_rl.errors import MarketError
from babylon_rl.market.agents import MODEL_STAKE_USD, PROMPT_VERSION
from babylon_rl.market.headlines import HELD_OUT, TRAINING
from babylon_rl.market.play import Player, play_hour
from babylon_rl.market.world import Hour, generate_hour
from babylon_rl.versions import content_version
from babylon_rl.windows import HOUR, window_of, window_start

FIRST = "2000-01-01T00:00"
SEED_PREFIX = "benchmark/"
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

    @cached_property
    def hour(self) -> Hour:
        """The market itself."""
        return generate_hour(HELD_OUT, self.window, self.seed)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that players see and earn in this market: it changes with the market's code, prompts, fees or stakes."""
        played = [play_hour(self.hour, [Player(PLAYER_ID, probe, MODEL_STAKE_USD)], None, self.seed) for probe in _PROBES]
        seen = [[t.call.messages, t.call.response_format, t.call.response, round(t.pnl_after, 6)] for ticks in played for t in ticks]
        return content_version([PROMPT_VERSION, seen])


@cache
def benchmark_snapshots(count: int) -> tuple[Snapshot, ...]:
    """The first ``count`` benchmark markets; a larger benchmark contains the smaller one."""
    return tuple(Snapshot(index) for index in range(count))


def require_unseen(snapshots: Sequence[Snapshot], trained_windows: Iterable[str] = ()) -> None:
    """Assert that no training hour can be one of these markets.

    Raises:
        MarketError: a seed or window could belong to training, two markets are the same, or the editions share a wording.
    """
    shared = sorted(_words(HELD_OUT.name) & _words(TRAINING.name))
    if shared:
        raise MarketError(f"The held-out edition shares wordings with the training edition: {', '.join(shared[:5])}. Change one of them.")
    numeric = [snapshot.id for snapshot in snapshots if not snapshot.seed.startswith(SEED_PREFIX)]
    trained = sorted({snapshot.window for snapshot in snapshots} & set(trained_windows))
    if numeric or trained:
        raise MarketError(f"Benchmark markets overlap with training: {', '.join([*numeric, *trained][:5])}.")
    hours = sorted((snapshot.hour for snapshot in snapshots), key=lambda hour: hour.window)
    if any(one.window == other.window or one.stocks == other.stocks for one, other in pairwise(hours)):
        raise MarketError("Two benchmark markets are the same.")


@cache
def _words(edition: str) -> frozenset[str]:
    """Every company, question and headline of an edition."""
    found = HELD_OUT if edition == HELD_OUT.name else TRAINING
    texts = {company for company, _ in found.companies}
    for field in fields(found):
        if field.name not in ("name", "companies"):
            texts |= set(getattr(found, field.name))
    return frozenset(texts)
