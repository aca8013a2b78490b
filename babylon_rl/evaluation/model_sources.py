"""Endpoints of benchmark models: base and versions, here or at a training service.

A version that a training service trained is asked there. A model that cannot be asked (another machine's, a foreign producer's, a dry
run's) is a value with the reason in words. What a model has played is kept under the hash of its weights, so that only what is missing
is asked again, by whatever batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import Any

from babylon_rl.errors import CheckpointError, UsageError
from babylon_rl.evaluation.comparison import BASE, CANDIDATE
from babylon_rl.evaluation.play import GATE_CONCURRENCY, Job, Player, endpoint_player, gate_job, market_rows
from babylon_rl.evaluation.run_files import forget_old_runs
from babylon_rl.evaluation.snapshots import PROMPT_VERSION, Snapshot
from babylon_rl.files.durable import sha256
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.choices import format_name
from babylon_rl.models.base_model import base_model_dir, base_model_name
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import MANIFEST, base_identity, check_inference_config, read_remote, verify, weights_sha256
from babylon_rl.models.server_process import Serving
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import MarketResult, read_results, write_results
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import Model
from babylon_rl.training.backends import DRY_BASE_MODEL, ModelAddress, address_of
from babylon_rl.versions import content_version

Say = Callable[[str], Any]


@dataclass(frozen=True)
class ModelSource:
    """The base or a version, by the hash of its weights.

    It is an ``adapter`` served here, or a model of a ``service``.
    """

    name: str
    role: str
    identity: str
    adapter: Path | None = None
    service: ModelAddress | None = None


def base_source(settings: Settings) -> ModelSource:
    """The base of the CPU lineage.

    Raises ModelUnavailable when it is not here and cannot be made.
    """
    directory = base_model_dir(settings)
    # Config, tokenizer and template belong to the policy as much as its weights.
    parts = base_identity(directory, base_model_name(settings))
    hashes = [parts.config_sha256, parts.tokenizer_sha256, parts.chat_template_sha256]
    return ModelSource(BASE, BASE, content_version([hashes, weights_sha256(directory)]))


def base_of(model: Model, settings: Settings) -> ModelSource:
    """The base of a playable version: remote where the version is, else the CPU lineage's."""
    directory = checkpoint_of(model, settings)
    if read_remote(directory) is None:
        return base_source(settings)
    address = address_of(settings, model.version, directory)
    # The service answers for the base too, under its own name, with the same key and URL.
    service = replace(address, model=model.base_model)
    return ModelSource(BASE, BASE, content_version([service.url, service.model]), service=service)


def absent(model: Model, settings: Settings) -> str | None:
    """Sentence on a version that cannot be played from this machine; None when it can.

    Its files, fetched if missing, and its base must be here and whole.

    The files of a version at a training service are a pointer: it is asked there, with the service's key.

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
        check_inference_config(manifest, PROMPT_VERSION, format_name(ONE_TICK))
    except CheckpointError as unusable:
        return f"{absent_for} {unusable}"
    return None


def version_source(model: Model, role: str, base: ModelSource, settings: Settings) -> ModelSource:
    """A version that is not ``absent``, on the base that is its own (``base_of``)."""
    directory = checkpoint_of(model, settings)
    identity, remote = identity_of(base.identity, sha256(directory / MANIFEST)), read_remote(directory)
    if remote is None:
        return ModelSource(model.version, role, identity, directory)
    assert base.service is not None
    return ModelSource(model.version, role, identity, service=replace(base.service, model=remote.inference_name))


def sources_named(names: Iterable[str], models: Mapping[str, Model], settings: Settings) -> list[ModelSource]:
    """The base and registered versions by name, as a person asks for them.

    Raises:
        UsageError: a version cannot be played from this machine; the reason of the first.
        ModelUnavailable: the base is not here and cannot be made.
    """
    chosen = [None if name == BASE else models[name] for name in names]
    for model in chosen:
        if model is not None and (fault := absent(model, settings)) is not None:
            raise UsageError(fault)
    return [
        base_source(settings) if model is None else version_source(model, CANDIDATE, base_of(model, settings), settings) for model in chosen
    ]


def identity_of(base_identity: str, manifest_sha: str) -> str:
    """Hash of a version's weights, from its base and its adapter's manifest.

    The manifest holds the hashes of all its files.
    """
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
) -> dict[str, list[MarketResult]]:
    """Results of every source in every market; only missing ones are played.

    Every result is committed as it is finished, its decisions kept as files before that where they can be written, and
    ``on_progress`` told ("``activity`` of" a source, markets done, of how many), at the beginning too. A server is started only when
    something is missing of a model served here.

    Raises:
        ModelUnavailable: the server does not start or stays down; what was played by then is kept.
    """
    # A changed market has another fingerprint, and its stored results do not count.
    markets = {snapshot.id: snapshot.fingerprint for snapshot in snapshots}
    stored = {source.name: read_results(connection, source.name, source.identity, markets) for source in sources}
    missing = {e.name: [s for s in snapshots if s.id not in stored[e.name]] for e in sources}
    for source in sources:
        say(f"{source.name}: {len(stored[source.name])} of {len(snapshots)} markets are known")
    by_name = {source.name: source for source in sources}
    # No server is started when everything is stored.
    playing = [source for source in sources if missing[source.name]]

    def tell(source: ModelSource) -> None:
        on_progress(f"{activity} of {source.name}", len(stored[source.name]), len(markets))

    def keep(job: Job, row: MarketResult) -> None:
        # Committed before anything else, as it was played and perhaps paid for.
        source = by_name[job.player.name]
        write_results(connection, source.name, source.identity, markets, [row], clock())
        known = stored[source.name]
        known[row.snapshot] = row
        tell(source)
        if len(known) % max(1, len(markets) // 6) == 0 or len(known) == len(markets):
            say(f"{source.name}: played {len(known)} of {len(markets)} markets")

    # Before a server starts, as markets that are played side by side end together.
    for source in playing:
        tell(source)
    with model_clients(settings, playing, serving, logprobs=False) as client:
        players = {source.name: model_player(client(source.name), source.name, source.identity) for source in playing}
        # By place in what each has left, so that the models' requests meet: an endpoint answers those of several at the same time.
        turns = zip_longest(*([gate_job(players[name], s, settings.home) for s in missing[name]] for name in players))
        jobs = [job for turn in turns for job in turn if job is not None]
        # What is served here answers for all of them at once; a service is asked by no more at a time than for one model.
        here = all(source.service is None for source in playing)
        market_rows(jobs, concurrency * (len(playing) if here else 1), on_row=keep)
    # After all have played: models of this comparison are the newest, and keep their files.
    forget_old_runs(settings.home, [source.name for source in sources])
    return {source.name: [stored[source.name][snapshot.id] for snapshot in snapshots] for source in sources}


def model_player(client: ChatClient, name: str, identity: str) -> Player:
    """A model in the gate's markets, where only its weights differ from others'.

    Mandate, prompt and temperature are fixed.
    """
    return replace(endpoint_player(lambda: client, name, identity, prompt=PROMPT_VERSION), identity=identity)
