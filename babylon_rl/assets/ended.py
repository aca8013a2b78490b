"""How a run of a batch ended where it did not die: said on the run itself, so that automation counts the others.

A run that waits for a judge, a service or a storage, that another run has taken over, or that was interrupted leaves its batch to the
next one on purpose. One that was lost, with its code server or its machine, is found by others (automation/dead_runs.py). A process that
was killed alone, and an error that nobody foresaw, say nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from babylon_rl.assets.alive import refuse_second_run
from babylon_rl.errors import BatchConflict, JudgeError, TrainingPaused
from babylon_rl.store.trajectories import Connection

ENDED_TAG = "babylon_rl/ended"
WAITS, TAKEN_OVER, INTERRUPTED, LOST = "waits", "taken over", "interrupted", "lost"


@contextmanager
def sole_run(context: dg.AssetExecutionContext, connection: Connection, batch_id: str) -> Iterator[None]:
    """Give a batch to this run alone; tag the run with ENDED_TAG when its end leaves the batch to another.

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
