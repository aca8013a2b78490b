"""Iterations: the resumable steps of a training, with records and directories.

The directory appears completely (temporary name, fsync, rename) and contains its own result. After a crash between directory and row, the
row is completed from the directory. After an earlier crash only that iteration is trained again.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from babylon_rl.errors import Diverged, NothingToTrain, TrainingError, TrainingPaused
from babylon_rl.files.durable import publish_directory
from babylon_rl.logs import log_context
from babylon_rl.settings import TrainingSettings
from babylon_rl.store.batches import Batch, advance_batch, heartbeat
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.write_ahead import (
    TrainingStep,
    begin_step,
    finish_step,
    finished_steps,
    newest_job,
    note_losses,
    note_seconds,
    read_steps,
)
from babylon_rl.traces import span
from babylon_rl.training.backends.protocol import RunContext, StepMetrics, Trainer, TrainIteration
from babylon_rl.training.conversion import Conversion, refuse_empty
from babylon_rl.training.freezing import seeded_share
from babylon_rl.training.lifecycle import MAX_LOST_RUNS, TRAIN

_LOG = logging.getLogger(__name__)
RESULT_FILE = "iteration.json"
WORK = ".work"
HEARTBEAT_EVERY_S = 10.0

OnStep = Callable[[StepMetrics], None]


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One run of a batch's training: its claim, trainer and directories."""

    connection: Connection
    batch: Batch
    attempt: int
    trainer: Trainer
    checkpoints: Path
    clock: Callable[[], datetime]
    time_limit_s: float = math.inf  # of trainings on this machine; a service's trainer keeps its own

    @property
    def work(self) -> Path:
        """Directory of the batch's numbered checkpoints."""
        return work_dir(self.checkpoints, self.batch.batch_id)

    def beat(self) -> None:
        """Write a heartbeat. Raises BatchConflict when the batch ended or was taken over."""
        heartbeat(self.connection, self.batch.batch_id, self.attempt, self.clock())

    def rare_beat(self, also: Callable[[], None] = lambda: None) -> Callable[[], None]:
        """A function that writes a heartbeat and does ``also``, at most every HEARTBEAT_EVERY_S."""
        last_beat_s = -math.inf

        def beat() -> None:
            nonlocal last_beat_s
            if time.monotonic() - last_beat_s >= HEARTBEAT_EVERY_S:
                self.beat()
                also()
                last_beat_s = time.monotonic()

        return beat

    def context(self) -> RunContext:
        """Context for a trainer."""
        # Idle time between runs does not count against the limit of the training.
        finished = finished_steps(self.connection, self.batch.batch_id).values()
        took = timedelta(seconds=sum((step.metrics or {}).get("seconds", 0.0) for step in finished))
        return RunContext(self.connection, self.batch.batch_id, self.attempt, self.clock() - took, self.clock, self.rare_beat())


def work_dir(checkpoints: Path, batch_id: str) -> Path:
    """Directory of a batch's numbered checkpoints."""
    return checkpoints / WORK / batch_id


def plan_iterations(windows: Sequence[str], settings: TrainingSettings, seed: int, passes: int | None = 1) -> list[list[str]]:
    """Plan the windows of each iteration.

    A seeded order, WINDOWS_PER_ITERATION at a time, repeated ``passes`` times, at most ITERATIONS iterations. ``passes`` None is for old
    batches, whose passes had no iterations of their own: their ITERATIONS cycle through the hours.
    """
    order = sorted(windows, key=lambda window: seeded_share(seed, "order", window))
    size = min(settings.windows_per_iteration, len(order))
    if passes is None:
        return [[order[(number * size + place) % len(order)] for place in range(size)] for number in range(settings.iterations)]
    once = [order[first : first + size] for first in range(0, len(order), size)]
    return (once * passes)[: settings.iterations]


def iterations_of(batch: Batch) -> int:
    """Number of iterations of a batch, by the hours still in it."""
    iterations, size = int(batch.settings.get("iterations", 1)), int(batch.settings.get("windows_per_iteration", 1))
    return iterations if batch.passes is None else min(iterations, -(-len(batch.windows) // size) * batch.passes)


def passes_within(batch: Batch) -> int:
    """Passes of each iteration over its own sequences: 1, or EPOCHS in old batches.

    Old batches were frozen before passes had their own iterations.
    """
    return int(batch.settings.get("epochs", 1)) if batch.passes is None else 1


def train_iterations(
    run: BatchRun, conversion: Conversion, plan: Sequence[Sequence[str]], parent: Path | None, on_step: OnStep
) -> list[TrainingStep]:
    """Train the missing iterations in order, each from the previous one, the first from ``parent``.

    An iteration whose windows have lost their sequences since the training began trains on those of the whole batch.

    Raises:
        Diverged, NothingToTrain, CheckpointError: from the trainer.
        TrainingError: an iteration was started too often by runs that died.
        BatchConflict: the batch ended, or a newer run has it.
    """
    done = finished_steps(run.connection, run.batch.batch_id)
    steps = []
    for number, windows in enumerate(plan, start=1):
        directory = run.work / str(number)
        # A directory without a row is finished from its result file; only a missing directory is trained.
        if number not in done or not directory.is_dir():
            if not directory.is_dir():
                sequences = [sequence for window in windows for sequence in conversion.by_window.get(window, ())] or conversion.sequences
                if newest_job(run.connection, run.batch.batch_id, number) is None:  # else it is posted, and followed without them
                    refuse_empty(conversion, run.batch.batch_id)
                seed = int(seeded_share(run.batch.seed, "iteration", str(number)) * 2**31)
                iteration = TrainIteration(run.batch.batch_id, number, sequences, seed, len(plan), passes_within(run.batch))
                _train(run, iteration, parent, directory, on_step)
            done[number] = _finish(run, number, directory)
        steps.append(done[number])
        parent = directory
    for abandoned in run.work.glob(".*"):
        shutil.rmtree(abandoned, ignore_errors=True)  # of runs that died while they trained
    return steps


def _train(run: BatchRun, iteration: TrainIteration, parent: Path | None, directory: Path, on_step: OnStep) -> None:
    # Time of iterations that the limit cut off counts too, or each run would begin them again.
    used_s = sum((step.metrics or {}).get("seconds", 0.0) for step in read_steps(run.connection, iteration.batch_id))
    if used_s >= run.time_limit_s:
        raise _over_time(run, iteration)
    # The record is committed before training, so that deaths can be counted.
    _write_ahead(run, iteration)
    partial = directory.with_name(f".{directory.name}-{run.attempt}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    losses: list[float] = []
    beat = run.rare_beat(lambda: note_losses(run.connection, run.batch.batch_id, iteration.step, run.attempt, losses))

    def step(metrics: StepMetrics) -> None:
        losses.append(metrics.loss)
        beat()
        on_step(metrics)
        trained_s = time.monotonic() - began_s
        if used_s + trained_s >= run.time_limit_s and metrics.step < metrics.steps:
            with own_transaction(run.connection):
                note_seconds(run.connection, iteration.batch_id, run.attempt, trained_s)
            shutil.rmtree(partial, ignore_errors=True)
            raise _over_time(run, iteration)

    began_s = time.monotonic()
    try:
        with span("training iteration", batch=iteration.batch_id, version=run.batch.version, iteration=iteration.step) as traced:
            result = run.trainer.train(iteration, parent, partial, step)
            traced.note(trainable_tokens=result.trainable_tokens, loss=result.loss)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk what is half written only stands in the way
        raise
    note_losses(run.connection, run.batch.batch_id, iteration.step, run.attempt, losses)
    # A result without tokens or with a loss that is not finite never becomes a checkpoint.
    if result.loss is not None and not math.isfinite(result.loss):
        raise Diverged(
            f"The loss of iteration {iteration.step} of {iteration.batch_id} is {result.loss}; nothing was published. Lower LEARNING_RATE."
        )
    if result.trainable_tokens <= 0:
        raise NothingToTrain(f"Iteration {iteration.step} of {iteration.batch_id} trained no token; nothing was published.")
    outcome = {
        "loss": result.loss,
        "trainableTokens": result.trainable_tokens,
        "sequences": result.sequences or len(iteration.sequences),
        "seconds": round(time.monotonic() - began_s, 3),
        "metrics": result.metrics,
    }
    (partial / RESULT_FILE).write_text(json.dumps(outcome, indent=2, allow_nan=False) + "\n")
    run.beat()  # a run that was taken over must not leave a directory behind
    _rename_durably(partial, directory)
    with log_context(batch=iteration.batch_id, version=run.batch.version):
        facts = {name: outcome[name] for name in ("loss", "trainableTokens", "seconds")}
        _LOG.info("iteration %d of %d is trained", iteration.step, iteration.steps, extra=facts)


def _over_time(run: BatchRun, iteration: TrainIteration) -> TrainingPaused:
    return TrainingPaused(
        f"{iteration.batch_id} has trained for {run.time_limit_s / 3600:g} hours (TRAINING_TIME_LIMIT_HOURS) and stops in iteration "
        f"{iteration.step} of {iteration.steps}. Finished iterations are kept: raise the limit and run `babylon-rl train --batch "
        f"{iteration.batch_id}`, or give it up with `babylon-rl batches cancel {iteration.batch_id} --reason ...`."
    )


def _write_ahead(run: BatchRun, iteration: TrainIteration) -> None:
    begun = read_steps(run.connection, run.batch.batch_id)
    # Deaths are starts without an end; pauses do not count.
    deaths = sum(step.iteration == iteration.step and not step.paused for step in begun)
    if deaths >= MAX_LOST_RUNS and newest_job(run.connection, iteration.batch_id, iteration.step) is None:  # a posted job is followed
        raise TrainingError(
            f"Iteration {iteration.step} of {iteration.batch_id} was started {deaths} times and never ended. "
            "See the log of its last run, then freeze a new batch with `babylon-rl train`."
        )
    step = TrainingStep(
        iteration.step, run.attempt, run.trainer.name, iteration.step - 1, iteration.windows, len(iteration.sequences),
        run.clock(), None, None, None, None, None,
    )  # fmt: skip
    with own_transaction(run.connection):
        # A run that was taken over begins nothing.
        advance_batch(run.connection, run.batch.batch_id, run.attempt, TRAIN, run.clock())
        begin_step(run.connection, run.batch.batch_id, step)


def _finish(run: BatchRun, number: int, directory: Path) -> TrainingStep:
    outcome = json.loads((directory / RESULT_FILE).read_text())
    # The newest start of the iteration receives the result.
    newest = [step for step in read_steps(run.connection, run.batch.batch_id) if step.iteration == number][-1]
    finished = replace(
        newest,
        finished_at=run.clock(),
        checkpoint=str(directory),
        loss=outcome["loss"],
        trainable_tokens=outcome["trainableTokens"],
        metrics=outcome["metrics"] | {"seconds": outcome["seconds"], "sequences": outcome["sequences"]},
    )
    with own_transaction(run.connection):
        finish_step(run.connection, run.batch.batch_id, finished)
    return finished


def _rename_durably(partial: Path, final: Path) -> None:
    try:
        publish_directory(partial, final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(partial)  # the run that this one took over came first, with the same weights: they follow from the seed
