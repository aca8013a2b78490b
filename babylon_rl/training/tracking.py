"""Tracking of a training at Weights & Biases, one run per batch, in the group of its line.

An iteration is sent when its last step is reported. Step numbers follow from the iteration's place, so that an interrupted training does
not log the same step twice. Offline there is no service to ask, so a file in the state directory records which directory holds what: lines
of JSON, appended by the child, which outlives a training that dies. No failure here ever fails a training.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, BatchEpisode
from babylon_rl.store.write_ahead import TrainingStep
from babylon_rl.training.backends import StepMetrics
from babylon_rl.training.wandb_process import WandbProcess, WandbResult, link_of, open_run, refusal, run_request

STRIDE = 10_000  # step numbers between iterations: more than any iteration has optimizer steps
ABANDON_S = 30.0
ITERATIONS = 1_000 * STRIDE  # the rows of whole iterations come after those of all optimizer steps


class Tracker:
    """Tracker of one training; ``step``, called in the trainer's loop, only appends to a list."""

    def __init__(self, batch: Batch, settings: Settings, **more: Any) -> None:
        self.refusal = refusal(settings)
        self._settings = settings
        self._steps: list[StepMetrics] = []
        self._process: WandbProcess | None = None
        self._memory = settings.home / "wandb" / f"{batch.batch_id}.jsonl"
        # Of runs before this one: offline no service says which rows it has.
        remembered = _remembered(self._memory) if self.refusal is None else []
        self._link = next((str(line["link"]) for line in reversed(remembered) if "link" in line), None)
        logged = max((int(line["logged"]) for line in remembered if "logged" in line), default=-1)
        config = {
            "baseModel": batch.base_model, "backend": batch.backend, "version": batch.version, "parent": batch.parent_version,
            "seed": batch.seed, "windows": list(batch.windows), "trajectories": batch.trajectories, **batch.settings,
        }  # fmt: skip
        self._request = run_request(
            settings, batch.batch_id, batch.version, "training", group=batch.base_model.replace("/", "-")[:128], config=config,
            memory=str(self._memory), logged=logged, **more,
        )  # fmt: skip

    @property
    def run_id(self) -> str:
        """Id of the run: the batch's id."""
        return str(self._request["id"])

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

    def finish(self, steps: Sequence[TrainingStep], numbers: Mapping[int, Mapping[str, Any]], summary: Mapping[str, Any]) -> WandbResult:
        """Log the remaining rows and close the run.

        Args:
            steps: the finished iterations; numbers: further figures of each, by its number; summary: what the training came to.
        """
        if self.refusal is not None:
            return WandbResult(self.refusal)
        if not self._steps and self._process is None and self._link is not None:
            return WandbResult("As it is in Weights & Biases already.", self._link)
        self._send()
        # Rows of whole iterations are written again on a resume: their step numbers are the same.
        for step in steps:
            self._write({**_iteration_row(step), **numbers.get(step.iteration, {})}, ITERATIONS + step.iteration)
        process = self._opened()
        if process is None:
            return WandbResult(self.refusal or "")
        process.write({"summary": dict(summary)})
        sent = process.end()
        # An interrupted offline training has several directories; all of them must be synced.
        if sent.link is not None:
            _remember(self._memory, {"link": sent.link})
            directories = [str(line["directory"]) for line in _remembered(self._memory) if "directory" in line]
            if len(directories) > 1:  # of runs that were interrupted
                sent = replace(sent, words=f"Written for `wandb sync {' '.join(directories)}`.")
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
                self._process = WandbProcess(__name__, self._request, self._settings)
            except OSError as failed:  # a full disk, no process left
                self.refusal = f"Not sent to Weights & Biases: its process cannot be started here ({failed.strerror or failed})."
        return self._process


def iteration_numbers(
    steps: Sequence[TrainingStep],
    episodes: Sequence[BatchEpisode],
    batch: Batch,
    judging: Mapping[str, tuple[float, float | None]],
) -> dict[int, dict[str, float]]:
    """Figures of each iteration: rewards, judge disagreement and cost, and counts of pre-flight.

    Rewards are scores, 0..1; ``rewardSpread`` is the mean over its groups of their population standard deviation; ``judging`` is
    (disagreement, dollars or None) by window. An hour's dollars belong to the first iteration that uses it, because they were paid once.
    Unknown values are left out.
    """
    preflight = dict(batch.preflight or {})
    ages = {int(age): number for age, number in (preflight.get("stalenessVersions") or {}).items() if str(age).isdigit()}
    # Values of the whole batch, repeated for every iteration.
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
        # Each hour's judge cost is charged to its first iteration.
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


def _remembered(memory: Path) -> list[dict[str, Any]]:
    """Read the lines of a batch's memory file, without one cut off by a crash."""
    lines_read = []
    try:
        lines = memory.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                lines_read.append(entry)
    return lines_read


def _remember(memory: Path, line: Mapping[str, Any]) -> None:
    with suppress(OSError), memory.open("a") as out:  # then another run of this batch logs it once more
        out.write(json.dumps(line) + "\n")


def _log(lines: Iterator[str]) -> str:
    """Log incoming lines in the child; return the run's page or directory."""
    request = json.loads(next(lines))
    run = open_run(request)
    link, offline, memory = link_of(run, request), request["mode"] == "offline", Path(request["memory"])
    if offline:
        _remember(memory, {"directory": link})
    run.define_metric("*", step_metric="iteration")
    run.define_metric("step/*", step_metric="trainer/step")
    # The last step that the service has; offline, the last one in the directories before.
    # Rows up to it are skipped below: a run that died after it had sent an iteration is followed by one that sends it again.
    last_step = int(request["logged"]) if offline else int(run.step) - 1 if run.resumed else -1
    for line in lines:
        entry = json.loads(line)
        if "summary" in entry:
            run.summary.update(entry["summary"])
        elif entry["step"] > last_step:
            last_step = entry["step"]
            run.log(entry["row"] | {"trainer/step": last_step}, step=last_step)
    run.finish()
    if offline:
        _remember(memory, {"logged": last_step})
    return link


if __name__ == "__main__":
    print(json.dumps({"link": _log(iter(sys.stdin))}), flush=True)
