"""The registry: trained_models as the game reads it, and the lineage of the versions that this pipeline made.

A version without a lineage row is foreign: another producer wrote it. Foreign rows count when the next number is chosen, are
shown as foreign, and are never a parent and never changed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from babylon_rl.errors import BatchConflict
from babylon_rl.store.batches import BASELINE, LIVE_STATES, BatchEpisode
from babylon_rl.store.freezable import record_dropped

FIRST_VERSION = "v1.0.0"
_SEMANTIC = re.compile(r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", re.ASCII)

_MODELS = """
SELECT m."modelId", m.version, m."baseModel", m."trainingBatch", m.status, m."deployedAt", m."storagePath", m."benchmarkScore",
       m.accuracy, m."avgReward", m."evalMetrics", m."createdAt", l."batchId" IS NULL, l."parentVersion", l."backend",
       l."checkpointPath", l."manifestSha", COALESCE(l."windows", '{}'), l."metrics", l."prunedAt", l."uploadedUrl", l."trackingUrl",
       m."wandbRunId", m."wandbArtifactId"
FROM public.trained_models m
LEFT JOIN babylon_rl.model_lineage l ON l."version" = m.version AND l."batchId" = m."trainingBatch"
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A row of trained_models with its lineage; ``foreign``: another producer's, then the lineage fields are empty."""

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

    @property
    def shown_status(self) -> str:
        """The status in words: a foreign row says so, and so does a version whose files were given up."""
        return f"{self.status} (foreign)" if self.foreign else f"{self.status} (pruned)" if self.pruned_at is not None else self.status

    @property
    def order(self) -> tuple[int, int, int]:
        """Semantic order; what is no semantic version comes first."""
        return version_order(self.version) or (-1, -1, -1)


@dataclass(frozen=True, slots=True)
class NewModel:
    """What ``register_model`` writes: a published checkpoint, what agents call (``storage_path``), and the batch that made it."""

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
    def model_id(self) -> str:
        """The name by which the game knows the version."""
        return f"babylon-agent-{self.version}"

    @property
    def windows(self) -> list[str]:
        """The windows that it was trained on, newest first."""
        return sorted({episode.window for episode in self.episodes}, reverse=True)


def version_order(version: str) -> tuple[int, int, int] | None:
    """(major, minor, patch) of ``vX.Y.Z``, or None for anything else."""
    found = _SEMANTIC.fullmatch(version)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def next_version(connection: psycopg.Connection[Any], batch_id: str | None = None, above: Sequence[str] = ()) -> str:
    """The highest semantic version of any model or live batch (but ``batch_id``), and of ``above``, + 1 patch; v1.0.0 without any."""
    rows = connection.execute(
        """
        SELECT version FROM public.trained_models
        UNION ALL SELECT "version" FROM babylon_rl.batches WHERE "state" = ANY(%s) AND "batchId" IS DISTINCT FROM %s
        """,
        [list(LIVE_STATES), batch_id],
    )
    orders = [order for order in map(version_order, [*(row[0] for row in rows), *above]) if order is not None]
    if not orders:
        return FIRST_VERSION
    major, minor, patch = max(orders)
    return f"v{major}.{minor}.{patch + 1}"


def version_taken(connection: psycopg.Connection[Any], version: str) -> bool:
    """True when a model of this version is registered, ours or foreign."""
    found = connection.execute(
        'SELECT 1 FROM public.trained_models WHERE version = %s OR "modelId" = %s', [version, f"babylon-agent-{version}"]
    )
    return found.fetchone() is not None


def reserved_by(connection: psycopg.Connection[Any], version: str) -> str | None:
    """The live batch that will register this version, or None."""
    found = connection.execute(
        'SELECT "batchId" FROM babylon_rl.batches WHERE "version" = %s AND "state" = ANY(%s)', [version, list(LIVE_STATES)]
    ).fetchone()
    return None if found is None else str(found[0])


def reserve_version(connection: psycopg.Connection[Any], batch_id: str, version: str) -> None:
    """Give a live batch another version number; the caller holds the registry lock."""
    connection.execute('UPDATE babylon_rl.batches SET "version" = %s WHERE "batchId" = %s', [version, batch_id])
    connection.execute('UPDATE public.training_batches SET "modelVersion" = %s WHERE "batchId" = %s', [version, batch_id])


def read_models(connection: psycopg.Connection[Any]) -> list[Model]:
    """Every registered version, highest first."""
    models = [Model(*row) for row in connection.execute(_MODELS)]
    return sorted(models, key=lambda model: (model.order, model.created_at), reverse=True)


def model_of_batch(connection: psycopg.Connection[Any], batch_id: str) -> Model | None:
    """The version that a batch of ours has registered, or None."""
    row = connection.execute(_MODELS + 'WHERE l."batchId" = %s', [batch_id]).fetchone()
    return None if row is None else Model(*row)


def newest_of_line(connection: psycopg.Connection[Any], base_model: str) -> Model | None:
    """The highest version of ours with this base model that did not fail: what the next training continues from."""
    line = [m for m in read_models(connection) if not m.foreign and m.base_model == base_model and m.status != "failed"]
    return line[0] if line else None


def register_model(connection: psycopg.Connection[Any], new: NewModel) -> int:
    """In the caller's one transaction: model row, batch completed, trajectories marked, items consumed, lineage.

    Episodes of which nothing trained are not marked: their scores counted in the mean of their groups, and no later batch takes them.
    Returns the number of trajectories marked; it is lower than the batch's when rows were deleted meanwhile.

    Raises:
        BatchConflict: the batch ended or a newer run has it; the caller's transaction must be rolled back.
    """
    kept = [(episode, trajectory) for episode in new.episodes for trajectory in episode.trajectory_ids]
    trajectories = [trajectory for _, trajectory in kept]
    used = [trajectory for episode, trajectory in kept if episode.contributes != BASELINE]
    scores = [episode.score for episode in new.episodes if episode.score is not None]
    closed = connection.execute(
        """
        UPDATE babylon_rl.batches SET "state" = 'completed', "version" = %s, "heartbeatAt" = %s
        WHERE "batchId" = %s AND "attempt" = %s AND "state" = ANY(%s)
        """,
        [new.version, new.now, new.batch_id, new.attempt, list(LIVE_STATES)],
    )
    if closed.rowcount == 0:
        raise BatchConflict(f"{new.batch_id} ended, or another run has taken it over, while run {new.attempt} trained it.")
    connection.execute(
        """
        INSERT INTO public.trained_models
            (id, "modelId", version, "baseModel", "trainingBatch", status, "storagePath", "avgReward", "evalMetrics",
             "wandbArtifactId", "createdAt", "updatedAt")
        VALUES (%s, %s, %s, %s, %s, 'ready', %s, %s, %s, %s, %s, %s)
        """,
        [f"model-{new.batch_id.removeprefix('batch-')}", new.model_id, new.version, new.base_model, new.batch_id, new.storage_path,
         sum(scores) / len(scores) if scores else None, Jsonb({"training": dict(new.metrics)}),
         new.wandb_artifact_id, new.now, new.now],
    )  # fmt: skip
    connection.execute(
        """
        UPDATE public.training_batches
        SET status = 'completed', error = NULL, "modelVersion" = %s, "trajectoryIds" = %s, "rewardsJson" = %s, "rankingsJson" = %s,
            "trainingLoss" = %s, "completedAt" = %s
        WHERE "batchId" = %s
        """,
        [new.version, json.dumps(trajectories), json.dumps([episode.score for episode, _ in kept]),
         json.dumps([episode.rank for episode, _ in kept]), new.loss, new.now, new.batch_id],
    )  # fmt: skip
    marked = connection.execute(
        """
        UPDATE public.trajectories SET "usedInTraining" = TRUE, "trainedInBatch" = %s
        WHERE "trajectoryId" = ANY(%s) AND NOT "usedInTraining"
        """,
        [new.batch_id, used],
    ).rowcount
    connection.execute(
        'UPDATE babylon_rl.batch_items SET "live" = FALSE, "consumed" = "trajectoryId" = ANY(%s) WHERE "batchId" = %s AND "live"',
        [used, new.batch_id],
    )
    baseline = [(episode.window, episode.agent_id) for episode in new.episodes if episode.contributes == BASELINE]
    record_dropped(connection, new.batch_id, BASELINE, baseline, new.now)
    connection.execute(
        """
        INSERT INTO babylon_rl.model_lineage
            ("version", "parentVersion", "baseModel", "backend", "batchId", "checkpointPath", "manifestSha", "windows", "metrics",
             "uploadedUrl", "createdAt")
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        """,
        [new.version, new.parent_version, new.base_model, new.backend, new.batch_id, new.checkpoint, new.manifest_sha,
         new.windows, Jsonb(dict(new.metrics)), new.uploaded_url, new.now],
    )  # fmt: skip
    return marked


def mark_pruned(connection: psycopg.Connection[Any], batch_ids: Sequence[str], now: datetime) -> None:
    """Say of versions of ours, before their files go, that they cannot be played here any more; the caller commits."""
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


def note_tracking(connection: psycopg.Connection[Any], batch_id: str, run_id: str, link: str, now: datetime) -> None:
    """Say where the training of a version of ours can be watched; the caller commits."""
    noted = connection.execute('UPDATE babylon_rl.model_lineage SET "trackingUrl" = %s WHERE "batchId" = %s', [link, batch_id])
    if noted.rowcount:
        connection.execute(
            'UPDATE public.trained_models SET "wandbRunId" = %s, "updatedAt" = %s WHERE "trainingBatch" = %s', [run_id, now, batch_id]
        )


def note_artifact(connection: psycopg.Connection[Any], batch_id: str, artifact: str, now: datetime) -> None:
    """Say under which name a version of ours lies at Weights & Biases; the caller commits."""
    connection.execute(
        'UPDATE public.trained_models SET "wandbArtifactId" = %s, "updatedAt" = %s WHERE "trainingBatch" = %s', [artifact, now, batch_id]
    )


def note_upload(connection: psycopg.Connection[Any], batch_id: str, url: str, now: datetime) -> None:
    """Say where the checkpoint of a version of ours was uploaded; what agents call stays as it is. The caller commits."""
    connection.execute('UPDATE babylon_rl.model_lineage SET "uploadedUrl" = %s WHERE "batchId" = %s', [url, batch_id])
    connection.execute('UPDATE public.trained_models SET "updatedAt" = %s WHERE "trainingBatch" = %s', [now, batch_id])
