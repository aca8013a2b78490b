"""Write-ahead records: training iterations, and paid training jobs at a remote service.

A row is committed before an iteration starts or a job is posted, and completed once its checkpoint exists or the job is known to have
ended. An unfinished job blocks other jobs of its model. An end is written once: ending a job that has ended changes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg.types.json import Jsonb

from babylon_rl.errors import BatchConflict
from babylon_rl.store.batches import LIVE_STATES, hold_batch
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection, own_transaction


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One start of an iteration (1-based) in run ``attempt``; ``finished_at`` is None while it runs, or if it never ended.

    ``losses`` are those of its optimizer steps so far; ``optimizer_steps`` have of each ``loss``, ``trainableTokens`` (of the iteration so
    far) and what the trainer measured.
    """

    iteration: int
    attempt: int
    backend: str
    step_before: int
    windows: Sequence[str]
    sequences: int
    started_at: datetime
    finished_at: datetime | None = None
    checkpoint: str | None = None
    loss: float | None = None
    trainable_tokens: int | None = None
    metrics: Mapping[str, Any] | None = None
    losses: Sequence[float] = ()
    optimizer_steps: Sequence[Mapping[str, Any]] = ()

    @property
    def paused(self) -> bool:
        """True if its run stopped on purpose and left the iteration to the next run."""
        # A crash leaves no such mark.
        return self.finished_at is None and bool((self.metrics or {}).get("paused"))

    @property
    def planned_steps(self) -> int | None:
        """Number of optimizer steps that an iteration which runs will have; None before its first."""
        return (self.metrics or {}).get("steps")


def begin_step(connection: Connection, batch_id: str, step: TrainingStep) -> None:
    begun = document_of(step, "iteration", "attempt", "backend", "step_before", "sequences", "started_at")
    connection.insert("babylon_rl.training_steps", [{"batchId": batch_id, "windows": step.windows, **begun}])


def note_optimizer_steps(
    connection: Connection, batch_id: str, iteration: int, attempt: int, taken: Sequence[Mapping[str, float]], steps: int
) -> None:
    """Store the optimizer steps of an iteration so far, of ``steps``, each with its ``loss``, for people who watch."""
    # JSON has no NaN.
    finite = [{name: value for name, value in step.items() if math.isfinite(value)} for step in taken]
    with own_transaction(connection):
        connection.execute(
            """
            UPDATE babylon_rl.training_steps
            SET "losses" = %s, "optimizerSteps" = %s, "metrics" = COALESCE("metrics", '{}') || jsonb_build_object('steps', %s::int)
            WHERE "batchId" = %s AND "iteration" = %s AND "attempt" = %s
            """,
            [[step["loss"] for step in taken], Jsonb(finite), steps, batch_id, iteration, attempt],
        )


def finish_step(connection: Connection, batch_id: str, step: TrainingStep) -> None:
    """Complete the row of an iteration with a checkpoint on disk.

    A crash may have lost the row of this run, so the newest attempt's row is taken.
    """
    connection.execute(
        """
        UPDATE babylon_rl.training_steps s
        SET "finishedAt" = %s, "checkpointPath" = %s, "loss" = %s, "trainableTokens" = %s, "metrics" = %s
        WHERE s."batchId" = %s AND s."iteration" = %s AND s."attempt" =
            (SELECT max(o."attempt") FROM babylon_rl.training_steps o WHERE o."batchId" = s."batchId" AND o."iteration" = s."iteration")
        """,
        [step.finished_at, step.checkpoint, step.loss, step.trainable_tokens, Jsonb(dict(step.metrics or {})), batch_id, step.iteration],
    )


def note_metrics(connection: Connection, batch_id: str, attempt: int, **metrics: Any) -> None:
    """Add to the metrics of the unfinished steps of run ``attempt``. The caller commits.

    ``seconds``: of training so far; ``paused``: the run leaves them to the next one on purpose.
    """
    connection.execute(
        """
        UPDATE babylon_rl.training_steps SET "metrics" = COALESCE("metrics", '{}') || %s
        WHERE "batchId" = %s AND "attempt" = %s AND "finishedAt" IS NULL
        """,
        [Jsonb(metrics), batch_id, attempt],
    )


def read_steps(connection: Connection, batch_id: str) -> list[TrainingStep]:
    """Return every start of every iteration of a batch, in order. An iteration that crashed has more than one."""
    steps = '(SELECT *, "checkpointPath" AS "checkpoint" FROM babylon_rl.training_steps) AS step'
    return connection.rows(TrainingStep, f'{steps} WHERE "batchId" = %s ORDER BY "iteration", "attempt"', [batch_id])


def begun_in_line(connection: Connection, base_model: str, but: str) -> str | None:
    """A live batch of this base model, not ``but``, with a begun training, or None. The caller holds the registry lock."""
    return connection.value(
        """
        SELECT b."batchId" FROM babylon_rl.batches b
        WHERE b."baseModel" = %s AND b."batchId" <> %s AND b."state" = ANY(%s)
          AND (b."state" IN ('training', 'uploading')
               OR EXISTS (SELECT FROM babylon_rl.training_steps s WHERE s."batchId" = b."batchId"))
        ORDER BY b."createdAt", b."batchId" LIMIT 1
        """,
        [base_model, but, list(LIVE_STATES)],
    )


def finished_steps(connection: Connection, batch_id: str) -> dict[int, TrainingStep]:
    return {step.iteration: step for step in read_steps(connection, batch_id) if step.finished_at is not None}


# Only posting and running jobs block the model.
JobState = Literal["posting", "running", "trained", "failed", "expired", "refused", "lost"]
LIVE = ("posting", "running")


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """One post of an iteration to a model of a service.

    ``attempt`` counts posts from 1; ``batch_state`` is the present state of its batch. ``state``: posting (it may have been accepted),
    running (its id is known), trained (its step proves it), failed (it ended without training), expired (a person declared that it never
    will end), refused and lost (it counts as untrained and may be posted again). ``sequences`` and ``trainable_tokens`` are as posted until
    the job's end reports others; ``loss`` is None if unknown. ``error`` of a posting job is the service's answer. ``step_after`` of a
    failed job is a step that it made in spite of the failure; lost and expired jobs may have made one that was not observed.
    """

    batch_id: str
    iteration: int
    attempt: int
    backend: str
    service: str
    model: str
    step_before: int
    posted_at: datetime
    estimated_usd: float | None = None
    state: JobState = "posting"
    job_id: str | None = None
    ended_at: datetime | None = None
    step_after: int | None = None
    sequences: int | None = None
    trainable_tokens: int | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    discarded_at: datetime | None = None
    batch_state: str = "training"

    @property
    def live(self) -> bool:
        return self.state in LIVE


def begin_job(connection: Connection, job: RemoteJob, run_attempt: int) -> None:
    """Commit the row of a job before it is posted, for the run ``run_attempt``.

    Raises BatchConflict: the batch ended, a newer run has it, or another job of this model has not ended.
    """
    try:
        with own_transaction(connection):
            # Fencing and the insert commit together: an old run cannot leave a job row.
            hold_batch(connection, job.batch_id, run_attempt, job.posted_at)
            row = document_of(job)
            del row["batchState"]  # a column of its batch
            connection.insert("babylon_rl.remote_jobs", [row])
    # A partial unique index allows one live job per model.
    except psycopg.errors.UniqueViolation:
        raise BatchConflict(f"Another job of the model {job.model} at {job.service} has not ended; {job.batch_id} waits for it.") from None


def check_may_post(connection: Connection, job: RemoteJob, run_attempt: int) -> None:
    """Check directly before the request that this run may still post: it may have stood still since ``begin_job``.

    Raises BatchConflict: the job was given up, the batch ended, or a newer run has it.
    """
    with own_transaction(connection):
        may_post = connection.value(
            """
            SELECT 1 FROM babylon_rl.remote_jobs j JOIN babylon_rl.batches b USING ("batchId")
            WHERE j."batchId" = %s AND j."iteration" = %s AND j."attempt" = %s AND j."state" = 'posting'
              AND b."attempt" = %s AND b."state" = ANY(%s)
            """,
            [job.batch_id, job.iteration, job.attempt, run_attempt, list(LIVE_STATES)],
        )
    if may_post is None:
        raise BatchConflict(
            f"{job.batch_id} ended, or a newer run has it, since the record of its job was written; this run posts nothing."
        )


_POSTING = """WHERE "batchId" = %s AND "iteration" = %s AND "attempt" = %s AND "state" = 'posting'"""


def name_job(connection: Connection, job: RemoteJob, job_id: str) -> None:
    """Commit the id of an accepted job."""
    with own_transaction(connection):
        statement = f"""UPDATE babylon_rl.remote_jobs SET "jobId" = %s, "state" = 'running' {_POSTING}"""
        connection.execute(statement, [job_id, job.batch_id, job.iteration, job.attempt])


def note_error(connection: Connection, job: RemoteJob, error: str) -> None:
    """Commit the service's error answer to a post. It stays unknown whether the job was accepted in spite of it."""
    with own_transaction(connection):
        statement = f"""UPDATE babylon_rl.remote_jobs SET "error" = %s {_POSTING}"""
        connection.execute(statement, [error, job.batch_id, job.iteration, job.attempt])


def end_job(connection: Connection, job: RemoteJob) -> None:
    """Commit the end of a job that was live, or lost and its step has appeared; ``job`` is as it has ended."""
    with own_transaction(connection):
        connection.execute(
            """
            UPDATE babylon_rl.remote_jobs
            SET "state" = %s, "endedAt" = %s, "stepAfter" = %s, "sequences" = %s, "trainableTokens" = %s, "loss" = %s, "metrics" = %s,
                "error" = %s
            WHERE "batchId" = %s AND "iteration" = %s AND "attempt" = %s
              -- A lost job may turn out to have trained; its step counts unless it was deleted.
              AND ("state" IN ('posting', 'running') OR "state" = 'lost' AND "discardedAt" IS NULL)
            """,
            [job.state, job.ended_at, job.step_after, job.sequences, job.trainable_tokens, job.loss, Jsonb(dict(job.metrics)), job.error,
             job.batch_id, job.iteration, job.attempt],
        )  # fmt: skip


def give_up_job(connection: Connection, job_id: str, reason: str, now: datetime) -> bool:
    """Mark a job as expired by a person's decision; False without such a live job."""
    with own_transaction(connection):
        given_up = connection.execute(
            """
            UPDATE babylon_rl.remote_jobs SET "state" = 'expired', "endedAt" = %s, "error" = %s
            WHERE "jobId" = %s AND "state" IN ('posting', 'running')
            """,
            [now, f"given up: {reason}", job_id],
        )
    return given_up.rowcount > 0


def discard_jobs(connection: Connection, jobs: Sequence[RemoteJob], now: datetime) -> None:
    """Record that the steps made by these jobs were deleted from the service."""
    with own_transaction(connection):
        connection.execute(
            """
            UPDATE babylon_rl.remote_jobs j SET "discardedAt" = %s
            FROM unnest(%s::text[], %s::int[], %s::int[]) AS d("batchId", "iteration", "attempt")
            WHERE j."batchId" = d."batchId" AND j."iteration" = d."iteration" AND j."attempt" = d."attempt" AND j."discardedAt" IS NULL
            """,
            [now, [job.batch_id for job in jobs], [job.iteration for job in jobs], [job.attempt for job in jobs]],
        )


def newest_job(connection: Connection, batch_id: str, iteration: int) -> RemoteJob | None:
    """Return the trained post of an iteration, else its last post, or None."""
    of_iteration = '"batchId" = %s AND "iteration" = %s ORDER BY "state" = \'trained\' DESC, "attempt" DESC LIMIT 1'
    return next(iter(_jobs(connection, of_iteration, batch_id, iteration)), None)


def live_job(connection: Connection, service: str, model: str) -> RemoteJob | None:
    """Return the job of a model that is not known to have ended, or None. There is at most one."""
    live = '"service" = %s AND "model" = %s AND "state" = ANY(%s)'
    return next(iter(_jobs(connection, live, service, model, list(LIVE))), None)


def jobs_above(connection: Connection, service: str, model: str, step: int) -> list[RemoteJob]:
    """Return the jobs that may have a step above ``step`` left, oldest post first."""
    # A refused job has made no step. All others may have, also those that are said to have failed.
    above = """
        "service" = %s AND "model" = %s AND "stepBefore" >= %s AND "state" <> 'refused' AND "discardedAt" IS NULL
        ORDER BY "postedAt", "iteration", "attempt"
    """
    return _jobs(connection, above, service, model, step)


def late_jobs(connection: Connection, service: str, model: str) -> list[RemoteJob]:
    """Return the lost and expired jobs of a model, in the order of posting. They may have ended since."""
    late = """
        "service" = %s AND "model" = %s AND "state" IN ('lost', 'expired') AND "discardedAt" IS NULL
        ORDER BY "postedAt", "iteration", "attempt"
    """
    return _jobs(connection, late, service, model)


def usual_duration(connection: Connection, service: str) -> timedelta | None:
    """Return the ninth decile of the durations of jobs that were followed to a step. From the post to the end; None without any."""
    return connection.value(
        """
        SELECT percentile_disc(0.9) WITHIN GROUP (ORDER BY "endedAt" - "postedAt")
        FROM babylon_rl.remote_jobs WHERE "service" = %s AND "state" = 'trained' AND "jobId" IS NOT NULL
        """,
        [service],
    )


def read_jobs(connection: Connection, batch_id: str) -> list[RemoteJob]:
    return _jobs(connection, '"batchId" = %s ORDER BY "iteration", "attempt"', batch_id)


def _jobs(connection: Connection, condition: str, *values: Any) -> list[RemoteJob]:
    jobs = '(SELECT j.*, b."state" AS "batchState" FROM babylon_rl.remote_jobs j JOIN babylon_rl.batches b USING ("batchId")) AS job'
    return connection.rows(RemoteJob, f"{jobs} WHERE {condition}", values)
