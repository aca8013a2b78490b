"""Check of a version against its parent in fresh training hours, before it plays the gate's markets.

A training may undo what its parent could do. Both play the same generated hours of the training edition, each alone, at temperature 0, and
their expected dollars are compared hour by hour: prices' luck is out of them, so that few hours show a step back. The hours' seeds have a
prefix of their own: no training, gate or confirmation has them. They are the same for all versions, so a parent's results are known.
"""

from functools import cache

from babylon_rl.evaluation.gate import FAIL, PASS, GateCheck
from babylon_rl.evaluation.snapshots import PRESET, Snapshot
from babylon_rl.evaluation.statistics.intervals import Values, paired_interval
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.market.simulation.generation import generate

KEPT = "kept"
HOURS = 24
FRESH_ID, SEED_PREFIX = "fresh-", "kept/"
_TWO_SIDED = 0.90  # whose upper end is that of the one-sided 95 % interval


@cache
def fresh_hours(game: Game = ONE_TICK_GAME) -> tuple[Snapshot, ...]:
    """Generated hours of the training edition that nothing trains on."""
    return tuple(
        Snapshot(f"{FRESH_ID}{index:04d}", generate(preset(PRESET, edition=TRAINING, seed=f"{SEED_PREFIX}{index}")), game=game)
        for index in range(HOURS)
    )


def kept_check(version: str, ours: Values, parent: str, theirs: Values) -> GateCheck:
    """Fail where the whole one-sided 95 % interval of the difference lies below 0.

    ``ours`` and ``theirs`` are expected dollars of the version and of its parent, by hour.
    """
    difference = paired_interval(ours, theirs, confidence=_TWO_SIDED)
    hours = f"{parent}; {difference.mean:+.1f} expected dollars an hour over {difference.count}"
    interval = f"{hours}, one-sided 95 % interval up to {difference.high:+.1f}"
    if difference.high < 0.0:
        return GateCheck(KEPT, FAIL, f"{version} is worse than its parent in fresh training hours ({interval})")
    return GateCheck(KEPT, PASS, f"{version} is not shown to be worse than its parent in fresh training hours ({interval})")


def not_asked(why: str) -> GateCheck:
    """A check that passes, as there is nothing to compare with."""
    return GateCheck(KEPT, PASS, f"Fresh training hours were not played: {why}")
