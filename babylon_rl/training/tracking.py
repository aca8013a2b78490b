"""Tracking at Weights & Biases: a run per batch in the group of its line, and checkpoints as artifacts, sent by a child process.

The child's costs, failures and waits do not affect this process: no failure here ever fails a training. It gets one line of JSON (the run
to open), then one line per row to log (or the checkpoint to upload as an artifact of type ``model``), and answers with the run's page (or,
offline, its directory). Its files, login and caches stay under BABYLON_RL_HOME/wandb. Step numbers follow from the iteration's place, so
that an interrupted training does not log the same step twice online, where a resumed run says which rows it has. Offline a repeated
iteration is in two directories, with the same numbers.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, TextIO

from babylon_rl.errors import require
from babylon_rl.files.durable import sha256
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import load_manifest, read_remote
from babylon_rl.reporting.numbers import shortened
from babylon_rl.settings import Settings, StorageSettings
from babylon_rl.store.batches import Batch, BatchEpisode
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.registry import Model, note_artifact
from babylon_rl.store.write_ahead import TrainingStep
from babylon_rl.training.backends.protocol import StepMetrics

TIMEOUT_S = 180.0
INIT_TIMEOUT_S = 45.0
JOB_TYPE = "model"
FETCH = "fetch"
_RAISED = re.compile(r"[\w.]+(?:Error|Exception|Timeout\w*): ")  # the line of a traceback that says what happened
_OF_RUN = ("entity", "project", "mode", "id", "name", "job_type", "group", "config")
_OPEN_ENDED: dict[str, Any] = {
    "x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False, "disable_git": True, "console": "off",
}  # fmt: skip


@dataclass(frozen=True)
class WandbResult:
    """Outcome of sending in words; ``link`` is the page, or offline the directory; ``artifact`` the name to get an artifact by."""

    words: str
    link: str | None = None
    artifact: str | None = None


def refusal(settings: StorageSettings) -> str | None:
    """Reason why nothing is sent to Weights & Biases, or written for it; else None."""
    if settings.wandb_mode == "disabled":
        return "Not sent to Weights & Biases: WANDB_MODE is disabled."
    if settings.wandb_mode == "online" and not settings.wandb_key:
        return "Not sent to Weights & Biases: WANDB_API_KEY is not set (WANDB_MODE=offline writes files for `wandb sync`)."
    return None


def run_request(settings: StorageSettings, run_id: str, name: str, job_type: str) -> dict[str, Any]:
    return {
        "entity": settings.wandb_entity, "project": settings.wandb_project, "mode": settings.wandb_mode, "id": run_id, "name": name,
        "job_type": job_type, "initTimeout": INIT_TIMEOUT_S,
    }  # fmt: skip


class WandbProcess:
    """Child process that runs this module as a program; ``request`` is its first line."""

    def __init__(self, request: Mapping[str, Any], settings: Settings) -> None:
        home = settings.home / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        self._key = settings.wandb_key
        self._offline = request["mode"] == "offline"
        self._out, self._err = (TemporaryFile("w+", errors="replace") for _ in range(2))  # noqa: SIM115 - `end` closes them
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=_environment(home, settings, self._key),
            # A session of its own: the child outlives a training that is interrupted, and a kill reaches what it has started itself.
            stdin=subprocess.PIPE, stdout=self._out, stderr=self._err, text=True, start_new_session=True,
        )  # fmt: skip
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        # A full pipe must not block the training.
        self._writer = threading.Thread(target=_write, args=(self._lines, self._child.stdin), daemon=True)
        self._writer.start()
        self.write(request)

    def write(self, line: Mapping[str, Any]) -> None:
        self._lines.put(json.dumps(line))

    def end(self, timeout_s: float = TIMEOUT_S) -> WandbResult:
        """Close the input, wait for the answer, and end the child in any case."""
        self._lines.put(None)
        with self._out, self._err:
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
                return WandbResult(f"Not sent to Weights & Biases: it did not answer within {timeout_s:g} s.")
            self._writer.join(timeout=5)
            return self._answer()

    def _answer(self) -> WandbResult:
        self._out.seek(0)
        self._err.seek(0)
        out, err = self._out.readlines(), self._err.readlines()
        # Libraries may print to the same file; only this line is the child's answer.
        answer = next((line for line in reversed(out) if line.startswith('{"link"')), None)
        if self._child.returncode == 0 and answer is not None:
            result = json.loads(answer)
            sentence = f"Written for `wandb sync {result['link']}`." if self._offline else "In Weights & Biases."
            return WandbResult(sentence, str(result["link"]), result.get("artifact"))
        # The last exception in the log is the reason; without one, its last line.
        lines = [line.strip() for line in reversed(err) if line.strip()]
        candidates = [line for line in lines if _RAISED.match(line)] or lines
        reason = _RAISED.sub("", candidates[0]) if candidates else f"it ended with status {self._child.returncode}"
        shown = reason.replace(self._key, "(a secret)") if self._key else reason
        return WandbResult(f"Not sent to Weights & Biases: {shortened(shown, 500)}")


def open_run(request: Mapping[str, Any]) -> tuple[Any, str]:
    """Open or resume the run of a request in the child, without inspecting the machine; also return its page, or its directory."""
    require("wandb")
    import wandb

    offline = request["mode"] == "offline"
    options = _OPEN_ENDED | {"init_timeout": request["initTimeout"], "finish_timeout": 60.0, "finish_timeout_raises": True}
    # The version that training on a GPU pins (0.25) lacks some; the parent's own time limit holds in any case.
    supported = {name: value for name, value in options.items() if name in wandb.Settings.model_fields}
    given = {name: request[name] for name in _OF_RUN if name in request}
    run = wandb.init(**given, resume=None if offline else "allow", settings=wandb.Settings(silent=True, **supported))
    return run, str(Path(run.dir).parent) if offline else str(run.url)


def _environment(home: Path, settings: StorageSettings, key: str) -> dict[str, str]:
    places = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
    places["WANDB_DIR"] = str(home.parent)  # it makes a folder ``wandb`` in it
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "NETRC": str(home / "netrc"), "WANDB_MODE": settings.wandb_mode}
    credentials = {"WANDB_API_KEY": key} if key else {}
    if settings.wandb_base_url is not None:
        credentials["WANDB_BASE_URL"] = settings.wandb_base_url
    return {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"} | places | quiet | credentials


def _write(lines: SimpleQueue[str | None], stdin: TextIO) -> None:
    with suppress(BrokenPipeError, ValueError):  # the child has ended; its status and its last lines say why
        while (line := lines.get()) is not None:
            stdin.write(line + "\n")
            stdin.flush()
        stdin.close()


def log_artifact(directory: Path, settings: Settings) -> WandbResult:
    """Log a published checkpoint into the run of its batch. Failures of wandb are returned, never raised."""
    refused = refusal(settings)
    if refused is not None:
        return WandbResult(refused)
    manifest = load_manifest(directory)
    request = run_request(settings, manifest.batch_id or manifest.version, manifest.version, JOB_TYPE)
    artifact = {
        "directory": str(directory), "name": f"{settings.art_model_name}-{manifest.version}", "version": manifest.version,
        "metadata": {"parent": manifest.parent, "baseModel": manifest.base.name, "windows": len(manifest.windows), **manifest.metrics},
    }  # fmt: skip
    process = WandbProcess(request, settings)
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
    if sent.artifact is not None and settings.wandb_mode == "online":
        with own_transaction(connection):
            note_artifact(connection, model.training_batch, sent.artifact, now)
    return sent


def artifact_faults(artifact: str, checkpoint: Path, settings: Settings) -> list[str]:
    """Fetch a published artifact and compare its files with the checkpoint's; return the differences in words."""
    with TemporaryDirectory() as directory:
        request = {"mode": settings.wandb_mode, "job_type": FETCH, "artifact": artifact, "directory": directory}
        fetched = WandbProcess(request, settings).end()
        if fetched.link is None:
            return [f"The artifact {artifact} cannot be fetched: {fetched.words.partition(': ')[2]}"]
        there, here = _hashes(Path(directory)), _hashes(checkpoint)
    other = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return [f"The artifact {artifact} is not the checkpoint {checkpoint}; different files: {', '.join(other)}."] if other else []


def _hashes(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): sha256(path) for path in directory.rglob("*") if path.is_file()}


STRIDE = 10_000  # step numbers between iterations: more than any iteration has optimizer steps
ABANDON_S = 30.0
ITERATIONS = 1_000 * STRIDE  # the rows of whole iterations come after those of all optimizer steps


class Tracker:
    """Tracker of one training; ``step``, called in the trainer's loop, only appends to a list."""

    def __init__(self, batch: Batch, settings: Settings) -> None:
        self.refusal = refusal(settings)
        self._settings = settings
        self._steps: list[StepMetrics] = []
        self._process: WandbProcess | None = None
        config = {
            "baseModel": batch.base_model, "backend": batch.backend, "version": batch.version, "parent": batch.parent_version,
            "seed": batch.seed, "windows": list(batch.windows), "trajectories": batch.trajectories, **batch.settings,
        }  # fmt: skip
        self._request = run_request(settings, batch.batch_id, batch.version, "training") | {
            "group": batch.base_model.replace("/", "-")[:128], "config": config,
        }  # fmt: skip

    def step(self, metrics: StepMetrics) -> None:
        """Record an optimizer step; the last step of an iteration sends all of them."""
        if self.refusal is not None:
            return
        # A service may show fewer steps than it announced: the rest of an iteration then goes with the first step of the next.
        if self._steps and self._steps[-1].iteration != metrics.iteration:
            self._send()
        self._steps.append(metrics)
        if metrics.step >= metrics.steps:
            self._send()

    def finish(
        self, steps: Sequence[TrainingStep], numbers: Mapping[int, Mapping[str, Any]], summary: Mapping[str, Any], link: str | None = None
    ) -> WandbResult:
        """Log the finished iterations, with ``numbers`` by iteration, and the ``summary`` of the training; close the run.

        ``link`` is that of a training that was finished before.
        """
        if self.refusal is not None:
            return WandbResult(self.refusal)
        if link is not None:
            return WandbResult("As it is in Weights & Biases already.", link)
        self._send()
        # Rows of whole iterations are written again on a resume: their step numbers are the same.
        for step in steps:
            self._write({**_iteration_row(step), **numbers.get(step.iteration, {})}, ITERATIONS + step.iteration)
        process = self._opened()
        if process is None:
            return WandbResult(self.refusal or "")
        process.write({"summary": dict(summary)})
        sent = process.end()
        # An interrupted offline training has several directories; all of them must be synced. wandb numbers those of one second.
        directories = sorted(map(str, (self._settings.home / "wandb").glob(f"offline-run-*-{self._request['id']}*")))
        if sent.link in directories[1:]:
            return replace(sent, words=f"Written for `wandb sync {' '.join(directories)}`.")
        return sent

    def abandon(self, limit_s: float = ABANDON_S) -> WandbResult:
        """Close the run of an unfinished training, for the next run to continue."""
        return WandbResult("") if self._process is None else self._process.end(limit_s)

    def _send(self) -> None:
        for step in self._steps:
            row = {"iteration": step.iteration, "step/loss": step.loss, "step/trainableTokens": step.trainable_tokens}
            self._write(row | {f"step/{name}": value for name, value in step.metrics.items()}, step.iteration * STRIDE + step.step)
        self._steps = []

    def _write(self, row: Mapping[str, Any], number: int) -> None:
        process = self._opened()
        if process is not None:
            process.write({"step": number, "row": dict(row)})

    def _opened(self) -> WandbProcess | None:
        """Child process, started on first use; None once it could not be started."""
        if self._process is None and self.refusal is None:
            try:
                self._process = WandbProcess(self._request, self._settings)
            except OSError as failed:  # a full disk, no process left
                self.refusal = f"Not sent to Weights & Biases: its process cannot be started here ({failed.strerror or failed})."
        return self._process


def iteration_numbers(
    steps: Sequence[TrainingStep], episodes: Sequence[BatchEpisode], batch: Batch, judging: Mapping[str, tuple[float, float | None]]
) -> dict[int, dict[str, float]]:
    """Figures of each iteration: rewards, judge disagreement and cost, and counts of pre-flight.

    Rewards are scores, 0..1; ``rewardSpread`` is the mean over its groups of their population standard deviation; ``judging`` is
    (disagreement, dollars or None) by window. An hour's dollars belong to the first iteration that uses it, because they were paid once.
    Unknown values are left out.
    """
    preflight = dict(batch.preflight or {})
    ages = {int(age): number for age, number in (preflight.get("stalenessVersions") or {}).items() if str(age).isdigit()}
    common: dict[str, Any] = {
        "groupsDropped": sum((preflight.get("groupsDropped") or {}).values()),
        "sequencesLeftOut": sum((preflight.get("leftOut") or {}).values()),
        "staleness": sum(age * number for age, number in ages.items()) / sum(ages.values()) if ages else None,
    }
    numbers: dict[int, dict[str, float]] = {}
    paid: set[str] = set()
    for step in sorted(steps, key=lambda step: step.iteration):
        groups = [
            [e.score for e in episodes if e.window == window and e.dropped is None and e.score is not None] for window in step.windows
        ]
        scores = [score for group in groups for score in group]
        judged = [judging[window] for window in step.windows if window in judging]
        priced = {window: usd for window in step.windows for _, usd in [judging.get(window, (0.0, None))] if usd is not None}
        own: dict[str, Any] = {
            "rewardMean": fmean(scores) if scores else None,
            "rewardSpread": fmean(pstdev(group) for group in groups if group) if scores else None,
            "judgeDisagreement": fmean(apart for apart, _ in judged) if judged else None,
            "judgeUsd": sum(usd for window, usd in priced.items() if window not in paid) if priced else None,
        }
        paid |= priced.keys()
        numbers[step.iteration] = {name: value for name, value in {**own, **common}.items() if value is not None}
    return numbers


def batch_costs(steps: Sequence[TrainingStep], judging: Mapping[str, tuple[float, float | None]]) -> dict[str, float]:
    """Cost of a batch in dollars, for the judge and for the training.

    The judge's share covers all its hours, whichever training they were judged in. ``judging`` is as for ``iteration_numbers``; unknown
    sums are left out.
    """
    judge = [usd for _, usd in judging.values() if usd is not None]
    training = [float(step.metrics["trainingUsd"]) for step in steps if step.metrics and "trainingUsd" in step.metrics]
    return {name: sum(dollars) for name, dollars in (("judgeUsd", judge), ("trainingUsd", training)) if dollars}


def _iteration_row(step: TrainingStep) -> dict[str, Any]:
    metrics = {name: value for name, value in (step.metrics or {}).items() if isinstance(value, int | float)}
    seconds = metrics.get("seconds")
    rate = {"tokensPerSecond": step.trainable_tokens / seconds} if seconds and step.trainable_tokens else {}
    return {"iteration": step.iteration, "loss": step.loss, "trainableTokens": step.trainable_tokens} | rate | metrics


def _log(lines: Iterator[str]) -> dict[str, str]:
    """Log incoming lines in the child; return the run's page or directory as ``link``."""
    request = json.loads(next(lines))
    require("wandb")
    import wandb

    if request["job_type"] == FETCH:
        # Past wandb's cache.
        wandb.Api(timeout=60).artifact(request["artifact"]).download(root=request["directory"], skip_cache=True)
        return {"link": request["directory"]}
    run, link = open_run(request)
    if request["job_type"] == JOB_TYPE:
        given = json.loads(next(lines))
        artifact = wandb.Artifact(given["name"], "model", metadata=given["metadata"])
        artifact.add_dir(given["directory"], policy="immutable")
        logged = run.log_artifact(artifact, aliases=["latest", given["version"]])
        if request["mode"] == "online":
            logged.wait()  # returns when it is up, and raises when that fails, of which the run's end says nothing
        name = f"{run.entity}/{run.project}/{given['name']}:{given['version']}"
        run.finish()
        return {"link": link, "artifact": name}
    run.define_metric("*", step_metric="iteration")
    run.define_metric("step/*", step_metric="trainer/step")
    # The last step that the service has. A run that died after it had sent an iteration is followed by one that sends it again.
    last_step = int(run.step) - 1 if run.resumed else -1
    for line in lines:
        entry = json.loads(line)
        if "summary" in entry:
            run.summary.update(entry["summary"])
        elif entry["step"] > last_step:
            last_step = entry["step"]
            run.log(entry["row"] | {"trainer/step": last_step}, step=last_step)
    run.finish()
    return {"link": link}


if __name__ == "__main__":
    print(json.dumps(_log(iter(sys.stdin))), flush=True)
