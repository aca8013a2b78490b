"""Model registry: trained_models as the game reads it, and the lineage of our versions.

A version without a lineage row is foreign: another producer wrote it. Foreign rows count when the next number is chosen and are shown as
foreign. They are never a parent and are never changed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from babylon_rl.store.batches import BASELINE, LIVE_STATES, BatchEpisode, Transition, hold_batch, record_dropped
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection

FIRST_VERSION = "v1.0.0"
MODEL_PREFIX = "babylon-agent-"
# ASCII only: other digits would also match \d. Numbers of nine digits fit wherever a number is kept.
_SEMANTIC = re.compile(r"v?(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})", re.ASCII)

# A model row with its lineage; without a lineage row the version is foreign.
_MODELS = """
SELECT m."modelId", m.version, m."baseModel", m."trainingBatch", m.status, m."deployedAt", m."storagePath", m."benchmarkScore",
       m.accuracy, m."avgReward", m."evalMetrics", m."createdAt", l."batchId" IS NULL, l."parentVersion", l."backend",
       l."checkpointPath", l."manifestSha", COALESCE(l."windows", '{}'), l."metrics", l."prunedAt", l."uploadedUrl", l."trackingUrl",
       m."wandbRunId", m."wandbArtifactId", l."trackingRefusal"
FROM public.trained_models m
LEFT JOIN babylon_rl.model_lineage l ON l."version" = m.version AND l."batchId" = m."trainingBatch"
"""

# In one order, as every writer to several of these rows takes them: otherwise two could wait for each other.
_LOCK_OURS = """
SELECT FROM public.trained_models m JOIN babylon_rl.model_lineage l ON l."version" = m.version AND l."batchId" = m."trainingBatch"
ORDER BY m.version FOR NO KEY UPDATE OF m
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A row of trained_models with its lineage. ``foreign``: another producer wrote it, and the lineage fields are empty."""

    model_id: str
    version: str
    base_model: str
    training_batch: str | None
    status: str
    deployed_at: datetime | None
    storage_path: str
    benchmark_score: float | None
    accuracy: float | None
    avg_reward: float | None
    eval_metrics: Mapping[str, Any] | None
    created_at: datetime
    foreign: bool
    parent_version: str | None
    backend: str | None
    checkpoint: str | None
    manifest_sha: str | None
    windows: Sequence[str]
    metrics: Mapping[str, Any] | None
    pruned_at: datetime | None
    uploaded_url: str | None
    tracking_url: str | None
    wandb_run_id: str | None
    wandb_artifact_id: str | None
    tracking_refusal: str | None

    @property
    def shown_status(self) -> str:
        """Status for display, marked as foreign or pruned where it applies."""
        return f"{self.status} (foreign)" if self.foreign else f"{self.status} (pruned)" if self.pruned_at is not None else self.status

    @property
    def can_be_asked(self) -> bool:
        """True unless its training is not over, has failed, or its files are gone."""
        return self.status not in ("training", "failed") and self.pruned_at is None

    @property
    def order(self) -> tuple[int, int, int]:
        """Semantic version order; other version names come first."""
        return version_order(self.version) or (-1, -1, -1)


@dataclass(frozen=True, slots=True)
class NewModel:
    """The input of ``register_model``. ``storage_path`` is the address that agents call; weights from outside have no episodes."""

    batch_id: str
    attempt: int
    version: str
    parent_version: str | None
    base_model: str
    backend: str
    checkpoint: str
    storage_path: str
    manifest_sha: str
    episodes: Sequence[BatchEpisode]
    loss: float | None
    metrics: Mapping[str, Any]
    now: datetime
    uploaded_url: str | None = None
    wandb_artifact_id: str | None = None

    @property
    def windows(self) -> list[str]:
        return sorted({episode.window for episode in self.episodes}, reverse=True)


def model_id(version: str) -> str:
    return f"{MODEL_PREFIX}{version}"


def version_order(version: str) -> tuple[int, int, int] | None:
    """Return (major, minor, patch) of ``vX.Y.Z``, or None for any other name."""
    match = _SEMANTIC.fullmatch(version)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def next_version(connection: Connection, batch_id: str | None = None, above: Sequence[str] = ()) -> str:
    """Highest version of models, live batches other than ``batch_id`` and ``above``, plus one patch; v1.0.0 without any."""
    taken = """
        SELECT version FROM public.trained_models
        UNION ALL SELECT "version" FROM babylon_rl.batches WHERE "state" = ANY(%s) AND "batchId" IS DISTINCT FROM %s
    """
    # Names that are no semantic version do not count.
    versions = [*connection.column(taken, [list(LIVE_STATES), batch_id]), *above]
    orders = [order for order in map(version_order, versions) if order is not None]
    if not orders:
        return FIRST_VERSION
    major, minor, patch = max(orders)
    return f"v{major}.{minor}.{patch + 1}"


def version_taken(connection: Connection, version: str) -> bool:
    statement = 'SELECT 1 FROM public.trained_models WHERE version = %s OR "modelId" = %s'
    return connection.value(statement, [version, model_id(version)]) is not None


def reserved_by(connection: Connection, version: str) -> str | None:
    """Return the live batch that will register this version, or None."""
    return connection.value(
        'SELECT "batchId" FROM babylon_rl.batches WHERE "version" = %s AND "state" = ANY(%s)', [version, list(LIVE_STATES)]
    )


def reserve_version(connection: Connection, batch_id: str, version: str) -> None:
    """Change the version number of a live batch; the caller holds the registry lock."""
    connection.execute('UPDATE babylon_rl.batches SET "version" = %s WHERE "batchId" = %s', [version, batch_id])
    connection.execute('UPDATE public.training_batches SET "modelVersion" = %s WHERE "batchId" = %s', [version, batch_id])


def lock_models(connection: Connection) -> None:
    """Lock the rows of our versions until the end of the transaction."""
    connection.execute(_LOCK_OURS)


def read_models(connection: Connection) -> list[Model]:
    models = [Model(*row) for row in connection.execute(_MODELS)]
    return sorted(models, key=lambda model: (model.order, model.created_at), reverse=True)


def model_of_batch(connection: Connection, batch_id: str) -> Model | None:
    row = connection.execute(_MODELS + 'WHERE l."batchId" = %s', [batch_id]).fetchone()
    return None if row is None else Model(*row)


def deployed_model(models: Iterable[Model]) -> Model | None:
    live = [model for model in models if model.status == "deployed" and model.deployed_at is not None]
    # Another producer may have deployed one beside ours: the newest counts, as for the game.
    return max(live, key=lambda model: (model.deployed_at, model.order), default=None)


def parent_of_line(connection: Connection, base_model: str, *, promoted: bool = False) -> Model | None:
    """Return the parent of a line's next training, None for the base.

    Where versions are ``promoted`` without a person, it is the highest one that came from the deployed one (or from the base), by versions
    that the gate did not refuse: gains too small to be shown one by one add up, and the gate compares their sum. Otherwise it is the
    deployed one, and where there is none, our highest version. It never failed, and neither it nor a version on the way was rolled back.
    """
    line = [m for m in read_models(connection) if not m.foreign and m.base_model == base_model and m.status != "failed"]
    deployed = deployed_model(line)
    back = set(connection.column("""SELECT "version" FROM babylon_rl.rollouts WHERE "state" = 'rolled_back'"""))
    kept = [model for model in line if model.version not in back]
    if not promoted:
        return deployed or next(iter(kept), None)
    compared = set(connection.column("""SELECT "version" FROM babylon_rl.benchmark_reports WHERE "decision" IN ('pass', 'inconclusive')"""))
    reached = {None if deployed is None else deployed.version}
    parent = deployed
    for model in reversed(kept):  # a parent stands before its children
        if model.version in compared and model.parent_version in reached and model.pruned_at is None:
            reached.add(model.version)
            parent = model
    return parent


def register_model(connection: Connection, new: NewModel, transition: Transition) -> Model:
    """Register a trained version in the caller's transaction, under the locks of its windows.

    Episodes without a trainable token are not marked as used: their scores counted in the mean of their groups, and no later batch takes
    them.

    Raises BatchConflict: the batch ended or a newer run has it; the caller must roll back.
    """
    used = [trajectory for episode in new.episodes if episode.contributes != BASELINE for trajectory in episode.trajectory_ids]
    scores = [episode.score for episode in new.episodes if episode.score is not None]
    # Fencing: only the current run of a live batch may complete it.
    hold_batch(connection, new.batch_id, new.attempt, new.now, transition)
    reserve_version(connection, new.batch_id, new.version)
    connection.execute(
        'UPDATE public.training_batches SET status = %s, error = NULL, "trainingLoss" = %s, "completedAt" = %s WHERE "batchId" = %s',
        [transition.target, new.loss, new.now, new.batch_id],
    )
    connection.execute(
        """
        UPDATE public.trajectories SET "usedInTraining" = TRUE, "trainedInBatch" = %s
        WHERE "trajectoryId" = ANY(%s) AND NOT "usedInTraining"
        """,
        [new.batch_id, used],
    )
    connection.execute(
        'UPDATE babylon_rl.batch_items SET "live" = FALSE, "consumed" = "trajectoryId" = ANY(%s) WHERE "batchId" = %s AND "live"',
        [used, new.batch_id],
    )
    baseline = [(episode.window, episode.agent_id) for episode in new.episodes if episode.contributes == BASELINE]
    # A baseline episode is excluded from later batches without being marked as used.
    record_dropped(connection, new.batch_id, BASELINE, baseline, new.now)
    return _insert_model(connection, new, sum(scores) / len(scores) if scores else None, {"training": dict(new.metrics)})


def _insert_model(connection: Connection, new: NewModel, reward: float | None, eval_metrics: Mapping[str, Any]) -> Model:
    connection.insert("public.trained_models", [{
        **document_of(new, "version", "base_model", "storage_path", "wandb_artifact_id"), "modelId": model_id(new.version),
        "id": f"model-{new.batch_id.removeprefix('batch-')}", "trainingBatch": new.batch_id, "status": "ready", "avgReward": reward,
        "evalMetrics": dict(eval_metrics), "createdAt": new.now, "updatedAt": new.now,
    }])  # fmt: skip
    lineage = ("version", "base_model", "parent_version", "backend", "batch_id", "manifest_sha", "windows", "metrics", "uploaded_url")
    row = document_of(new, *lineage) | {"checkpointPath": new.checkpoint, "createdAt": new.now}
    connection.insert("babylon_rl.model_lineage", [row])
    model = model_of_batch(connection, new.batch_id)
    assert model is not None  # written above
    return model


def register_import(connection: Connection, new: NewModel) -> Model:
    """Register weights from outside as a version of their parent's line; the caller commits."""
    # Without trajectories and without a row in training_batches, so that it counts as no training.
    own = document_of(new, "batch_id", "base_model", "backend", "parent_version", "version")
    connection.insert("babylon_rl.batches", [own | {"seed": 0, "state": "completed", "createdAt": new.now, "heartbeatAt": new.now}])
    return _insert_model(connection, new, None, new.metrics)


def mark_pruned(connection: Connection, batch_ids: Sequence[str], now: datetime) -> None:
    """Mark versions as not playable here, before their files are deleted. Our versions only. The caller commits."""
    # Before the files: a crash in between leaves files that nobody asks for, never a version without its files.
    lock_models(connection)
    connection.execute(
        'UPDATE babylon_rl.model_lineage SET "prunedAt" = %s WHERE "batchId" = ANY(%s) AND "prunedAt" IS NULL', [now, list(batch_ids)]
    )
    connection.execute(
        """
        UPDATE public.trained_models SET status = 'archived', "archivedAt" = %s, "updatedAt" = %s
        WHERE "trainingBatch" = ANY(%s) AND status = 'ready'
          AND EXISTS (SELECT 1 FROM babylon_rl.model_lineage l WHERE l."version" = trained_models.version AND l."batchId" = "trainingBatch")
        """,
        [now, now, list(batch_ids)],
    )


def note_tracking(connection: Connection, batch_id: str, link: str, now: datetime) -> None:
    """Store the tracking link of a version's training, whose run is named by its batch; the caller commits."""
    noted = 'UPDATE babylon_rl.model_lineage SET "trackingUrl" = %s, "trackingRefusal" = NULL WHERE "batchId" = %s'
    if connection.execute(noted, [link, batch_id]).rowcount:
        named = 'UPDATE public.trained_models SET "wandbRunId" = %s, "updatedAt" = %s WHERE "trainingBatch" = %s'
        connection.execute(named, [batch_id, now, batch_id])


def note_tracking_refusal(connection: Connection, batch_id: str, reason: str) -> None:
    """Store why a version's training is not in Weights & Biases; the caller commits."""
    connection.execute('UPDATE babylon_rl.model_lineage SET "trackingRefusal" = %s WHERE "batchId" = %s', [reason, batch_id])


def note_artifact(connection: Connection, batch_id: str, artifact: str, now: datetime) -> None:
    connection.execute(
        'UPDATE public.trained_models SET "wandbArtifactId" = %s, "updatedAt" = %s WHERE "trainingBatch" = %s', [artifact, now, batch_id]
    )


def note_upload(connection: Connection, batch_id: str, url: str, now: datetime) -> None:
    """Store the upload address of a version's checkpoint; the caller commits. The address that agents call stays unchanged."""
    connection.execute('UPDATE babylon_rl.model_lineage SET "uploadedUrl" = %s WHERE "batchId" = %s', [url, batch_id])
    connection.execute('UPDATE public.trained_models SET "updatedAt" = %s WHERE "trainingBatch" = %s', [now, batch_id])


def count_models(connection: Connection) -> dict[str, int] | None:
    """Count registered models by status; None without a registry table."""
    if not connection.has_table("public.trained_models"):
        return None
    return dict(connection.execute("SELECT status, count(*) FROM public.trained_models GROUP BY status ORDER BY status").fetchall())
