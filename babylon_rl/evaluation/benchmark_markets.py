"""Which markets a benchmark is played in: snapshot files, or markets made on the spot, as ``preset:quick:seeds=1-24``."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from babylon_rl.errors import MarketError, UsageError
from babylon_rl.evaluation.result_building import Market
from babylon_rl.evaluation.snapshot_file import benchmark_scenario, from_scenario, load, optimum_of, to_scenario
from babylon_rl.evaluation.snapshot_file.schema import Snapshot
from babylon_rl.market.headlines import HELD_OUT
from babylon_rl.market.simulation.config import ScenarioConfig, preset

PRESET = "preset:"
MOST_SEEDS = 10_000
_FIELDS = ("minutes", "tick_seconds", "predictions", "perps", "agents")
_RANGE = re.compile(r"(\d+)-(\d+)")


def markets_of(names: Sequence[str], on_market: Callable[[], None] | None = None) -> list[Market]:
    """The markets that ``names`` stand for, in their order, each once.

    Args:
        on_market: called after each.

    Raises:
        UsageError: no name, or one that is no file and cannot be understood.
        MarketError: a file is not a sound snapshot.
    """
    found: dict[str, Market] = {}
    for name in names:
        for market in _named(name):
            found.setdefault(market.digest, market)
            if on_market is not None:
                on_market()
    if not found:
        raise UsageError("Name a snapshot: a file of `babylon-rl benchmark generate`, or preset:quick:seeds=1-24.")
    return list(found.values())


def market_of(snapshot: Snapshot) -> Market:
    """A snapshot as it is played."""
    best = optimum_of(snapshot)
    return Market(snapshot.id, to_scenario(snapshot), best.pnl, best.start_balance)


def _named(name: str) -> Iterator[Market]:
    if not name.startswith(PRESET):
        yield market_of(load(Path(name)))
        return
    for config in configs_of(name):
        scenario = benchmark_scenario(config)
        snapshot = from_scenario(scenario)
        best = optimum_of(snapshot)
        yield Market(snapshot.id, scenario, best.pnl, best.start_balance)


def configs_of(name: str) -> list[ScenarioConfig]:
    """The configs of ``preset:NAME[:seeds=A-B|A,B,...][:minutes=N]...``, of the held-out edition.

    Raises:
        UsageError: it cannot be read, or asks for what a market cannot be.
    """
    preset_name, *options = name.removeprefix(PRESET).split(":")
    seeds, changes = [str(12345)], dict[str, Any]()
    for option in options:
        key, _, value = option.partition("=")
        field = key.replace("-", "_")
        if key in ("seed", "seeds"):
            seeds = list(_seeds(value, name))
        elif field in _FIELDS and value.isdecimal():
            changes[field] = int(value)
        else:
            raise UsageError(f"{option!r} in {name!r} is not understood: give seeds=1-24 or one of {', '.join(_FIELDS)} with a number.")
    try:
        return [preset(preset_name, edition=HELD_OUT.name, seed=int(seed), **changes) for seed in seeds]
    except MarketError as error:
        raise UsageError(str(error)) from error


def _seeds(text: str, name: str) -> Iterator[str]:
    for part in text.split(","):
        ends = _RANGE.fullmatch(part)
        if ends is not None and 0 <= int(ends[2]) - int(ends[1]) < MOST_SEEDS:
            yield from (str(seed) for seed in range(int(ends[1]), int(ends[2]) + 1))
        elif part.isdecimal():
            yield part
        else:
            raise UsageError(f"The seeds {text!r} of {name!r} are not understood: give numbers, as 7, 1-24 or 1-8,20.")
