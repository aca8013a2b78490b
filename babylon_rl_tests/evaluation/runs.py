"""Small benchmarks for tests: markets of a few ticks, played by the real engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.play import Player, benchmark_results, endpoint_player, gate_job, market_rows, scripted
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.snapshots import Snapshot, snapshots_named
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.agents import Mandate
from babylon_rl.store.benchmarks import MarketResult


@cache
def small_markets(count: int = 3) -> tuple[Snapshot, ...]:
    """Markets of 12 ticks with two stocks and two questions that are answered."""
    return tuple(snapshots_named([f"preset:quick:seeds=0-{count - 1}:minutes=12:predictions=2:perps=2"]))


def roster(*names: str, mandate: Mandate = "one-tick") -> list[Player]:
    return [scripted(name, mandate) for name in names]


@contextmanager
def model(url: str, name: str = "m") -> Iterator[Player]:
    with ChatClient(url, None, name, attempts=1) as client:
        yield endpoint_player(lambda: client, name, f"{name}@{url}")


def results(directory: Path, *names: str, markets: int = 3, repeats: int = 1, mandate: Mandate = "one-tick") -> list[Result]:
    return benchmark_results(roster(*names, mandate=mandate), small_markets(markets), directory, repeats=repeats).results


def rows_in(player: Player, snapshots: Sequence[Snapshot], home: Path | None = None, **options: Any) -> list[MarketResult]:
    """The rows of a player in markets of the gate."""
    return market_rows([gate_job(player, snapshot, home) for snapshot in snapshots], **options)
