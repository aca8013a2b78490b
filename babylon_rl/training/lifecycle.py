"""Life of a batch as two tables: its transitions, and the effect of each failure.

``store/`` writes a state only as a transition of this table says, and ``failing`` does to a batch what the table of failures says.
docs/explanation/training.md draws the first table; the reference lists both.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

import psycopg

from babylon_rl.errors import (
    BabylonError,
    BatchConflict,
    DatabaseError,
    JudgeError,
    JudgeRefused,
    MissingPackage,
    ModelUnavailable,
    NoTrainer,
    TrainingPaused,
)
from babylon_rl.store.batches import LIVE_STATES, Transition, end_failed, note_waiting
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.write_ahead import pause_step, read_jobs

STATES = {
    "pending": "frozen: its hours, episodes and trajectories are fixed, and no run has begun",
    "preparing": "a run has begun and reads its episodes",
    "scoring": "its hours are judged, or wait for the judge; judged, it waits for its training",
    "training": "its iterations are trained, each with a record before and a checkpoint after it",
    "uploading": "it is trained; its checkpoint is published, uploaded and registered",
    "completed": "its version is registered and its trajectories are marked as used",
    "failed": "it has ended without a version, and its trajectories are free",
}
MAX_DEAD_RUNS = 3  # that ended without a word, since the last finished iteration
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
    """FailureEffect of a failure on its batch."""

    FAILED = "failed"  # it ends with the error, and its trajectories are free
    WAITS = "waits"  # its state stays and its row holds the reason; the run does not count as dead
    RETRIED = "retried"  # nothing is written, and the run counts as dead
    LEFT = "left"  # nothing is written, and the run does not count as dead


@dataclass(frozen=True, slots=True)
class FailureRule:
    """Kind of failure with its effect, also during or after a paid job.

    ``errors`` are its exception types, narrowed by ``applies``; empty where no exception reaches the run.
    """

    cause: str
    errors: tuple[type[BaseException], ...]
    effect: FailureEffect
    when_paid: FailureEffect
    resumes: str
    applies: Callable[[BaseException], bool] = lambda error: True


def _refuses_all(error: BaseException) -> bool:
    return isinstance(error, JudgeRefused) and error.for_all


_LATER = f"the next `train`, or automation after a minute, two, four and so on, every {RETRY_EVERY.seconds // 60} minutes at the longest"
_AT_ONCE = "the next `train`, or automation at once"
_NEW = "a new batch; automation pauses before it freezes one"
# The first rule that fits an error counts.
FAILURES = (
    FailureRule("another run has the batch, or it has ended", (BatchConflict,), FailureEffect.LEFT, FailureEffect.LEFT, _LATER),
    FailureRule("the database does not answer", (DatabaseError, psycopg.Error), FailureEffect.RETRIED, FailureEffect.RETRIED, _AT_ONCE),
    FailureRule(
        "the judge refuses every request: a wrong key, no such model",
        (JudgeRefused,), FailureEffect.FAILED, FailureEffect.WAITS, _NEW, _refuses_all,
    ),
    FailureRule(
        "the judge is down, over its budget, or refuses some hours",
        (JudgeError,), FailureEffect.WAITS, FailureEffect.WAITS, _LATER,
    ),
    FailureRule(
        "the training service or the storage of checkpoints does not answer, another batch of the same base model trains, or time is up",
        (TrainingPaused,), FailureEffect.WAITS, FailureEffect.WAITS, _LATER,
    ),
    FailureRule(
        "the base model cannot be had, a package is missing, or the settings choose no trainer or another than the batch's",
        (ModelUnavailable, MissingPackage, NoTrainer), FailureEffect.WAITS, FailureEffect.WAITS, _LATER,
    ),
    FailureRule(
        "any other error of the error tree: no trainable token, a policy out of bounds, a damaged parent, a refused key",
        (BabylonError,), FailureEffect.FAILED, FailureEffect.WAITS, _NEW,
    ),
    FailureRule("a full disk, or a file that cannot be written", (OSError,), FailureEffect.WAITS, FailureEffect.WAITS, _LATER),
    FailureRule("Ctrl-C or *Terminate*", (KeyboardInterrupt,), FailureEffect.LEFT, FailureEffect.LEFT, _AT_ONCE),
    FailureRule(
        "a killed process, or an error that nobody foresaw",
        (BaseException,), FailureEffect.RETRIED, FailureEffect.RETRIED,
        f"{_AT_ONCE}; given up after {MAX_DEAD_RUNS}, or tried later while paid",
    ),
    FailureRule(
        "a run lost with its machine: a reboot, a replaced container",
        (), FailureEffect.RETRIED, FailureEffect.RETRIED,
        f"{_AT_ONCE}; given up after {MAX_LOST_RUNS}, or tried later while paid",
    ),
)  # fmt: skip


def retry_after(failed: int, first: timedelta = FIRST_RETRY, longest: timedelta = RETRY_EVERY) -> timedelta:
    """Pause after failed tries: ``first``, then twice the last, at most ``longest``.

    The defaults are those of a waiting batch, by its failed runs since the last finished iteration.
    """
    return min(longest, first * (1 << min(max(failed - 1, 0), 10)))


def failure_rule(error: BaseException) -> FailureRule:
    """Find the rule of an error that ended a run."""
    return next(rule for rule in FAILURES if isinstance(error, rule.errors) and rule.applies(error))


KEPT_WORDS = "What is finished is kept: make room, or mend what is in the way, then `babylon-rl train` goes on there."
PAID_WORDS = "What was posted is kept: {} goes on with its next run, `babylon-rl train`, or can be cancelled."


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
        effect = rule.effect
        # What is paid at a service would be lost with its batch, so it waits until what is in its way is mended.
        if effect != rule.when_paid and _is_paid(connection, batch_id):
            effect = rule.when_paid
        if effect is FailureEffect.FAILED:
            _end(connection, batch_id, str(error), clock(), attempt, work)
        elif effect is FailureEffect.WAITS:
            raised = _wait(connection, batch_id, attempt, _reason_to_wait(error, batch_id, paid=effect != rule.effect))
            if effect != rule.effect or not isinstance(error, BabylonError):
                raise raised from error
        raise


def _reason_to_wait(error: Exception, batch_id: str, *, paid: bool) -> str:
    if isinstance(error, OSError) and not isinstance(error, BabylonError):
        file = f" ({error.filename})" if error.filename else ""
        return f"{batch_id} could not be written: {error.strerror or error}{file}. {KEPT_WORDS}"
    return f"{error} {PAID_WORDS.format(batch_id)}" if paid else str(error)


def _wait(connection: Connection, batch_id: str, attempt: int, why: str) -> TrainingPaused:
    connection.rollback()
    with own_transaction(connection):
        note_waiting(connection, batch_id, attempt, why)
        pause_step(connection, batch_id, attempt)
    return TrainingPaused(why)


def _is_paid(connection: Connection, batch_id: str) -> bool:
    connection.rollback()
    states = {job.state for job in read_jobs(connection, batch_id)}
    connection.commit()
    # A lost post may have trained all the same. A job that failed or was given up lets its batch fail: nothing can go on from it.
    return bool(states & {"posting", "running", "trained", "lost"}) and not states & {"failed", "expired"}


def _end(connection: Connection, batch_id: str, error: str, now: datetime, attempt: int, work: Path | None) -> None:
    connection.rollback()
    with own_transaction(connection):
        ended = end_failed(connection, batch_id, FAIL, error, now, attempt)
    if ended and work is not None:
        shutil.rmtree(work, ignore_errors=True)
