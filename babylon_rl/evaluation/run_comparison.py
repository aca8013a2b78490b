"""Agents side by side over kept results: what each earned, and by how much one beats another in the same markets.

Pairs are runs of the same snapshot, seed and repeat; snapshots are the independent draws, repeats of one count as one. With more than
two agents p-values are corrected for all pairs (Holm). A result that is not sound, of a market that its agent had met before, or of
another version of the engine than the others enters nothing and is named with the reason.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

from babylon_rl.errors import MarketError, UsageError
from babylon_rl.evaluation.comparison_shape import AgentRow, Comparison, Interval, Pair, Refused, Totals
from babylon_rl.evaluation.metrics import calibration, share
from babylon_rl.evaluation.players import engine_version, outside
from babylon_rl.evaluation.result_checks import validate_result
from babylon_rl.evaluation.results import PARTIAL, SEEN, SUFFIX, Result, read_result
from babylon_rl.evaluation.statistics import PairedComparison, compare_pairs, holm, mean_interval

LEVEL = 0.05
RunKey = tuple[str, str, int]  # snapshot, seed, repeat


def sound_results(files: Iterable[Path]) -> tuple[list[Result], list[Refused]]:
    """The results that may enter a comparison, and the files that may not, with sentences that say why."""
    results, refused = [], []
    for path in files:
        try:
            result = read_result(path)
        except MarketError as error:
            refused.append(Refused(file=str(path), agent=None, reasons=[str(error)]))
            continue
        wrong = validate_result(result)
        if not result.complete:
            wrong.append(f"It ended at tick {result.ticks_processed} of {result.ticks}: {result.stopped or 'left early'}")
        if result.repeat > 0 and result.identity == outside(result.agent_id, result.mandate):
            wrong.append(f"It is attempt {result.repeat + 1} of an outside agent, which may know the market from the first.")
        if wrong:
            refused.append(Refused(file=str(path), agent=result.agent_id, reasons=wrong))
        else:
            results.append(result)
    return results, refused


def result_files(directory: Path) -> list[Path]:
    """The results of a directory, those that ended early among them.

    Raises:
        UsageError: there is none.
    """
    found = sorted(path for path in directory.glob(f"*{SUFFIX}") if path.is_file())
    if not found:
        raise UsageError(f"{directory} holds no results; `babylon-rl benchmark run SNAPSHOT --model NAME --out {directory}` writes them.")
    return [path for path in found if not path.name.endswith(PARTIAL)] + [path for path in found if path.name.endswith(PARTIAL)]


def compare_results(results: Sequence[Result], refused: Sequence[Refused] = (), *, reference: str | None = None) -> Comparison:
    """Compare all agents of some sound results with each other, or with one of them only.

    Only results of one version of the engine are compared: of the one that runs now, or, where none is of it, of the one with most results.

    Raises:
        UsageError: there is no sound result, one is given twice under other numbers, or the reference has none.
    """
    results, other_engine, notes = _of_one_engine(results)
    of_agent = by_agent(results)
    if not of_agent:
        reasons = " ".join(f"{one.file}: {' '.join(one.reasons)}" for one in refused[:3])
        raise UsageError(f"There is no sound result to compare. {reasons}".rstrip())
    if reference is not None and reference not in of_agent:
        raise UsageError(" ".join([f"There is no result of {reference!r}; there are results of {', '.join(of_agent)}.", *notes]))
    names = list(of_agent)
    if reference is None:
        wanted = list(combinations(names, 2))
    else:
        wanted = [(name, reference) for name in names if name != reference]
    pairs, not_shared = _pairs(of_agent, wanted)
    notes += not_shared
    agents = [_row(name, list(runs.values())) for name, runs in of_agent.items()]
    if any(result.seen for result in results):
        notes.append(SEEN)
    if any(one.agent is None or one.reasons for one in refused):
        notes.append(f"{len(refused)} results are left out: not sound, not complete, or of a market that was known from before.")
    return Comparison(
        runs=[result for runs in of_agent.values() for result in runs.values()],
        comparison=_totals(results), agents=agents, pairs=pairs, refused=[*refused, *other_engine], notes=notes,
    )  # fmt: skip


def _of_one_engine(results: Sequence[Result]) -> tuple[list[Result], list[Refused], list[str]]:
    """The results that can be compared, the others, and a sentence about these."""
    counts = Counter(result.engine for result in results)
    compared = max(counts, key=lambda engine: (engine == engine_version(), counts[engine], engine), default="")
    kept = [result for result in results if result.engine == compared]
    others = [
        Refused(file=result.id, agent=result.agent_id, reasons=[f"It was played by engine {result.engine[:6]}, not {compared[:6]}."])
        for result in results
        if result.engine != compared
    ]
    told = f"{len(others)} results of another version of the engine are left out: the `benchmark run` that made them plays them anew."
    return kept, others, [told] if others else []


def by_agent(results: Sequence[Result]) -> dict[str, dict[RunKey, Result]]:
    """Results of one engine by name, then by market, seed and repeat. Where one name stands for several agents, the mandate is added, and
    a part of the identity where that does not tell them apart.

    Raises:
        UsageError: two different results of one agent, market, seed and repeat.
    """
    agents: dict[str, set[str]] = {}
    for result in results:
        for name in _names(result):
            agents.setdefault(name, set()).add(result.identity)
    found: dict[str, dict[RunKey, Result]] = {}
    for result in results:
        name = next((name for name in _names(result) if len(agents[name]) == 1), _names(result)[-1])
        runs = found.setdefault(name, {})
        key = (result.snapshot, str(result.seed), result.repeat)
        if key in runs and runs[key].metrics != result.metrics:
            raise UsageError(f"There are two different results of {name} in {result.benchmark_id}, repeat {result.repeat}: {result.id}.")
        runs[key] = result
    return {name: dict(sorted(runs.items())) for name, runs in found.items()}  # in an order that files and arguments do not change


def _names(result: Result) -> tuple[str, str, str]:
    """What an agent can be called, from short to unmistakable."""
    agent = f"{result.agent_id} ({result.mandate}"
    return result.agent_id, f"{agent})", f"{agent}, {result.identity[:6]})"


def _pairs(of_agent: dict[str, dict[RunKey, Result]], wanted: Sequence[tuple[str, str]]) -> tuple[list[Pair], list[str]]:
    shared = {(one, other): [key for key in of_agent[one] if key in of_agent[other]] for one, other in wanted}
    notes = [f"{one} and {other} share no run: they cannot be compared." for (one, other), keys in shared.items() if not keys]
    for (one, other), keys in shared.items():
        most = max(len(of_agent[one]), len(of_agent[other]))
        if keys and len(keys) < most:
            notes.append(f"{one} and {other} share {len(keys)} of {most} runs; only these are compared.")
    comparable = {names: keys for names, keys in shared.items() if keys}
    found = {
        (one, other): compare_pairs(_pnls(of_agent[one], keys), _pnls(of_agent[other], keys), clusters=[key[0] for key in keys])
        for (one, other), keys in comparable.items()
    }
    p_values = holm({f"{one} - {other}": compared.test.p for (one, other), compared in found.items()})
    both = zip(found.items(), p_values, strict=True)
    return [_pair(*names, compared, len(comparable[names]), p.adjusted) for (names, compared), p in both], notes


def _pnls(runs: dict[RunKey, Result], keys: Sequence[RunKey]) -> list[float]:
    return [runs[key].metrics.total_pnl for key in keys]


def _pair(one: str, other: str, found: PairedComparison, runs: int, adjusted_p: float) -> Pair:
    sure = adjusted_p <= LEVEL
    winner = one if found.difference.low > 0.0 and sure else other if found.difference.high < 0.0 and sure else None
    effect = found.effect
    return Pair(
        a=one,
        b=other,
        difference=_interval(found.difference.mean, found.difference.low, found.difference.high),
        p=found.test.p,
        adjusted_p=adjusted_p,
        effect_size=_interval(effect.size, effect.low, effect.high) if effect is not None else None,
        better_share=_interval(found.superiority.share, found.superiority.low, found.superiority.high),
        snapshots=found.difference.count,
        runs=runs,
        winner=winner,
    )


def _row(name: str, runs: Sequence[Result]) -> AgentRow:
    clusters = [run.snapshot for run in runs]
    pnl = mean_interval([run.metrics.total_pnl for run in runs], clusters=clusters)
    said = [forecast for run in runs for forecast in run.forecasts]
    metrics = [run.metrics for run in runs]
    decisions = sum(run.ticks_processed for run in runs)
    actions: dict[str, float] = {}
    for run in runs:
        for action, part in run.metrics.action_shares.items():
            actions[action] = actions.get(action, 0.0) + part * run.ticks_processed / decisions
    positions = sum(one.prediction_metrics.total_positions for one in metrics)
    trades = sum(one.perp_metrics.total_trades for one in metrics)
    return AgentRow(
        agent=name,
        role=runs[0].role,
        identity=runs[0].identity,
        runs=len(runs),
        snapshots=len(set(clusters)),
        pnl=_interval(pnl.mean, pnl.low, pnl.high),
        returns=_mean(runs, lambda run: run.metrics.return_share),
        sharpe=_mean(runs, lambda run: run.metrics.sharpe),
        max_drawdown=_mean(runs, lambda run: run.metrics.perp_metrics.max_drawdown),
        win_rate=_mean(runs, lambda run: run.metrics.win_rate),
        accuracy=share(sum(one.prediction_metrics.correct_predictions for one in metrics), positions),
        brier=share(math.fsum((one.paid - one.right) ** 2 for one in said), len(said)),
        market_brier=share(math.fsum((one.crowd - one.right) ** 2 for one in said), len(said)),
        edge=share(math.fsum(one.right - one.paid for one in said), len(said)),
        calibration=calibration(said),
        invalid_rate=share(sum(sum(one.invalid.values()) for one in metrics), decisions),
        refused_rate=share(sum(sum(one.refused.values()) for one in metrics), decisions),
        action_shares=dict(sorted(actions.items())),
        action_entropy=_mean(runs, lambda run: run.metrics.action_entropy),
        reaction_ticks=_mean(runs, lambda run: run.metrics.reaction_ticks),
        reaction_share=_mean(runs, lambda run: run.metrics.reaction_share),
        optimality=_mean(runs, lambda run: run.metrics.optimality_score),
        avg_response_time=_mean(runs, lambda run: run.metrics.timing.avg_response_time),
        positions=positions + trades,
    )


def _totals(results: Sequence[Result]) -> Totals:
    ranked = sorted(results, key=lambda result: (result.metrics.total_pnl, result.id))
    return Totals(
        avg_pnl=math.fsum(result.metrics.total_pnl for result in results) / len(results),
        avg_accuracy=_mean(results, lambda run: run.metrics.prediction_metrics.accuracy),
        avg_optimality=math.fsum(result.metrics.optimality_score for result in results) / len(results),
        best_run=ranked[-1].id,
        worst_run=ranked[0].id,
    )


def _mean(runs: Sequence[Result], of: Callable[[Result], float | None]) -> float | None:
    """Over snapshots, each counting once, of those runs that have a value."""
    of_snapshot: dict[Hashable, list[float]] = {}
    for run in runs:
        value = of(run)
        if value is not None:
            of_snapshot.setdefault(run.snapshot, []).append(value)
    if not of_snapshot:
        return None
    return math.fsum(math.fsum(values) / len(values) for values in of_snapshot.values()) / len(of_snapshot)


def _interval(mean: float, low: float, high: float) -> Interval:
    """Without ends where one snapshot, or a jackknife without spread, gives none."""
    return Interval(mean=mean, low=low if math.isfinite(low) else None, high=high if math.isfinite(high) else None)
