"""The persistent Dagster instance of a state directory, shared by UI, daemon, commands and tests.

DAGSTER_HOME is ``dagster/`` under BABYLON_RL_HOME and holds the project's dagster.yaml as the settings fill it in (dagster_yaml.py); the
storage is in the Babylon database.

A run whose process is gone is reported failed when a command opens the instance, and in the sensor end_dead_runs. This frees its pool, its
place in the queue and its batch. A run that has not begun has no process and is left alone.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from babylon_rl.assets.resources import ENDED_TAG, LOST, shorten_storage_errors, storage_errors, why_dead
from babylon_rl.automation.dagster_yaml import broker_variables, instance_config
from babylon_rl.automation.jobs import BATCHED, HOURLY, SOURCES, jobs
from babylon_rl.errors import DatabaseError, SchemaMismatch, first_cause, first_line
from babylon_rl.files.durable import write_atomically
from babylon_rl.serving.dagster_client import PARTITION_TAG
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.dagster_rows import end_heartbeat, forget_heartbeats, lock_heartbeats
from babylon_rl.store.database import Database

STORAGE_URL = "BABYLON_RL_DAGSTER_URL"  # named in dagster.yaml
# Materializations of a range are stored so many at once, instead of on three connections each.
BATCH_SIZE, EVENTS_AT_ONCE = "DAGSTER_EVENT_BATCH_SIZE", "1000"
HELD = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_OUR_JOBS = {job.name for job in jobs}
_OUR_ASSETS = {dg.AssetKey(name) for name in (*SOURCES, *HOURLY, *BATCHED, "judge_report")}


def prepare_instance(database: Database, settings: Settings) -> dict[str, str]:
    """Prepare DAGSTER_HOME and the storage's tables; return the variables of Dagster's processes.

    These processes are the webserver, the daemon and `dagster job execute`.

    Raises:
        DatabaseError: Dagster's storage fails.
    """
    home = settings.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    # Replaced atomically, as several processes may prepare the same home.
    text, installed = instance_config(settings).encode(), home / "dagster.yaml"
    if not installed.exists() or installed.read_bytes() != text:
        write_atomically(installed, text)
    variables = {
        "DAGSTER_HOME": str(home),
        STORAGE_URL: database.dagster_url,
        "BABYLON_RL_HOME": str(settings.home),
        BATCH_SIZE: EVENTS_AT_ONCE,
        **broker_variables(settings, database.dagster_url),
    }
    # Only the first process creates Dagster's tables; the others wait for it.
    with database.making_dagster_storage(dg.__version__) as first:
        if first:
            with _opened(database, variables) as instance:
                instance.get_runs_count()
    return variables


@contextmanager
def open_instance(database: Database, settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance, for a ``with`` block with the environment of ``prepare_instance``.

    Runs whose process is gone are reported failed first.

    Raises:
        DatabaseError: Dagster's storage fails, at the start or within the block.
    """
    shorten_storage_errors()
    with _opened(database, prepare_instance(database, settings)) as instance:
        report_dead_runs(instance, database)
        yield instance


@contextmanager
def _opened(database: Database, variables: Mapping[str, str]) -> Iterator[dg.DagsterInstance]:
    """The instance, with ``variables`` in this process's environment until the block ends."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
            yield instance
    except storage_errors() as failed:
        raise DatabaseError(
            f"Dagster cannot use its storage at {database.address}: {first_line(first_cause(failed))}. "
            "Mend that (room on the disk, the server, the role's rights), then run the same command again."
        ) from failed
    finally:
        for name in variables:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def report_dead_runs(instance: dg.DagsterInstance, database: Database) -> list[str]:
    """Report dead runs of this project as failed; return a sentence for each."""
    ours = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=HELD)) if is_ours(run)]
    try:
        with database.connect() as connection:
            forget_heartbeats(connection, ours)
            heartbeats = lock_heartbeats(connection, ours)
            connection.commit()
            dead = [heartbeat.run_id for heartbeat in heartbeats if why_dead(heartbeat) is not None]
            ended = [_end_dead_run(instance, connection, run_id) for run_id in dead]
    # Without the table no run has a heartbeat, and none can be said to be dead.
    except SchemaMismatch:
        return []
    return [sentence for sentence in ended if sentence is not None]


def _end_dead_run(instance: dg.DagsterInstance, connection: Connection, run_id: str) -> str | None:
    """Report one run, in transactions of its own; None if it lives or has ended meanwhile."""
    with connection.transaction():
        (heartbeat,) = lock_heartbeats(connection, [run_id])
        if (why := why_dead(heartbeat)) is None:
            return None
        # On record before the report: a process that is alive after all learns at its next beat that it must stop, also if this one dies.
        end_heartbeat(connection, run_id)
    # The lock keeps another process from reporting the same run, too.
    with connection.transaction():
        lock_heartbeats(connection, [run_id])
        # Read anew: a run that ended normally has no process either, and may have ended since the list was read.
        run = instance.get_run_by_id(run_id)
        if run is None or run.status not in HELD:
            return None
        # A run that was being canceled ends as canceled, not as lost.
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, why)
        else:
            instance.add_run_tags(run_id, {ENDED_TAG: LOST})
            instance.report_run_failed(run, f"{why} What it had finished is kept, and the next run goes on from there.")
    return f"Run {run_id} of {run.tags.get(PARTITION_TAG, run.job_name)} is ended. {why}"


def is_ours(run: dg.DagsterRun) -> bool:
    """False for a run of another code location, which has no heartbeat."""
    return run.job_name in _OUR_JOBS or bool(run.asset_selection and run.asset_selection <= _OUR_ASSETS)
