"""Sensors: changed hours, starts of trainings, rollouts, dead runs, alerts.

Hours belong to the conditions (hours_follow_changes), batches to start_training. finish_evidence benchmarks completed batches. The
database says what is pending, so neither a lost cursor nor a crash between two steps loses a batch.
"""

from functools import partial

import dagster as dg

from babylon_rl.alerts import raise_alert, send_alerts
from babylon_rl.assets.partitions import END_OF_HOURS, batches, end_of_hours
from babylon_rl.assets.resources import ENDED_TAG, LOST, Babylon, failure_reason
from babylon_rl.assets.sources import observe, report
from babylon_rl.automation.batch_runs import JUDGE_ASKED_AFTER, LIVE, evidence_goes_on, evidence_run, judge_asked_at, naive, training_run
from babylon_rl.automation.cleanup import cleanup_job
from babylon_rl.automation.instance import report_dead_runs
from babylon_rl.automation.jobs import (
    AB_TEST_JOB,
    EVIDENCE_ASSETS,
    HOURLY,
    HOURS_TAGS,
    JUDGE_REPORT_JOB,
    OBSERVE_JOB,
    SENSORS,
    every,
    score_job,
    train_job,
)
from babylon_rl.judge.scoring import HOURS_PER_RUN
from babylon_rl.serving.dagster_client import PARTITION_TAG, RANGE_START, SCORING_JOBS, TRAIN_JOB, DagsterClient, hour_tags
from babylon_rl.store.batches import read_batch
from babylon_rl.store.benchmarks import undecided_batches
from babylon_rl.store.live_usage import count_usage
from babylon_rl.store.releases import RELEASES_LOCK
from babylon_rl.store.scores import read_pending
from babylon_rl.training.batches import fail_stuck, pending_batches
from babylon_rl.training.readiness import freeze_when_ready, keep_counts
from babylon_rl.windows import window_stretches

MOST_OBSERVATIONS = 500
SWEPT = "swept"
SENSOR_TAG = "dagster/sensor_name"
RUN_FAILED, WILL_RETRY_TAG = "run_failed", "dagster/will_retry"
_READ = "Read the page of the run in Dagster's UI (Runs) and correct the cause. "
_NIGHTLY = "The job runs again next night by itself; it can be launched at once."
_AGAIN = {
    TRAIN_JOB: f"Its batch is trained: then materialize {', '.join(EVIDENCE_ASSETS)} of the batch.",
    cleanup_job.name: _NIGHTLY,
    JUDGE_REPORT_JOB: _NIGHTLY,
    OBSERVE_JOB: _NIGHTLY,
    AB_TEST_JOB: "The job runs again within the hour while a test runs; it can be launched at once.",
}
_HOURS_AGAIN = "Its hours are tried again every hour by themselves; they can be materialized at once."
sensor = partial(dg.sensor, minimum_interval_seconds=every(60), default_status=SENSORS)


@sensor(description="Reports the hours whose rows came, changed or went: the last 7 days, and at its first look all of them.")
def observe_changes(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    # The graph ends with LAST_WINDOW until rows of a later hour come; hours after its end are observed once it has them.
    if END_OF_HOURS is not None and end_of_hours(babylon.settings, babylon.now()) is None:
        DagsterClient(babylon.settings.dagster_url).reload()
        return dg.SkipReason(f"Rows came after {babylon.settings.last_window}, the last hour of the graph: it is loaded again with them.")
    # The cursor holds SWEPT after the first full look, then the watermark of the last complete one. It is lost with Dagster's storage.
    swept, _, watermark = (context.cursor or "").partition(" ")
    seen = observe(context.instance, babylon, full=swept != SWEPT, watermark=watermark or None)
    # A first look at a long history is reported in parts, newest first; what is left differs still at the next tick.
    changes = seen.changes
    reported = report(babylon, seen.storage, changes[:MOST_OBSERVATIONS], context.instance.report_runless_asset_event)
    if reported == len(changes):
        context.update_cursor(" ".join(filter(None, (SWEPT, seen.watermark))))
    return dg.SkipReason(f"{reported} of {len(changes)} changed hours reported." if changes else "No hour changed.")


# Neither AUTOMATION_SECONDS nor AUTOMATION_STATUS applies: it starts nothing of its own, and without it a run that was asked for by hand
# and lost its machine never ends.
@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports the runs failed whose process is gone, so that their pool, their place in the queue and their batch are free.",
)
def end_dead_runs(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    ended = report_dead_runs(context.instance, babylon.database)
    return dg.SkipReason(" ".join(ended) or "Every run that has begun is alive.")


@sensor(
    job=train_job,
    description="Freezes a batch when ready, as `babylon-rl ready` says, and none is pending; runs every pending batch.",
)
def start_training(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SensorResult | dg.SkipReason:
    now = babylon.now()
    with babylon.database.connect(autocommit=True) as connection:
        fail_stuck(connection, now)
        pending = pending_batches(connection)
        if not pending:
            start = freeze_when_ready(connection, babylon.settings, now, context.cursor)
            context.update_cursor(start.remembered)
            if start.batch is None:
                return dg.SkipReason(start.reason)
            pending = [start.batch]
        found = [training_run(context.instance, connection, batch, babylon.settings, now) for batch in pending]
    requests = [run for run in found if not isinstance(run, str)]
    if not requests:
        return dg.SkipReason(" ".join(why_not for why_not in found if isinstance(why_not, str)))
    # Dagster must know the partition before its run starts.
    partitions = [batches.build_add_request([request.partition_key for request in requests if request.partition_key])]
    return dg.SensorResult(run_requests=requests, dynamic_partitions_requests=partitions)


@sensor(
    job=train_job,
    description="Compares and decides on the completed batches whose run ended before it did, one at a time.",
)
def finish_evidence(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SensorResult | dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        undecided = undecided_batches(connection, babylon.now())
    reasons = []
    for batch_id in undecided:
        records = context.instance.get_run_records(dg.RunsFilter(tags={PARTITION_TAG: batch_id}))
        # One at a time: the batches behind it are looked at when this run has ended.
        if any(record.dagster_run.status in LIVE for record in records):
            return dg.SkipReason(f"{batch_id} has a live run.")
        found = evidence_run(records, batch_id, babylon.settings, babylon.now())
        if not isinstance(found, str):
            return dg.SensorResult(run_requests=[found], dynamic_partitions_requests=[batches.build_add_request([batch_id])])
        reasons.append(found)
    return dg.SkipReason(" ".join(reasons) or "Every completed batch has been decided on.")


@sensor(
    job=score_job,
    minimum_interval_seconds=every(300),
    description="Asks again for the hours that wait for their judge: it was down (after 30 minutes, then twice as long, every 4 hours at "
    "the longest), or the day's budget was spent (at midnight UTC).",
)
def ask_judge_again(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SensorResult | dg.SkipReason:
    now = babylon.now()
    with babylon.database.connect(autocommit=True) as connection:
        waiting = read_pending(connection, judge=babylon.settings.judge_model)
    if not waiting:
        return dg.SkipReason("No hour waits for its judge.")
    # At most one run of this sensor at a time.
    own = {SENSOR_TAG: "ask_judge_again"}
    if context.instance.get_runs_count(dg.RunsFilter(tags=own, statuses=LIVE)):
        return dg.SkipReason(f"{len(waiting)} hours wait for their judge, and a run asks it now.")
    # A run that died before it asked has left the hours as they were.
    newest = [naive(record.create_timestamp) for record in context.instance.get_run_records(dg.RunsFilter(tags=own), limit=1)]
    asked_at = {
        window: max([judge_asked_at(hour, babylon.settings), *(at + JUDGE_ASKED_AFTER for at in newest)])
        for window, hour in waiting.items()
    }
    due = [window for window, at in asked_at.items() if at <= now]
    if not due:
        next_at = min(asked_at.values())
        return dg.SkipReason(f"{len(waiting)} hours wait for their judge, which is asked again at {next_at:%Y-%m-%d %H:%M} UTC.")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(tags=hour_tags(first, last)) for first, last in window_stretches(due, HOURS_PER_RUN)]
    )


@sensor(description="Advances, holds or rolls back the version on trial by its guards on live data, and counts the use of versions.")
def advance_rollouts(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    from babylon_rl.serving.promotion import advance

    now = babylon.now()
    with babylon.database.connect(autocommit=True) as connection:
        said = advance(connection, babylon.settings, now)
        # Afterwards, so that a count that fails, and this tick with it, keeps no version from being rolled back.
        with connection.transaction():
            connection.take_lock(RELEASES_LOCK)
            count_usage(connection, now)
        return dg.SkipReason(said)


hours_follow_changes = dg.AutomationConditionSensorDefinition(
    "hours_follow_changes",
    target=dg.AssetSelection.assets(*HOURLY).without_checks(),
    minimum_interval_seconds=every(30),
    default_status=SENSORS,
    run_tags=HOURS_TAGS,
    description="Makes the hours whose inputs changed, late ones included.",
)

checks_follow_hours = dg.AutomationConditionSensorDefinition(
    "checks_follow_hours",
    target=dg.AssetSelection.checks_for_assets(*HOURLY),
    minimum_interval_seconds=every(300),
    default_status=SENSORS,
    run_tags=HOURS_TAGS,
    description="Checks the hours again after some were made.",
)


@sensor(
    name="send_alerts",
    description="Looks for causes of alerts, and sends each once to the channels that are set; what failed is tried again.",
)
def send_alerts_sensor(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        sent = send_alerts(connection, babylon.settings, babylon.now(), context.cursor)
        context.update_cursor(sent.looked)
        return dg.SkipReason(sent.sentence)


@dg.run_failure_sensor(
    minimum_interval_seconds=every(60),
    default_status=SENSORS,
    description="Notes a failed run that nothing runs again as a cause of an alert, once a day for each job.",
)
def note_failed_runs(context: dg.RunFailureSensorContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    run = context.dagster_run
    # A run that stopped on purpose, or is retried by the daemon, asks nothing of a person. A retry has the tags of the run that
    # was lost, and may fail for a reason of its own.
    if run.tags.get(ENDED_TAG, LOST) != LOST or run.tags.get(WILL_RETRY_TAG) == "true":
        return dg.SkipReason(f"{run.run_id} is run again.")
    now = babylon.now()
    with babylon.database.connect(autocommit=True) as connection:
        if run.job_name == TRAIN_JOB:
            batch = read_batch(connection, run.tags.get(PARTITION_TAG, ""))
            # start_training runs an unfinished batch again, and a failed one is a cause of its own.
            if batch is None or batch.state != "completed":
                return dg.SkipReason(f"The batch of {run.run_id} is run again, or has failed.")
            records = context.instance.get_run_records(dg.RunsFilter(tags={PARTITION_TAG: batch.batch_id}))
            # finish_evidence asks for it again.
            if batch.batch_id in undecided_batches(connection, now) and evidence_goes_on(records, batch.batch_id):
                return dg.SkipReason(f"The evidence of {batch.batch_id} is run again.")
        part = run.tags.get(PARTITION_TAG) or run.tags.get(RANGE_START)
        reason = failure_reason(context.instance, run.run_id) or context.failure_event.message or "no reason was recorded."
        assets = sorted(key.to_user_string() for key in run.asset_selection or ())
        # A run of assets alone has a job of Dagster's own.
        job = ", ".join(assets) if assets and run.job_name.startswith("__") else run.job_name
        says = f"Run {run.run_id} of {job}{f' ({part})' if part else ''} failed: {reason}"
        of_hours = run.job_name in SCORING_JOBS or not set(HOURLY).isdisjoint(assets)
        advice = _READ + (_HOURS_AGAIN if of_hours else _AGAIN.get(run.job_name, "Then launch it again."))
        raise_alert(connection, RUN_FAILED, f"{run.job_name} {now:%Y-%m-%d}", says, advice, now)
    return dg.SkipReason(f"Noted {run.run_id}.")


@sensor(
    name="keep_counts",
    description="Counts what could train when something was written, so that a look at the status need not.",
)
def keep_counts_sensor(context: dg.SensorEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        return dg.SkipReason(keep_counts(connection, babylon.settings, babylon.now()))


sensors = [
    observe_changes, end_dead_runs, ask_judge_again, start_training, finish_evidence, advance_rollouts, hours_follow_changes,
    checks_follow_hours, send_alerts_sensor, note_failed_runs, keep_counts_sensor,
]  # fmt: skip
