"""Tags of runs: hour, batch or version for the UI, and an end on purpose.

Only crashes count as failed attempts.

A run leaves its batch to the next run on purpose when it waits (for a judge, a service, a storage, a database, settings), when another run
has taken over, or when it was interrupted. A run that was lost with its code server or its machine is tagged by automation/dead_runs.py.
A process that was killed alone, and an unexpected error, leave no tag.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg

from babylon_rl.assets.run_liveness import refuse_second_run
from babylon_rl.errors import BatchConflict, DatabaseUnreachable
from babylon_rl.store.connection import Connection
from babylon_rl.traces import note
from babylon_rl.training.lifecycle import FailureEffect, failure_rule

WINDOW_TAG, BATCH_TAG, VERSION_TAG = "babylon_rl/window", "babylon_rl/batch", "babylon_rl/version"
ENDED_TAG = "babylon_rl/ended"
WAITS, TAKEN_OVER, INTERRUPTED, LOST = "waits", "taken over", "interrupted", "lost"


def tag_run(context: dg.AssetExecutionContext, *, window: str | None = None, batch: str | None = None, version: str | None = None) -> None:
    """Tag a run with its window (or first...last), batch or version, if missing.

    The step's trace gets them too.
    """
    note(window=window, batch=batch, version=version)
    tags = {WINDOW_TAG: window, BATCH_TAG: batch, VERSION_TAG: version}
    wanted = {name: value for name, value in tags.items() if value is not None}
    if not wanted.items() <= context.run.tags.items():
        context.instance.add_run_tags(context.run.run_id, wanted)


@contextmanager
def sole_run(context: dg.AssetExecutionContext, connection: Connection, batch_id: str) -> Iterator[None]:
    """Give a batch to this run alone; tag the run if it ends on purpose.

    Raises:
        BatchConflict: another run has the batch.
    """
    with tagging_end(context):
        refuse_second_run(context, connection, batch_id)
        yield


@contextmanager
def tagging_end(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Tag the run with ENDED_TAG if it leaves its batch to another run on purpose."""
    try:
        yield
    except BaseException as ended:
        how = _how_it_ends(ended)
        if how is not None:
            context.instance.add_run_tags(context.run.run_id, {ENDED_TAG: how})
        raise


def _how_it_ends(ended: BaseException) -> str | None:
    if isinstance(ended, BatchConflict):
        return TAKEN_OVER
    if isinstance(ended, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
        return INTERRUPTED
    # A database that is away says nothing about the batch; Dagster's own may be reached past a pooler.
    waits = failure_rule(ended).effect is FailureEffect.WAITS or isinstance(ended, DatabaseUnreachable | psycopg.OperationalError)
    return WAITS if waits else None
