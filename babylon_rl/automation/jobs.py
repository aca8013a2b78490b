"""Jobs for the UI, `dagster job execute` and launch.py, and the pace of automation.

Sensors and schedules have AUTOMATION_STATUS until the page *Automation* switches them; only end_dead_runs follows neither this setting nor
AUTOMATION_SECONDS.
"""

from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import AS_LOADED
from babylon_rl.assets.workers import job_tags
from babylon_rl.automation.cleanup import cleanup_job
from babylon_rl.serving.dagster_client import EVIDENCE, HOURS, HOURS_JOB, SCORE_JOB, TRAIN_JOB, TRAINER, TRAINING_ASSETS, trained_assets
from babylon_rl.settings import AutomationSettings, Settings

_RUNNING = AS_LOADED.automation_status == "running"
SENSORS = dg.DefaultSensorStatus.RUNNING if _RUNNING else dg.DefaultSensorStatus.STOPPED
SCHEDULES = dg.DefaultScheduleStatus.RUNNING if _RUNNING else dg.DefaultScheduleStatus.STOPPED
CHECKS_JOB, OBSERVE_JOB = "check_hours", "observe"
JUDGE_REPORT_JOB, AB_TEST_JOB = "judge_report_daily", "ab_test_hourly"
MOST_HOURS = 720  # of a run of assets that cost next to nothing an hour
KUBERNETES_TAG = "dagster-k8s/config"
SOURCES = ("raw_trajectories", "market_data")
HOURLY = ("window_groups", "market_outcomes", "hindsight", "answer_groups", "scored_groups")
EVIDENCE_ASSETS = ("benchmark_report", "released_model", "leaderboard")
BATCHED = (*TRAINING_ASSETS, *EVIDENCE_ASSETS)
HOURS_TAGS, EVIDENCE_TAGS = job_tags(AS_LOADED, HOURS), job_tags(AS_LOADED, EVIDENCE)


def every(seconds: int) -> int:
    """Interval of a sensor that looks every ``seconds`` with AUTOMATION_SECONDS at its default."""
    usual: float = Settings.model_fields["automation_seconds"].default
    return max(1, round(seconds * AS_LOADED.automation_seconds / usual))


def trainer_tags(settings: Settings) -> dict[str, str]:
    """Tags of every run of the job ``train``: a pod of its own kind, the trainers' queue; batches count their own attempts."""
    pod = {} if settings.trainer_kubernetes is None else {KUBERNETES_TAG: settings.trainer_kubernetes}
    return {"dagster/max_retries": "0"} | pod | job_tags(settings, TRAINER)


def trained_keys(settings: AutomationSettings) -> list[dg.AssetKey] | None:
    """``trained_assets`` as Dagster's keys."""
    names = trained_assets(settings)
    return None if names is None else [dg.AssetKey(name) for name in names]


hours_job = dg.define_asset_job(
    HOURS_JOB,
    selection=dg.AssetSelection.assets(*HOURLY).without_checks(),
    tags=HOURS_TAGS,
    description="Read an hour, its market, what became known of it, and score its group. Partition: a window id, or a range of them.",
)
score_job = dg.define_asset_job(
    SCORE_JOB,
    selection=dg.AssetSelection.assets("scored_groups").without_checks(),
    tags=HOURS_TAGS,
    description="Score the group of an hour that has been read. Partition: a window id, or a range of them.",
)
# Apart from the runs of hours: for those Dagster plans every check once an hour, which takes as long as the hours of a range.
checks_job = dg.define_asset_job(
    CHECKS_JOB,
    selection=dg.AssetSelection.checks_for_assets(*HOURLY),
    tags=HOURS_TAGS,
    description="Check the newest hours, and those that changed in the last day.",
)
train_job = dg.define_asset_job(
    TRAIN_JOB,
    selection=dg.AssetSelection.assets(*BATCHED),
    tags=trainer_tags(AS_LOADED),
    description="Judge what a batch lacks, train it, compare the checkpoint, record the gate's decision. Partition: a batch id.",
)
judge_report_job = dg.define_asset_job(
    JUDGE_REPORT_JOB,
    selection=dg.AssetSelection.assets("judge_report"),
    tags=HOURS_TAGS,
    description="Say how far the judge can be trusted, after JUDGE_AUDIT_MODEL was asked about a sample.",
)
ab_test_job = dg.define_asset_job(
    AB_TEST_JOB,
    selection=dg.AssetSelection.assets("ab_test_report"),
    tags=EVIDENCE_TAGS,
    description="Compare the arms of the newest A/B test.",
)
observe_job = dg.define_asset_job(
    OBSERVE_JOB,
    selection=dg.AssetSelection.assets(*SOURCES),
    tags=HOURS_TAGS,
    description="Look at every hour from FIRST_WINDOW for rows that came, changed or went.",
)
jobs: list[Any] = [hours_job, score_job, checks_job, train_job, judge_report_job, ab_test_job, observe_job, cleanup_job]
