"""The moment at which the tests look at the recorded game, ways to look at its tables, and rows of the registry and batches."""

from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.store.batches import advance_batch, claim_batch
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import Model
from babylon_rl.training.lifecycle import JUDGE, PREPARE, PUBLISH, REGISTER, TRAIN

NOW = datetime(2025, 10, 30, 12, 0, 0)
# By CREDIT: takes the spread out of all groups, or with a condition out of some.
WITHOUT_SPREAD = {
    "hour": 'UPDATE babylon_rl.group_scores SET "spread" = 0',
    "part": 'UPDATE babylon_rl.part_scores SET "advantage" = 0',
}


def value(connection: Connection, query: str, *parameters: Any) -> Any:
    """The single value of a query."""
    row = connection.execute(query, parameters).fetchone()
    connection.commit()
    return row[0] if row is not None else None


def make_model(version: str = "v1.0.0", **changed: Any) -> Model:
    """A version of ours that is ready; everything can be given."""
    values: dict[str, Any] = {
        "model_id": f"babylon-agent-{version}", "version": version, "base_model": "tiny", "training_batch": f"batch-{version}",
        "status": "ready", "deployed_at": None, "storage_path": "x", "benchmark_score": None, "accuracy": None, "avg_reward": 0.5,
        "eval_metrics": None, "created_at": NOW, "foreign": False, "parent_version": None, "backend": "cpu", "checkpoint": None,
        "manifest_sha": None, "windows": (), "metrics": {}, "pruned_at": None, "uploaded_url": None, "tracking_url": None,
        "wandb_run_id": None, "wandb_artifact_id": None, "tracking_refusal": None,
    }  # fmt: skip
    return Model(**{**values, **changed})


def move_batch(connection: psycopg.Connection[Any], batch_id: str, state: str, now: datetime) -> int:
    """Move a pending batch forward to ``state``, and return its attempt."""
    attempt = claim_batch(connection, batch_id, now)
    assert attempt is not None
    for transition in (PREPARE, JUDGE, TRAIN, PUBLISH, REGISTER):
        advance_batch(connection, batch_id, attempt, transition, now)
        if transition.target == state:
            return attempt
    raise ValueError(f"no transition leads forward to {state}")
