"""What failed last: the batches of a backend that ended in failure or cancellation since one of it last did not."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

MOST_READ = 50

_SINCE = """
SELECT b."batchId", COALESCE(p."error", ''), COALESCE(p."completedAt", b."heartbeatAt")
FROM babylon_rl.batches b JOIN public.training_batches p ON p."batchId" = b."batchId"
WHERE b."backend" = %s AND b."state" = 'failed' AND b."createdAt" > COALESCE(
    (SELECT max(o."createdAt") FROM babylon_rl.batches o WHERE o."backend" = %s AND o."state" <> 'failed'), '-infinity')
ORDER BY b."createdAt" DESC, b."batchId" DESC LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """A batch that failed or was cancelled, why in words, and when (naive UTC)."""

    batch_id: str
    error: str
    at: datetime


def failures_in_a_row(connection: psycopg.Connection[Any], backend: str) -> list[Failure]:
    """The failed batches of a backend that are newer than its newest other one, newest first, MOST_READ at most."""
    return [Failure(*row) for row in connection.execute(_SINCE, [backend, backend, MOST_READ])]
