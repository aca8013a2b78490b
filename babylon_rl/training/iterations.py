"""Iterations: the resumable steps of a training, with records, directories and durations.

The directory appears completely (temporary name, fsync, rename) and contains its own result. After a crash between directory and row, the
row is completed from the directory. After an earlier crash only that iteration is trained again.

The duration of a training is fitted to the completed ones of the same backend: ``base_s`` and so much a trajectory. Finished iterations
replace the fit by the run's own pace, by their share.
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
from statistics import fmean

from babylon_rl.errors import Diverged, NothingToTrain, TrainingError, TrainingPaused
from babylon_rl.files.durable import publish_directory
from babylon_rl.logs import log_context
from babylon_rl.settings import TrainingSettings
from babylon_rl.store.batches import Batch, advance_batch, heartbeat
from babylon_rl.store.columns import in_parts
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
from babylon_rl.training.backends import OnStep, RunContext, StepMetrics, Trainer, TrainIteration
from babylon_rl.training.conversion import Conversion, refuse_empty
from babylon_rl.training.lifecycle import MAX_LOST_RUNS, TRAIN
from babylon_rl.versions import seeded_share

_LOG = logging.getLogger(__name__)
RESULT_FILE = "iteration.json"
WORK = ".work"
HEARTBEAT_EVERY_S = 10.0
# As the game's monitors show a batch; within ``training`` by finished iterations.
FRACTIONS = {"pending": 0.0, "preparing": 0.1, "scoring": 0.3, "training": 0.6, "uploading": 0.9, "completed": 1.0}


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
    return (list(in_parts(order, size)) * passes)[: settings.iterations]


def iterations_of(batch: Batch) -> int:
    """Number of iterations of a batch, by the hours still in it."""
    iterations, size = int(batch.settings.get("iterations", 1)), int(batch.settings.get("windows_per_iteration", 1))
    return iterations if batch.passes is None else min(iterations, -(-len(batch.windows) // size) * batch.passes)


def passes_within(batch: Batch) -> int:
    """Passes of an iteration over its own sequences: 1, but EPOCHS in old batches."""
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
                # Calls that were pruned since must leave no gap: the next iteration continues from this one, and the last one is published.
                sequences = [sequence for window in windows for sequence in conversion.by_window.get(window, ())] or conversion.sequences
                if newest_job(run.connection, run.batch.batch_id, number) is None:  # else it is posted, and followed without them
                    refuse_empty(conversion, run.batch.batch_id)
                # From the batch's seed and the number alone: trained again after a crash, the iteration comes out the same.
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
    # The attempt is in the name: a run that was taken over and still trains writes into a directory of its own.
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
        # Not after the last step: the iteration is trained then, and only has to be written.
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
    # Before the rename: a process that dies between it and the row leaves all that the row needs (`_finish`).
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


@dataclass(frozen=True, slots=True)
class DurationFit:
    """A line through past runs.

    ``error``: mean relative error when each run is predicted from the others, None below two runs.
    """

    base_s: float
    per_trajectory_s: float
    runs: int
    error: float | None = None

    def seconds(self, trajectories: int) -> float:
        """Predicted seconds of a run from its start to its end."""
        return self.base_s + self.per_trajectory_s * trajectories


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Progress of a batch; ``remaining_s`` is None where nothing is known yet."""

    fraction: float
    finished: int
    iterations: int
    elapsed_s: float
    remaining_s: float | None
    losses: Sequence[float | None]


def fit_durations(batches: Sequence[Batch], backend: str) -> DurationFit | None:
    """Fit the completed batches of a backend; None without any."""
    runs = [
        (float(batch.trajectories), (batch.completed_at - batch.started_at).total_seconds())
        for batch in batches
        if batch.backend == backend and batch.state == "completed" and batch.started_at is not None and batch.completed_at is not None
    ]
    runs = [(trajectories, seconds) for trajectories, seconds in runs if seconds > 0]
    if not runs:
        return None
    base_s, per_trajectory_s = _line(runs)
    # Each run is predicted from the others alone: the error is then what to expect of a run that is not known yet.
    errors = []
    for left_out, (trajectories, seconds) in enumerate(runs):
        others = runs[:left_out] + runs[left_out + 1 :]
        if others:
            base, slope = _line(others)
            errors.append(abs(base + slope * trajectories - seconds) / seconds)
    return DurationFit(base_s, per_trajectory_s, len(runs), fmean(errors) if errors else None)


def progress_of(batch: Batch, steps: Sequence[TrainingStep], fit: DurationFit | None, now: datetime) -> BatchProgress:
    """Progress of an unfinished batch from its rows; ``steps`` are all starts of its iterations."""
    iterations = max(1, iterations_of(batch))
    done = {step.iteration: step for step in steps if step.finished_at is not None}
    losses = [done[number].loss for number in sorted(done)]
    share = min(1.0, len(done) / iterations)
    fraction = FRACTIONS.get(batch.state, 0.0)
    if batch.state == "training":
        fraction += (FRACTIONS["uploading"] - fraction) * share
    elapsed_s = 0.0 if batch.started_at is None else max(0.0, (now - batch.started_at).total_seconds())
    total_s = None if fit is None else fit.seconds(batch.trajectories)
    ended = max((step.finished_at for step in done.values() if step.finished_at is not None), default=None)
    if ended is not None and batch.started_at is not None:
        # The run's own pace weighs as much as is done, so that one early iteration does not throw the estimate about.
        own_s = (ended - batch.started_at).total_seconds() / share
        total_s = own_s if total_s is None else share * own_s + (1 - share) * total_s
    remaining_s = None if total_s is None else max(0.0, total_s - elapsed_s)
    return BatchProgress(fraction, len(done), iterations, elapsed_s, remaining_s, losses)


def _line(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares with neither a negative base nor a negative slope."""
    mean_x, mean_y = fmean(x for x, _ in runs), fmean(y for _, y in runs)
    spread = sum((x - mean_x) ** 2 for x, _ in runs)
    if spread == 0:
        return (0.0, mean_y / mean_x) if mean_x else (mean_y, 0.0)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in runs) / spread
    # A few runs on machines of different speed may give a falling line, which would predict negative times for large batches.
    if slope < 0:
        return mean_y, 0.0
    base = mean_y - slope * mean_x
    return (base, slope) if base >= 0 else (0.0, sum(x * y for x, y in runs) / sum(x * x for x, _ in runs))
