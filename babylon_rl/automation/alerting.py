"""Sensors that send alerts, failed runs among them, and keep the counts of the status."""

import dagster as dg

from babylon_rl.alerts import raise_alert, send_alerts
from babylon_rl.assets.resources import Babylon
from babylon_rl.assets.run_liveness import PARTITION_TAG
from babylon_rl.assets.run_tags import ENDED_TAG
from babylon_rl.automation.batch_runs import evidence_is_tried_again, evidence_runs
from babylon_rl.automation.cleanup import cleanup_job
from babylon_rl.automation.jobs import AB_TEST_JOB, EVIDENCE_ASSETS, HOURLY, JUDGE_REPORT_JOB, OBSERVE_JOB, RANGE_START, SCORING_JOBS
from babylon_rl.automation.pace import SENSORS, every
from babylon_rl.serving.dagster_client import TRAIN_JOB
from babylon_rl.store.batches import read_batch
from babylon_rl.store.benchmarks import undecided_batches
from babylon_rl.training.readiness import keep_counts

RUN_FAILED, WILL_RETRY_TAG = "run_failed", "dagster/will_retry"
_READ = "Read the run's page in the UI (Runs, the red one) and mend what it names. "
_NIGHTLY = "It runs again next night by itself, or launch it at once."
_AGAIN = {
    TRAIN_JOB: f"Its batch is trained; then materialize {', '.join(EVIDENCE_ASSETS)} of it.",
    cleanup_job.name: _NIGHTLY,
    JUDGE_REPORT_JOB: _NIGHTLY,
    OBSERVE_JOB: _NIGHTLY,
    AB_TEST_JOB: "It runs again within the hour while a test runs, or launch it at once.",
}
_HOURS_AGAIN = "Its hours are tried again every hour by themselves, or materialize them at once."


@dg.sensor(
    name="send_alerts",
    minimum_interval_seconds=every(60),
    default_status=SENSORS,
    description="Looks for causes of alerts, and sends each once to the channels that are set; what failed is tried again.",
)
def send_alerts_sensor(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        return dg.SkipReason(send_alerts(connection, babylon.settings, babylon.now()).sentence)


@dg.run_failure_sensor(
    minimum_interval_seconds=every(60),
    default_status=SENSORS,
    description="Notes a failed run that nothing runs again as a cause of an alert, once a day for each job.",
)
def note_failed_runs(context: dg.RunFailureSensorContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    run = context.dagster_run
    # A run that stopped on purpose, or is retried by the daemon (RETRIED), asks nothing of a person.
    if ENDED_TAG in run.tags or run.tags.get(WILL_RETRY_TAG) == "true":
        return dg.SkipReason(f"{run.run_id} is run again.")
    now = babylon.now()
    with babylon.database.connect(autocommit=True) as connection:
        if run.job_name == TRAIN_JOB:
            batch = read_batch(connection, run.tags.get(PARTITION_TAG, ""))
            # start_training runs an unfinished batch again, and a failed one is a cause of its own.
            if batch is None or batch.state != "completed":
                return dg.SkipReason(f"The batch of {run.run_id} is run again, or has failed.")
            runs = context.instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: batch.batch_id}))
            # finish_evidence asks for it again.
            if batch.batch_id in undecided_batches(connection) and evidence_is_tried_again(evidence_runs(runs, batch.batch_id)):
                return dg.SkipReason(f"The evidence of {batch.batch_id} is run again.")
        what = run.tags.get(PARTITION_TAG) or run.tags.get(RANGE_START) or "no partition"
        says = f"Run {run.run_id} of {run.job_name} ({what}) failed: {context.failure_event.message}"
        raise_alert(connection, RUN_FAILED, f"{run.job_name} {now:%Y-%m-%d}", says, _advice(run), now)
    return dg.SkipReason(f"Noted {run.run_id}.")


def _advice(run: dg.DagsterRun) -> str:
    of_hours = run.job_name in SCORING_JOBS or any(key.to_user_string() in HOURLY for key in run.asset_selection or ())
    return _READ + (_HOURS_AGAIN if of_hours else _AGAIN.get(run.job_name, "Then launch it again."))


@dg.sensor(
    name="keep_counts",
    minimum_interval_seconds=every(60),
    default_status=SENSORS,
    description="Counts what could train when something was written, so that a look at the status need not.",
)
def keep_counts_sensor(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        return dg.SkipReason(keep_counts(connection, babylon.settings, babylon.now()))


alert_sensors = [send_alerts_sensor, note_failed_runs, keep_counts_sensor]
