"""Write-ahead records of training iterations.

A row is committed before an iteration starts, and completed once its checkpoint exists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from babylon_rl.store.batches import LIVE_STATES
from babylon_rl.store.connection import Connection


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One start of an iteration (1-based) in run ``attempt``.

    ``finished_at`` is None while it runs, or if it never ended.
    """

    iteration: int
    attempt: int
    backend: str
    step_before: int
    windows: Sequence[str]
    sequences: int
    started_at: datetime
    finished_at: datetime | None
    checkpoint: str | None
    loss: float | None
    trainable_tokens: int | None
    metrics: Mapping[str, Any] | None

    @property
    def paused(self) -> bool:
        """True if its run stopped on purpose and left the iteration to the next run."""
        # A crash leaves no metrics; ``pause_step`` does.
        return self.finished_at is None and bool((self.metrics or {}).get("paused"))


def begin_step(connection: Connection, batch_id: str, step: TrainingStep) -> None:
    """Write the row of an iteration before it starts."""
    connection.execute(
        """
        INSERT INTO babylon_rl.training_steps
            ("batchId", "iteration", "attempt", "backend", "stepBefore", "windows", "sequences", "startedAt")
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
        """,
        [batch_id, step.iteration, step.attempt, step.backend, step.step_before, list(step.windows), step.sequences, step.started_at],
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


def pause_step(connection: Connection, batch_id: str, attempt: int) -> None:
    """Mark the unfinished steps of run ``attempt`` as left to the next run on purpose.

    The caller commits.
    """
    connection.execute(
        """
        UPDATE babylon_rl.training_steps SET "metrics" = '{"paused": true}'
        WHERE "batchId" = %s AND "attempt" = %s AND "finishedAt" IS NULL
        """,
        [batch_id, attempt],
    )


def read_steps(connection: Connection, batch_id: str) -> list[TrainingStep]:
    """Return every start of every iteration of a batch, in order.

    An iteration that crashed has more than one.
    """
    rows = connection.execute(
        """
        SELECT "iteration", "attempt", "backend", "stepBefore", "windows", "sequences", "startedAt", "finishedAt", "checkpointPath",
               "loss", "trainableTokens", "metrics"
        FROM babylon_rl.training_steps WHERE "batchId" = %s ORDER BY "iteration", "attempt"
        """,
        [batch_id],
    )
    return [TrainingStep(*row) for row in rows]


def begun_in_line(connection: Connection, base_model: str, but: str) -> str | None:
    """Return a live batch of this base model with a begun training, or None.

    Batch ``but`` does not count. The caller holds the registry lock.
    """
    row = connection.execute(
        """
        SELECT b."batchId" FROM babylon_rl.batches b
        WHERE b."baseModel" = %s AND b."batchId" <> %s AND b."state" = ANY(%s)
          AND (b."state" IN ('training', 'uploading')
               OR EXISTS (SELECT FROM babylon_rl.training_steps s WHERE s."batchId" = b."batchId"))
        ORDER BY b."createdAt", b."batchId" LIMIT 1
        """,
        [base_model, but, list(LIVE_STATES)],
    ).fetchone()
    return None if row is None else str(row[0])


def finished_steps(connection: Connection, batch_id: str) -> dict[int, TrainingStep]:
    """Return the completed iterations of a batch by number."""
    return {step.iteration: step for step in read_steps(connection, batch_id) if step.finished_at is not None}
