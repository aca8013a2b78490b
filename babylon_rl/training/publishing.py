"""From the last iteration to a registered version: the checkpoint first, then one transaction that makes it count.

A crash between the two leaves a published directory whose manifest names its batch; the next run finds it and only registers. A
directory that no row points to and that another batch left behind is replaced.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from babylon_rl.errors import CheckpointError, TrainingError
from babylon_rl.models.checkpoints import MANIFEST, Manifest, publish, verify
from babylon_rl.store.batches import (
    LIVE_STATES,
    Batch,
    BatchEpisode,
    advance_batch,
    lock_registry,
    own_transaction,
    read_batches,
)
from babylon_rl.store.registry import Model, NewModel, model_of_batch, next_version, register_model, reserve_version, version_taken
from babylon_rl.store.training_steps import TrainingStep, finished_steps
from babylon_rl.training.iterations import RESULT_FILE, WORK, Run
from babylon_rl.training.trainer import STATE_PREFIX

STAGING = "publish"


def parent_checkpoint(parent: Model) -> Path:
    """The directory of a parent version, checked.

    Raises:
        CheckpointError: it is gone or damaged; the message says what can be done.
    """
    directory = Path(parent.checkpoint or parent.storage_path)
    cure = f"Restore it, or mark {parent.version} as failed in trained_models to continue from the version before it."
    if not directory.is_dir():
        raise CheckpointError(f"The parent {parent.version} is gone: {directory} is not there. {cure}")
    try:
        verify(directory)
    except CheckpointError as damaged:
        raise CheckpointError(f"The parent {parent.version} cannot be continued from: {damaged} {cure}") from damaged
    return directory


def find_published(checkpoints: Path, batch: Batch) -> Path | None:
    """The whole checkpoint that an earlier run of this batch published and did not register, or None."""
    directory = checkpoints / batch.version
    return directory if _batch_of(directory) == batch.batch_id else None


def publish_and_register(run: Run, episodes: Sequence[BatchEpisode], steps: Sequence[TrainingStep], parent: str | None) -> Model:
    """Publish the last iteration as a version and register it.

    Raises:
        BatchConflict: the batch ended, or a newer run has it; no row was written.
    """
    version = _own_version(run)
    with own_transaction(run.connection):
        advance_batch(run.connection, run.batch.batch_id, run.attempt, "uploading", run.clock.now())
    manifest = _manifest(run, version, episodes, steps, parent)
    staging = run.work / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    last = Path(steps[-1].checkpoint or "")
    shutil.copytree(last, staging, ignore=shutil.ignore_patterns(f"{STATE_PREFIX}*", RESULT_FILE))
    final = run.checkpoints / version
    if final.exists():
        shutil.rmtree(final)  # nobody's: _own_version made sure that no row points to it
    publish(staging, final, manifest)
    return finish_registration(run, episodes, final)


def finish_registration(run: Run, episodes: Sequence[BatchEpisode], checkpoint: Path) -> Model:
    """Register a published checkpoint: model, batch, trajectories and lineage in one transaction; then tidy up.

    Raises:
        BatchConflict: the batch ended, or a newer run has it.
        CheckpointError: the checkpoint is damaged.
    """
    manifest = verify(checkpoint)
    steps = list(finished_steps(run.connection, run.batch.batch_id).values())
    metrics = {
        "judge": run.batch.settings.get("judge_model"),
        "iterations": [{"step": s.iteration, "loss": s.loss, "trainableTokens": s.trainable_tokens, **(s.metrics or {})} for s in steps],
        "episodes": len(episodes),
        "trajectories": sum(len(episode.trajectory_ids) for episode in episodes),
        "sequences": sum(episode.sequences or 0 for episode in episodes),
    }
    new = NewModel(
        batch_id=run.batch.batch_id, attempt=run.attempt, version=manifest.version, parent_version=manifest.parent,
        base_model=run.batch.base_model, backend=run.batch.backend, checkpoint=str(checkpoint), manifest_sha=_manifest_sha(checkpoint),
        episodes=episodes, loss=steps[-1].loss or 0.0, metrics=metrics, now=run.clock.now(),
    )  # fmt: skip
    with own_transaction(run.connection):
        lock_registry(run.connection)
        register_model(run.connection, new)
    model = model_of_batch(run.connection, run.batch.batch_id)
    if model is None:
        raise TrainingError(f"{new.version} was registered and cannot be read back.")
    _tidy(run)
    return model


def _own_version(run: Run) -> str:
    # A foreign row may have taken the number since the batch reserved it.
    with own_transaction(run.connection):
        lock_registry(run.connection)
        version = run.batch.version
        if version_taken(run.connection, version):
            version = next_version(run.connection, run.batch.batch_id)
            reserve_version(run.connection, run.batch.batch_id, version)
    return version


def _manifest(run: Run, version: str, episodes: Sequence[BatchEpisode], steps: Sequence[TrainingStep], parent: str | None) -> Manifest:
    scores = [episode.score for episode in episodes if episode.score is not None]
    return Manifest(
        version=version,
        base=run.trainer.base_identity(),
        created_at=run.clock.now().isoformat(timespec="milliseconds") + "Z",
        parent=parent,
        batch_id=run.batch.batch_id,
        step=steps[-1].iteration,
        judge=run.batch.settings.get("judge_model"),
        windows=tuple(sorted({episode.window for episode in episodes}, reverse=True)),
        metrics={
            "loss": steps[-1].loss or 0.0,
            "avgReward": sum(scores) / len(scores),
            "trainableTokens": float(sum(step.trainable_tokens or 0 for step in steps)),
        },
        trainer={"backend": run.batch.backend, "seed": run.batch.seed, "settings": dict(run.batch.settings)},
    )


def _batch_of(directory: Path) -> str | None:
    if not directory.is_dir():
        return None
    try:
        return verify(directory).batch_id
    except CheckpointError:
        return None  # it is published again from the last iteration


def _manifest_sha(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest()


def _tidy(run: Run) -> None:
    """Keep the numbered checkpoints of this batch and of those that have not ended, and no optimizer state."""
    shutil.rmtree(run.work / STAGING, ignore_errors=True)
    for state in run.work.rglob(f"{STATE_PREFIX}*"):
        state.unlink(missing_ok=True)
    kept = {run.batch.batch_id, *(batch.batch_id for batch in read_batches(run.connection, LIVE_STATES))}
    for other in (run.checkpoints / WORK).iterdir():
        if other.name not in kept:
            shutil.rmtree(other, ignore_errors=True)
