"""Reports runs whose process is gone as failed to Dagster.

This frees their pool, their place in the queue and their batch. It happens when a command opens the instance, and in the sensor
end_dead_runs. A run that has not begun has no process and is left alone.
"""

import dagster as dg

from babylon_rl.assets.runs import ENDED_TAG, LOST, why_dead
from babylon_rl.automation.jobs import BATCHED, HOURLY, SOURCES, jobs
from babylon_rl.errors import SchemaMismatch
from babylon_rl.serving.dagster_client import PARTITION_TAG
from babylon_rl.store.database import Database
from babylon_rl.store.run_heartbeats import end_heartbeat, forget_heartbeats, lock_heartbeats

HELD = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_OUR_JOBS = {job.name for job in jobs}
_OUR_ASSETS = {dg.AssetKey(name) for name in (*SOURCES, *HOURLY, *BATCHED, "judge_report")}


def report_dead_runs(instance: dg.DagsterInstance, database: Database) -> list[str]:
    """Report this project's dead runs as failed; return a sentence for each."""
    runs = [record.dagster_run for record in instance.get_run_records(dg.RunsFilter(statuses=HELD))]
    ours = [run.run_id for run in runs if _is_ours(run)]
    sentences = []
    try:
        with database.connect() as connection:
            forget_heartbeats(connection, ours)
            # The lock keeps another process from reporting the same run, too.
            for heartbeat in lock_heartbeats(connection, ours):
                why = why_dead(heartbeat)
                # Read anew: a run that ended in peace has no process either, and may have done so since the list was read.
                run = instance.get_run_by_id(heartbeat.run_id) if why is not None else None
                if why is not None and run is not None and run.status in HELD:
                    end_heartbeat(connection, run.run_id)
                    _report(instance, run, why)
                    sentences.append(f"Run {run.run_id} of {run.tags.get(PARTITION_TAG, run.job_name)} is ended. {why}")
    except SchemaMismatch:
        return []
    return sentences


def _is_ours(run: dg.DagsterRun) -> bool:
    """False for a run of another code location, which has no heartbeat."""
    return run.job_name in _OUR_JOBS or bool(run.asset_selection and run.asset_selection <= _OUR_ASSETS)


def _report(instance: dg.DagsterInstance, run: dg.DagsterRun, why: str) -> None:
    # A run that was being canceled ends as canceled, not as lost.
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, why)
        return
    instance.add_run_tags(run.run_id, {ENDED_TAG: LOST})
    instance.report_run_failed(run, f"{why} What it had finished is kept, and the next run goes on from there.")
