"""Tags runs that stopped on purpose, so that only crashes count as failed attempts.

A run leaves its batch to the next run on purpose when it waits for a judge, a service or a storage, when another run has taken over, or
when it was interrupted. A run that was lost with its code server or its machine is tagged by automation/dead_runs.py. A process that was
killed alone, and an unexpected error, leave no tag.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from babylon_rl.assets.run_liveness import refuse_second_run
from babylon_rl.errors import BatchConflict, JudgeError, TrainingPaused
from babylon_rl.store.connection import Connection

ENDED_TAG = "babylon_rl/ended"
WAITS, TAKEN_OVER, INTERRUPTED, LOST = "waits", "taken over", "interrupted", "lost"


@contextmanager
def sole_run(context: dg.AssetExecutionContext, connection: Connection, batch_id: str) -> Iterator[None]:
    """Give a batch to this run alone; tag the run if it ends on purpose.

    The tag is ENDED_TAG; it says that the batch is left to another run.

    Raises:
        BatchConflict: another run has the batch.
    """
    try:
        refuse_second_run(context, connection, batch_id)
        yield
    except (JudgeError, TrainingPaused):
        _say(context, WAITS)
        raise
    except BatchConflict:
        _say(context, TAKEN_OVER)
        raise
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        _say(context, INTERRUPTED)
        raise


def _say(context: dg.AssetExecutionContext, how: str) -> None:
    context.instance.add_run_tags(context.run.run_id, {ENDED_TAG: how})
