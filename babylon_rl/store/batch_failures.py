"""Failed batches of a backend since its last batch that did not fail."""

from dataclasses import dataclass
from datetime import datetime

from babylon_rl.store.connection import Connection

MOST_READ = 50

# The inner query finds the newest batch that did not fail; without one, every failed batch counts.
_SINCE = """
SELECT b."batchId", COALESCE(p."error", ''), COALESCE(p."completedAt", b."heartbeatAt")
FROM babylon_rl.batches b JOIN public.training_batches p ON p."batchId" = b."batchId"
WHERE b."backend" = %s AND b."state" = 'failed' AND b."createdAt" > COALESCE(
    (SELECT max(o."createdAt") FROM babylon_rl.batches o WHERE o."backend" = %s AND o."state" <> 'failed'), '-infinity')
ORDER BY b."createdAt" DESC, b."batchId" DESC LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed or cancelled batch: its id, the error text, the time (naive UTC)."""

    batch_id: str
    error: str
    at: datetime


def failures_in_a_row(connection: Connection, backend: str) -> list[Failure]:
    """Return the failed batches of ``backend`` newer than its newest other batch.

    Newest first, at most MOST_READ.
    """
    return [Failure(*row) for row in connection.execute(_SINCE, [backend, backend, MOST_READ])]
