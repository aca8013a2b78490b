"""Comparison of players over the same markets: statistics of each, and paired differences.

Pairs are runs of the same snapshot, seed and repeat; snapshots are the independent draws, repeats of one count as one. p-values are
corrected for all pairs (Holm) and for the interim analyses of a benchmark that grows (Bonferroni). The gate, the leaderboard,
``benchmark compare`` and the reports are views of this.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.metrics import FEWEST_TO_DRAW, drawdowns, sharpe, sharpe_path
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.statistics.intervals import CONFIDENCE, Interval, mean_interval, paired_interval, share_by_snapshot
from babylon_rl.evaluation.statistics.paired import PairedComparison, compare_pairs, holm
from babylon_rl.store.benchmarks import MarketResult

CANDIDATE, DEPLOYED, PARENT, PASSED, BASE, STRATEGY = "candidate", "deployed", "parent", "passed", "base", "strategy"
NOTHING = "nothing"  # the strategy that holds, always
ACTIONS = ("buy", "sell", "hold", "invalid")
_RIVALS = (DEPLOYED, BASE, PARENT)
RunKey = tuple[str, str, int]  # snapshot, seed, repeat


R = TypeVar("R", bound=Result | MarketResult)  # complete runs: of any benchmark, or the gate's stored rows


@dataclass(frozen=True)
class PlayerRow(Generic[R]):
    """One player over its runs; means are over snapshots, each counting once."""

    player: str
    role: str
    runs: Mapping[RunKey, R]

    @property
    def results(self) -> tuple[R, ...]:
        """Its runs in their common order."""
        return tuple(self.runs.values())

    @property
    def pnls_usd(self) -> list[float]:
        """P&L of every run."""
        return [run.pnl_usd for run in self.results]

    @cached_property
    def pnl(self) -> Interval:
        """Mean P&L of a market in dollars."""
        # By snapshot: repeats of one market are not independent, and would make the interval too narrow.
        return mean_interval(self.pnls_usd, clusters=[snapshot for snapshot, _, _ in self.runs])

    def mean(self, value_of: Callable[[R], float | None]) -> float | None:
        """The mean over snapshots of those runs that have a value."""
        return mean_over_snapshots((snapshot, value_of(run)) for (snapshot, _, _), run in self.runs.items())


@dataclass(frozen=True)
class GateRow(PlayerRow[MarketResult]):
    """One player over the gate's markets.

    ``improvement`` is its P&L minus the reference's, None for the reference itself.
    """

    improvement: Interval | None = None

    @property
    def decisions(self) -> int:
        """Decisions over all markets."""
        return sum(result.decisions for result in self.results)

    @property
    def invalid(self) -> int:
        """Answers that could not be used."""
        return sum(result.invalid for result in self.results)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each of ACTIONS in its decisions; they sum to 1."""
        counts = {action: sum(result.actions[action] for result in self.results) for action in ACTIONS[:3]} | {"invalid": self.invalid}
        return {action: count / self.decisions for action, count in counts.items()}

    @property
    def refused(self) -> int:
        """Orders that the exchange did not carry out."""
        return sum(result.refused for result in self.results)

    @cached_property
    def win_rate(self) -> Interval | None:
        """Share of orders closed with a profit, clustered by market; None without closed orders.

        Orders closed at exactly 0 do not count.
        """
        wins, closed = [result.wins for result in self.results], [result.wins + result.losses for result in self.results]
        return share_by_snapshot(wins, closed) if any(closed) else None

    @cached_property
    def accuracy(self) -> Interval | None:
        """Share of orders in the market's direction, clustered by market; None without orders."""
        right, orders = [result.predictions_right for result in self.results], [result.predictions for result in self.results]
        return share_by_snapshot(right, orders) if any(orders) else None

    @cached_property
    def sharpe(self) -> float | None:
        """Sharpe ratio of a market hour, mean over the markets that have one."""
        return self.mean(lambda result: sharpe(result.pnl_path))

    @cached_property
    def max_drawdown_usd(self) -> float:
        """Largest fall of the P&L from its peak in a market hour, mean over markets."""
        return self.mean(lambda result: max(drawdowns(result.pnl_path))) or 0.0

    @property
    def pnl_path(self) -> list[float]:
        """Mean P&L at every moment of the hour."""
        return _mean_path([result.pnl_path for result in self.results])

    @property
    def drawdown_path(self) -> list[float]:
        """Mean dollars below the peak so far, at every moment."""
        return _mean_path([drawdowns(result.pnl_path) for result in self.results])

    @property
    def sharpe_path(self) -> list[float | None]:
        """Mean Sharpe ratio up to every moment; None at the beginning.

        The mean is over the markets that have a ratio by then.
        """
        # Markets get their first ratio at different moments.
        columns = zip(*(sharpe_path(result.pnl_path, FEWEST_TO_DRAW) for result in self.results), strict=True)
        defined = [[value for value in column if value is not None] for column in columns]
        return [sum(values) / len(values) if values else None for values in defined]

    @property
    def document(self) -> dict[str, Any]:
        """Report row as JSON values; None where there is nothing to measure.

        Dollars are by hour, ``invalid`` is a count, rates and shares are 0..1.
        """
        shares = self.shares
        return {
            "model": self.player, "role": self.role, "markets": len(self.results),
            "pnl": self.pnl.mean, "low": self.pnl.low, "high": self.pnl.high,
            "sharpe": self.sharpe, "maxDrawdown": self.max_drawdown_usd,
            **_ends("winRate", self.win_rate), **_ends("accuracy", self.accuracy),
            "decisions": self.decisions, "invalid": self.invalid, "invalidShare": shares["invalid"], "refused": self.refused,
            "holdShare": shares["hold"], "buyShare": shares["buy"], "sellShare": shares["sell"],
            **_ends("improvement", self.improvement),
        }  # fmt: skip


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Mean and ends of an interval as ``name``, ``nameLow`` and ``nameHigh``."""
    mean, low, high = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
    return {name: mean, f"{name}Low": low, f"{name}High": high}


@dataclass(frozen=True)
class Pair:
    """Player ``a`` less player ``b`` over the ``runs`` that both have.

    ``paired.difference`` holds over all interim analyses of the benchmark together; ``adjusted_p`` is that of the permutation test,
    corrected for the number of these analyses and (Holm) for the number of pairs.
    """

    a: str
    b: str
    paired: PairedComparison
    adjusted_p: float
    runs: int


AnyRow = TypeVar("AnyRow", bound=PlayerRow[Any])


@dataclass(frozen=True)
class Comparison(Generic[AnyRow]):
    """Players over markets, with paired differences.

    ``candidate`` and ``reference`` are names of rows, None where there is no such player.

    ``pairs`` of a candidate are its own, with the reference first. ``analyses`` is how often the benchmark may be analysed while it grows;
    intervals of differences are as wide as that asks. ``notes`` says in words who is compared with whom and why, and who is missing.
    """

    rows: tuple[AnyRow, ...]
    candidate: str | None = None
    reference: str | None = None
    notes: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    analyses: int = 1

    @property
    def markets(self) -> int:
        """Markets that the first of them played; in the gate all play the same."""
        return len({snapshot for snapshot, _, _ in self.rows[0].runs})

    @property
    def confidence(self) -> float:
        """Confidence of one analysis, so that all analyses together keep CONFIDENCE (Bonferroni)."""
        return confidence_of(self.analyses)

    def row(self, player: str) -> AnyRow:
        """The row of a player that is in it."""
        return next(row for row in self.rows if row.player == player)


def confidence_of(analyses: int) -> float:
    """Confidence of one of several interim analyses that keep CONFIDENCE together."""
    return 1 - (1 - CONFIDENCE) / analyses


def pairs_of(rows: Sequence[PlayerRow[Any]], names: Sequence[tuple[str, str]], analyses: int = 1) -> tuple[tuple[Pair, ...], list[str]]:
    """Paired comparisons by name, and a sentence for each pair with missing shared runs."""
    runs = {row.player: row.runs for row in rows}
    shared = {(a, b): [key for key in runs[a] if key in runs[b]] for a, b in names}
    # Missing shared runs are reported, never filled in.
    notes = [f"{a} and {b} share no run: they cannot be compared." for (a, b), keys in shared.items() if not keys]
    for (a, b), keys in shared.items():
        most = max(len(runs[a]), len(runs[b]))
        if keys and len(keys) < most:
            notes.append(f"{a} and {b} share {len(keys)} of {most} runs; only these are compared.")
    paired = {
        (a, b): compare_pairs(
            [runs[a][key].pnl_usd for key in keys],
            [runs[b][key].pnl_usd for key in keys],
            clusters=[snapshot for snapshot, _, _ in keys],
            confidence=confidence_of(analyses),
        )
        for (a, b), keys in shared.items()
        if keys
    }
    # Bonferroni for the interim analyses, then Holm for the number of pairs.
    adjusted = holm({names: min(1.0, analyses * compared.test.p) for names, compared in paired.items()})
    return tuple(Pair(*names, compared, adjusted[names], len(shared[names])) for names, compared in paired.items()), notes


def compare(
    played: Mapping[str, tuple[str, Sequence[MarketResult]]],
    candidate: str | None,
    reference: str | None,
    notes: Sequence[str] = (),
    analyses: int = 1,
) -> Comparison[GateRow]:
    """Compare players of the gate's markets, market by market.

    ``played`` maps a name to its role and results.

    Raises:
        MarketError: they did not play the same markets, or fewer than two.
    """
    # Paired by position below, so the order must be the same for all.
    orders = {tuple(result.snapshot for result in results) for _, results in played.values()}
    if len(orders) != 1 or len(next(iter(orders))) < 2:
        raise MarketError(f"A comparison needs the same markets, two at least, for everyone; {', '.join(played)} did not play such.")
    pnls = {player: [result.pnl_usd for result in results] for player, (_, results) in played.items()}
    rows = []
    for player, (role, results) in played.items():
        compared = reference is not None and player != reference
        # As wide as all analyses together ask, also at the first: it may not be the last.
        improvement = paired_interval(pnls[player], pnls[reference or ""], confidence=confidence_of(analyses)) if compared else None
        rows.append(GateRow(player, role, {(result.snapshot, "", 0): result for result in results}, improvement))
    # The candidate is paired with other models and with doing nothing; strategies only describe.
    rivals = [row.player for row in rows if row.player != candidate and (row.role in _RIVALS or row.player in (reference, NOTHING))]
    # The reference first, as the gate takes the first pair for it; the order of the others stays.
    rivals.sort(key=lambda player: player != reference)
    pairs = () if candidate is None else pairs_of(rows, [(candidate, rival) for rival in rivals], analyses)[0]
    return Comparison(tuple(rows), candidate, reference, tuple(notes), pairs, analyses)


def mean_over_snapshots(values: Iterable[tuple[str, float | None]]) -> float | None:
    """The mean of (snapshot, value), each snapshot counting once; None where there is no value."""
    of_snapshot: dict[str, list[float]] = {}
    for snapshot, value in values:
        if value is not None:
            of_snapshot.setdefault(snapshot, []).append(value)
    if not of_snapshot:
        return None
    return math.fsum(math.fsum(of_runs) / len(of_runs) for of_runs in of_snapshot.values()) / len(of_snapshot)


def _mean_path(paths: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*paths, strict=True)]
