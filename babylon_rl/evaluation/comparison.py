"""What a benchmark came to: every model's standing, and its paired difference to the one that the gate compares with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.statistics import (
    CONFIDENCE,
    Interval,
    PairedComparison,
    compare_pairs,
    holm,
    mean_interval,
    paired_interval,
    share_by_snapshot,
)
from babylon_rl.store.benchmarks import MarketResult

CANDIDATE, DEPLOYED, PARENT, PASSED, BASE, STRATEGY = "candidate", "deployed", "parent", "passed", "base", "strategy"
NOTHING = "nothing"  # the strategy that holds, always
ACTIONS = ("buy", "sell", "hold", "invalid")
_RIVALS = (DEPLOYED, BASE, PARENT)


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
    def refused(self) -> int:
        """Orders that the exchange did not carry out."""
        return sum(result.refused for result in self.results)

    @cached_property
    def win_rate(self) -> Interval | None:
        """Orders closed with a profit among those closed with a profit or a loss, clustered by market; None when there were none."""
        wins, closed = [result.wins for result in self.results], [result.wins + result.losses for result in self.results]
        return share_by_snapshot(wins, closed) if any(closed) else None

    @cached_property
    def accuracy(self) -> Interval | None:
        """Orders in the market's direction over their tick, clustered by market; None when there were none."""
        right, orders = [result.predictions_right for result in self.results], [result.predictions for result in self.results]
        return share_by_snapshot(right, orders) if any(orders) else None

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
            "winRateLow": None if win_rate is None else win_rate.low,
            "winRateHigh": None if win_rate is None else win_rate.high,
            "accuracy": None if accuracy is None else accuracy.mean,
            "accuracyLow": None if accuracy is None else accuracy.low,
            "accuracyHigh": None if accuracy is None else accuracy.high,
            "decisions": self.decisions, "invalid": self.invalid, "invalidShare": shares["invalid"], "refused": self.refused,
            "holdShare": shares["hold"], "buyShare": shares["buy"], "sellShare": shares["sell"],
            "improvement": None if improvement is None else improvement.mean,
            "improvementLow": None if improvement is None else improvement.low,
            "improvementHigh": None if improvement is None else improvement.high,
        }  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """The candidate against one other, market by market.

    ``paired.difference`` holds over all looks at the benchmark together; ``adjusted_p`` is that of the permutation test, corrected for
    the number of looks and (Holm) for the number of contests shown.
    """

    rival: str
    role: str
    paired: PairedComparison
    adjusted_p: float

    @property
    def row(self) -> dict[str, Any]:
        """It as plain values: dollars an hour, the effect in standard deviations of the markets' differences, shares 0..1."""
        difference, effect, better = self.paired.difference, self.paired.effect, self.paired.superiority
        return {
            "rival": self.rival, "role": self.role,
            "difference": difference.mean, "low": difference.low, "high": difference.high,
            "effect": None if effect is None else effect.size, "effectLow": None if effect is None else _bounded(effect.low),
            "effectHigh": None if effect is None else _bounded(effect.high),
            "betterShare": better.share, "p": self.paired.test.p, "adjustedP": self.adjusted_p,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Standings over the same markets. ``candidate`` and ``reference`` are names in it, None when they could not be played.

    ``contests`` are the candidate's, with the reference first. ``looks`` is how often the benchmark may be looked at while it grows;
    intervals of differences are as wide as that asks. ``notes`` says in words whom the candidate is compared with and why, and who is
    missing.
    """

    standings: tuple[Standing, ...]
    candidate: str | None
    reference: str | None
    notes: tuple[str, ...] = ()
    contests: tuple[Contest, ...] = ()
    looks: int = 1

    @property
    def markets(self) -> int:
        """How many markets all of them played."""
        return len(self.standings[0].results)

    @property
    def confidence(self) -> float:
        """Of one look at differences, so that all looks together keep CONFIDENCE (Bonferroni)."""
        return confidence_of(self.looks)

    def standing(self, model: str) -> Standing:
        """The standing of a model that is in it."""
        return next(standing for standing in self.standings if standing.model == model)


def confidence_of(looks: int) -> float:
    """The confidence of each of so many looks, when all together are to keep CONFIDENCE."""
    return 1 - (1 - CONFIDENCE) / looks


def compare(
    played: Mapping[str, tuple[str, Sequence[MarketResult]]],
    candidate: str | None,
    reference: str | None,
    notes: Sequence[str] = (),
    looks: int = 1,
) -> Comparison:
    """Pair the results of ``played`` (model -> role and results) market by market.

    Raises:
        MarketError: they did not play the same markets, or fewer than two.
    """
    orders = {tuple(result.snapshot for result in results) for _, results in played.values()}
    if len(orders) != 1 or len(next(iter(orders))) < 2:
        raise MarketError(f"A comparison needs the same markets, two at least, for everyone; {', '.join(played)} did not play such.")
    pnls = {model: [result.pnl_usd for result in results] for model, (_, results) in played.items()}
    confidence, standings = confidence_of(looks), []
    for model, (role, results) in played.items():
        compared = reference is not None and model != reference
        improvement = paired_interval(pnls[model], pnls[reference or ""], confidence=confidence) if compared else None
        standings.append(Standing(model, role, tuple(results), improvement))
    roles = {model: role for model, (role, _) in played.items()}
    contests = () if candidate is None else _contests(pnls, roles, candidate, reference, looks)
    return Comparison(tuple(standings), candidate, reference, tuple(notes), contests, looks)


def _contests(
    pnls: Mapping[str, Sequence[float]], roles: Mapping[str, str], candidate: str, reference: str | None, looks: int
) -> tuple[Contest, ...]:
    rivals = [model for model, role in roles.items() if model != candidate and (role in _RIVALS or model in (reference, NOTHING))]
    rivals.sort(key=lambda model: model != reference)
    paired = {model: compare_pairs(pnls[candidate], pnls[model], confidence=confidence_of(looks)) for model in rivals}
    adjusted = holm({model: min(1.0, looks * found.test.p) for model, found in paired.items()})
    return tuple(Contest(one.name, roles[one.name], paired[one.name], one.adjusted) for one in adjusted)


def _bounded(value: float) -> float | None:
    """None for an end that lies at infinity, which JSON cannot say."""
    return value if math.isfinite(value) else None
