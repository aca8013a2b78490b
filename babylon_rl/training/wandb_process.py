"""Weights & Biases in a child process, whose costs, failures and waits do not affect this one.

The child gets one line of JSON (the run to open), then one line per row to log, and answers with the run's page (or, offline, its
directory). Its files, login and caches stay under BABYLON_RL_HOME/wandb. A thread hands the lines over, so that logging never waits.
Run as a program, this module is the child that uploads a checkpoint as an artifact of type ``model``.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from babylon_rl.errors import require
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import load_manifest, read_remote
from babylon_rl.settings import Settings, StorageSettings
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.registry import Model, note_artifact

TIMEOUT_S = 180.0
INIT_TIMEOUT_S = 45.0
JOB_TYPE = "model"
_RAISED = re.compile(r"[\w.]+(?:Error|Exception|Timeout\w*): ")  # the line of a traceback that says what happened
_OPEN_ENDED: dict[str, Any] = {
    "x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False, "disable_git": True, "console": "off",
}  # fmt: skip


@dataclass(frozen=True)
class WandbResult:
    """Outcome of sending in words; ``link`` is the page, or offline the directory."""

    words: str
    link: str | None = None
    answer: Mapping[str, Any] | None = None


def refusal(settings: StorageSettings) -> str | None:
    """Reason why nothing is sent to Weights & Biases, or written for it; else None."""
    if settings.wandb_mode == "disabled":
        return "Not sent to Weights & Biases: WANDB_MODE is disabled."
    if settings.wandb_mode == "online" and not settings.wandb_key:
        return "Not sent to Weights & Biases: WANDB_API_KEY is not set (WANDB_MODE=offline writes files for `wandb sync`)."
    return None


def run_request(settings: StorageSettings, run_id: str, name: str, job_type: str, **more: Any) -> dict[str, Any]:
    """First line for a child: the run to open; ``more`` are further arguments of wandb.init."""
    return {
        "entity": settings.wandb_entity, "project": settings.wandb_project, "mode": settings.wandb_mode, "id": run_id, "name": name,
        "job_type": job_type, "initTimeout": INIT_TIMEOUT_S,
    } | more  # fmt: skip


class WandbProcess:
    """Child process that runs ``module`` as a program; ``request`` is its first line."""

    def __init__(self, module: str, request: Mapping[str, Any], settings: Settings) -> None:
        home = settings.home / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        self._key = settings.wandb_key
        self._offline = request["mode"] == "offline"
        self._child = subprocess.Popen(
            [sys.executable, "-m", module],
            env=_environment(home, settings, self._key),
            # A session of its own: the child outlives a training that is interrupted, and `kill` reaches what it has started itself.
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._out: list[str] = []
        self._err: list[str] = []
        assert self._child.stdin is not None and self._child.stdout is not None and self._child.stderr is not None
        # A thread per pipe: none of the three can block the training or each other.
        self._threads = [
            threading.Thread(target=_write, args=(self._lines, self._child.stdin), daemon=True),
            threading.Thread(target=_read, args=(self._child.stdout, self._out), daemon=True),
            threading.Thread(target=_read, args=(self._child.stderr, self._err), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.write(request)

    def write(self, line: Mapping[str, Any]) -> None:
        """Queue a line; returns at once."""
        self._lines.put(json.dumps(line))

    def end(self, timeout_s: float = TIMEOUT_S) -> WandbResult:
        """Close the input, wait for the answer, and end the child in any case."""
        self._lines.put(None)
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return WandbResult(f"Not sent to Weights & Biases: it did not answer within {timeout_s:g} s.")
        for thread in self._threads:
            thread.join(timeout=5)
        return self._answer()

    def kill(self) -> None:
        """Kill the child and its own child processes at once."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def _answer(self) -> WandbResult:
        # Libraries may print to the same pipe; only this line is the child's answer.
        answer = next((line for line in reversed(self._out) if line.startswith('{"link"')), None)
        if self._child.returncode == 0 and answer is not None:
            result = json.loads(answer)
            sentence = f"Written for `wandb sync {result['link']}`." if self._offline else "In Weights & Biases."
            return WandbResult(sentence, str(result["link"]), result)
        # The last exception in the log is the reason; without one, its last line.
        lines = [line.strip() for line in reversed(self._err) if line.strip()]
        candidates = [line for line in lines if _RAISED.match(line)] or lines
        reason = _RAISED.sub("", candidates[0]) if candidates else f"it ended with status {self._child.returncode}"
        return WandbResult(f"Not sent to Weights & Biases: {reason.replace(self._key, '(a secret)') if self._key else reason}"[:500])


def open_run(request: Mapping[str, Any]) -> Any:
    """Open or resume the run of a request in the child, without inspecting the machine."""
    require("wandb")
    import wandb

    offline = request["mode"] == "offline"
    options = _OPEN_ENDED | {"init_timeout": request["initTimeout"], "finish_timeout": 60.0, "finish_timeout_raises": True}
    # The version that training on a GPU pins (0.25) lacks some; the parent's own time limit holds in any case.
    supported = {name: value for name, value in options.items() if name in wandb.Settings.model_fields}
    return wandb.init(
        entity=request["entity"],
        project=request["project"],
        id=request["id"],
        name=request["name"],
        job_type=request["job_type"],
        group=request.get("group"),
        config=request.get("config"),
        resume=None if offline else "allow",
        mode=request["mode"],
        settings=wandb.Settings(silent=True, **supported),
    )


def link_of(run: Any, request: Mapping[str, Any]) -> str:
    """Page of the run, or its directory when it is written offline."""
    return str(Path(run.dir).parent) if request["mode"] == "offline" else str(run.url)


def _environment(home: Path, settings: StorageSettings, key: str) -> dict[str, str]:
    places = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
    places["WANDB_DIR"] = str(home.parent)  # it makes a folder ``wandb`` in it
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "NETRC": str(home / "netrc"), "WANDB_MODE": settings.wandb_mode}
    credentials = {"WANDB_API_KEY": key} if key else {}
    if settings.wandb_base_url is not None:
        credentials["WANDB_BASE_URL"] = settings.wandb_base_url
    return {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"} | places | quiet | credentials


def _write(lines: SimpleQueue[str | None], stdin: TextIO) -> None:
    try:
        while (line := lines.get()) is not None:
            stdin.write(line + "\n")
            stdin.flush()
        stdin.close()
    except (BrokenPipeError, ValueError):
        return  # the child has gone; its status and its last words say why


def _read(stream: TextIO, lines: list[str]) -> None:
    with stream:
        lines.extend(stream)


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
