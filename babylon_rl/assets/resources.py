"""The resource of assets and sensors: settings, database and clock.

It reads the environment of the process that runs the asset; launch.py passes the values of its caller instead. The Dagster instance may be
anybody's: nothing here asks how its storage works.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import dagster as dg
import psycopg

from babylon_rl.assets.runs import heartbeats, lost_errors, storage_errors
from babylon_rl.assets.workers import TASK_TAG, why_refused
from babylon_rl.errors import BabylonError, first_line
from babylon_rl.logs import log_context, secrets_of, start_logs
from babylon_rl.progress import Progress, no_progress
from babylon_rl.serving.dagster_client import PARTITION_TAG, RANGE_START
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database, process_database
from babylon_rl.traces import span, start_traces
from babylon_rl.windows import is_window_id, utc_now

_LOG = logging.getLogger(__name__)
CONNECTION_RETRIES = 3
RETRY_AFTER_S = 10.0
NOTED_WITHIN_S = 3.0


@dataclass(frozen=True)
class Babylon:
    """Settings, database, clock and progress callback of one run.

    ``interrupted_for_s``: how long an interrupted step waits before it ends.
    """

    settings: Settings
    database: Database
    now: Callable[[], datetime] = utc_now
    on_progress: Progress = no_progress
    retry_after_s: float = RETRY_AFTER_S
    interrupted_for_s: float = 0.0

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """An autocommit connection that is closed at the end; rooms open their own transactions.

        Raises:
            dagster.RetryRequested: the connection, or one of Dagster's storage, was lost or refused; the step runs again,
                CONNECTION_RETRIES times, each ``retry_after_s`` later. Uncommitted work is undone; rooms write an hour in one transaction.
            dagster.Failure: a BabylonError, or a privilege that the role lacks; the sentence becomes the run's message, without a retry.
        """
        try:
            with self.database.connect(autocommit=True) as connection:
                yield connection
        except lost_errors() as lost:
            raise dg.RetryRequested(CONNECTION_RETRIES, self.retry_after_s) from lost
        # Celery interrupts a run that a person terminated, and its worker notes that a moment later (automation/celery_app.py): Dagster
        # asks for the note when the step has ended, and would call the run failed without it.
        except dg.DagsterExecutionInterruptedError:
            time.sleep(self.interrupted_for_s)
            raise
        # An error with a sentence for a person: the step would fail the same way again.
        except BabylonError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        except psycopg.errors.InsufficientPrivilege as refused:
            sentence = f"The database's role may not do this: {refused.diag.message_primary}. docs/howto/database.md lists what it needs."
            raise dg.Failure(sentence, allow_retries=False) from refused


@dg.resource(description="The Babylon database and settings, as the environment of the run's process gives them.")
def babylon(context: dg.InitResourceContext) -> Iterator[Babylon]:
    """The resource of the code location.

    Raises:
        dagster.Failure: this worker has other code or another judge.
        SettingsError, DatabaseUnreachable or EmbeddedServerError.
    """
    settings = load_settings()
    why_not = None if context.run is None else why_refused(context.run.tags, settings)
    if why_not is not None:
        raise dg.Failure(why_not)
    start_logs(settings)
    by_worker = context.run is not None and TASK_TAG in context.run.tags
    interrupted_for_s = NOTED_WITHIN_S if by_worker else 0.0
    yield from _held(context, Babylon(settings, process_database(settings), interrupted_for_s=interrupted_for_s))


def given(babylon: Babylon) -> dg.ResourceDefinition:
    """A resource with the caller's own settings, database and clock."""

    def hold(context: dg.InitResourceContext) -> Iterator[Babylon]:
        yield from _held(context, babylon)

    return dg.ResourceDefinition(hold)


def _held(context: dg.InitResourceContext, babylon: Babylon) -> Iterator[Babylon]:
    """Yield the resource; inside a run, keep the run's heartbeat alive meanwhile."""
    run = context.run
    if run is None:
        yield babylon
        return
    partition = run.tags.get(PARTITION_TAG, run.tags.get(RANGE_START))
    start_traces(babylon.settings.otel_exporter_otlp_endpoint, secrets_of(babylon.settings))
    part = {"window" if is_window_id(partition) else "batch": partition}
    with heartbeats(babylon.database, run.run_id, context.instance), log_context(run=run.run_id, **part), span(f"run {run.job_name}"):
        _LOG.info("a run of %s began", run.job_name)
        try:
            yield babylon
        finally:
            # No exception of a step reaches its resources.
            reason = None if context.instance is None else _failure(context.instance, run.run_id)
            if reason is None:
                _LOG.info("it ended")
            else:
                _LOG.error("it failed: %s", reason)


def _failure(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """First line of the error of a run's first failed step, or None."""
    try:
        entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    except storage_errors():
        return "the database does not answer"  # with the records of the run; an error here would hide the one that ended it
    for entry in entries:
        failed = entry.get_dagster_event().step_failure_data
        error = failed.error
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None and error.cls_name == "DagsterExecutionInterruptedError":
            return "it was interrupted; what it had finished is kept, and the same run again goes on"
        given = failed.user_failure_data.description if failed.user_failure_data is not None else error and error.message
        return first_line(given or "", "no reason was recorded")
    return None
