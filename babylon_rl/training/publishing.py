"""Publication of the last iteration, and retention of the checkpoints before it.

The checkpoint is published first, then one transaction registers the version. A crash between the two leaves a published directory whose
manifest names its batch; the next run only registers it. A directory of a batch unknown to this database (two databases may share a state
directory) keeps its number, and the next number is taken.

A version is marked as pruned before its files are deleted, so that a crash never leaves one whose files are missing without a mark. Rows
are never deleted; rows and files of other producers and uploads are not touched.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from babylon_rl.errors import CheckpointError, ModelUnavailable, TrainingPaused, UsageError
from babylon_rl.files.durable import Removal, copy_tree, sha256
from babylon_rl.models.checkpoint_store import (
    GOING,
    checkpoint_named,
    checkpoint_of,
    other_of_batch,
    set_aside,
    stored_manifest,
    upload_checkpoint,
)
from babylon_rl.models.checkpoints import (
    FREE_TEXT,
    MANIFEST,
    UNKNOWN,
    BaseIdentity,
    Manifest,
    batch_named_in,
    check_base,
    copy_tokenizer,
    manifest_in,
    publish,
    read_remote,
    verify,
)
from babylon_rl.settings import ServingSettings, Settings
from babylon_rl.store import registry
from babylon_rl.store.batches import (
    BASELINE,
    LIVE_STATES,
    REGISTRY_LOCK,
    BatchEpisode,
    advance_batch,
    bar_dropped,
    hold_batch,
    read_batch,
    read_batches,
)
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.registry import Model, NewModel
from babylon_rl.store.releases import versions_needed
from babylon_rl.store.scores import read as read_scores
from babylon_rl.store.windows import lock_windows
from babylon_rl.store.write_ahead import TrainingStep, finished_steps
from babylon_rl.training.backends.protocol import STATE_PREFIX, recorded_calls
from babylon_rl.training.conversion import NO_SEQUENCE, NO_TOKEN, AnswersByCall, Conversion
from babylon_rl.training.lifecycle import PUBLISH, REGISTER, RESULT_FILE, WORK, BatchRun
from babylon_rl.types import ServedSequence
from babylon_rl.versions import content_version

_LOG = logging.getLogger(__name__)

STAGING = "publish"


def parent_checkpoint(parent: Model, settings: Settings, base: BaseIdentity | None = None) -> Path:
    """Directory of a parent version, fetched if missing and verified, also against ``base`` if given.

    Raises:
        CheckpointError: it is gone, damaged, or of another base; the message says what can be done.
        TrainingPaused: it cannot be fetched now.
    """
    restore = f"Restore it from {parent.uploaded_url}" if parent.uploaded_url else "Restore it"
    cure = f"{restore}, or mark {parent.version} as failed in trained_models to continue from the version before it."
    try:
        directory = checkpoint_of(parent, settings)
    except CheckpointError as missing:
        raise CheckpointError(f"The parent cannot be continued from: {missing} {cure}") from missing
    # The storage is down: the batch waits. What is damaged or gone, above and below, fails it.
    except ModelUnavailable as away:
        raise TrainingPaused(f"The parent {away}") from away
    if parent.pruned_at is not None and not directory.is_dir():
        raise CheckpointError(
            f"The parent {parent.version} was pruned on {parent.pruned_at:%Y-%m-%d}, when {directory} made room for newer checkpoints "
            f"{cure}"
        )
    if not directory.is_dir():
        raise CheckpointError(f"The parent {parent.version} is gone: {directory} is not there. {cure}")
    try:
        manifest = verify(directory)
        if base is not None:
            cure = (
                "Put the base back that it was trained on, or name the new one otherwise (LOCAL_BASE_MODEL, BASE_MODEL) to begin a line "
                "of its own."
            )
            check_base(directory, manifest.base, base)
    except CheckpointError as unusable:
        raise CheckpointError(f"The parent {parent.version} cannot be continued from: {unusable} {cure}") from unusable
    return directory


def find_published(run: BatchRun, settings: Settings) -> Path | None:
    """Return the complete, unregistered checkpoint of an earlier run of this batch, or None.

    In the state in which it is uploaded, one at MODEL_STORAGE_URL comes first: another machine may have uploaded it, and no other can
    follow. Raises TrainingPaused: MODEL_STORAGE_URL does not answer.
    """
    directory = run.checkpoints / run.batch.version
    if run.batch.state == PUBLISH.target:
        with _waiting_for_storage(run):
            stored = stored_manifest(run.batch.version, settings)
            # A directory here of another batch keeps its place, and this batch takes another number.
            replaceable = not directory.exists() or batch_named_in(directory) == run.batch.batch_id
            if stored is not None and stored.batch_id == run.batch.batch_id and replaceable and manifest_in(directory) != stored:
                shutil.rmtree(directory, ignore_errors=True)
                checkpoint_named(run.batch.version, settings)
    try:
        return directory if verify(directory).batch_id == run.batch.batch_id else None
    except CheckpointError:
        return None  # it is not there, or published again from the last iteration


@contextmanager
def _waiting_for_storage(run: BatchRun) -> Iterator[None]:
    try:
        yield
    except (ModelUnavailable, CheckpointError, UsageError) as away:
        raise TrainingPaused(
            f"{run.batch.batch_id} waits for MODEL_STORAGE_URL, where its checkpoint may be already: {away} Once that is mended, "
            "`babylon-rl train` goes on; what is trained is kept."
        ) from away


def publish_and_register(
    run: BatchRun,
    episodes: Sequence[BatchEpisode],
    steps: Sequence[TrainingStep],
    parent: str | None,
    settings: Settings,
    conversion: Conversion,
    generation: int,
) -> Model:
    """Publish the last iteration, trained on ``conversion``, as a version of a generation and register it.

    Raises:
        BatchConflict: the batch ended, or a newer run has it; no row was written.
        OSError: the disk is full; nothing half written is left.
        TrainingPaused: as ``finish_registration``.
    """
    version = _own_version(run, parent, settings)
    scores = [episode.score for episode in episodes if episode.score is not None]
    windows = sorted({episode.window for episode in episodes}, reverse=True)
    taken_back = [step.metrics["stepBack"] for step in steps if step.metrics and "stepBack" in step.metrics]
    manifest = Manifest(
        version=version,
        base=run.trainer.base_identity(),
        created_at=run.clock().isoformat(timespec="milliseconds") + "Z",
        parent=parent,
        batch_id=run.batch.batch_id,
        step=steps[-1].iteration,
        prompt_version=prompt_version(recorded_calls(conversion.sequences)),
        action_grammar=action_grammar(recorded_calls(conversion.sequences)),
        judge=run.batch.settings.get("judge_model"),
        judge_version="; ".join(sorted({group.judge_version for group in read_scores(run.connection, windows).values()})) or None,
        data_version=data_version(episodes, conversion.replayed),
        trajectories=sum(len(episode.trajectory_ids) for episode in episodes),
        windows=tuple(windows),
        metrics={
            **({} if steps[-1].loss is None else {"loss": steps[-1].loss}),
            "avgReward": sum(scores) / len(scores),
            "trainableTokens": float(sum(step.trainable_tokens or 0 for step in steps)),
            **({"answers": float(conversion.answers)} if conversion.replayed else {}),
            # Of all iterations the largest share of the way that the trust region took back.
            **({"stepBack": max(taken_back)} if taken_back else {}),
        },
        trainer={
            "backend": run.batch.backend, "seed": run.batch.seed,
            "settings": {**run.batch.settings, **run.trainer.hyperparameters(generation)},
        },
    )  # fmt: skip
    staging = run.work / f"{STAGING}-{run.attempt}"
    final = run.checkpoints / version
    # The directory of this machine: the row may name that of another one, which trained the iteration too. Trainer state and the
    # iteration's result are not part of a published checkpoint.
    try:
        copy_tree(run.work / str(steps[-1].iteration), staging, leave_out=(f"{STATE_PREFIX}*", RESULT_FILE))
        if (tokenizer_dir := run.trainer.tokenizer_dir()) is not None:
            copy_tokenizer(tokenizer_dir, staging)
        # With the batch's row locked no newer run can take over and register what is replaced here.
        with own_transaction(run.connection):
            hold_batch(run.connection, run.batch.batch_id, run.attempt, run.clock())
            if final.exists() and not _unknown(run, final):
                shutil.rmtree(final)  # _own_version made sure that no row points to it
            publish(staging, final, manifest)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return finish_registration(run, episodes, final, settings)


def finish_registration(run: BatchRun, episodes: Sequence[BatchEpisode], checkpoint: Path, settings: Settings) -> Model:
    """Upload a published checkpoint where configured, and register it in one transaction.

    Then tidy up: older checkpoints that need not stay are given up.

    Raises:
        BatchConflict: the batch ended, or a newer run has it.
        CheckpointError: the checkpoint is damaged.
        TrainingPaused: it could not be uploaded; the batch stays in `uploading`, and its next run goes on there.
    """
    manifest = verify(checkpoint)
    remote = read_remote(checkpoint)
    # Before the row, which names the URL: another machine that reads the row finds the files there.
    try:
        url = settings.model_storage_url and upload_checkpoint(checkpoint, settings.model_storage_url, run.beat)
    except UsageError as unknown:  # set so after the training had begun: what was trained, and perhaps paid, is kept
        raise TrainingPaused(
            f"{run.batch.batch_id} is trained and waits in `uploading`: MODEL_STORAGE_URL cannot be used: {unknown} "
            "Correct it or unset it, then run `babylon-rl train`."
        ) from None
    steps = list(finished_steps(run.connection, run.batch.batch_id).values())
    batch = read_batch(run.connection, run.batch.batch_id)
    preflight = (batch and batch.preflight) or {}
    metrics = {
        "judge": run.batch.settings.get("judge_model"),
        "iterations": [{"step": s.iteration, "loss": s.loss, "trainableTokens": s.trainable_tokens, **(s.metrics or {})} for s in steps],
        "episodes": len(episodes),
        "trajectories": sum(len(episode.trajectory_ids) for episode in episodes),
        "baselineTrajectories": sum(len(episode.trajectory_ids) for episode in episodes if episode.contributes == BASELINE),
        "sequences": sum(episode.sequences or 0 for episode in episodes),
        "answers": preflight.get("answers", 0),  # which nobody played
    }
    new = NewModel(
        batch_id=run.batch.batch_id, attempt=run.attempt, version=manifest.version, parent_version=manifest.parent,
        base_model=run.batch.base_model, backend=run.batch.backend, checkpoint=str(checkpoint),
        storage_path=remote.inference_name if remote else url or str(checkpoint), manifest_sha=sha256(checkpoint / MANIFEST),
        episodes=episodes, loss=steps[-1].loss, metrics=metrics, now=run.clock(), uploaded_url=url,
        wandb_artifact_id=remote.artifact if remote else None,
    )  # fmt: skip
    taken = TrainingPaused(
        f"Another producer took {new.version} while {new.batch_id} was being published; its next run takes the next number."
    )
    # Under the registry lock: a version number taken meanwhile sends the batch back for the next one. Under the locks of its hours before:
    # their judge writes to the same trajectories, in another order.
    try:
        with own_transaction(run.connection):
            lock_windows(run.connection, new.windows)
            run.connection.take_lock(REGISTRY_LOCK)
            # Where the batch itself has taken it, another run of it came first, and register_model says so.
            if registry.version_taken(run.connection, new.version) and registry.model_of_batch(run.connection, new.batch_id) is None:
                raise taken
            model = registry.register_model(run.connection, new, REGISTER)
            bar_dropped(run.connection, new.batch_id, (NO_SEQUENCE, NO_TOKEN), new.now)
    except psycopg.errors.UniqueViolation as conflict:  # other producers do not ask for the lock
        raise taken from conflict
    _tidy(run)
    # What cannot be deleted now is deleted by the next training or cleanup; this version is registered.
    for sentence in prune(run.connection, settings, run.checkpoints, run.clock()).removal.refused:
        _LOG.warning(sentence)
    return model


def _own_version(run: BatchRun, parent: str | None, settings: Settings) -> str:
    # Since the batch reserved its number, a foreign row may have taken it, or a batch that was frozen later may have become the parent.
    version, passed = run.batch.version, list[str]()
    while True:
        with own_transaction(run.connection):
            run.connection.take_lock(REGISTRY_LOCK)
            advance_batch(run.connection, run.batch.batch_id, run.attempt, PUBLISH, run.clock())
            while (
                version in passed
                or registry.version_taken(run.connection, version)
                or (parent is not None and (registry.version_order(version) or ()) < (registry.version_order(parent) or ()))
                or _unknown(run, run.checkpoints / version)
            ):
                passed.append(version)
                version = registry.next_version(run.connection, run.batch.batch_id, passed)
            if version != run.batch.version:
                registry.reserve_version(run.connection, run.batch.batch_id, version)
        # Asked without the lock, as it may take long. What another batch has uploaded is never replaced: the next number then.
        with _waiting_for_storage(run):
            stored = stored_manifest(version, settings)
        if stored is None or stored.batch_id == run.batch.batch_id:
            return version
        passed.append(version)


def _unknown(run: BatchRun, directory: Path) -> bool:
    """True for a directory of no batch of this database; it is left alone."""
    if not directory.exists() and not directory.is_symlink():
        return False
    batch_id = batch_named_in(directory)
    return batch_id is None or read_batch(run.connection, batch_id) is None


def data_version(episodes: Sequence[BatchEpisode], answers: Mapping[str, AnswersByCall]) -> str:
    """Hash of episodes with their trajectories and advantages, those of their parts and the answers that train included."""
    rows = [[e.window, e.agent_id, list(e.trajectory_ids), e.advantage, *(part.advantage for part in e.parts)] for e in episodes]
    groups = [[window, *sorted([*call, answer] for call, answer in own.items())] for window, own in sorted(answers.items())]
    return content_version([*rows, *groups])


def _tidy(run: BatchRun) -> None:
    """Delete numbered checkpoints of other ended batches of this database, and all optimizer state."""
    for staging in run.work.glob(f"{STAGING}*"):
        shutil.rmtree(staging, ignore_errors=True)
    # Several times an adapter's size, and only of use to a next iteration, which this batch does not have.
    for state in run.work.rglob(f"{STATE_PREFIX}*"):
        state.unlink(missing_ok=True)
    for other in (run.checkpoints / WORK).glob("*"):
        batch = read_batch(run.connection, other.name)
        if batch is not None and not batch.live and other != run.work:
            shutil.rmtree(other, ignore_errors=True)
    run.connection.commit()


def prompt_version(calls: Iterable[ServedSequence]) -> str | None:
    """Name of the prompt; shares where there are several; None where none is known."""
    from babylon_rl.market.simulation.prompting import version_of

    return _named(Counter(version_of(call.messages) or UNKNOWN for call in calls))


def action_grammar(calls: Iterable[ServedSequence]) -> str | None:
    """Constraint on the answers: the schema's name with its forms, or free text.

    The markets in the schema change by the hour, so they are not part of the name.
    """
    return _named(Counter(_grammar(call.response_format) for call in calls))


def _named(counted: Counter[str]) -> str | None:
    if set(counted) <= {UNKNOWN}:
        return None
    if len(counted) == 1:
        return next(iter(counted))
    total = counted.total()
    return ", ".join(f"{name} ({number / total:.0%})" for name, number in counted.most_common())


def _grammar(response_format: dict[str, Any] | None) -> str:
    if response_format is None:
        return FREE_TEXT
    described = response_format.get("json_schema")
    name = described.get("name") if isinstance(described, dict) else None
    return str(name) if isinstance(name, str) else str(response_format.get("type", "json"))


IMPORTING = ".upload-"
IMPORT_ENDED = timedelta(days=1)  # an import takes minutes: what is older was left by a process that was killed


def prunable(models: Sequence[Model], kept: int, in_use: frozenset[str] = frozenset()) -> list[Model]:
    """Versions of ours whose files may be deleted, highest first: not those ``in_use``, nor the ``kept`` newest of each line."""
    candidates: list[Model] = []
    ours = [model for model in models if not model.foreign]
    for base in dict.fromkeys(model.base_model for model in ours):
        line = [model for model in ours if model.base_model == base]
        # A failed version takes no place among the newest, and is not kept for its score either.
        usable = [model for model in line if model.status != "failed"]
        scored = [model for model in usable if model.benchmark_score is not None]
        stay = [*usable[:kept], max(scored, key=lambda model: model.benchmark_score or 0.0, default=None)]
        candidates += [model for model in line if model not in stay and model.status != "deployed" and model.version not in in_use]
    return [model for model in candidates if model.pruned_at is None]


@dataclass(frozen=True)
class Pruned:
    """Versions whose checkpoints were given up, with the files removed."""

    versions: Sequence[str]
    removal: Removal


def prune(connection: Connection, settings: Settings, checkpoints: Path, now: datetime, *, dry_run: bool = False) -> Pruned:
    """Delete checkpoints that need not stay, finish interrupted deletions, and return the pruned versions.

    A path that cannot be removed is named in the removal and tried again by the next call. ``dry_run`` changes nothing.
    """
    # Marked under the registry lock, so that no parent of a new batch is pruned.
    with own_transaction(connection):
        connection.take_lock(REGISTRY_LOCK)
        models = registry.read_models(connection)
        in_use = versions_in_use(connection, settings)
        going = prunable(models, settings.checkpoints_kept, in_use)
        # Only what lies on this machine is marked. Where it is marked already, each machine deletes its own copy (`begun`, below).
        going = [model for model in going if model.checkpoint is not None and _own_directory(model, checkpoints)]
        if not dry_run:
            registry.mark_pruned(connection, [model.training_batch or "" for model in going], now)
    # A version that was restored and is played again is no deletion that was broken off.
    begun = [model for model in models if model.pruned_at is not None and model.status != "deployed" and model.version not in in_use]
    removal = Removal(dry_run)
    for model in [*going, *begun]:
        if _own_directory(model, checkpoints):
            _put_away(checkpoints / model.version, removal)
    for directory in _unregistered(connection, checkpoints):
        _put_away(directory, removal)
    for model in models:
        if model not in (*going, *begun):
            _set_aside_unregistered(model, checkpoints, removal)
    for abandoned in (*checkpoints.glob(f"{GOING}*"), *_killed_imports(checkpoints, now)):
        removal.tree(abandoned)
    return Pruned([model.version for model in going], removal)


def versions_in_use(connection: Connection, settings: ServingSettings) -> frozenset[str]:
    """Versions whose files must stay: pinned, routed or waiting, and parents of live batches."""
    used = {batch.parent_version for batch in read_batches(connection, LIVE_STATES)} | {settings.rl_model_version}
    return frozenset(version for version in used | versions_needed(connection) if version is not None)


def batches_on_record(connection: Connection, settings: ServingSettings) -> set[str]:
    """Batches whose records stay whole: of versions deployed or in use, and their ancestors."""
    models = registry.read_models(connection)
    by_version = {model.version: model for model in models}
    ahead = [*versions_in_use(connection, settings), *(model.version for model in models if model.status == "deployed")]
    kept: set[str] = set()
    while ahead:
        model = by_version.pop(ahead.pop(), None)
        if model is not None:
            kept |= {model.training_batch} if model.training_batch else set()
            ahead += [model.parent_version] if model.parent_version else []
    return kept


def _put_away(directory: Path, removal: Removal) -> None:
    if removal.dry_run:
        removal.tree(directory)
        return
    going = directory.with_name(f"{GOING}{directory.name}")
    removal.tree(going)
    try:
        directory.rename(going)  # at once no checkpoint any more; `prune` deletes it with what earlier calls left
    except OSError as refusal:
        removal.refuse(directory, refusal)


def _set_aside_unregistered(model: Model, checkpoints: Path, removal: Removal) -> None:
    """Set aside a version's directory that holds another checkpoint of the registered batch."""
    directory = checkpoints / model.version
    # Only where the registered one is at a storage: what is here could be that one, with a damaged manifest.
    if model.manifest_sha is None or model.uploaded_url is None:
        return
    if not removal.dry_run:
        try:
            set_aside(directory, model.training_batch, model.manifest_sha)
        except OSError as refusal:
            removal.refuse(directory, refusal)
    elif other_of_batch(directory, model.training_batch, model.manifest_sha):
        removal.tree(directory)


def _unregistered(connection: Connection, checkpoints: Path) -> list[Path]:
    """Checkpoints of ended batches that were never registered, or registered under another number."""
    unregistered = []
    for directory in checkpoints.glob("v*"):
        owner = None if directory.is_symlink() else batch_named_in(directory)
        batch = None if owner is None else read_batch(connection, owner)
        # A live batch may have published and not registered yet; a directory of no batch of this database is not ours to remove.
        if batch is None or batch.live:
            continue
        # Read after its batch had ended: another process may just have registered it.
        model = registry.model_of_batch(connection, batch.batch_id)
        if model is None or model.version != directory.name:
            unregistered.append(directory)
    connection.commit()
    return unregistered


def _killed_imports(checkpoints: Path, now: datetime) -> list[Path]:
    killed = []
    for directory in checkpoints.glob(f"{IMPORTING}*"):
        with suppress(FileNotFoundError):  # an import that has just ended
            written = datetime.fromtimestamp(directory.stat().st_mtime, UTC).replace(tzinfo=None)
            if now - written > IMPORT_ENDED:
                killed.append(directory)
    return killed


def _own_directory(model: Model, checkpoints: Path) -> bool:
    """True when the manifest of the version's directory below ours names the same batch.

    Nothing else is ever deleted. The row's own path may be another machine's.
    """
    directory = checkpoints / model.version
    return directory.is_dir() and not directory.is_symlink() and batch_named_in(directory) == model.training_batch
