"""The resource of assets and sensors: settings, database and clock.

It reads the environment of the process that runs the asset; launch.py passes the values of its caller instead.

Connections of Dagster's storages are kept while a command or a run uses them: Dagster opens and closes one for every statement by
default, since it makes instances without end; a run has one instance.
"""

import logging
import math
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import psycopg2

# Not in the public API; no other sign tells such an instance.
from dagster._cli.utils import TMP_DAGSTER_HOME_PREFIX
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import NullPool

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
RECYCLE_AFTER_S, MOST_CONNECTIONS = 3600, 5
TRIED_FOR_S = 1.0
NOTED_WITHIN_S = 3.0
HOW_TO_START = 'Use `babylon-rl dagster ...` instead, or run this line in the shell first: eval "$(babylon-rl env)"'
_lost_at = -math.inf  # when this process last saw a connection lost, by time.monotonic()


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
            _note_loss()
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
        dagster.Failure: the run is on an instance that forgets, so that its lineage would be lost, or this worker has other code or
            another judge.
        SettingsError, DatabaseUnreachable or EmbeddedServerError.
    """
    if context.run is not None and _forgets(context.instance):
        raise dg.Failure(
            f"DAGSTER_HOME is not set: Dagster was started without this project's instance. {HOW_TO_START}", allow_retries=False
        )
    settings = load_settings()
    why_not = None if context.run is None else why_refused(context.run.tags, settings)
    if why_not is not None:
        raise dg.Failure(why_not)
    start_logs(settings)
    # A process of Dagster's for one run; a process that ticks sensors makes an instance for each tick.
    with nullcontext() if context.run is None or context.instance is None else kept_connections(context.instance):
        by_worker = context.run is not None and TASK_TAG in context.run.tags
        interrupted_for_s = NOTED_WITHIN_S if by_worker else 0.0
        yield from _held(context, Babylon(settings, process_database(settings), interrupted_for_s=interrupted_for_s))


def _forgets(instance: dg.DagsterInstance | None) -> bool:
    """True for a passing instance: in memory, or without DAGSTER_HOME.

    Dagster's commands make a directory of their own then.
    """
    return instance is None or instance.is_ephemeral or Path(instance.root_directory).name.startswith(TMP_DAGSTER_HOME_PREFIX)


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


@contextmanager
def kept_connections(instance: dg.DagsterInstance) -> Iterator[None]:
    """Keep one connection per storage until the block ends.

    Dagster opens three new ones for every event.

    This makes a range of hours four times as fast. A kept connection is tested before use, so a restarted server does no harm. An
    instance whose connections are kept already stays as it is.
    """
    engine = getattr(instance.run_storage, "_engine", None)
    if not isinstance(getattr(engine, "pool", None), NullPool):
        yield
        return
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=RECYCLE_AFTER_S, max_overflow=MOST_CONNECTIONS)
    # A dead connection is found at checkout and replaced by a new one.
    storages = (instance.event_log_storage, instance.run_storage, instance.schedule_storage)
    engines = [engine for engine in (getattr(storage, "_engine", None) for storage in storages) if engine is not None]
    for engine in engines:
        event.listen(engine, "checkout", _try_out)
        event.listen(engine, "invalidate", _note_loss)
    try:
        yield
    finally:
        for engine in engines:
            engine.dispose()


def _note_loss(*_: object) -> None:
    global _lost_at
    _lost_at = time.monotonic()


def _try_out(connection: Any, record: Any, proxy: object) -> None:
    tried, record.info["tried"] = record.info.get("tried", -math.inf), time.monotonic()
    try:
        # A server that ended the session has said so: without such bytes, a connection that was tried just before is as good as then.
        # Not if another one was lost since: what cut that one reaches the others an instant later.
        if tried > _lost_at and record.info["tried"] - tried < TRIED_FOR_S:
            bytes_there = select.poll()
            bytes_there.register(connection, select.POLLIN)
            if not bytes_there.poll(0):
                return
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as gone:
        raise DisconnectionError() from gone
