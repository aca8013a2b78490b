"""Upload of a checkpoint as a Weights & Biases artifact of type ``model``.

It is named after the version's base line, with the version as alias.
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import load_manifest, read_remote
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.registry import Model, note_artifact
from babylon_rl.training.wandb_process import WandbProcess, WandbResult, link_of, open_run, refusal, run_request

JOB_TYPE = "model"


def log_artifact(directory: Path, settings: Settings, **more: Any) -> WandbResult:
    """Log a published checkpoint into the run of its batch.

    The answer's ``artifact`` is the name to get it by. Failures of wandb are returned, never raised.
    """
    refused = refusal(settings)
    if refused is not None:
        return WandbResult(refused)
    manifest = load_manifest(directory)
    request = run_request(settings, manifest.batch_id or manifest.version, manifest.version, JOB_TYPE, **more)
    artifact = {
        "directory": str(directory), "name": f"{settings.art_model_name}-{manifest.version}", "version": manifest.version,
        "metadata": {"parent": manifest.parent, "baseModel": manifest.base.name, "windows": len(manifest.windows), **manifest.metrics},
    }  # fmt: skip
    process = WandbProcess(__name__, request, settings)
    process.write(artifact)
    return process.end()


def record_artifact(connection: Connection, model: Model, settings: Settings, now: datetime) -> WandbResult:
    """Log the checkpoint of a version of ours, and note the artifact's name with the version.

    Steps of the training service are artifacts already, and nothing is done. Offline none is noted: there is no artifact before a sync.
    """
    directory = checkpoint_of(model, settings)
    if model.training_batch is None or read_remote(directory) is not None:
        return WandbResult("")
    sent = log_artifact(directory, settings)
    artifact = (sent.answer or {}).get("artifact")
    if artifact is not None and settings.wandb_mode == "online":
        with own_transaction(connection):
            note_artifact(connection, model.training_batch, str(artifact), now)
    return sent


def _log(request: dict[str, Any], given: dict[str, Any]) -> dict[str, str]:
    """Log the artifact in the child process."""
    import wandb

    run = open_run(request)
    artifact = wandb.Artifact(given["name"], "model", metadata=given["metadata"])
    artifact.add_dir(given["directory"], policy="immutable")
    logged = run.log_artifact(artifact, aliases=["latest", given["version"]])
    if request["mode"] != "offline":
        logged.wait()  # returns when it is up, and raises when that fails, of which the run's end says nothing
    link, name = link_of(run, request), f"{run.entity}/{run.project}/{given['name']}:{given['version']}"
    run.finish()
    return {"link": link, "artifact": name}


if __name__ == "__main__":
    print(json.dumps(_log(json.loads(sys.stdin.readline()), json.loads(sys.stdin.readline()))), flush=True)
