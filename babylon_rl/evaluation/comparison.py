"""What a benchmark came to: every model's standing, and its paired difference to the one that the gate compares with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.statistics import Interval, mean_interval, paired_interval, share_interval
from babylon_rl.store.benchmarks import MarketResult

CANDIDATE, DEPLOYED, PARENT, BASE, STRATEGY = "candidate", "deployed", "parent", "base", "strategy"
ACTIONS = ("buy", "sell", "hold", "invalid")


@dataclass(frozen=True)
class Standing:
    """One model over all markets; ``improvement`` is its P&L minus the reference's, None for the reference itself."""

    model: str
    role: str
    results: tuple[MarketResult, ...]
    improvement: Interval | None = None

    @property
    def pnls_usd(self) -> list[float]:
        """P&L of every market, in their common order."""
        return [result.pnl_usd for result in self.results]

    @cached_property
    def pnl(self) -> Interval:
        """Mean P&L of a market hour in dollars."""
        return mean_interval(self.pnls_usd)

    @property
    def decisions(self) -> int:
        """How often it was asked."""
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
    def win_rate(self) -> Interval | None:
        """Orders closed with a profit among those closed with a profit or a loss; None when there were none."""
        wins, losses = sum(result.wins for result in self.results), sum(result.losses for result in self.results)
        return share_interval(wins, wins + losses) if wins + losses else None

    @property
    def accuracy(self) -> Interval | None:
        """Orders in the market's direction over their tick; None when there were none."""
        predictions = sum(result.predictions for result in self.results)
        return share_interval(sum(result.predictions_right for result in self.results), predictions) if predictions else None

    @property
    def equity_usd(self) -> list[float]:
        """Mean P&L after every tick."""
        return [sum(column) / len(column) for column in zip(*(result.equity_usd for result in self.results), strict=True)]

    @property
    def row(self) -> dict[str, Any]:
        """Its line in the report: dollars an hour, ``invalid`` a count, rates and shares 0..1, None where there is nothing to measure."""
        improvement, win_rate, accuracy, shares = self.improvement, self.win_rate, self.accuracy, self.shares
        return {
            "model": self.model, "role": self.role, "markets": len(self.results),
            "pnl": self.pnl.mean, "low": self.pnl.low, "high": self.pnl.high,
            "winRate": None if win_rate is None else win_rate.mean,
            "accuracy": None if accuracy is None else accuracy.mean,
            "accuracyLow": None if accuracy is None else accuracy.low,
            "accuracyHigh": None if accuracy is None else accuracy.high,
            "decisions": self.decisions, "invalid": self.invalid, "invalidShare": shares["invalid"],
            "holdShare": shares["hold"], "buyShare": shares["buy"], "sellShare": shares["sell"],
            "improvement": None if improvement is None else improvement.mean,
            "improvementLow": None if improvement is None else improvement.low,
            "improvementHigh": None if improvement is None else improvement.high,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Standings over the same markets. ``candidate`` and ``reference`` are names in it, None when they could not be played.

    ``notes`` says in words whom the candidate is compared with and why, and who is missing.
    """

    standings: tuple[Standing, ...]
    candidate: str | None
    reference: str | None
    notes: tuple[str, ...] = ()

    @property
    def markets(self) -> int:
        """How many markets all of them played."""
        return len(self.standings[0].results)

    def standing(self, model: str) -> Standing:
        """The standing of a model that is in it."""
        return next(standing for standing in self.standings if standing.model == model)


def compare(
    played: Mapping[str, tuple[str, Sequence[MarketResult]]], candidate: str | None, reference: str | None, notes: Sequence[str] = ()
) -> Comparison:
    """Pair the results of ``played`` (model -> role and results) market by market.

    Raises:
        MarketError: they did not play the same markets, or fewer than two.
    """
    orders = {tuple(result.snapshot for result in results) for _, results in played.values()}
    if len(orders) != 1 or len(next(iter(orders))) < 2:
        raise MarketError(f"A comparison needs the same markets, two at least, for everyone; {', '.join(played)} did not play such.")
    theirs = None if reference is None else [result.pnl_usd for result in played[reference][1]]
    standings = []
    for model, (role, results) in played.items():
        ours = [result.pnl_usd for result in results]
        improvement = None if theirs is None or model == reference else paired_interval(ours, theirs)
        standings.append(Standing(model, role, tuple(results), improvement))
    return Comparison(tuple(standings), candidate, reference, tuple(notes))
