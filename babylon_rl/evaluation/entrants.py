"""Which models enter a benchmark here, how their weights are recognised, and how they are asked.

A version that a training service trained is asked there. A model that cannot be asked (another machine's, a foreign producer's, a dry
run's) is a value with the reason in words. What a model has played is kept under the hash of its weights, so that only what is missing
is asked again, by whatever batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from babylon_rl.errors import CheckpointError
from babylon_rl.evaluation.comparison import BASE
from babylon_rl.evaluation.play import GATE_CONCURRENCY, play_gate
from babylon_rl.evaluation.players import Player, asked
from babylon_rl.evaluation.run_files import forget_old_runs
from babylon_rl.evaluation.snapshots import PROMPT_VERSION, Snapshot
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.choices import format_name
from babylon_rl.models.checkpoints import MANIFEST, base_identity, check_served_as, read_remote, verify
from babylon_rl.models.files import sha256
from babylon_rl.models.packaged import base_model_dir, base_model_name
from babylon_rl.progress import Progress, unheard
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import MarketResult, read_results, write_results
from babylon_rl.store.registry import Model
from babylon_rl.training.trainer import DRY_BASE_MODEL
from babylon_rl.versions import content_version

Serving = Callable[[Settings, Mapping[str, Path]], AbstractContextManager[str]]
Say = Callable[[str], Any]


@dataclass(frozen=True)
class Service:
    """Where a model is asked that is not served here, by which name, with which key."""

    url: str
    model: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Entrant:
    """The base, or a version: an ``adapter`` served here, or what a ``service`` answers for. ``identity`` is a hash of its weights."""

    name: str
    role: str
    identity: str
    adapter: Path | None = None
    service: Service | None = None


@dataclass(frozen=True)
class Absent:
    """A model that cannot be played here, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} could not be played here: {self.reason}"


def base_entrant(settings: Settings) -> Entrant:
    """The base of the CPU line. Raises ModelUnavailable when it is not here and cannot be made."""
    directory = base_model_dir(settings)
    parts = base_identity(directory, base_model_name(settings))
    weights = {path.name: sha256(path) for path in sorted(directory.glob("*.safetensors"))}
    hashes = [parts.config_sha256, parts.tokenizer_sha256, parts.chat_template_sha256]
    return Entrant(BASE, BASE, content_version([hashes, weights]))


def base_of(model: Model, settings: Settings) -> Entrant:
    """The base of a version that is not ``absent``: asked at the service where the version lies, else that of the CPU line."""
    remote = read_remote(_directory(model))
    if remote is None:
        return base_entrant(settings)
    service = Service(remote.inference_url, model.base_model, settings.wandb_key)
    return Entrant(BASE, BASE, content_version([service.url, service.model]), service=service)


def absent(model: Model, settings: Settings) -> Absent | None:
    """Why a version cannot be played from this machine, or None when all of its files are here and whole, and so is its base.

    The files of a version at a training service are a pointer: it is asked there, with WANDB_API_KEY.
    """
    directory = _directory(model)
    if model.foreign:
        return Absent(model.version, "another producer made it.")
    if DRY_BASE_MODEL in (model.base_model, settings.local_base_model):
        return Absent(model.version, "a dry run makes checkpoints without a model.")
    if not directory.is_dir():
        return Absent(model.version, f"its checkpoint {directory} is not on this machine.")
    try:
        remote = read_remote(directory)
        if remote is not None and not settings.wandb_key:
            asked = remote.inference_name
            return Absent(model.version, f"its weights are at {remote.service}, and there is no WANDB_API_KEY to ask {asked} with.")
        manifest = verify(directory, base_model_dir(settings) if remote is None else None)
        check_served_as(manifest, PROMPT_VERSION, format_name(ONE_TICK))
    except CheckpointError as unusable:
        return Absent(model.version, str(unusable))
    return None


def version_entrant(model: Model, role: str, base: Entrant) -> Entrant:
    """A version that is not ``absent``, on the base that is its own (``base_of``)."""
    directory = _directory(model)
    identity, remote = identity_of(base.identity, sha256(directory / MANIFEST)), read_remote(directory)
    if remote is None:
        return Entrant(model.version, role, identity, directory)
    assert base.service is not None
    return Entrant(model.version, role, identity, service=replace(base.service, model=remote.inference_name))


def _directory(model: Model) -> Path:
    return Path(model.checkpoint or model.storage_path)


def identity_of(base_identity: str, manifest_sha: str) -> str:
    """The hash of a version's weights: those of its base, and its adapter's manifest, which holds the hashes of all its files."""
    return content_version([base_identity, manifest_sha])


def trained_windows(models: Iterable[Model]) -> set[str]:
    """Every hour that any of these versions was trained on."""
    return {window for model in models for window in model.windows}


def play_entrants(
    connection: psycopg.Connection[Any],
    settings: Settings,
    entrants: Sequence[Entrant],
    snapshots: Sequence[Snapshot],
    say: Say,
    *,
    clock: Callable[[], datetime],
    serving: Serving,
    on_progress: Progress = unheard,
    concurrency: int = GATE_CONCURRENCY,
) -> dict[str, list[MarketResult]]:
    """The results of every entrant in every market, in their order; only what no earlier run has stored is played.

    Every result is committed as it is finished, its decisions kept as files before that where they can be written, and
    ``on_progress`` told (what, markets done, of how many). A server is started only when something is missing of a model served here.

    Raises:
        ModelUnavailable: the server does not start or stays down; what was played by then is kept.
    """
    markets = {snapshot.id: snapshot.fingerprint for snapshot in snapshots}
    known = {entrant.name: read_results(connection, entrant.name, entrant.identity, markets) for entrant in entrants}
    missing = {e.name: [s for s in snapshots if s.id not in known[e.name]] for e in entrants}
    for entrant in entrants:
        say(f"{entrant.name}: {len(known[entrant.name])} of {len(snapshots)} markets are known")
    playing = [entrant for entrant in entrants if missing[entrant.name]]
    if playing:
        adapters = {entrant.name: entrant.adapter for entrant in playing if entrant.adapter is not None}
        here = any(entrant.service is None for entrant in playing)
        with serving(settings, adapters) if here else nullcontext("") as url:
            for entrant in playing:
                at = entrant.service or Service(url, entrant.name, "")
                keep = _keeper(connection, entrant, markets, known[entrant.name], say, on_progress, clock)
                with ChatClient(at.url, at.key or None, at.model, logprobs=False) as client:
                    player = model_player(client, entrant.name, entrant.identity)
                    play_gate(player, missing[entrant.name], concurrency=concurrency, on_result=keep, home=settings.home)
    forget_old_runs(settings.home, [entrant.name for entrant in entrants])
    return {entrant.name: [known[entrant.name][snapshot.id] for snapshot in snapshots] for entrant in entrants}


def model_player(client: ChatClient, name: str, identity: str) -> Player:
    """A model in the gate's markets, where mandate, prompt and temperature are fixed: its weights alone tell it from others."""
    return replace(asked(lambda: client, name, identity, prompt=PROMPT_VERSION), identity=identity)


def _keeper(
    connection: psycopg.Connection[Any],
    entrant: Entrant,
    markets: Mapping[str, str],
    known: dict[str, MarketResult],
    say: Say,
    on_progress: Progress,
    clock: Callable[[], datetime],
) -> Callable[[MarketResult], None]:
    """What is done with a finished market: it is stored, counted, and every now and then told."""
    every = max(1, len(markets) // 6)

    def keep(result: MarketResult) -> None:
        write_results(connection, entrant.name, entrant.identity, markets, [result], clock())
        known[result.snapshot] = result
        on_progress(f"benchmark of {entrant.name}", len(known), len(markets))
        if len(known) % every == 0 or len(known) == len(markets):
            say(f"{entrant.name}: played {len(known)} of {len(markets)} markets")

    return keep
