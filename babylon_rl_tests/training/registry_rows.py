"""Versions as the registry reads them."""

from datetime import datetime
from typing import Any

from babylon_rl.store.registry import Model

NOW = datetime(2025, 10, 30, 12)


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
