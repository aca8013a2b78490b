"""Small benchmarks for tests: markets of a few ticks, played by the real engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from babylon_rl.evaluation.benchmark_markets import markets_of
from babylon_rl.evaluation.contestants import Contestant, asked, scripted
from babylon_rl.evaluation.result_building import Market
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.runner import run_benchmark
from babylon_rl.market.simulation.agents import Mandate
from babylon_rl.models.client import ChatClient


@cache
def small_markets(count: int = 3) -> tuple[Market, ...]:
    """Markets of 12 ticks with two stocks and two questions that are answered."""
    return tuple(markets_of([f"preset:quick:seeds=0-{count - 1}:minutes=12:predictions=2:perps=2"]))


def roster(*names: str, mandate: Mandate = "one-tick") -> list[Contestant]:
    return [scripted(name, mandate) for name in names]


@contextmanager
def model(url: str, name: str = "m") -> Iterator[Contestant]:
    with ChatClient(url, None, name, attempts=1) as client:
        yield asked(lambda: client, name, f"{name}@{url}")


def results(directory: Path, *names: str, markets: int = 3, repeats: int = 1, mandate: Mandate = "one-tick") -> list[Result]:
    return run_benchmark(roster(*names, mandate=mandate), small_markets(markets), directory, repeats=repeats).results
