"""Comparison of players over the same markets, and the gate that decides from it whether a version may be released.

Pairs are runs of the same snapshot, seed and repeat; snapshots are the independent draws, repeats of one count as one. p-values are
corrected for all pairs (Holm) and for the interim analyses of a benchmark that grows (Bonferroni). In the gate's markets every interval of
a difference is as wide as all interim analyses together ask, whoever shows it, so that one comparison has one interval.

The gate asks for objective P&L alone: the judge that a version was trained with has no say here. docs/decisions/0007-gate.md says why the
rules are these. Interim analyses are fixed beforehand, so that playing on until something shows is no way through the gate. Left out: sizes
chosen from what was seen, which no correction covers.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from statistics import fmean
from typing import Any, Generic, TypeVar

import numpy as np

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.metrics import FEWEST_TO_DRAW, drawdowns, sharpe, sharpe_path
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.statistics.intervals import (
    CONFIDENCE,
    FEWEST_TO_RESAMPLE,
    Floats,
    Interval,
    PairedComparison,
    Values,
    cluster_means,
    compare_pairs,
    detectable_effect,
    finite,
    holm,
    linearised,
    markets_needed,
    mean_interval,
    paired_interval,
    share_by_snapshot,
    student_quantile,
    tail,
)
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.store.benchmarks import MarketResult

CANDIDATE, DEPLOYED, PARENT, PASSED, BASE, STRATEGY = "candidate", "deployed", "parent", "passed", "base", "strategy"
NOTHING = "nothing"  # the strategy that holds, always
ANALYSES = (1, 2, 4)  # times the benchmark as it is set
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
        return tuple(self.runs.values())

    @property
    def pnls_usd(self) -> list[float]:
        return [run.pnl_usd for run in self.results]

    @property
    def worst_usd(self) -> float:
        """Lowest P&L of a run in dollars."""
        return min(self.pnls_usd)

    @cached_property
    def pnl(self) -> Interval:
        """Mean P&L of a market in dollars."""
        # By snapshot: repeats of one market are not independent, and would make the interval too narrow.
        return mean_interval(self.pnls_usd, clusters=[snapshot for snapshot, _, _ in self.runs])

    def mean(self, value_of: Callable[[R], float | None]) -> float | None:
        """The mean over snapshots of those runs that have a value."""
        return mean_over_snapshots((snapshot, value_of(run)) for (snapshot, _, _), run in self.runs.items())

    @cached_property
    def expecteds_usd(self) -> Floats | None:
        """Expected dollars of its decisions in each market; None where decisions are not at hand."""
        return self._by_snapshot(lambda run: run.expected_usd)

    @cached_property
    def expected(self) -> Interval | None:
        """Expected dollars of its decisions in a market; None where decisions are not at hand."""
        return None if self.expecteds_usd is None else mean_interval(self.expecteds_usd)

    @cached_property
    def of_ceiling(self) -> Interval | None:
        """Share of the best play's expected dollars in the same markets; None where decisions are not at hand."""
        own, best = self.expecteds_usd, self._by_snapshot(lambda run: run.ceiling_usd)
        return mean_interval(linearised(own, best)) if own is not None and best is not None and any(best) else None

    def _by_snapshot(self, value_of: Callable[[R], float | None]) -> Floats | None:
        """The value of each snapshot, the mean of its repeats; None where one is missing."""
        values = [value for run in self.results if (value := value_of(run)) is not None]
        return cluster_means(finite(values), [snapshot for snapshot, _, _ in self.runs]) if len(values) == len(self.runs) else None


@dataclass(frozen=True)
class GateRow(PlayerRow[MarketResult]):
    """One player over the gate's markets. ``improvement`` is its P&L minus the reference's, None for the reference itself."""

    improvement: Interval | None = None

    @property
    def decisions(self) -> int:
        return sum(result.decisions for result in self.results)

    @property
    def invalid(self) -> int:
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
    def errors(self) -> list[dict[str, object]]:
        """``Errors`` by kind of headline as JSON values; none where decisions are not at hand, and of positions that last."""
        found = [result.errors for result in self.results]
        return [reduce(add, of_kind).document for of_kind in zip(*found, strict=True)] if all(found) else []

    @property
    def mean_stake_usd(self) -> float | None:
        return mean_stake_usd(self.results)

    @property
    def hourly_sharpe(self) -> float | None:
        """Mean over standard deviation of the P&L of market hours; None where all are the same."""
        spread = float(np.std(self.pnls_usd, ddof=1))
        return self.pnl.mean / spread if spread > 1e-9 else None

    @property
    def pnl_path(self) -> list[float]:
        return _mean_path([result.pnl_path for result in self.results])

    @property
    def drawdown_path(self) -> list[float]:
        """Mean dollars below the peak so far, at every moment."""
        return _mean_path([drawdowns(result.pnl_path) for result in self.results])

    @property
    def sharpe_path(self) -> list[float | None]:
        """Mean Sharpe ratio up to every moment; None at the beginning. The mean is over the markets that have a ratio by then."""
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
            **ends("expected", self.expected), **ends("ofCeiling", self.of_ceiling),
            "sharpe": self.sharpe, "maxDrawdown": self.max_drawdown_usd,
            "hourlySharpe": self.hourly_sharpe, "worstHour": self.worst_usd, "meanStake": self.mean_stake_usd,
            **ends("winRate", self.win_rate), **ends("accuracy", self.accuracy),
            "decisions": self.decisions, "invalid": self.invalid, "invalidShare": shares["invalid"], "refused": self.refused,
            "holdShare": shares["hold"], "buyShare": shares["buy"], "sellShare": shares["sell"],
            **ends("improvement", self.improvement),
        }  # fmt: skip


def ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Return mean, low and high end as ``name``, ``nameLow`` and ``nameHigh``; None for what is not known or infinite."""
    values = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
    shown = (value if value is not None and math.isfinite(value) else None for value in values)
    return dict(zip((name, f"{name}Low", f"{name}High"), shown, strict=True))


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


@dataclass(frozen=True)
class Comparison:
    """Players over the gate's markets, with paired differences.

    ``candidate`` and ``reference`` are names of rows, None where there is no such player.

    ``pairs`` of a candidate are its own, with the reference first. ``analyses`` is how often the benchmark may be analysed while it grows;
    intervals of differences are as wide as that asks. ``notes`` says in words who is compared with whom and why, and who is missing.
    ``learned_from``: scripts whose texts trained the candidate, None where that is not known. ``game`` is what all of them played.
    ``own_trade_usd``: mean P&L of a trade of the batch's agents other than scripts, None without any.
    """

    rows: tuple[GateRow, ...]
    candidate: str | None = None
    reference: str | None = None
    notes: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    analyses: int = 1
    game: Game = ONE_TICK_GAME
    learned_from: Sequence[str] | None = None
    own_trade_usd: float | None = None

    @property
    def markets(self) -> int:
        return len(self.rows[0].runs)

    @property
    def confidence(self) -> float:
        """Confidence of one analysis, so that all analyses together keep CONFIDENCE (Bonferroni)."""
        return confidence_of(self.analyses)

    def row(self, player: str) -> GateRow:
        return next(row for row in self.rows if row.player == player)

    @property
    def compared(self) -> tuple[GateRow, GateRow] | None:
        """The rows of the candidate and of the reference; None where there are no such two."""
        if self.candidate is None or self.reference is None or self.candidate == self.reference:
            return None
        return self.row(self.candidate), self.row(self.reference)


def hold_floor(comparison: Comparison) -> str | None:
    """Warning on a candidate that learned to do nothing because trading lost money; None where it did not."""
    lost = -(comparison.own_trade_usd or 0.0)
    held = 0.0 if comparison.candidate is None else comparison.row(comparison.candidate).shares["hold"]
    if lost <= 0.0 or held <= HOLD_FLOOR:
        return None
    return (
        f"HOLD floor: {comparison.candidate} holds in {held:.0%} of its decisions, and the average trade of the agents that trained it, "
        f"scripts apart, lost ${lost:.2f}: while trades lose, holding scores best. Train from a version that reads, offer fewer amounts, "
        "or set CREDIT=answers."
    )


def confidence_of(analyses: int) -> float:
    """Confidence of one of several interim analyses that keep CONFIDENCE together."""
    return 1 - (1 - CONFIDENCE) / analyses


def pairs_of(rows: Sequence[PlayerRow[Any]], names: Sequence[tuple[str, str]], analyses: int = 1) -> tuple[tuple[Pair, ...], list[str]]:
    """Paired comparisons by name, and a sentence for each pair with missing shared runs."""
    runs = {row.player: row.runs for row in rows}
    shared = {(a, b): [key for key in runs[a] if key in runs[b]] for a, b in names}
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
    adjusted = holm({names: min(1.0, analyses * compared.p) for names, compared in paired.items()})
    return tuple(Pair(*names, compared, adjusted[names], len(shared[names])) for names, compared in paired.items()), notes


def compare(
    played: Mapping[str, tuple[str, Sequence[MarketResult]]],
    candidate: str | None,
    reference: str | None,
    notes: Sequence[str] = (),
    analyses: int = len(ANALYSES),
    game: Game = ONE_TICK_GAME,
    learned_from: Sequence[str] | None = None,
    own_trade_usd: float | None = None,
) -> Comparison:
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
    return Comparison(tuple(rows), candidate, reference, tuple(notes), pairs, analyses, game, learned_from, own_trade_usd)


def mean_stake_usd(results: Iterable[MarketResult]) -> float | None:
    """Mean stake of the orders that opened a position, leverage included; None where none did, or stakes were not kept yet."""
    played = list(results)
    staked, opened = math.fsum(result.staked_usd for result in played), sum(result.predictions for result in played)
    return staked / opened if staked and opened else None


HOLD_FLOOR = 0.90  # larger shares of holding, where the average trade lost money, were learned from the losses


def mean_over_snapshots(values: Iterable[tuple[str, float | None]]) -> float | None:
    """The mean of (snapshot, value), each snapshot counting once; None where there is no value."""
    of_snapshot: dict[str, list[float]] = {}
    for snapshot, value in values:
        if value is not None:
            of_snapshot.setdefault(snapshot, []).append(value)
    return fmean(map(fmean, of_snapshot.values())) if of_snapshot else None


def _mean_path(paths: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*paths, strict=True)]


FEWEST_MARKETS = 48  # no version passes below: losses in a tenth of all markets are seen in 48 but for 0.6 %
PASS, FAIL, INCONCLUSIVE, NOT_COMPARED = "pass", "fail", "inconclusive", "not_compared"
COLLAPSE = 0.95  # a larger share of one action is no policy
KEPT = "kept"  # the name of the check against the parent
_ONE_SIDED = 0.90  # two-sided, whose upper end is that of the one-sided 95 % interval


@dataclass(frozen=True)
class GateCheck:
    """One condition of the gate: ``found`` is pass, fail or inconclusive."""

    name: str
    found: str
    words: str


@dataclass(frozen=True)
class GateVerdict:
    """Decision of the gate with its checks.

    ``decision`` is fail when one of ``checks`` failed, pass when all passed, inconclusive otherwise, or not_compared without any.
    """

    decision: str
    reason: str
    checks: tuple[GateCheck, ...] = ()


def decide(comparison: Comparison, min_improvement: float = 0.0, kept: GateCheck | None = None) -> GateVerdict:
    """Judge the candidate of a comparison. ``kept`` is the check against its parent, made before.

    Pass needs all of: the lower end of the paired interval of its improvement over the reference above ``min_improvement`` (dollars an
    hour); shown to earn more than the base and than doing nothing too; no more unusable answers than the reference; no action above
    COLLAPSE of its decisions; FEWEST_MARKETS markets.
    """
    if comparison.compared is None:
        return GateVerdict(NOT_COMPARED, _sentences(*comparison.notes) or "There is nobody to compare.")
    candidate, reference = comparison.compared
    improvement = _improvement(comparison, candidate, min_improvement)
    # Hard faults first, then money, then the number of markets.
    checks = (
        *([kept] if kept is not None else []),
        _collapse(candidate),
        _valid_answers(candidate, reference),
        improvement,
        *(_gain(pair, comparison) for pair in comparison.pairs[1:] if pair.b == NOTHING or comparison.row(pair.b).role == BASE),
        _enough_markets(comparison),
    )
    outcomes = {check.found for check in checks}
    decision = FAIL if FAIL in outcomes else PASS if outcomes == {PASS} else INCONCLUSIVE
    # Only the checks that made the decision are named before the money; a pass is said by the money alone.
    said = [check.words for check in checks if check.found == decision and check is not improvement] if decision != PASS else []
    said.append(improvement.words)
    if decision == INCONCLUSIVE and improvement.found == INCONCLUSIVE:
        said.append(_markets_wanted(comparison, min_improvement))
    return GateVerdict(decision, _sentences(*said, *comparison.notes), checks)


def kept_check(version: str, ours: Values, parent: str, theirs: Values) -> GateCheck:
    """Check that a version is not shown to be worse than its parent in fresh training hours.

    It fails where the whole one-sided 95 % interval of their difference lies below 0: a training may undo what its parent could do.
    ``ours`` and ``theirs`` are expected dollars by hour: prices' luck is out of them, so that few hours show a step back.
    """
    difference = paired_interval(ours, theirs, confidence=_ONE_SIDED)
    hours = f"{parent}; {difference.mean:+.1f} expected dollars an hour over {difference.count}"
    interval = f"{hours}, one-sided 95 % interval up to {difference.high:+.1f}"
    if difference.high < 0.0:
        return GateCheck(KEPT, FAIL, f"{version} is worse than its parent in fresh training hours ({interval})")
    return GateCheck(KEPT, PASS, f"{version} is not shown to be worse than its parent in fresh training hours ({interval})")


def _collapse(candidate: GateRow) -> GateCheck:
    action, share = max(candidate.shares.items(), key=lambda item: item[1])
    answers = "something unusable" if action == "invalid" else action
    most = f"{candidate.player} answers {answers} in {share:.1%} of its {candidate.decisions} decisions"
    if share > COLLAPSE:
        return GateCheck("no_collapse", FAIL, f"{most}: more than {COLLAPSE:.0%} is a collapse into one action")
    return GateCheck("no_collapse", PASS, f"{most}, the most of any action")


def _valid_answers(candidate: GateRow, reference: GateRow) -> GateCheck:
    rates = ", ".join(f"{row.player} {row.shares['invalid']:.1%}" for row in (candidate, reference))
    # Rates compared as products, so that no rounding decides.
    if candidate.invalid * reference.decisions > reference.invalid * candidate.decisions:
        return GateCheck("valid_answers", FAIL, f"Invalid answers have become more: {rates}")
    return GateCheck("valid_answers", PASS, f"Invalid answers have not become more: {rates}")


def _improvement(comparison: Comparison, candidate: GateRow, min_improvement: float) -> GateCheck:
    improvement, required = candidate.improvement, f"{min_improvement:+.1f}"
    assert improvement is not None
    more = "more" if improvement.mean >= 0 else "less"
    difference = (
        f"{candidate.player} earns ${abs(improvement.mean):.1f} an hour {more} than {comparison.reference} over {comparison.markets} "
        f"unseen markets (paired 95 % interval {improvement.low:+.1f} to {improvement.high:+.1f})"
    )
    if improvement.low > min_improvement:
        return GateCheck("improvement", PASS, f"{difference}: all of it is above the required {required}")
    # The whole interval must lie on one side, else nothing is decided.
    if improvement.high <= min_improvement:
        return GateCheck("improvement", FAIL, f"{difference}: none of it is above the required {required}")
    return GateCheck("improvement", INCONCLUSIVE, f"{difference}: it holds the required {required}")


def _gain(pair: Pair, comparison: Comparison) -> GateCheck:
    """Veto check: a version must earn more than the base, and than no trading."""
    difference, rival = pair.paired.difference, "doing nothing" if pair.b == NOTHING else pair.b
    name = "better_than_nothing" if pair.b == NOTHING else "better_than_base"
    interval = f"{difference.mean:+.1f} an hour, paired 95 % interval {difference.low:+.1f} to {difference.high:+.1f}"
    if difference.low > 0:
        return GateCheck(name, PASS, f"{comparison.candidate} is shown to earn more than {rival} ({interval})")
    if difference.high >= 0:
        return GateCheck(name, INCONCLUSIVE, f"{comparison.candidate} is not shown to earn more than {rival} ({interval})")
    instead = f"; {comparison.reference} is no reason to deploy it: {rival} is the better choice" if pair.b == NOTHING else ""
    return GateCheck(name, FAIL, f"{comparison.candidate} is shown to earn less than {rival} ({interval}){instead}")


def _enough_markets(comparison: Comparison) -> GateCheck:
    # The first pair is that with the reference.
    spread, sentence = comparison.pairs[0].paired.spread, f"{comparison.markets} markets were played"
    if spread is not None and spread.between > 0:
        shown = detectable_effect(comparison.markets, spread, comparison.confidence)
        sentence += f", which show a difference of ${shown:.0f} an hour in 4 of 5 benchmarks"
    if comparison.markets < FEWEST_MARKETS:
        return GateCheck("enough_markets", INCONCLUSIVE, f"{sentence}; a pass needs {FEWEST_MARKETS} markets at least (BENCHMARK_MARKETS)")
    return GateCheck("enough_markets", PASS, sentence)


def _markets_wanted(comparison: Comparison, min_improvement: float) -> str:
    needed = needed_markets(comparison, min_improvement)
    if needed is None:
        return "More markets would not be expected to change that"
    return (
        f"An effect of this size shows in 4 of 5 benchmarks of {needed} markets "
        f"(BENCHMARK_MARKETS; the benchmark itself plays up to {ANALYSES[-1]} times as many)"
    )


def _sentences(*parts: str) -> str:
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)


def analysis_sizes(first: int) -> tuple[int, ...]:
    return tuple(first * times for times in ANALYSES)


def next_analysis(comparison: Comparison, min_improvement: float, first: int) -> int | None:
    """Markets of the next interim analysis after an inconclusive one. None when no more are worth playing."""
    # Sizes are fixed beforehand; none is chosen from the data.
    larger = [size for size in analysis_sizes(first) if size > comparison.markets]
    # Where even the last size is too small to pass, playing on could only cost.
    if not larger or larger[-1] < FEWEST_MARKETS:
        return None
    if comparison.markets < FEWEST_TO_RESAMPLE:  # too few to expect anything from
        return larger[0]
    if comparison.compared is None:
        return None
    # What was seen would pass at the last size: in about half of the cases, if it is the truth. No bound of error depends on this rule.
    effect, spread = _effect(*comparison.compared, min_improvement)
    passes = student_quantile(tail(comparison.confidence), larger[-1] - 1) * spread / math.sqrt(larger[-1])
    return larger[0] if effect > passes else None


def needed_markets(comparison: Comparison, min_improvement: float) -> int | None:
    """Markets in which an improvement of the observed size shows with 80 % power. None when it is not above ``min_improvement``."""
    if comparison.compared is None:
        return None
    return markets_needed(*_effect(*comparison.compared, min_improvement), comparison.confidence)


def _effect(ours: GateRow, theirs: GateRow, min_improvement: float) -> tuple[float, float]:
    """The observed improvement less ``min_improvement``, and the standard deviation of the differences by market."""
    differences = np.subtract(ours.pnls_usd, theirs.pnls_usd)
    return float(differences.mean()) - min_improvement, float(differences.std(ddof=1))
