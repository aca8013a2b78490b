"""Benchmark of a batch: its checkpoint against reference, base, parent and all strategies.

A version that a training service trained is asked there. What a model has played is kept under the hash of its weights, so that only
what is missing is asked again, by whatever batch. A release is the gate's decision on record; serving/promotion.py does what follows
from it (docs/decisions/0007-gate.md).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import Any

from babylon_rl.errors import CheckpointError, TrainingError, UsageError
from babylon_rl.evaluation.gate import (
    BASE,
    CANDIDATE,
    DEPLOYED,
    FAIL,
    INCONCLUSIVE,
    KEPT,
    PARENT,
    PASS,
    PASSED,
    Comparison,
    GateCheck,
    GateVerdict,
    compare,
    decide,
    hold_floor,
    kept_check,
    next_analysis,
)
from babylon_rl.evaluation.play import GATE_CONCURRENCY, Job, Player, endpoint_player, gate_job, known_rows, market_rows, script_rows
from babylon_rl.evaluation.report import benchmark_png, markdown, results_version, rows_of, write_plot
from babylon_rl.evaluation.results import forget_old_runs
from babylon_rl.evaluation.snapshots import Snapshot, benchmark_snapshots, fresh_hours, require_unseen
from babylon_rl.evaluation.stakes import scripts_at_stake
from babylon_rl.files.durable import sha256
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game, game_of
from babylon_rl.models.base_model import base_model_dir, base_model_name
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import (
    MANIFEST,
    Manifest,
    base_identity,
    load_manifest,
    read_remote,
    recorded_names,
    verify,
    weights_sha256,
)
from babylon_rl.models.server_process import Serving
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.benchmarks import MarketResult, passed_versions, read_report, write_release, write_report, write_results
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.recording import are_simulated
from babylon_rl.store.registry import Model, deployed_model, model_of_batch, read_models
from babylon_rl.training.backends.protocol import DRY_BASE_MODEL, ModelAddress, address_of
from babylon_rl.types import BenchmarkReport
from babylon_rl.versions import content_version
from babylon_rl.windows import utc_now, whole_ms

Say = Callable[[str], Any]
Rows = Callable[..., dict[str, list[MarketResult]]]  # ``gate_rows`` with what all of a batch's comparisons have alike


@dataclass(frozen=True)
class ModelSource:
    """The base or a version, by the hash of its weights. It is an ``adapter`` served here, or a model of a ``service``.

    A version has a ``base`` of its own, and a ``game`` in which it was trained.
    """

    name: str
    role: str
    identity: str
    adapter: Path | None = None
    service: ModelAddress | None = None
    base: "ModelSource | None" = None
    game: Game = ONE_TICK_GAME


def base_source(settings: Settings) -> ModelSource:
    """The base of the CPU lineage. Raises ModelUnavailable when it is not here and cannot be made."""
    directory = base_model_dir(settings)
    # Config, tokenizer and template belong to the policy as much as its weights.
    parts = base_identity(directory, base_model_name(settings))
    hashes = [parts.config_sha256, parts.tokenizer_sha256, parts.chat_template_sha256]
    return ModelSource(BASE, BASE, content_version([hashes, weights_sha256(directory)]))


def version_source(model: Model, role: str, settings: Settings) -> ModelSource | str:
    """A version, or a sentence on why it cannot be played from this machine.

    Its files, fetched if missing, and its base must be here and whole. The files of a version at a training service are a pointer: it is
    asked there, with the service's key.

    Raises:
        ModelUnavailable: MODEL_STORAGE_URL does not answer, which is no reason to go on without the version.
    """
    absent_for = f"{model.version} could not be played here:"
    if model.foreign:
        return f"{absent_for} another producer made it."
    # A dry checkpoint has no weights that could play.
    if DRY_BASE_MODEL in (model.base_model, settings.local_base_model):
        return f"{absent_for} a dry run makes checkpoints without a model."
    try:
        directory = checkpoint_of(model, settings)
        if not directory.is_dir():
            return f"{absent_for} its checkpoint {directory} is not on this machine."
        remote = read_remote(directory)
        address = address_of(settings, model.version, directory)
        if remote is not None and address.refusal:
            return f"{absent_for} its weights are at {remote.service}, and {address.refusal}"
        # A remote version has no files here to verify against a base.
        manifest = verify(directory, base_model_dir(settings) if remote is None else None)
        game = _game_trained(manifest)
    except CheckpointError as unusable:
        return f"{absent_for} {unusable}"
    adapter, service = (directory, None) if remote is None else (None, address)
    if service is None:
        base = base_source(settings)
    else:
        # The service answers for the base too, under its own name, with the same key and URL.
        base = ModelSource(BASE, BASE, content_version([service.url, model.base_model]), service=replace(service, model=model.base_model))
    return ModelSource(model.version, role, identity_of(base.identity, sha256(directory / MANIFEST)), adapter, service, base, game)


def same_prompt(one: Game, other: Game) -> bool:
    """Whether two games show the same words; they may differ in mandate and stakes."""
    return one.prompt_version == other.prompt_version


def game_trained(model: Model, settings: Settings) -> Game:
    """The game that a version was trained in: the one whose prompt and schema its calls had. Its files must be here.

    Raises CheckpointError: no game asks as its training calls did.
    """
    return _game_trained(load_manifest(checkpoint_of(model, settings)))


def _game_trained(manifest: Manifest) -> Game:
    game = game_of(recorded_names(manifest.prompt_version), recorded_names(manifest.action_grammar))
    if game is None:
        raise CheckpointError(
            f"{manifest.version} was trained on the prompt {manifest.prompt_version} with the action grammar {manifest.action_grammar}; no "
            "game asks with both."
        )
    return game


def sources_named(names: Iterable[str], models: Mapping[str, Model], settings: Settings, role: str = CANDIDATE) -> list[ModelSource]:
    """The base and registered versions by name, as a user names them.

    Raises:
        UsageError: a version cannot be played from this machine; the reason of the first.
        ModelUnavailable: the base is not here and cannot be made.
    """
    sources = []
    for name in names:
        source = base_source(settings) if name == BASE else version_source(models[name], role, settings)
        if isinstance(source, str):
            raise UsageError(source)
        sources.append(source)
    return sources


def identity_of(base_identity: str, manifest_sha: str) -> str:
    """Hash of a version's weights, from its base and its adapter's manifest. The manifest holds the hashes of all its files."""
    return content_version([base_identity, manifest_sha])


def trained_windows(models: Iterable[Model]) -> set[str]:
    """Hours that any of these versions was trained on."""
    return {window for model in models for window in model.windows}


@contextmanager
def model_clients(
    settings: Settings, sources: Sequence[ModelSource], serving: Serving = served_here, *, logprobs: bool = True
) -> Iterator[Callable[[str], ChatClient]]:
    """Yield a function that gives the client of a source by its name, each time the same.

    One server on this machine answers for those whose weights are here; it starts when the first of them is needed. The function may be
    called from several threads, and raises ModelUnavailable when the server does not start.
    """
    by_name = {source.name: source for source in sources}
    clients, starting = dict[str, ChatClient](), Lock()
    with ExitStack() as stack:

        @cache
        def address() -> str:
            adapters = {source.name: source.adapter for source in by_name.values() if source.adapter is not None}
            return stack.enter_context(serving(settings, adapters))

        def client(name: str) -> ChatClient:
            # One thread starts the server; the others wait for it.
            with starting:
                if name not in clients:
                    at = by_name[name].service or ModelAddress(address(), name)
                    clients[name] = stack.enter_context(ChatClient(at.url, at.key or None, at.model, logprobs=logprobs))
                return clients[name]

        yield client


def gate_rows(
    connection: Connection,
    settings: Settings,
    sources: Sequence[ModelSource],
    snapshots: Sequence[Snapshot],
    say: Say,
    *,
    clock: Callable[[], datetime],
    serving: Serving,
    on_progress: Progress = no_progress,
    concurrency: int = GATE_CONCURRENCY,
    activity: str = "benchmark",
    expected: bool = False,
) -> dict[str, list[MarketResult]]:
    """Results of every source in every market; only missing ones are played.

    Every result is committed as it is finished, its decisions kept as files before that where they can be written, and
    ``on_progress`` called with ("``activity`` of" a source, markets done, of how many), at the beginning too. A server is started only when
    something is missing of a model served here. With ``expected`` a market whose decisions are not at hand is missing too.

    Raises:
        ModelUnavailable: the server does not start or stays down; what was played by then is kept.
    """
    # A changed market has another fingerprint, and its stored results do not count.
    markets = {snapshot.id: snapshot.fingerprint for snapshot in snapshots}
    stored = {source.name: known_rows(connection, source.name, source.identity, snapshots, settings.home) for source in sources}
    if expected:
        stored = {name: {market: row for market, row in rows.items() if row.expected_usd is not None} for name, rows in stored.items()}
    missing = {e.name: [s for s in snapshots if s.id not in stored[e.name]] for e in sources}
    for source in sources:
        say(f"{source.name}: {len(stored[source.name])} of {len(snapshots)} markets are known")
    playing = [source for source in sources if missing[source.name]]

    def tell(name: str) -> None:
        on_progress(f"{activity} of {name}", len(stored[name]), len(markets))

    def keep(job: Job, row: MarketResult) -> None:
        # Committed before anything else, as it was played and perhaps paid for.
        name, known = job.player.name, stored[job.player.name]
        write_results(connection, name, job.player.identity, markets, [row], clock())
        known[row.snapshot] = row
        tell(name)
        if len(known) % max(1, len(markets) // 6) == 0 or len(known) == len(markets):
            say(f"{name}: played {len(known)} of {len(markets)} markets")

    # Before a server starts, as markets that are played side by side end together.
    for source in playing:
        tell(source.name)
    with model_clients(settings, playing, serving, logprobs=False) as client:
        game = snapshots[0].game if snapshots else ONE_TICK_GAME
        players = {source.name: model_player(client(source.name), source.name, source.identity, game) for source in playing}
        # By place in what each has left, so that the models' requests meet: an endpoint answers those of several at the same time.
        turns = zip_longest(*([gate_job(players[name], s, settings.home) for s in missing[name]] for name in players))
        jobs = [job for turn in turns for job in turn if job is not None]
        # What is served here answers for all of them at once; a service is asked by no more at a time than for one model.
        here = all(source.service is None for source in playing)
        market_rows(jobs, concurrency * (len(playing) if here else 1), on_row=keep)
    # After all have played: models of this comparison are the newest, and keep their files.
    forget_old_runs(settings.home, [source.name for source in sources])
    return {source.name: [stored[source.name][snapshot.id] for snapshot in snapshots] for source in sources}


def model_player(client: ChatClient, name: str, identity: str, game: Game = ONE_TICK_GAME) -> Player:
    """A model in the gate's markets, where only its weights differ from others'. Game and temperature are fixed."""
    return replace(endpoint_player(lambda: client, name, identity, game), identity=identity)


_LOG = logging.getLogger(__name__)
PLOTS = "benchmarks"


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
    version that cannot be played here is not compared, and the report says why. One that is worse than its parent in fresh training hours
    fails without playing the gate's markets. An inconclusive comparison is played on, twice and four times as large, while that can be
    expected to decide.

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
    sources, comparing = _players(connection, settings, model)
    game = sources[0].game if sources else ONE_TICK_GAME
    trained = trained_windows(read_models(connection))
    rows = partial(gate_rows, connection, settings, say=progress, clock=clock, serving=serving, on_progress=on_progress)
    kept = _kept(connection, settings, model, rows, progress)
    size: int | None = settings.benchmark_markets
    while size is not None:
        snapshots = benchmark_snapshots(size, game)
        # Checked for every size: a larger benchmark has markets that the smaller one did not.
        require_unseen(snapshots, trained)
        if kept is not None and kept.found == FAIL:
            comparison = compare(script_rows(snapshots), None, None, game=game)
            verdict = GateVerdict(FAIL, f"{kept.words}.", (kept,))
            break
        comparison = comparing(_played(sources, snapshots, rows))
        verdict = decide(comparison, settings.min_improvement, kept)
        undecided = verdict.decision == INCONCLUSIVE
        # Only the sizes that the gate fixed beforehand, so that playing on is no second chance.
        size = next_analysis(comparison, settings.min_improvement, settings.benchmark_markets) if undecided else None
        if size is not None:
            progress(f"{model.version}: {comparison.markets} markets decide nothing. {size} are played.")
    now = clock()
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
        created_at=whole_ms(now),
    )
    write_report(connection, report)
    progress(f"{report.version}: {report.decision}. {report.reason}")
    return report


def _kept(connection: Connection, settings: Settings, model: Model, rows: Rows, say: Say) -> GateCheck | None:
    """The version against its parent in fresh training hours; None where it cannot be played here.

    It passes where there is nothing to compare with.
    """

    def not_asked(why: str) -> GateCheck:
        return GateCheck(KEPT, PASS, f"Fresh training hours were not played: {why}")

    ours = version_source(model, CANDIDATE, settings)
    if isinstance(ours, str):
        return None
    if model.parent_version is None:
        return not_asked(f"{model.version} was trained from the base, with which the gate compares it")
    if not are_simulated(connection, model.windows):
        return not_asked(f"{model.version} was trained on recorded hours, and generated ones are of another game")
    parent = next((other for other in read_models(connection) if other.version == model.parent_version), None)
    theirs = f"{model.parent_version} is not registered" if parent is None else version_source(parent, PARENT, settings)
    if isinstance(theirs, str):
        return not_asked(f"the parent {theirs}")
    results = rows(sources=[ours, theirs], snapshots=fresh_hours(ours.game), activity="fresh training hours", expected=True)
    expected = [[row.expected_usd or 0.0 for row in results[source.name]] for source in (ours, theirs)]
    check = kept_check(ours.name, expected[0], theirs.name, expected[1])
    if check.found == FAIL:
        both = {source.name: (source.role, results[source.name]) for source in (ours, theirs)}
        own_trade_usd = _preflight(connection, model).get("ownTradePnl")
        if (floor := hold_floor(compare(both, ours.name, theirs.name, own_trade_usd=own_trade_usd))) is not None:
            check = replace(check, words=f"{check.words}. {floor}".removesuffix("."))
    say(f"{check.words}.")
    return check


def _played(sources: Sequence[ModelSource], snapshots: Sequence[Snapshot], rows: Rows) -> dict[str, tuple[str, list[MarketResult]]]:
    scripts = script_rows(snapshots)
    # Strategies alone still show how the markets are.
    if not sources:
        return scripts
    results = rows(sources=sources, snapshots=snapshots)
    models = {source.name: (source.role, results[source.name]) for source in sources}
    return models | scripts | scripts_at_stake(snapshots, results[sources[0].name])


def _players(connection: Connection, settings: Settings, model: Model) -> tuple[list[ModelSource], Callable[..., Comparison]]:
    """The candidate, the reference and the parent where available, and the base; with ``compare`` as it is to be called of them.

    There are no players when the candidate is not here.
    """
    candidate = version_source(model, CANDIDATE, settings)
    if isinstance(candidate, str):
        return [], partial(compare, candidate=None, reference=None, notes=[candidate])
    versions = {other.version: other for other in read_models(connection) if other.version != model.version}
    ancestors = list(_ancestors(model, versions))
    reference, notes = _reference(versions.values(), ancestors, passed_versions(connection), settings)
    rivals = [] if reference is None else [reference]
    # The parent plays also where it is not the reference, to be shown beside it; it decides nothing then (docs/decisions/0007-gate.md).
    if ancestors and not ancestors[0].foreign and ancestors[0].version not in [rival.name for rival in rivals]:
        parent = version_source(ancestors[0], PARENT, settings)
        if isinstance(parent, str):
            notes.append(f"The parent {parent}")
        else:
            rivals.append(parent)
    game = candidate.game
    notes += [f"{rival.name} was trained in {rival.game.name} and plays {game.name} here." for rival in rivals if rival.game != game]
    preflight = _preflight(connection, model)
    versus = BASE if reference is None else reference.name
    assert candidate.base is not None
    comparing = partial(compare, candidate=candidate.name, reference=versus, notes=notes, game=game)
    comparing = partial(comparing, learned_from=preflight.get("scripts"), own_trade_usd=preflight.get("ownTradePnl"))
    return [candidate, *rivals, candidate.base], comparing


def _preflight(connection: Connection, model: Model) -> Mapping[str, Any]:
    batch = read_batch(connection, model.training_batch or "")
    return (batch.preflight if batch is not None else None) or {}


def _ancestors(model: Model, versions: Mapping[str, Model]) -> Iterator[Model]:
    """The versions that it was trained from, its parent first."""
    left = dict(versions)  # each at most once, whatever another producer has written
    while model.parent_version is not None and model.parent_version in left:
        model = left.pop(model.parent_version)
        yield model


def _reference(
    versions: Iterable[Model], ancestors: Sequence[Model], passed: Collection[str], settings: Settings
) -> tuple[ModelSource | None, list[str]]:
    """The version to beat, and sentences that give the reason. The version is None for the base."""
    newest = deployed_model(versions)
    deployed = None if newest is None else version_source(newest, DEPLOYED, settings)
    if isinstance(deployed, ModelSource):
        return deployed, [f"The reference is {deployed.name}, which is deployed."]
    why = "no version is deployed." if deployed is None else f"the deployed {deployed}"
    notes: list[str] = []
    for other in ancestors:
        # A refused version is no reference: to be better than it would be no merit.
        if other.version not in passed:
            continue
        ancestor = version_source(other, PARENT if other is ancestors[0] else PASSED, settings)
        if isinstance(ancestor, ModelSource):
            return ancestor, [f"The reference is {ancestor.name}, the newest ancestor that passed, as {why}", *notes]
        notes.append(f"The passed {ancestor}")
    return None, [f"The reference is the base, as {why}", *notes]


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
    row = next((row for row in report.rows if row["model"] == report.version), {})
    decided = document_of(report, "decision", "reason", "reference", "markets", "min_improvement")
    decided["reportVersion"] = report.data_version
    metrics = decided | {name: value for name, value in row.items() if name not in ("model", "role", "markets")}
    write_release(connection, report, row.get("pnl"), row.get("accuracy"), {"benchmark": metrics}, now)
    said = {"version": report.version, "decision": report.decision}
    _LOG.info("the gate's decision on %s is %s: %s", report.version, report.decision, report.reason, extra=said)
    return report
