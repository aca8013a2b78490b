"""Command ``benchmark compare``: stored results side by side, in the shape of the game's own benchmark, with our fields beside it.

A result that is not sound, of a market that its agent had met before, or of another version of the engine than the others enters nothing
and is named with the reason.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from babylon_rl.errors import MarketError, UsageError
from babylon_rl.evaluation.gate import ANALYSES, Pair, PlayerRow, RunKey, mean_over_snapshots, pairs_of
from babylon_rl.evaluation.metrics import calibration, forecast_scores, share, stakes_usd
from babylon_rl.evaluation.play import engine_version, external_identity
from babylon_rl.evaluation.result_checks import validate_result
from babylon_rl.evaluation.results import PARTIAL, SEEN, SUFFIX, Bin, CamelCase, Result, read_result
from babylon_rl.evaluation.snapshots import SEED_PREFIX
from babylon_rl.evaluation.statistics.intervals import Interval

LEVEL = 0.05


class Bounds(CamelCase, frozen=True):
    """Estimate with its 95 % interval; a bound is null where the data give none."""

    mean: float
    low: float | None
    high: float | None


class Totals(CamelCase, frozen=True):
    """Over all runs; the best and the worst by P&L, by their ids. The accuracy is the game's: an agent's ``answers_right``."""

    avg_pnl: float
    avg_accuracy: float | None
    avg_optimality: float
    best_run: str
    worst_run: str


class AgentRow(CamelCase, frozen=True):
    """Statistics of one agent over its runs; null where there is nothing to measure.

    Means are over snapshots, shares over all of its decisions, positions or purchases. ``expected`` are dollars of its decisions on
    average, ``of_ceiling`` their share of the best play's (``PlayerRow``). ``mean_stake`` is of orders that opened a position, leverage
    included; ``worst`` the lowest P&L of a run. ``answers_right`` is the share of its positions in questions whose side is the answer;
    ``accuracy``, of the gate's rows, is of orders and the market's direction.
    """

    agent: str
    role: str
    identity: str
    runs: int
    snapshots: int
    pnl: Bounds
    expected: Bounds | None
    of_ceiling: Bounds | None
    returns: float | None = msgspec.field(name="return")
    sharpe: float | None
    max_drawdown: float | None
    worst: float
    mean_stake: float | None
    win_rate: float | None
    answers_right: float | None
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


class PairRow(CamelCase, frozen=True):
    """``a`` less ``b`` over the ``runs`` that both have, in ``snapshots`` markets.

    Attributes:
        difference: dollars a market; effect_size: in standard deviations between markets, null where they do not vary or are too few.
        p: by flipping the signs of markets; adjusted_p: after Holm's correction for all pairs of the comparison.
        better_share: of the markets in which a earned more, an equal result counting half.
        winner: the one that is better by an interval without 0 and an adjusted p of at most 0.05; null: not decided.
    """

    a: str
    b: str
    difference: Bounds
    p: float
    adjusted_p: float
    effect_size: Bounds | None
    better_share: Bounds
    snapshots: int
    runs: int
    winner: str | None


class LeftOut(CamelCase, frozen=True):
    """A file, or the id of a result, that enters no comparison, and why."""

    file: str
    agent: str | None
    reasons: list[str]


class ComparisonDocument(CamelCase, frozen=True):
    """``runs`` are whole results; ``comparison`` is over all of them.

    ``analyses``: the interim analyses that intervals and p-values of the pairs are corrected for; the gate's in its markets, 1 in others.
    """

    runs: list[Result]
    comparison: Totals
    agents: list[AgentRow]
    pairs: list[PairRow]
    analyses: int
    refused: list[LeftOut]
    notes: list[str]

    @property
    def document(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def sound_results(files: Iterable[Path]) -> tuple[list[Result], list[LeftOut]]:
    """Results that may enter a comparison, and left-out files with their reasons."""
    results, left_out = [], []
    for path in files:
        try:
            result = read_result(path)
        except MarketError as error:
            left_out.append(LeftOut(file=str(path), agent=None, reasons=[str(error)]))
            continue
        faults = validate_result(result)
        # A run that ended early has a P&L of another length.
        if not result.complete:
            faults.append(f"It ended at tick {result.ticks_processed} of {result.ticks}: {result.stopped or 'left early'}")
        # Only the first attempt meets a market unseen.
        if result.repeat > 0 and result.identity == external_identity(result.agent_id, result.mandate):
            faults.append(f"It is attempt {result.repeat + 1} of an outside agent, which may know the market from the first.")
        if faults:
            left_out.append(LeftOut(file=str(path), agent=result.agent_id, reasons=faults))
        else:
            results.append(result)
    return results, left_out


def result_files(directory: Path) -> list[Path]:
    """The results of a directory, those that ended early among them.

    Raises:
        UsageError: there is none.
    """
    files = sorted(path for path in directory.glob(f"*{SUFFIX}") if path.is_file())
    if not files:
        raise UsageError(f"{directory} holds no results; `babylon-rl benchmark run SNAPSHOT --model NAME --out {directory}` writes them.")
    return [path for path in files if not path.name.endswith(PARTIAL)] + [path for path in files if path.name.endswith(PARTIAL)]


def compare_results(results: Sequence[Result], left_out: Sequence[LeftOut] = (), *, reference: str | None = None) -> ComparisonDocument:
    """Compare all agents of sound results with each other, or with a reference only.

    Only results of one version of the engine are compared: of the one that runs now, or, where none is of it, of the one with most results.

    Raises:
        UsageError: there is no sound result, one is given twice under other numbers, or the reference has none.
    """
    results, other_engine, notes = _of_one_engine(results)
    of_agent = by_agent(results)
    if not of_agent:
        reasons = " ".join(f"{left.file}: {' '.join(left.reasons)}" for left in left_out[:3])
        raise UsageError(f"There is no sound result to compare. {reasons}".rstrip())
    if reference is not None and reference not in of_agent:
        raise UsageError(" ".join([f"There is no result of {reference!r}; there are results of {', '.join(of_agent)}.", *notes]))
    pair_names = list(combinations(of_agent, 2)) if reference is None else [(name, reference) for name in of_agent if name != reference]
    rows = tuple(PlayerRow(name, next(iter(runs.values())).role, runs) for name, runs in of_agent.items())
    of_gate = all(str(result.seed).startswith(SEED_PREFIX) for result in results)
    analyses = len(ANALYSES) if of_gate else 1
    pairs, not_shared = pairs_of(rows, pair_names, analyses)
    notes += not_shared
    if any(result.seen for result in results):
        notes.append(SEEN)
    if any(left.agent is None or left.reasons for left in left_out):
        notes.append(f"{len(left_out)} results are left out: not sound, not complete, or of a market that was known from before.")
    return ComparisonDocument(
        runs=[result for row in rows for result in row.results],
        comparison=_totals(results),
        agents=[_agent(row) for row in rows],
        pairs=[_pair(pair) for pair in pairs],
        analyses=analyses,
        refused=[*left_out, *other_engine],
        notes=notes,
    )


def _of_one_engine(results: Sequence[Result]) -> tuple[list[Result], list[LeftOut], list[str]]:
    """The results that can be compared, the others, and a sentence about these."""
    counts = Counter(result.engine for result in results)
    # The running engine first, so that old results never hide new ones.
    compared = max(counts, key=lambda engine: (engine == engine_version(), counts[engine], engine), default="")
    comparable = [result for result in results if result.engine == compared]
    others = [
        LeftOut(file=result.id, agent=result.agent_id, reasons=[f"It was played by engine {result.engine[:6]}, not {compared[:6]}."])
        for result in results
        if result.engine != compared
    ]
    note = f"{len(others)} results of another version of the engine are left out: the `benchmark run` that made them plays them anew."
    return comparable, others, [note] if others else []


def by_agent(results: Sequence[Result]) -> dict[str, dict[RunKey, Result]]:
    """Results of one engine by agent name, then by market, seed and repeat.

    Where one name stands for several agents, the mandate is added, and a part of the identity where that is not enough.

    Raises:
        UsageError: two different results of one agent, market, seed and repeat.
    """
    agents: dict[str, set[str]] = {}
    for result in results:
        for name in _names(result):
            agents.setdefault(name, set()).add(result.identity)
    runs_of: dict[str, dict[RunKey, Result]] = {}
    for result in results:
        name = next((name for name in _names(result) if len(agents[name]) == 1), _names(result)[-1])
        runs = runs_of.setdefault(name, {})
        key = (result.snapshot, str(result.seed), result.repeat)
        # The same run may be given twice; two different ones may not.
        if key in runs and runs[key].metrics != result.metrics:
            raise UsageError(f"There are two different results of {name} in {result.benchmark_id}, repeat {result.repeat}: {result.id}.")
        runs[key] = result
    # In an order that files and arguments do not change: the gate's, as an interval by resampling follows from the order of its values.
    return {name: dict(sorted(runs.items(), key=lambda run: (run[1].benchmark_id, run[0]))) for name, runs in runs_of.items()}


def _names(result: Result) -> tuple[str, str, str]:
    """Names of an agent, from short to unmistakable."""
    agent = f"{result.agent_id} ({result.mandate}"
    return result.agent_id, f"{agent})", f"{agent}, {result.identity[:6]})"


def _pair(pair: Pair) -> PairRow:
    difference, effect = pair.paired.difference, pair.paired.effect
    # Interval and corrected test must agree before a winner is named.
    sure = pair.adjusted_p <= LEVEL
    return PairRow(
        a=pair.a,
        b=pair.b,
        difference=_bounds(difference),
        p=pair.paired.p,
        adjusted_p=pair.adjusted_p,
        effect_size=_bounds(effect) if effect is not None else None,
        better_share=_bounds(pair.paired.superiority),
        snapshots=difference.count,
        runs=pair.runs,
        winner=pair.a if difference.low > 0.0 and sure else pair.b if difference.high < 0.0 and sure else None,
    )


def _agent(row: PlayerRow[Result]) -> AgentRow:
    runs = row.results
    forecasts = [forecast for run in runs for forecast in run.forecasts]
    brier, market_brier, edge = forecast_scores(forecasts)
    metrics = [run.metrics for run in runs]
    decisions = sum(run.ticks_processed for run in runs)
    actions: dict[str, float] = {}
    for run in runs:
        # Shares weighted by decisions: a long run counts more than a short one.
        for action, part in run.metrics.action_shares.items():
            actions[action] = actions.get(action, 0.0) + part * run.ticks_processed / decisions
    positions = sum(run_metrics.prediction_metrics.total_positions for run_metrics in metrics)
    profits = [profit for run in runs for profit in run.profits if profit]
    stakes = [usd for run in runs for usd in stakes_usd(run)]
    return AgentRow(
        agent=row.player,
        role=row.role,
        identity=runs[0].identity,
        runs=len(runs),
        snapshots=len({run.snapshot for run in runs}),
        pnl=_bounds(row.pnl),
        expected=None if row.expected is None else _bounds(row.expected),
        of_ceiling=None if row.of_ceiling is None else _bounds(row.of_ceiling),
        returns=row.mean(lambda run: run.metrics.return_share),
        sharpe=row.mean(lambda run: run.metrics.sharpe),
        max_drawdown=row.mean(lambda run: run.metrics.perp_metrics.max_drawdown),
        worst=row.worst_usd,
        mean_stake=fmean(stakes) if stakes else None,
        win_rate=share(sum(profit > 0 for profit in profits), len(profits)),
        answers_right=share(sum(run_metrics.prediction_metrics.correct_predictions for run_metrics in metrics), positions),
        brier=brier,
        market_brier=market_brier,
        edge=edge,
        calibration=calibration(forecasts),
        invalid_rate=share(sum(sum(run_metrics.invalid.values()) for run_metrics in metrics), decisions),
        refused_rate=share(sum(sum(run_metrics.refused.values()) for run_metrics in metrics), decisions),
        action_shares=dict(sorted(actions.items())),
        action_entropy=row.mean(lambda run: run.metrics.action_entropy),
        reaction_ticks=row.mean(lambda run: run.metrics.reaction_ticks),
        reaction_share=row.mean(lambda run: run.metrics.reaction_share),
        optimality=row.mean(lambda run: run.metrics.optimality_score),
        avg_response_time=row.mean(lambda run: run.metrics.timing.avg_response_time),
        positions=positions + sum(run_metrics.perp_metrics.total_trades for run_metrics in metrics),
    )


def _totals(results: Sequence[Result]) -> Totals:
    # The id breaks ties, so that the same results give the same document.
    ranked = sorted(results, key=lambda result: (result.metrics.total_pnl, result.id))
    return Totals(
        avg_pnl=math.fsum(result.metrics.total_pnl for result in results) / len(results),
        avg_accuracy=mean_over_snapshots((run.snapshot, run.metrics.prediction_metrics.accuracy) for run in results),
        avg_optimality=math.fsum(result.metrics.optimality_score for result in results) / len(results),
        best_run=ranked[-1].id,
        worst_run=ranked[0].id,
    )


def _bounds(interval: Interval) -> Bounds:
    """Infinite bounds are null: one snapshot, or a jackknife without spread, gives none."""
    low, high = (bound if math.isfinite(bound) else None for bound in (interval.low, interval.high))
    return Bounds(mean=interval.mean, low=low, high=high)
