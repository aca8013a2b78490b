"""A comparison in the shape of the game's own benchmark, with what is ours beside it: a row per agent, a row per pair of agents."""

from typing import Any

import msgspec

from babylon_rl.evaluation.results import Bin, Result


class _Shape(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Common to all parts: camelCase names."""


class Interval(_Shape, frozen=True):
    """An estimate with its 95 % interval; an end is null where the data do not bound it."""

    mean: float
    low: float | None
    high: float | None


class Totals(_Shape, frozen=True):
    """Over all runs; the best and the worst by P&L, by their ids."""

    avg_pnl: float
    avg_accuracy: float | None
    avg_optimality: float
    best_run: str
    worst_run: str


class AgentRow(_Shape, frozen=True):
    """One agent over its runs: means over snapshots, shares over all of its decisions, positions or purchases; null: nothing to measure."""

    agent: str
    role: str
    identity: str
    runs: int
    snapshots: int
    pnl: Interval
    returns: float | None = msgspec.field(name="return")
    sharpe: float | None
    max_drawdown: float | None
    win_rate: float | None
    accuracy: float | None
    brier: float | None
    market_brier: float | None
    edge: float | None
    calibration: list[Bin]
    invalid_rate: float | None
    refused_rate: float | None
    action_shares: dict[str, float]
    action_entropy: float | None
    reaction_ticks: float | None
    reaction_share: float | None
    optimality: float | None
    avg_response_time: float | None
    positions: int


class Pair(_Shape, frozen=True):
    """``a`` less ``b`` over the ``runs`` that both have, in ``snapshots`` markets.

    Attributes:
        difference: dollars a market; effect_size: in standard deviations between markets, null where they do not vary or are too few.
        p: by flipping the signs of markets; adjusted_p: after Holm's correction for all pairs of the comparison.
        better_share: of the markets in which a earned more, an equal result counting half.
        winner: whoever is better by an interval without 0 and an adjusted p of at most 0.05; null: not decided.
    """

    a: str
    b: str
    difference: Interval
    p: float
    adjusted_p: float
    effect_size: Interval | None
    better_share: Interval
    snapshots: int
    runs: int
    winner: str | None


class Refused(_Shape, frozen=True):
    """A file, or the id of a result, that enters no comparison, and why."""

    file: str
    agent: str | None
    reasons: list[str]


class Comparison(_Shape, frozen=True):
    """``runs`` are whole results; ``comparison`` is over all of them."""

    runs: list[Result]
    comparison: Totals
    agents: list[AgentRow]
    pairs: list[Pair]
    refused: list[Refused]
    notes: list[str]

    @property
    def document(self) -> dict[str, Any]:
        """As JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain
