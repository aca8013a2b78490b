"""Resource of a run (settings, database, clock), its heartbeat and its tags.

The resource reads the environment of the process that runs the asset; launch.py passes the values of its caller instead. The Dagster
instance may be anybody's: nothing here asks how its storage works.

Dagster does not notice that the code server of a run died: the run stays STARTED, and keeps its pool and its place in the queue. So the
process of a run renews a heartbeat row in the database. The end of a process on the same machine is seen at once; a process elsewhere
counts as dead after SILENT_S without a heartbeat. A run that has not begun has no process yet: Dagster's own monitoring handles it
(run_monitoring in dagster.yaml). A run that was failed or canceled from elsewhere stops itself two beats later.

A run leaves its batch to the next run on purpose when it waits (for a judge, a service, a storage, a database, settings), when another run
has taken over, or when it was interrupted: ENDED_TAG says so, and only crashes count as failed attempts. A run that was lost with its code
server or its machine is tagged by automation/instance.py. A process that was killed alone, and an unexpected error, leave no tag.
"""

import _thread
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg
import psycopg

from babylon_rl.assets.run_parts import why_no_part
from babylon_rl.assets.workers import TASK_TAG, why_refused
from babylon_rl.errors import BabylonError, BatchConflict, DatabaseUnreachable, first_line
from babylon_rl.logs import log_context, secrets_of, start_logs
from babylon_rl.processes import described, is_running, own_name
from babylon_rl.progress import Progress, no_progress
from babylon_rl.reporting.numbers import shortened
from babylon_rl.serving.dagster_client import BATCHES, LOCATION, PARTITION_TAG, RANGE_START, REPOSITORY
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import Connection, database_sentence
from babylon_rl.store.dagster_rows import Heartbeat, beat, lock_heartbeats
from babylon_rl.store.database import Database, process_database
from babylon_rl.traces import note, span, start_traces
from babylon_rl.training.lifecycle import FailureEffect, failure_rule
from babylon_rl.windows import is_window_id, utc_now

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

_LOG = logging.getLogger(__name__)
BEAT_EVERY_S, SILENT_S = 15.0, 90.0  # docs/decisions/0013: six beats may be lost before a run elsewhere counts as dead
WINDOW_TAG, BATCH_TAG, VERSION_TAG = "babylon_rl/window", "babylon_rl/batch", "babylon_rl/version"
ENDED_TAG = "babylon_rl/ended"
REPOSITORY_TAG, NO_RETRIES_TAG = ".dagster/repository", "dagster/max_retries"
GOES_ON_AFTER_TAG = "babylon_rl/goes_on_after"  # of a run that automation starts: the batch's run before it
COMES_BACK = (
    "This run was terminated. What it has finished is kept, and while automation runs, it goes on with the batch in a new run within a "
    "minute. To prevent that, cancel the batch (babylon-rl batches cancel), or switch off the sensor start_training, or finish_evidence "
    "if the batch is trained."
)
_STOPPED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE)
WAITS, TAKEN_OVER, INTERRUPTED, LOST = "waits", "taken over", "interrupted", "lost"


@contextmanager
def heartbeats(database: Database, run_id: str, instance: dg.DagsterInstance) -> Iterator[None]:
    """Renew a run's heartbeat until the block ends; interrupt a run that was reported dead, or that Dagster has failed or canceled.

    The interrupt is that of Ctrl-C. A database that does not answer, or is not migrated, is no reason to stop: the run itself will report
    it.
    """
    ended = threading.Event()

    def renew() -> None:
        holder, stopped, begins = own_name(), False, True
        while True:
            before = stopped
            try:
                with database.connect(autocommit=True) as connection:
                    lives = beat(connection, run_id, holder)
                # The first beat does not look: the run has just begun, and writes its tags.
                run = None if begins else instance.get_run_by_id(run_id)
                stopped = run is not None and run.status in _STOPPED
            # A database error, of Dagster's storage too, says nothing about the run: it goes on.
            except (psycopg.Error, BabylonError):
                lives = True
            except storage_errors():
                lives = True
            # Two beats long: a run that ends by itself has ended by then, and a worker that was asked to interrupt it has.
            if (not lives or (before and stopped)) and not ended.is_set():
                _LOG.error("Run %s was reported as ended, and another may go on with its work: it stops.", run_id)
                # This thread cannot stop the run itself; the main thread raises KeyboardInterrupt.
                _thread.interrupt_main()
                return
            begins = False
            if ended.wait(BEAT_EVERY_S):
                return

    thread = threading.Thread(target=renew, name=f"heartbeat of {run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def why_dead(heartbeat: Heartbeat) -> str | None:
    """A sentence that says why the run counts as dead; None while it may live."""
    silent = heartbeat.silent_s > SILENT_S
    if not heartbeat.holder:
        return f"It ended before its first heartbeat, silent for {heartbeat.silent_s:.0f} s." if silent else None
    # True or False for a process of this machine; None elsewhere, where only silence counts.
    running = is_running(heartbeat.holder)
    if running is False or (running is None and silent):
        end = "is gone" if running is False else f"has been silent for {heartbeat.silent_s:.0f} s"
        return f"Its process {end}: {described(heartbeat.holder)}, last heartbeat at {heartbeat.seen_at:%Y-%m-%d %H:%M:%S} UTC."
    return None


def tag_run(context: dg.AssetExecutionContext, *, window: str | None = None, batch: str | None = None, version: str | None = None) -> None:
    """Tag a run, and its trace, with its window (or first...last), batch or version."""
    note(window=window, batch=batch, version=version)
    tags = {WINDOW_TAG: window, BATCH_TAG: batch, VERSION_TAG: version}
    wanted = {name: value for name, value in tags.items() if value is not None}
    if not wanted.items() <= context.run.tags.items():
        context.instance.add_run_tags(context.run.run_id, wanted)


@contextmanager
def sole_run(context: dg.AssetExecutionContext, connection: Connection, batch_id: str) -> Iterator[None]:
    """Give a batch to this run alone; tag the run if it ends on purpose.

    Raises:
        BatchConflict: another run of the batch began before this one, and is alive.
    """
    with tagging_end(context):
        filters = dg.RunsFilter(tags={PARTITION_TAG: batch_id}, statuses=[dg.DagsterRunStatus.STARTED])
        records = context.instance.get_run_records(filters)
        began = {record.dagster_run.run_id: (record.start_time or 0.0, record.storage_id) for record in records}
        # Ties are broken by storage id: of two runs, exactly one is the earlier.
        # A run whose start Dagster does not show yet is the later one of any two.
        own = began.get(context.run.run_id, (math.inf, 0))
        earlier = [run_id for run_id, start in began.items() if start < own]
        # The rows are locked, so that no verdict on these runs, nor a beat of theirs, comes in between.
        with connection.transaction():
            alive = [heartbeat for heartbeat in lock_heartbeats(connection, earlier) if why_dead(heartbeat) is None]
        if alive:
            who = described(alive[0].holder) if alive[0].holder else "a process that is about to begin"
            raise BatchConflict(
                f"Another run trains these hours: {batch_id} is being trained by {who} (run {alive[0].run_id}). Wait until that "
                f"has ended, or end it; `babylon-rl batches show {batch_id}` says how far it is."
            )
        yield


@contextmanager
def tagging_end(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Tag the run with ENDED_TAG if it leaves its batch to another run on purpose."""
    try:
        yield
    # Ctrl-C and Dagster's own end of a run are no Exception; whatever it is goes on from here.
    except BaseException as ended:
        try:
            if (how := _how_it_ends(ended)) is not None:
                context.instance.add_run_tags(context.run.run_id, {ENDED_TAG: how})
            if how == INTERRUPTED:
                context.log.warning(COMES_BACK)
        except storage_errors() as failed:
            # The error that ended the run decides whether its step is tried again; a failure to tag must not replace it.
            _LOG.warning("The run could not be tagged %s=%s: %s", ENDED_TAG, how, first_line(failed))
        raise


def storage_errors() -> tuple[type[Exception], ...]:
    """Errors of Dagster's storages, whose server fails or is away."""
    # Loaded only where something failed: a command that needs no storage starts without it.
    from dagster_postgres.utils import DagsterPostgresException
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, DagsterPostgresException


def shorten_storage_errors() -> None:
    """Leave statement and values out of the errors of Dagster's storage.

    Pages of them would hide the reason. Holds for this process.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "handle_error", _without_statement):
        event.listen(Engine, "handle_error", _without_statement)


def _without_statement(context: "ExceptionContext") -> None:
    if context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.statement = context.sqlalchemy_exception.params = None


def lost_errors() -> tuple[type[Exception], ...]:
    """Errors of a connection that was lost or refused: to the database, or to Dagster's storages."""
    # A server that ends a session for having been idle too long is one that was lost, and one that takes no writes is being replaced;
    # psycopg files both elsewhere.
    elsewhere = psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.ReadOnlySqlTransaction
    return psycopg.OperationalError, *elsewhere, DatabaseUnreachable, *storage_errors()


def _how_it_ends(ended: BaseException) -> str | None:
    if isinstance(ended, BatchConflict):
        return TAKEN_OVER
    if isinstance(ended, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
        return INTERRUPTED
    # A database that is away says nothing about the batch; Dagster's own may be reached past a pooler.
    return WAITS if isinstance(ended, lost_errors()) or failure_rule(ended).effect is FailureEffect.WAITS else None


CONNECTION_RETRIES = 3
RETRY_AFTER_S = 10.0
NOTED_WITHIN_S = 3.0
REASON_CHARACTERS = 500


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
                CONNECTION_RETRIES times, each ``retry_after_s`` later, and then fails with the sentence of the Failure that is the cause.
                Uncommitted work is undone; rooms write an hour in one transaction.
            dagster.Failure: a BabylonError, or a privilege that the role lacks; the sentence becomes the run's message, without a retry.
        """
        try:
            with self.database.connect(autocommit=True) as connection:
                yield connection
        except lost_errors() as lost:
            said = dg.Failure(database_sentence(lost) or first_line(lost))
            said.__cause__ = lost
            raise dg.RetryRequested(CONNECTION_RETRIES, self.retry_after_s) from said
        # Celery interrupts a run that a person terminated, and its worker notes that a moment later (automation/celery_app.py): Dagster
        # asks for the note when the step has ended, and would call the run failed without it.
        except dg.DagsterExecutionInterruptedError:
            time.sleep(self.interrupted_for_s)
            raise
        # An error with a sentence for a person: the step would fail the same way again.
        except (BabylonError, psycopg.errors.InsufficientPrivilege) as refused:
            raise dg.Failure(database_sentence(refused) or str(refused), allow_retries=False) from refused


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
    yield from _held(context, Babylon(settings, process_database(settings), interrupted_for_s=NOTED_WITHIN_S if by_worker else 0.0))


def given(babylon: Babylon) -> dg.ResourceDefinition:
    """A resource with the caller's own settings, database and clock."""
    return dg.ResourceDefinition(lambda context: _held(context, babylon))


def _held(context: dg.InitResourceContext, babylon: Babylon) -> Iterator[Babylon]:
    """Yield the resource; inside a run, keep the run's heartbeat alive meanwhile."""
    run, instance = context.run, context.instance
    if run is None or instance is None:  # of a sensor or a schedule
        yield babylon
        return
    shorten_storage_errors()
    _show_in_code_location(instance, run)
    _refuse_without_part(instance, run, babylon)
    partition = run.tags.get(PARTITION_TAG, run.tags.get(RANGE_START))
    start_traces(babylon.settings.otel_exporter_otlp_endpoint, secrets_of(babylon.settings))
    part = {"window" if is_window_id(partition) else "batch": partition}
    with heartbeats(babylon.database, run.run_id, instance), log_context(run=run.run_id, **part), span(f"run {run.job_name}"):
        _LOG.info("a run of %s began", run.job_name)
        try:
            yield babylon
        finally:
            # No exception of a step reaches its resources.
            reason = failure_reason(instance, run.run_id)
            if reason is None:
                _LOG.info("it ended")
            else:
                _LOG.error("it failed: %s", reason)


def _show_in_code_location(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Note for a command's run its job in the code location.

    The UI shows it then on the start page and the job's page.
    Dagster notes it only for runs that it launches. The run of a command is not launched again when its process was killed.
    """
    if run.remote_job_origin is not None:
        return
    origin = {
        "__class__": "ExternalPipelineOrigin",
        "external_repository_origin": {
            "__class__": "ExternalRepositoryOrigin",
            "repository_location_origin": {"__class__": "RegisteredRepositoryLocationOrigin", "location_name": LOCATION},
            "repository_name": REPOSITORY,
        },
        "pipeline_name": run.job_name,
    }
    instance.add_run_tags(run.run_id, {REPOSITORY_TAG: f"{REPOSITORY}@{LOCATION}", NO_RETRIES_TAG: "0"})
    tagged = instance.get_run_by_id(run.run_id)
    assert tagged is not None
    stored: Any = dg.deserialize_value(json.dumps(origin))
    instance.run_storage.replace_job_origin(tagged, stored)


def _refuse_without_part(instance: dg.DagsterInstance, run: dg.DagsterRun, babylon: Babylon) -> None:
    """Cancel a run without valid hours or batch.

    A failed run would leave every asset that it planned red.
    """
    has_batch = partial(instance.has_dynamic_partition, BATCHES)
    why_not = why_no_part(run.job_name, run.tags, babylon.settings.first_window, babylon.now(), has_batch)
    if why_not is not None:
        instance.report_run_canceled(run, why_not)
        raise dg.DagsterExecutionInterruptedError(why_not)


def failure_reason(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """The error of a run's first failed step on one line, or None."""
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
        return shortened(given or "no reason was recorded", REASON_CHARACTERS)
    return None
