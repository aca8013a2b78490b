"""Modes of a bare `babylon-rl train` (MODE): single, list, backfill, continuous."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn

from babylon_rl.cli.output import emit, say, table
from babylon_rl.cli.training import backfilled, choose_batch, report_training, run_training
from babylon_rl.errors import BatchConflict, JudgeUnavailable, NothingToTrain, TrainingPaused, UsageError
from babylon_rl.settings import Settings
from babylon_rl.windows import utc_now, window_end, window_of, window_range

if TYPE_CHECKING:
    from babylon_rl.store.batches import Batch
    from babylon_rl.store.database import Database
    from babylon_rl.training.batches import Trained

LOOK_EVERY_S = 60.0  # as the sensor of the automation


@dataclass(frozen=True, slots=True)
class Wanted:
    """Arguments of one call of `train` besides settings.

    ``windows`` is (from, to); ``most`` is the maximum number of trajectories to freeze. ``options`` are the settings (by field name, and
    "seed") that were given as options.
    """

    batch_id: str | None = None
    windows: tuple[str, str] | None = None
    most: int | None = None
    seed: int = 0
    force: bool = False
    as_json: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def train_as(mode: str, database: "Database", settings: Settings, wanted: Wanted) -> None:
    """Run `train` in one mode. A named batch is trained in any mode but list.

    Raises:
        UsageError: MODEL_VERSION pins one version and the mode makes many, or --json is used with a mode that never ends.
        NothingToTrain: nothing can be frozen.
    """
    if mode == "list":
        list_freezable(database, settings, wanted)
    elif mode == "single" or wanted.batch_id is not None:
        batch = _choose(database, settings, wanted)
        report_training(run_training(database, settings, batch.batch_id, wanted.as_json), settings, wanted.as_json)
    # The remaining modes train several batches, and a pinned version can be used once.
    elif settings.model_version is not None:
        raise UsageError(f"MODEL_VERSION pins one version, and MODE={mode} makes one after the other: unset one of the two.")
    elif mode == "backfill":
        backfill(database, settings, wanted)
    else:
        train_on_and_on(database, settings, wanted)


def list_freezable(database: "Database", settings: Settings, wanted: Wanted) -> None:
    """Show freezable hours, rows that cannot train with reasons, and unfinished batches."""
    from babylon_rl.training.batches import count_freezable, pending_batches

    with database.connect() as connection:
        counted = count_freezable(connection, settings, utc_now(), windows=wanted.windows)
        pending = pending_batches(connection)
    rows = [[window, number] for window, number in sorted(counted.windows.items(), reverse=True)]
    document = {
        "windows": [{"window": window, "freezable": number} for window, number in rows],
        "notTrainable": dict(counted.not_trainable),
        "pending": [batch.batch_id for batch in pending],
    }

    def render(out: Any) -> None:
        out.print(table(None, ["window", "freezable trajectories"], rows))
        out.print(f"{counted.trajectories} trajectories in {len(rows)} hours could be frozen.", markup=False)
        for reason, number in counted.not_trainable.items():
            out.print(f"Not trainable: {number} {reason}", markup=False)
        for batch in pending:
            out.print(f"`babylon-rl train` goes on with {batch.batch_id}, which is {batch.state}.", markup=False)

    emit(document, render, wanted.as_json)


def backfill(database: "Database", settings: Settings, wanted: Wanted) -> None:
    """Train batch after batch until the hours hold nothing more.

    Each continues from the one before. A batch without anything to train is reported and skipped; the next one is frozen from the other
    hours. With --json the last training is printed with those before it, even after an error.

    Raises:
        NothingToTrain: nothing was trained.
    """
    trained: list[Trained] = []
    left: set[str] = set()
    try:
        while True:
            batch = _next(database, settings, wanted, left)
            # --force is for the first batch: later rounds must resume their own batch.
            wanted = replace(wanted, force=False)
            hours = _hours_of(database, batch.batch_id)
            try:
                trained.append(run_training(database, settings, batch.batch_id, wanted.as_json))
            except NothingToTrain as nothing:
                say(f"{nothing} Going on with other hours.")
                left |= hours
                continue
            if not wanted.as_json:
                _report(trained, settings, False)
    except NothingToTrain as nothing:
        if not trained:
            raise
        say(str(nothing))
    finally:
        if trained and wanted.as_json:
            _report(trained, settings, True)


def _next(database: "Database", settings: Settings, wanted: Wanted, left: Collection[str]) -> "Batch":
    """An unfinished batch, else a new one of the hours without ``left``, newest first."""
    from babylon_rl.training.freezing import freeze_bounds

    if not left:
        return _go_on_or_freeze(database, settings, wanted)
    with database.connect() as connection:
        now = utc_now()
        # Hours without a trainable batch are skipped: freeze from the stretches between them, newest first.
        bounds = freeze_bounds(connection, settings, now, wanted.windows or backfilled(connection, settings, now))
    hours = list(window_range(bounds.first, bounds.end))
    nothing = NothingToTrain("The hours hold nothing more.")
    for part in reversed(parts_without(hours, left)):
        try:
            return _go_on_or_freeze(database, settings, replace(wanted, windows=part))
        except NothingToTrain as unfreezable:
            nothing = unfreezable
    raise nothing


def parts_without(hours: Sequence[str], left: Collection[str]) -> list[tuple[str, str]]:
    """The stretches (from, to) of consecutive ``hours`` without any of ``left``, in order."""
    parts = []
    for is_left, stretch in groupby(hours, key=lambda hour: hour in left):
        own = list(stretch)
        if not is_left:
            parts.append((own[0], window_of(window_end(own[-1]))))
    return parts


def _hours_of(database: "Database", batch_id: str) -> set[str]:
    from babylon_rl.store.batches import read_batch_episodes

    with database.connect() as connection:
        return {episode.window for episode in read_batch_episodes(connection, batch_id)}


def _report(trained: "Sequence[Trained]", settings: Settings, as_json: bool) -> None:
    report_training(trained[-1], settings, as_json, [result.batch.batch_id for result in trained[:-1]])


def train_on_and_on(database: "Database", settings: Settings, wanted: Wanted, wait: Callable[[], None] | None = None) -> NoReturn:
    """Train whenever `babylon-rl ready` says yes, until the process is interrupted.

    An unfinished batch (the judge or a service does not answer, or another run has it) is tried again after ``wait``. A batch without
    anything to train is reported, and no other is frozen until automation would freeze one. Any other failure ends the command.

    Raises:
        UsageError: --json was given: there is no last document.
    """
    if wanted.as_json:
        raise UsageError("MODE=continuous never ends, so it has no document to print: leave --json out.")
    printed = ""
    failed = False  # what failed before this began may be tried once
    while True:
        try:
            batch = _enough(database, settings, wanted, failed)
            report_training(run_training(database, settings, batch.batch_id, False), settings, False)
            printed = ""
            continue
        # Reasons to wait; any other error ends the command.
        except (_Idle, JudgeUnavailable, TrainingPaused, BatchConflict) as waits:
            reason = str(waits)
        except NothingToTrain as nothing:
            reason, failed = str(nothing), True
        # The same reason is printed once, not at every look.
        if reason != printed:
            say(f"Waiting, until Ctrl-C: {reason}")
            printed = reason
        (wait or _wait)()


class _Idle(Exception):
    """Not enough data to freeze a batch yet."""


def _enough(database: "Database", settings: Settings, wanted: Wanted, failed: bool) -> "Batch":
    from babylon_rl.training.batches import fail_stuck, pending_batches
    from babylon_rl.training.preflight import refused_lately

    with database.connect() as connection:
        for stuck in fail_stuck(connection, utc_now()):
            say(f"{stuck.batch_id} has failed. {stuck.error}")
        lately = refused_lately(connection, settings, utc_now()) if failed and not pending_batches(connection) else None
    if lately is not None:
        raise _Idle(lately)
    try:
        return _go_on_or_freeze(database, settings, wanted, when_ready=True)
    except NothingToTrain as nothing:
        raise _Idle(str(nothing)) from None


def _wait() -> None:
    time.sleep(LOOK_EVERY_S)


def _go_on_or_freeze(database: "Database", settings: Settings, wanted: Wanted, when_ready: bool = False) -> "Batch":
    """An unfinished batch of any hours, else a new one of the requested hours."""
    from babylon_rl.training.batches import pending_batches

    with database.connect() as connection:
        if pending_batches(connection) and not wanted.force:
            wanted = replace(wanted, windows=None, most=None, options={})
    return _choose(database, settings, wanted, when_ready)


def _choose(database: "Database", settings: Settings, wanted: Wanted, when_ready: bool = False) -> "Batch":
    return choose_batch(
        database, settings, wanted.batch_id, wanted.windows, wanted.most, wanted.seed, wanted.force, when_ready, wanted.options
    )
