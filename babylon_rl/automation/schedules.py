"""Schedules of runs by the clock, in UTC.

train_daily starts a smaller batch after a time without a completed one; further runs of that batch come from the sensor start_training.
"""

from datetime import timedelta
from functools import partial

import dagster as dg

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.batch_runs import LIVE
from babylon_rl.automation.cleanup import cleanup_job
from babylon_rl.automation.jobs import (
    SCHEDULES,
    ab_test_job,
    judge_report_job,
    observe_job,
    score_job,
    train_job,
    trained_keys,
)
from babylon_rl.judge.scoring import HOURS_PER_RUN, unscored_hours
from babylon_rl.serving.dagster_client import BATCHES, SCORING_JOBS, hour_tags, training_tags
from babylon_rl.store.batches import last_completed_at
from babylon_rl.store.judge_report import newest_judgement
from babylon_rl.store.observation import RECENT, answered_late
from babylon_rl.store.releases import read_tests
from babylon_rl.store.scores import read_pending
from babylon_rl.training.batches import pending_batches
from babylon_rl.training.freezing import count_freezable
from babylon_rl.training.readiness import freeze_when_ready, smaller_batch_due, with_smaller_minimum
from babylon_rl.windows import window_stretches

schedule = partial(dg.schedule, default_status=SCHEDULES)
ANSWERS_SINCE = timedelta(minutes=90)  # more than between two ticks, for one that came late


@schedule(
    cron_schedule="23 3 * * *",
    job=observe_job,
    description="Looks at every hour at night: edits, deletions and late answers older than 7 days.",
)
def sweep_nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return dg.RunRequest()


@schedule(
    cron_schedule="47 4 * * *",
    job=judge_report_job,
    description="Reports on the judge once a day, after a day in which it judged.",
)
def report_judge_daily(context: dg.ScheduleEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.RunRequest | dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        last = newest_judgement(connection)
    if last is None or babylon.now() - last > timedelta(days=1):
        return dg.SkipReason("No hour was judged since yesterday." if last is not None else "No hour has been judged yet.")
    return dg.RunRequest()


@schedule(
    cron_schedule="11 5 * * *",
    job=cleanup_job,
    description="Removes what is older than RETENTION_DAYS every night, and checkpoints beyond the newest 10 of a line.",
)
def clean_up_nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return dg.RunRequest()


@schedule(
    cron_schedule="17 * * * *",
    job=ab_test_job,
    description="Compares the arms of a running A/B test every hour.",
)
def report_ab_test(context: dg.ScheduleEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.RunRequest | dg.SkipReason:
    with babylon.database.connect(autocommit=True) as connection:
        running = [test.name for test in read_tests(connection) if test.state == "running"]
    return dg.RunRequest() if running else dg.SkipReason("No A/B test runs.")


@schedule(
    cron_schedule="41 * * * *",
    job=train_job,
    description="Freezes and trains a smaller batch when the last training was completed TRAINING_INTERVAL_HOURS ago.",
)
def train_daily(context: dg.ScheduleEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.RunRequest | dg.SkipReason:
    now = babylon.now()
    with babylon.database.connect(autocommit=True) as connection:
        pending = pending_batches(connection)
        if pending:
            return dg.SkipReason(f"{pending[0].batch_id} is {pending[0].state}.")
        # By any producer: the game's own trainings count as well.
        last = last_completed_at(connection)
        due = smaller_batch_due(last, babylon.settings, now)
        if last is not None and due > now:
            return dg.SkipReason(f"The last batch was completed at {last:%Y-%m-%d %H:%M} UTC; the next is due at {due:%Y-%m-%d %H:%M} UTC.")
        frozen = freeze_when_ready(connection, with_smaller_minimum(babylon.settings), now)
    if frozen.batch is None:
        return dg.SkipReason(frozen.reason)
    context.log.info(f"Froze {frozen.batch.batch_id} with {frozen.batch.trajectories} trajectories, and asks for the run that trains it.")
    # A crash from here on loses no batch: it is pending in the database, and start_training asks for its run.
    context.instance.add_dynamic_partitions(BATCHES, [frozen.batch.batch_id])
    batch_id, tags = frozen.batch.batch_id, training_tags(babylon.settings, frozen.batch.backend)
    return dg.RunRequest(run_key=f"{batch_id}/1", partition_key=batch_id, asset_selection=trained_keys(babylon.settings), tags=tags)


@schedule(
    cron_schedule="7 * * * *",
    job=score_job,
    description="Scores the hours that have settled and have no scores: a run of them failed, or their scores are stale.",
)
def score_settled(context: dg.ScheduleEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> list[dg.RunRequest] | dg.SkipReason:
    live = context.instance.get_runs(dg.RunsFilter(statuses=LIVE))
    if any(run.job_name in SCORING_JOBS or dg.AssetKey("scored_groups") in (run.asset_selection or ()) for run in live):
        return dg.SkipReason("A run scores hours now.")
    with babylon.database.connect(autocommit=True) as connection:
        settled = count_freezable(connection, babylon.settings, babylon.now(), settled=True)
        # ask_judge_again asks for the hours that wait.
        hours = unscored_hours(connection, list(settled.windows)) - read_pending(connection, judge=babylon.settings.judge_model).keys()
    if not hours:
        return dg.SkipReason("Every settled hour has scores, or waits for its judge.")
    return [dg.RunRequest(tags=hour_tags(first, last)) for first, last in window_stretches(hours, HOURS_PER_RUN)]


@schedule(
    cron_schedule="37 * * * *",
    job=observe_job,
    description="Looks at every hour after a question from before the last 7 days was answered.",
)
def follow_answers(context: dg.ScheduleEvaluationContext, babylon: dg.ResourceParam[Babylon]) -> dg.RunRequest | dg.SkipReason:
    now = babylon.now()
    with babylon.database.connect(autocommit=True) as connection:
        answered = answered_late(connection, asked_before=now - RECENT, since=now - ANSWERS_SINCE)
    if not answered:
        return dg.SkipReason(f"No question from before the last {RECENT.days} days was answered lately.")
    context.log.info(f"{answered} old questions were answered or changed.")
    return dg.RunRequest()


schedules = [sweep_nightly, clean_up_nightly, report_judge_daily, report_ab_test, train_daily, score_settled, follow_answers]
