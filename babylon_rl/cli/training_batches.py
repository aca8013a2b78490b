"""Batches of a training command: read new hours, choose or freeze a batch, train it.

A training runs inside Dagster. The lines are read from its tables, so they are the same whichever process runs the batch.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.cli.output import progress_of_parts, say
from babylon_rl.episodes.reading import data_version, read_windows
from babylon_rl.errors import BatchConflict, DatabaseUnreachable, NothingToTrain, UsageError
from babylon_rl.market.outcomes import read_many_outcomes, stored_outcomes
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store.batches import Batch, BatchGroup, batch_id_taken, judged_groups, read_batch
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import newest_window_with_rows, windows_with_rows
from babylon_rl.store.windows import read_versions, reading_chunks
from babylon_rl.store.write_ahead import read_steps
from babylon_rl.training.backends.protocol import trainer_choice
from babylon_rl.training.batches import Trained, pending_batches, required_batch, train_batch
from babylon_rl.training.conversion import preflight_lines
from babylon_rl.training.freezing import freeze, freeze_bounds
from babylon_rl.training.lifecycle import iterations_of
from babylon_rl.windows import HOUR, newest_complete, next_window, utc_now, window_of, window_start

# Options of `train` that are frozen with a batch, by the setting that they are.
OPTIONS = {
    "min_agents_per_window": "--min-agents", "iterations": "--iterations", "learning_rate": "--learning-rate",
    "windows_per_iteration": "--windows-per-iteration", "epochs": "--epochs", "seed": "--seed",
}  # fmt: skip
POLL_EVERY_S = 0.5


def run_training(database: Database, settings: Settings, batch_id: str, as_json: bool) -> Trained:
    """Train a frozen batch through the graph and print its lines meanwhile.

    With ``as_json`` the lines go to standard error.

    Raises:
        NothingToTrain: no group with a spread of scores is left.
    """
    from babylon_rl.automation.launch import run_batch

    stream = sys.stderr if as_json else sys.stdout
    with following(database, batch_id, lambda line: print(line, file=stream, flush=True)), progress_of_parts() as on_progress:
        run_batch(database, settings, batch_id, ["training_batch", "trained_checkpoint"], on_progress=on_progress)
    with database.connect() as connection:
        return train_batch(connection, batch_id, settings, utc_now())  # registered: this reads it back


@dataclass(frozen=True, slots=True)
class TrainArguments:
    """Arguments of one call of `train` besides settings.

    ``windows`` is (from, to); ``most`` is the maximum number of trajectories to freeze, None is TRAINING_MAX_TRAJECTORIES. ``options`` are
    the settings (by field name, and "seed") that were given as options; a batch that is frozen already must agree with them.
    """

    batch_id: str | None = None
    windows: tuple[str, str] | None = None
    most: int | None = None
    seed: int = 0
    force: bool = False
    as_json: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def choose_batch(database: Database, settings: Settings, arguments: TrainArguments) -> Batch:
    """The named batch, else an unfinished one, else a new one.

    Raises:
        NothingToTrain: nothing can be frozen.
        BatchConflict: another run has just frozen it, or the named batch has failed.
        UsageError: there is no such batch, or it was frozen with other options.
    """
    # Settings without a trainer are refused before anything is read.
    trainer_choice(settings)
    with database.connect(autocommit=True) as connection:
        if arguments.batch_id is not None:
            return _named_batch(connection, arguments.batch_id, arguments.options)
        pending = pending_batches(connection)
        if pending and not arguments.force:
            return _unfinished_batch(pending[0], arguments)
        return _new_batch(database, connection, settings, arguments, {batch.batch_id for batch in pending})


def _named_batch(connection: Connection, batch_id: str, options: Mapping[str, Any]) -> Batch:
    batch = read_batch(connection, batch_id)
    if batch is None and batch_id_taken(connection, batch_id):
        raise UsageError(f"{batch_id} is another producer's, which this pipeline leaves alone; `babylon-rl batches` lists ours.")
    if batch is None:
        raise UsageError(f"There is no batch {batch_id}; `babylon-rl batches` lists them.")
    if batch.state == "failed":
        raise BatchConflict(f"{batch_id} has failed ({batch.error}); freeze a new batch with `babylon-rl train`.")
    _refuse_other(batch, options, "or leave --batch and BATCH_ID out")
    return batch


def _unfinished_batch(batch: Batch, arguments: TrainArguments) -> Batch:
    if arguments.windows is not None or arguments.most is not None:
        raise UsageError(f"{batch.batch_id} has not ended, and its hours are frozen. Finish it with `babylon-rl train`, or add --force.")
    _refuse_other(batch, arguments.options, "or add --force")
    unused = " (--lookback-hours is for new batches)" if "lookback_hours" in arguments.options else ""
    say(f"Going on with {batch.batch_id}, which is {batch.state}{unused}.")
    return batch


def _new_batch(database: Database, connection: Connection, settings: Settings, arguments: TrainArguments, before: set[str]) -> Batch:
    """Read new rows and freeze a batch; ``before`` are the batches that were unfinished then."""
    now = utc_now()
    windows = arguments.windows or backfill_hours(connection, settings, now)
    read_new_hours(database, connection, settings, now, windows)
    most = arguments.most or settings.training_max_trajectories
    frozen = freeze(connection, settings, now, windows=windows, max_trajectories=most, seed=arguments.seed)
    if frozen.batch is None:
        meanwhile = [batch.batch_id for batch in pending_batches(connection) if batch.batch_id not in before]
        if meanwhile:
            raise BatchConflict(
                f"Another run trains these hours: {meanwhile[0]} was frozen from them meanwhile. "
                f"`babylon-rl batches show {meanwhile[0]}` says how far it is."
            )
        raise NothingToTrain(frozen.reason)
    dropped = f", {frozen.dropped} episodes left out by dropout" if frozen.dropped else ""
    say(f"Froze {frozen.batch.batch_id}: {frozen.batch.trajectories} trajectories of {len(frozen.batch.windows)} hours{dropped}.")
    return frozen.batch


def _refuse_other(batch: Batch, options: Mapping[str, Any], otherwise: str) -> None:
    """Raise UsageError if an option differs from the values frozen with ``batch``. Such an option would have no effect."""
    frozen = {**batch.settings, "seed": batch.seed}
    other = [name for name in OPTIONS if name in options and options[name] != frozen.get(name)]
    if batch.live and other:
        was = ", ".join(f"{OPTIONS[name]} {'unset' if frozen.get(name) is None else frozen[name]}" for name in other)
        raise UsageError(
            f"{batch.batch_id} has not ended, and was frozen with {was}. Finish it with `babylon-rl train` without "
            f"{' and '.join(OPTIONS[name] for name in other)}, cancel it with `babylon-rl batches cancel {batch.batch_id}`, {otherwise}."
        )


def backfill_hours(connection: Connection, settings: Settings, now: datetime) -> tuple[str, str] | None:
    """The hours of MODE=backfill, as (from, to); None in other modes and without rows."""
    if settings.mode != "backfill":
        return None
    newest = newest_window_with_rows(connection, newest_complete(now))
    if newest is None:
        return None
    end = next_window(newest)
    return window_of(window_start(end) - settings.backfill_hours * HOUR), end


def recorded_hours(connection: Connection, settings: Settings, now: datetime, windows: tuple[str, str] | None) -> list[str]:
    """The complete hours with rows of the range ``windows`` (None: the look-back), in order."""
    bounds = freeze_bounds(connection, settings, now, windows)
    return [window for window in windows_with_rows(connection, bounds.first, bounds.end) if window <= bounds.complete]


def read_new_hours(
    database: Database, connection: Connection, settings: Settings, now: datetime, windows: tuple[str, str] | None
) -> list[str]:
    """Read new and changed hours in range through the graph. Returns all hours in range that hold rows."""
    from babylon_rl.automation.launch import run_hours

    held = recorded_hours(connection, settings, now, windows)
    stored = read_versions(connection, held)
    changed: list[str] = []
    # A portion at a time: of a portion all trajectories are held, of an hour whether it changed.
    for some in reading_chunks(connection, held):
        readings, markets = read_windows(connection, some, settings), read_many_outcomes(connection, some, settings)
        made = stored_outcomes(connection, some, settings)
        changed += [
            window
            for window, reading in readings.items()
            if stored.get(window) != data_version(reading) or made[window].data_version != markets[window].data_version
        ]
    if changed:
        say(f"Reading {len(changed)} of {len(held)} hours that are new or have changed.")
        run_hours(database, settings, changed, ["window_groups", "market_outcomes", "hindsight"])
    return held


def training_lines(connection: Connection, batch_id: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a key and lines for each judged group, for the result of pre-flight, and for each finished iteration, in this order."""
    batch = required_batch(connection, batch_id)
    for group in judged_groups(connection, batch_id):
        yield f"group/{group.window}", group_lines(group)
    if batch.preflight is not None:
        yield "preflight", preflight_lines(batch.preflight, batch.parent_version or batch.base_model)
    for step in read_steps(connection, batch_id):
        if step.finished_at is not None:
            loss = "not known" if step.loss is None else f"{step.loss:.4f}"
            line = (
                f"Iteration {step.iteration}/{iterations_of(batch)}: checkpoint step {step.iteration}, loss {loss}, "
                f"{step.trainable_tokens} trainable tokens, {len(step.windows)} windows"
            )
            yield f"step/{step.iteration}", [line]


def group_lines(group: BatchGroup) -> list[str]:
    """Lines about one judged hour; RULER names scores of a language model only."""
    scores = "Heuristic scores" if group.judge == HEURISTIC else "RULER scores"
    lines = [
        f"{group.window}: Found {group.agents} simultaneous agents ({group.training} of them train)",
        f"  {scores}: min {group.lowest:.3f}, max {group.highest:.3f}, avg {group.mean:.3f}",
        f"  Best: {group.best_agent} ({group.best_score:.3f}, P&L {group.best_pnl:+.2f})",
    ]
    return [*lines, f"  Left out: {group.dropped}"] if group.dropped is not None else lines


@contextmanager
def following(database: Database, batch_id: str, write: Callable[[str], None]) -> Iterator[None]:
    """Print each of a batch's lines once while the block runs, and the rest at its end.

    It connects again after a lost connection, and says so.
    """
    stop = threading.Event()

    def follow() -> None:
        said, lost, ended = set[str](), False, False
        while not ended:
            try:
                with database.connect(autocommit=True) as connection:
                    while not ended:
                        ended = stop.wait(POLL_EVERY_S)
                        for key, lines in training_lines(connection, batch_id):
                            if key not in said:
                                said.add(key)
                                for line in lines:
                                    write(line)
                        if lost:
                            say("The database answers again.")
                        lost = False
            except (psycopg.OperationalError, DatabaseUnreachable):
                if not lost:
                    say("The database does not answer. The training goes on when it does; what is finished is kept.")
                lost, ended = True, stop.is_set()
                stop.wait(POLL_EVERY_S)

    thread = threading.Thread(target=follow, name=f"following {batch_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
