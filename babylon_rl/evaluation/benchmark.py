"""Benchmark of a batch: its checkpoint against reference, base, parent and all strategies.

When the markets played decide nothing and a few times as many would, they are played too (gate.py). A release is the gate's decision on
record; serving/promotion.py does what follows from it.

Confirmation tests a passed version against the deployed one in fresh markets, that no decision has used before. The gate's markets are the
same for every version, so luck in them is kept over generations. Here every test has markets of its own and a level from an online
procedure (statistics/live.py), so that of all versions ever promoted at most 5 % are expected to be no better than the one they replaced.
Only the two play. docs/decisions/0007-gate.md has the reasons.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from babylon_rl.errors import TrainingError, UsageError
from babylon_rl.evaluation.comparison import CANDIDATE, DEPLOYED, PARENT, PASSED, Comparison, GateRow, compare
from babylon_rl.evaluation.gate import ANALYSES, INCONCLUSIVE, decide, next_analysis
from babylon_rl.evaluation.model_sources import ModelSource, Say, absent, base_of, gate_rows, trained_windows, version_source
from babylon_rl.evaluation.play import script_rows
from babylon_rl.evaluation.report import benchmark_png, markdown, results_version, rows_of, write_plot
from babylon_rl.evaluation.snapshots import Snapshot, benchmark_snapshots, confirmation_snapshots, require_unseen
from babylon_rl.evaluation.statistics.live import next_level
from babylon_rl.evaluation.statistics.paired import permutation_test
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.models.server_process import Serving
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import (
    Confirmation,
    begin_confirmation,
    end_confirmation,
    passed_versions,
    read_confirmations,
    read_report,
    write_release,
    write_report,
)
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import Model, deployed_model, model_of_batch, read_models
from babylon_rl.types import BenchmarkReport
from babylon_rl.windows import utc_now

_LOG = logging.getLogger(__name__)
PLOTS = "benchmarks"
FLIPS = 1_000_000  # of signs: levels fall to some 1e-5 after a hundred tests without a discovery


def evaluate_batch(
    connection: Connection,
    batch_id: str,
    settings: Settings,
    progress: Say,
    *,
    clock: Callable[[], datetime] = utc_now,
    serving: Serving = served_here,
    on_progress: Progress = no_progress,
) -> BenchmarkReport:
    """Play missing markets, compare, decide, and store the report.

    Its picture is written to <home>/benchmarks/<version>.png.

    The reference is the deployed version, else the newest ancestor that passed, else the base: the first that can be played here. A
    version that cannot be played here is not compared, and the report says why. An inconclusive comparison is played on, twice and four
    times as large, while that can be expected to decide.

    Args:
        progress: called with a sentence now and then.
        on_progress: called with (label, markets done, of how many).
        serving: gives the base URL of an endpoint that answers for ``base`` and the adapters.

    Raises:
        TrainingError: the batch has registered no version.
        ModelUnavailable: the endpoint stays down; what was played is kept and the next run goes on from there.
    """
    model = model_of_batch(connection, batch_id)
    if model is None:
        raise TrainingError(f"{batch_id} has registered no version: its training has not ended. `babylon-rl batches` shows it.")
    players = _players(connection, settings, model)
    trained = trained_windows(read_models(connection))
    size: int | None = settings.benchmark_markets
    while size is not None:
        snapshots = benchmark_snapshots(size)
        # Checked for every size: a larger benchmark has markets that the smaller one did not.
        require_unseen(snapshots, trained)
        comparison = _compare(connection, settings, players, snapshots, progress, clock, serving, on_progress)
        verdict = decide(comparison, settings.min_improvement)
        undecided = verdict.decision == INCONCLUSIVE
        # Only the sizes that the gate fixed beforehand, so that playing on is no second chance.
        size = next_analysis(comparison, settings.min_improvement, settings.benchmark_markets) if undecided else None
        if size is not None:
            progress(f"{model.version}: {comparison.markets} markets decide nothing. {size} are played.")
    report = BenchmarkReport(
        batch_id=batch_id,
        version=model.version,
        reference=comparison.reference,
        decision=verdict.decision,
        reason=verdict.reason,
        markets=comparison.markets,
        min_improvement=settings.min_improvement,
        rows=rows_of(comparison, verdict),
        data_version=results_version(comparison, verdict, settings.min_improvement, {s.id: s.fingerprint for s in snapshots}),
        table_markdown=markdown(comparison, verdict),
        # Before the row that names it: a report never points to a picture that is not there.
        plot_path=str(write_plot(benchmark_png(comparison, verdict), settings.home / PLOTS / f"{model.version}.png")),
        created_at=_to_milliseconds(clock()),
    )
    write_report(connection, report)
    progress(f"{report.version}: {report.decision}. {report.reason}")
    return report


@dataclass(frozen=True)
class _Players:
    """Models that play, the candidate first, with the reference's name and notes.

    There are none when the candidate is not here.

    Notes say who is missing and why.
    """

    sources: tuple[ModelSource, ...]
    reference: str | None
    notes: tuple[str, ...]


def _compare(
    connection: Connection,
    settings: Settings,
    players: _Players,
    snapshots: Sequence[Snapshot],
    say: Say,
    clock: Callable[[], datetime],
    serving: Serving,
    on_progress: Progress,
) -> Comparison[GateRow]:
    scripts = script_rows(snapshots)
    # Strategies alone still show how the markets are.
    if not players.sources:
        return compare(scripts, None, None, players.notes)
    results = gate_rows(connection, settings, players.sources, snapshots, say, clock=clock, serving=serving, on_progress=on_progress)
    models = {source.name: (source.role, results[source.name]) for source in players.sources}
    return compare(models | scripts, players.sources[0].name, players.reference, players.notes, analyses=len(ANALYSES))


def _players(connection: Connection, settings: Settings, model: Model) -> _Players:
    """The candidate, the reference and the parent where available, and the base."""
    missing = absent(model, settings)
    if missing is not None:
        return _Players((), None, (missing,))
    base = base_of(model, settings)
    versions = {other.version: other for other in read_models(connection) if other.version != model.version}
    ancestors = list(_ancestors(model, versions))
    reference, notes = _reference(versions.values(), ancestors, passed_versions(connection), settings)
    rivals = [] if reference is None else [version_source(*reference, base_of(reference[0], settings), settings)]
    # The parent plays also where it is not the reference, to be shown beside it; it decides nothing then (docs/decisions/0007-gate.md).
    parent = ancestors[0] if ancestors else None
    if parent is not None and not parent.foreign and parent.version not in {rival.name for rival in rivals}:
        missing = absent(parent, settings)
        if missing is None:
            rivals.append(version_source(parent, PARENT, base_of(parent, settings), settings))
        else:
            notes.append(f"The parent {missing}")
    candidate = version_source(model, CANDIDATE, base, settings)
    return _Players((candidate, *rivals, base), base.name if reference is None else reference[0].version, tuple(notes))


def _ancestors(model: Model, versions: Mapping[str, Model]) -> Iterator[Model]:
    """The versions that it was trained from, its parent first."""
    left = dict(versions)  # each at most once, whatever another producer has written
    while model.parent_version is not None and model.parent_version in left:
        model = left.pop(model.parent_version)
        yield model


def _reference(
    versions: Iterable[Model], ancestors: Sequence[Model], passed: Collection[str], settings: Settings
) -> tuple[tuple[Model, str] | None, list[str]]:
    """The version to beat with its role, and sentences that give the reason.

    The version is None for the base.
    """
    deployed = deployed_model(versions)
    missing = None if deployed is None else absent(deployed, settings)
    if deployed is not None and missing is None:
        return (deployed, DEPLOYED), [f"The reference is {deployed.version}, which is deployed."]
    why = "no version is deployed." if missing is None else f"the deployed {missing}"
    notes: list[str] = []
    for other in ancestors:
        # A refused version is no reference: to be better than it would be no merit.
        if other.version not in passed:
            continue
        missing = absent(other, settings)
        if missing is None:
            role = PARENT if other is ancestors[0] else PASSED
            return (other, role), [f"The reference is {other.version}, the newest ancestor that passed, as {why}", *notes]
        notes.append(f"The passed {missing}")
    return None, [f"The reference is the base, as {why}", *notes]


def _to_milliseconds(moment: datetime) -> datetime:
    """Round to the table's precision, so that a stored report equals its original."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def record_release(connection: Connection, batch_id: str, now: datetime) -> BenchmarkReport:
    """Record the decision of a batch's report, and its figures beside the version in trained_models.

    benchmarkScore becomes the mean P&L of a market hour in dollars, accuracy the share of orders in the market's direction;
    evalMetrics keeps its other keys and gets ``benchmark``. A version that was not compared keeps the figures it has.

    Raises:
        UsageError: the batch has no benchmark report.
    """
    report = read_report(connection, batch_id)
    if report is None:
        raise UsageError(f"{batch_id} has no benchmark report: materialize benchmark_report for it first.")
    row = next((row for row in report.rows if row["model"] == report.version), None)
    # A version that was not compared keeps the figures it has.
    score, accuracy = (None, None) if row is None else (row["pnl"], row["accuracy"])
    write_release(connection, report, score, accuracy, {"benchmark": _metrics(report, row)}, now)
    said = {"version": report.version, "decision": report.decision}
    _LOG.info("the gate's decision on %s is %s: %s", report.version, report.decision, report.reason, extra=said)
    return report


def _metrics(report: BenchmarkReport, row: Mapping[str, Any] | None) -> dict[str, Any]:
    decided = {
        "decision": report.decision, "reason": report.reason, "reference": report.reference, "markets": report.markets,
        "minImprovement": report.min_improvement, "reportVersion": report.data_version,
    }  # fmt: skip
    return decided | {name: value for name, value in (row or {}).items() if name not in ("model", "role", "markets")}


def confirm(
    connection: Connection,
    version: str,
    settings: Settings,
    say: Say,
    *,
    clock: Callable[[], datetime],
    serving: Serving = served_here,
    on_progress: Progress = no_progress,
) -> Confirmation | str:
    """Test once whether a version earns more than the deployed one, else than the base.

    Returns a sentence where one of them cannot be played here.

    The outcome is stored; a version is never tested twice, and an interrupted test goes on in the same markets.

    Raises:
        ModelUnavailable: the endpoint stays down; what was played is kept.
    """
    models = {model.version: model for model in read_models(connection)}
    begun = next((test for test in read_confirmations(connection) if test.version == version), None)
    if begun is not None and begun.ended_at is not None:
        return begun
    newest = deployed_model(models.values())
    # A test that was begun keeps its rival, whatever was deployed since: its level was fixed for that comparison.
    reference = begun.reference if begun is not None else None if newest is None else newest.version
    if reference is not None and reference not in models:
        return f"{version} was not confirmed: {reference}, which its test began against, is not registered any more."
    model, deployed = models[version], None if reference is None else models[reference]
    for player in (model, deployed):
        missing = None if player is None else absent(player, settings)
        if missing is not None:
            return f"{version} was not confirmed: {missing}"
    base = base_of(model, settings)
    rival = base if deployed is None else version_source(deployed, DEPLOYED, base_of(deployed, settings), settings)
    test = begin_confirmation(connection, version, reference, settings.confirmation_markets, next_level, clock())
    snapshots = confirmation_snapshots(test.first_market, test.markets)
    require_unseen(snapshots, trained_windows(models.values()))
    sources = [version_source(model, CANDIDATE, base, settings), rival]
    results = gate_rows(
        connection, settings, sources, snapshots, say, clock=clock, serving=serving, on_progress=on_progress, activity="confirmation"
    )
    ours, theirs = ([result.pnl_usd for result in results[source.name]] for source in sources)
    # One-sided (docs/decisions/0007-gate.md): the question is whether it earns more, not whether it differs.
    difference = permutation_test([a - b for a, b in zip(ours, theirs, strict=True)], alternative="greater", seed=test.number, flips=FLIPS)
    end_confirmation(connection, test.number, difference.mean, difference.p, clock())
    return replace(test, improvement=difference.mean, p=difference.p, ended_at=clock())
