"""Life of a batch: its transitions, the effect of each failure, and the resumable iterations of its training.

``store/`` writes a state only as a transition of the table says; docs/explanation/training.md draws it, and the reference lists it with
the failures. An iteration's directory appears completely (temporary name, fsync, rename) and contains its own result. The duration of a
training is fitted to the completed ones of the same backend: ``base_s`` and so much a trajectory.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from statistics import fmean, linear_regression

import psycopg

from babylon_rl.errors import (
    BabylonError,
    BatchConflict,
    DatabaseError,
    Diverged,
    JudgeError,
    JudgeRefused,
    MissingPackage,
    ModelUnavailable,
    NothingToTrain,
    NoTrainer,
    TrainingError,
    TrainingPaused,
)
from babylon_rl.files.durable import publish_directory
from babylon_rl.logs import log_context
from babylon_rl.settings import TrainingSettings
from babylon_rl.store import write_ahead
from babylon_rl.store.batches import LIVE_STATES, Batch, Transition, advance_batch, end_failed, heartbeat, note_waiting
from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.write_ahead import TrainingStep
from babylon_rl.traces import span
from babylon_rl.training.backends.protocol import OnStep, RunContext, StepMetrics, Trainer, TrainIteration
from babylon_rl.training.conversion import Conversion, refuse_empty
from babylon_rl.versions import seeded_share

STATES = {
    "pending": "frozen: its hours, episodes and trajectories are fixed, and no run has begun",
    "preparing": "a run has begun and reads its episodes",
    "scoring": "its hours are judged, or wait for the judge; judged, it waits for its training",
    "training": "its iterations are trained, each with a record before and a checkpoint after it",
    "uploading": "it is trained; its checkpoint is published, uploaded and registered",
    "completed": "its version is registered and its trajectories are marked as used",
    "failed": "it has ended without a version, and its trajectories are free",
}
MAX_DEAD_RUNS = 3  # that died silently, since the last finished iteration
MAX_LOST_RUNS = 25  # with their machine; and starts of one iteration, so that a process that dies each time does not go on for ever
FIRST_RETRY, RETRY_EVERY = timedelta(minutes=1), timedelta(minutes=30)
ABANDONED_AFTER = timedelta(days=7)  # a batch holds work that is done, and perhaps paid: it may be left alone for some days

FREEZE = Transition("freeze", (), "pending", "automation or `train`", "enough is freezable and no batch is unfinished")
PREPARE = Transition("prepare", ("pending", "preparing", "scoring", "training"), "preparing", "run", "before the first iteration")
JUDGE = Transition("judge", ("preparing", "scoring"), "scoring", "run", "its episodes are read")
TRAIN = Transition("train", ("preparing", "scoring", "training", "uploading"), "training", "run", "all its hours are judged")
PUBLISH = Transition("publish", ("training", "uploading"), "uploading", "run", "its last iteration is finished")
REGISTER = Transition("register", ("uploading",), "completed", "run", "its checkpoint is published, and uploaded where configured")
FAIL = Transition("fail", LIVE_STATES, "failed", "run", "an error that no retry cures, before anything is paid")
GIVE_UP = Transition("give up", LIVE_STATES, "failed", "automation", "too many runs died, and nothing paid would be lost")
CANCEL = Transition("cancel", LIVE_STATES, "failed", "person", "`batches cancel`")
ABANDON = Transition(
    "abandon", ("preparing", "scoring", "training", "uploading"), "failed", "automation",
    f"no sign of life of any run for {ABANDONED_AFTER.days} days",
)  # fmt: skip
TRANSITIONS = (FREEZE, PREPARE, JUDGE, TRAIN, PUBLISH, REGISTER, FAIL, GIVE_UP, CANCEL, ABANDON)


class FailureEffect(StrEnum):
    FAILED = "failed"  # it ends with the error, and its trajectories are free
    WAITS = "waits"  # its state stays and its row holds the reason; the run does not count as dead
    RETRIED = "retried"  # nothing is written, and the run counts as dead
    LEFT = "left"  # nothing is written, and the run does not count as dead


FAILED, WAITS, RETRIED, LEFT = FailureEffect.FAILED, FailureEffect.WAITS, FailureEffect.RETRIED, FailureEffect.LEFT


@dataclass(frozen=True, slots=True)
class FailureRule:
    """Kind of failure with its effect; ``errors``, narrowed by ``applies``, are empty where no exception reaches the run."""

    cause: str
    errors: tuple[type[BaseException], ...]
    effect: FailureEffect
    resumes: str
    applies: Callable[[BaseException], bool] = lambda error: True

    @property
    def when_paid(self) -> FailureEffect:
        """Effect during or after a paid job: what is paid would be lost with its batch, so it waits until what is in its way is mended."""
        return WAITS if self.effect is FAILED else self.effect


_LATER = f"the next `train`, or automation after a minute, two, four and so on, every {RETRY_EVERY.seconds // 60} minutes at the longest"
_AT_ONCE = "the next `train`, or automation at once"
_NEW = "a new batch; automation pauses before it freezes one"
# The first rule that fits an error counts.
FAILURES = (
    FailureRule("another run has the batch, or it has ended", (BatchConflict,), LEFT, _LATER),
    FailureRule("the database does not answer", (DatabaseError, psycopg.Error), RETRIED, _AT_ONCE),
    FailureRule(
        "the judge refuses every request: a wrong key, no such model",
        (JudgeRefused,), FAILED, _NEW, lambda error: isinstance(error, JudgeRefused) and error.for_all,
    ),
    FailureRule("the judge is down, over its budget, or refuses some hours", (JudgeError,), WAITS, _LATER),
    FailureRule(
        "the training service or the storage of checkpoints does not answer, another batch of the same base model trains, or time is up",
        (TrainingPaused,), WAITS, _LATER,
    ),
    FailureRule(
        "the base model cannot be had, a package is missing, or the settings choose no trainer or another than the batch's",
        (ModelUnavailable, MissingPackage, NoTrainer), WAITS, _LATER,
    ),
    FailureRule(
        "any other error of the error tree: no trainable token, a policy out of bounds, a damaged parent, a refused key",
        (BabylonError,), FAILED, _NEW,
    ),
    FailureRule("a full disk, or a file that cannot be written", (OSError,), WAITS, _LATER),
    FailureRule("Ctrl-C or *Terminate*", (KeyboardInterrupt,), LEFT, _AT_ONCE),
    FailureRule(
        "a killed process, or an unexpected error",
        (BaseException,), RETRIED, f"{_AT_ONCE}; given up after {MAX_DEAD_RUNS}, or tried later while paid",
    ),
    FailureRule(
        "a run lost with its machine: a reboot, a replaced container",
        (), RETRIED, f"{_AT_ONCE}; given up after {MAX_LOST_RUNS}, or tried later while paid",
    ),
)  # fmt: skip


def retry_after(failed: int, first: timedelta = FIRST_RETRY, longest: timedelta = RETRY_EVERY) -> timedelta:
    """Pause after failed tries: ``first``, then twice the last, at most ``longest``.

    The defaults are those of a waiting batch, by its failed runs since the last finished iteration.
    """
    return min(longest, first * (1 << min(max(failed - 1, 0), 10)))


def failure_rule(error: BaseException) -> FailureRule:
    return next(rule for rule in FAILURES if isinstance(error, rule.errors) and rule.applies(error))


@contextmanager
def failing(connection: Connection, batch_id: str, attempt: int, clock: Callable[[], datetime], work: Path | None = None) -> Iterator[None]:
    """Do to the batch as the table of failures says, and raise the error on.

    An error with which a batch waits only because it is paid, or because a file cannot be written, becomes a TrainingPaused. ``work`` is
    removed once the batch has failed.
    """
    try:
        yield
    # Whatever the trainer's libraries raise: the table of failures names an effect for every class, and the error is raised on.
    except Exception as error:
        rule = failure_rule(error)
        paid = rule.effect is FAILED and _is_paid(connection, batch_id)
        effect = rule.when_paid if paid else rule.effect
        if effect is FAILED:
            connection.rollback()
            with own_transaction(connection):
                ended = end_failed(connection, batch_id, FAIL, str(error), clock(), attempt)
            if ended and work is not None:
                shutil.rmtree(work, ignore_errors=True)
        elif effect is WAITS:
            why = _reason_to_wait(error, batch_id, paid)
            connection.rollback()
            with own_transaction(connection):
                note_waiting(connection, batch_id, attempt, why)
                write_ahead.note_metrics(connection, batch_id, attempt, paused=True)
            if paid or not isinstance(error, BabylonError):
                raise TrainingPaused(why) from error
        raise


def _reason_to_wait(error: Exception, batch_id: str, paid: bool) -> str:
    if isinstance(error, OSError) and not isinstance(error, BabylonError):
        file = f" ({error.filename})" if error.filename else ""
        return (
            f"{batch_id} could not be written: {error.strerror or error}{file}. What is finished is kept: make room, or mend what is in "
            "the way, then `babylon-rl train` goes on there."
        )
    paid_words = f"What was posted is kept: {batch_id} goes on with its next run, `babylon-rl train`, or can be cancelled."
    return f"{error} {paid_words}" if paid else str(error)


def _is_paid(connection: Connection, batch_id: str) -> bool:
    connection.rollback()
    states = {job.state for job in write_ahead.read_jobs(connection, batch_id)}
    connection.commit()
    # A lost post may have trained all the same. A job that failed or was given up lets its batch fail: nothing can go on from it.
    return bool(states & {"posting", "running", "trained", "lost"}) and not states & {"failed", "expired"}


_LOG = logging.getLogger(__name__)
RESULT_FILE = "iteration.json"
WORK = ".work"
HEARTBEAT_EVERY_S = 10.0


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
        return self.checkpoints / WORK / self.batch.batch_id

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
        # Idle time between runs does not count against the limit of the training.
        finished = write_ahead.finished_steps(self.connection, self.batch.batch_id).values()
        took = timedelta(seconds=sum((step.metrics or {}).get("seconds", 0.0) for step in finished))
        return RunContext(self.connection, self.batch.batch_id, self.attempt, self.clock() - took, self.clock, self.rare_beat())


def plan_iterations(windows: Sequence[str], settings: TrainingSettings, seed: int, passes: int = 1) -> list[list[str]]:
    """Plan the windows of each iteration: a seeded order, WINDOWS_PER_ITERATION at a time, ``passes`` times, at most ITERATIONS."""
    order = sorted(windows, key=lambda window: seeded_share(seed, "order", window))
    return (list(in_parts(order, settings.windows_per_iteration)) * passes)[: settings.iterations]


def iterations_of(batch: Batch) -> int:
    """Number of iterations of a batch, by the hours still in it."""
    iterations, size = int(batch.settings.get("iterations", 1)), int(batch.settings.get("windows_per_iteration", 1))
    return iterations if batch.passes is None else min(iterations, -(-len(batch.windows) // size) * batch.passes)


def fewer_iterations(batch: Batch) -> str | None:
    """Reason why a batch has fewer iterations than ITERATIONS, with the remedy; None where it has as many."""
    made, most = iterations_of(batch), int(batch.settings.get("iterations", 1))
    if made >= most or not batch.passes:
        return None
    hours, size = len(batch.windows), int(batch.settings["windows_per_iteration"])
    epochs = -(-most * batch.passes // made)
    return (
        f"{made} of {most} iterations: an iteration takes up to {size} hours (WINDOWS_PER_ITERATION), {batch.batch_id} has {hours}, and "
        f"each trains {'once' if batch.passes == 1 else f'{batch.passes} times'} (EPOCHS). For {most}, cancel it "
        f"(`babylon-rl batches cancel {batch.batch_id} --reason ...`) and train with `--epochs {epochs}`."
    )


def train_iterations(
    run: BatchRun, conversion: Conversion, plan: Sequence[Sequence[str]], origin: Path | None, generation: int, on_step: OnStep
) -> list[TrainingStep]:
    """Train the missing iterations in order, each from the previous one, the first from ``origin``.

    An iteration whose windows have lost their sequences since the training began trains on those of the whole batch.

    Raises:
        Diverged, NothingToTrain, CheckpointError: from the trainer.
        TrainingError: an iteration was started too often by runs that died.
        BatchConflict: the batch ended, or a newer run has it.
    """
    done, parent = write_ahead.finished_steps(run.connection, run.batch.batch_id), origin
    for number, windows in enumerate(plan, start=1):
        directory = run.work / str(number)
        # A directory without a row is finished from its result file; only a missing directory is trained.
        if number not in done or not directory.is_dir():
            if not directory.is_dir():
                # Calls that were pruned since must leave no gap: the next iteration continues from this one, and the last one is published.
                sequences = [sequence for window in windows for sequence in conversion.by_window.get(window, ())] or conversion.sequences
                # A posted iteration is followed without sequences.
                if write_ahead.newest_job(run.connection, run.batch.batch_id, number) is None:
                    refuse_empty(conversion, run.batch.batch_id)
                # From the batch's seed and the number alone: trained again after a crash, the iteration comes out the same.
                seed = int(seeded_share(run.batch.seed, "iteration", str(number)) * 2**31)
                iteration = TrainIteration(run.batch.batch_id, number, sequences, seed, len(plan), generation=generation, origin=origin)
                _train(run, iteration, parent, directory, on_step)
            done[number] = _finish(run, number, directory)
        parent = directory
    for abandoned in run.work.glob(".*"):
        shutil.rmtree(abandoned, ignore_errors=True)  # of runs that died while they trained
    return [done[number] for number in range(1, len(plan) + 1)]


def _train(run: BatchRun, iteration: TrainIteration, parent: Path | None, directory: Path, on_step: OnStep) -> None:
    # Time of iterations that the limit cut off counts too, or each run would begin them again.
    used_s = sum((step.metrics or {}).get("seconds", 0.0) for step in write_ahead.read_steps(run.connection, iteration.batch_id))
    if used_s >= run.time_limit_s:
        raise _over_time(run, iteration)
    # The record is committed before training, so that deaths can be counted.
    _write_ahead(run, iteration)
    # The attempt is in the name: a run that was taken over and still trains writes into a directory of its own.
    partial = directory.with_name(f".{directory.name}-{run.attempt}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    taken: list[dict[str, float]] = []
    steps = 0

    def note_taken() -> None:
        write_ahead.note_optimizer_steps(run.connection, run.batch.batch_id, iteration.step, run.attempt, taken, steps)

    beat = run.rare_beat(note_taken)

    def step(metrics: StepMetrics) -> None:
        nonlocal steps
        steps = metrics.steps
        taken.append(metrics.metrics | {"loss": metrics.loss, "trainableTokens": metrics.trainable_tokens})
        beat()
        on_step(metrics)
        trained_s = time.monotonic() - began_s
        # Not after the last step: the iteration is trained then, and only has to be written.
        if used_s + trained_s >= run.time_limit_s and metrics.step < metrics.steps:
            with own_transaction(run.connection):
                write_ahead.note_metrics(run.connection, iteration.batch_id, run.attempt, seconds=trained_s)
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
    note_taken()
    if result.loss is not None and not math.isfinite(result.loss):
        raise Diverged(
            f"The loss of iteration {iteration.step} of {iteration.batch_id} is {result.loss}; nothing was published. Lower LEARNING_RATE."
        )
    if result.trainable_tokens <= 0:
        raise NothingToTrain(f"Iteration {iteration.step} of {iteration.batch_id} trained no token; nothing was published.")
    outcome = {
        "loss": result.loss,
        "trainableTokens": result.trainable_tokens,
        "sequences": result.sequences or iteration.calls,
        "seconds": round(time.monotonic() - began_s, 3),
        "metrics": result.metrics,
    }
    # Before the rename: a process that dies between it and the row leaves all that the row needs (`_finish`).
    (partial / RESULT_FILE).write_text(json.dumps(outcome, indent=2, allow_nan=False) + "\n")
    run.beat()  # a run that was taken over must not leave a directory behind
    try:
        publish_directory(partial, directory)
    except OSError:
        if not directory.is_dir():
            raise
        shutil.rmtree(partial)  # the run that this one took over came first, with the same weights: they follow from the seed
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
    begun = write_ahead.read_steps(run.connection, run.batch.batch_id)
    # Deaths are starts without an end; pauses do not count.
    deaths = sum(step.iteration == iteration.step and not step.paused for step in begun)
    # A posted job is followed, however often its runs died.
    if deaths >= MAX_LOST_RUNS and write_ahead.newest_job(run.connection, iteration.batch_id, iteration.step) is None:
        raise TrainingError(
            f"Iteration {iteration.step} of {iteration.batch_id} was started {deaths} times and never ended. "
            "See the log of its last run, then freeze a new batch with `babylon-rl train`."
        )
    number = iteration.step
    step = TrainingStep(number, run.attempt, run.trainer.name, number - 1, iteration.windows, iteration.calls, run.clock())
    with own_transaction(run.connection):
        # A run that was taken over begins nothing.
        advance_batch(run.connection, run.batch.batch_id, run.attempt, TRAIN, run.clock())
        write_ahead.begin_step(run.connection, run.batch.batch_id, step)


def _finish(run: BatchRun, number: int, directory: Path) -> TrainingStep:
    outcome = json.loads((directory / RESULT_FILE).read_text())
    newest = [step for step in write_ahead.read_steps(run.connection, run.batch.batch_id) if step.iteration == number][-1]
    finished = replace(
        newest,
        finished_at=run.clock(),
        checkpoint=str(directory),
        loss=outcome["loss"],
        trainable_tokens=outcome["trainableTokens"],
        metrics=outcome["metrics"] | {"seconds": outcome["seconds"], "sequences": outcome["sequences"]},
    )
    with own_transaction(run.connection):
        write_ahead.finish_step(run.connection, run.batch.batch_id, finished)
    return finished


@dataclass(frozen=True, slots=True)
class DurationFit:
    """A line through past runs. ``error``: mean relative error when each run is predicted from the others, None below two runs."""

    base_s: float
    per_trajectory_s: float
    runs: int
    error: float | None = None


def fit_durations(batches: Sequence[Batch], backend: str) -> DurationFit | None:
    """Fit the completed batches of a backend; None without any."""
    runs = [
        (float(batch.trajectories), (batch.completed_at - batch.started_at).total_seconds())
        for batch in batches
        if batch.backend == backend and batch.state == "completed" and batch.started_at and batch.completed_at
        if batch.completed_at > batch.started_at
    ]
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


def _line(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares with neither a negative base nor a negative slope."""
    xs, ys = [x for x, _ in runs], [y for _, y in runs]
    if len(set(xs)) == 1:
        return (0.0, fmean(ys) / xs[0]) if xs[0] else (fmean(ys), 0.0)
    slope, base = linear_regression(xs, ys)
    # A few runs on machines of different speed may give a falling line, which would predict negative times for large batches.
    if slope < 0:
        return fmean(ys), 0.0
    return (base, slope) if base >= 0 else (0.0, linear_regression(xs, ys, proportional=True).slope)
