"""Handing over of runs: Dagster's queue and the launcher that dagster.yaml names.

A message to a worker is only a hint: the database says which run waits and who has taken it (store/run_heartbeats.py). A run that no
worker has taken within UNTAKEN_S goes back into Dagster's queue and is handed over again, so a broker that lost its messages loses no run.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import dagster as dg
from dagster import DagsterEvent
from dagster._core.launcher import DefaultRunLauncher, RunLauncher
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from babylon_rl.assets.runs import why_dead
from babylon_rl.errors import SchemaMismatch, UsageError, require
from babylon_rl.project_files import project_file
from babylon_rl.serving.dagster_client import SCORE_JOB, TRAIN_JOB, TRAINING_ASSETS
from babylon_rl.settings import HEURISTIC, JudgeSettings, load_settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.database import Database
from babylon_rl.store.run_heartbeats import claim, expect_run, forget_run, lock_heartbeats
from babylon_rl.training.backends.protocol import GPU
from babylon_rl.versions import files_version

UNTAKEN_S = 60.0  # a worker that is free takes a run within a second
TASK_TAG, QUEUE_TAG, CODE_TAG, JUDGE_TAG = "dagster-celery/task_id", "dagster-celery/queue", "babylon_rl/code", "babylon_rl/judge"
HOURS, JUDGE, TRAINER, GPU_TRAINER, EVIDENCE = "hours", "judge", "trainer", "trainer-gpu", "evidence"
QUEUES = (HOURS, JUDGE, TRAINER, GPU_TRAINER, EVIDENCE)


class ChosenRunLauncher(RunLauncher, ConfigurableClass):
    """The launcher that the settings choose: Dagster's default one, or that of Celery workers."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """An empty configuration: dagster.yaml sets nothing."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Any:
        """A launcher of Celery with CELERY_BROKER_URL, else Dagster's default.

        Raises:
            MissingPackage: the packages of the extra ``celery`` are not installed.
        """
        settings = load_settings()
        if settings.celery_broker_url is None:
            return DefaultRunLauncher(inst_data)
        require("dagster_celery", "redis")
        from babylon_rl.automation.celery_runs import CeleryLauncher

        return CeleryLauncher.of(settings, inst_data)


class RunQueue(QueuedRunCoordinator):
    """Dagster's queue with MAX_CONCURRENT_RUNS.

    With workers that is the limit of each of their queues: runs that wait for a worker of one hold up no other's.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """An empty configuration: dagster.yaml sets nothing."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """The queue with the limit of the settings."""
        settings = load_settings()
        if settings.celery_broker_url is None:
            return cls(max_concurrent_runs=settings.max_concurrent_runs, inst_data=inst_data)
        each = {"key": QUEUE_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": settings.max_concurrent_runs}
        return cls(max_concurrent_runs=-1, tag_concurrency_limits=[each], inst_data=inst_data)

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        """Let a run wait; with workers its queue is known from here on."""
        settings = load_settings()
        if settings.celery_broker_url is not None:
            run = context.dagster_run
            self._instance.add_run_tags(run.run_id, {QUEUE_TAG: queue_of(run, settings)})
        return super().submit_run(context)


def queue_of(run: dg.DagsterRun, settings: JudgeSettings) -> str:
    """The queue of a run: that of its tag, else of its assets.

    Scoring by the heuristic takes no longer than reading does, and belongs to the hours.
    """
    from babylon_rl.automation.jobs import EVIDENCE_ASSETS

    if QUEUE_TAG in run.tags:
        return run.tags[QUEUE_TAG]
    assets = {key.to_user_string() for key in run.asset_selection or ()} or _assets_of(run.job_name)
    # The most demanding first: one asset of a queue is enough.
    demanding = {TRAINER: TRAINING_ASSETS, EVIDENCE: (*EVIDENCE_ASSETS, "ab_test_report"), JUDGE: ("scored_groups", "judge_report")}
    for queue, names in demanding.items():
        if assets.intersection(names) and not (queue == JUDGE and settings.judge_model == HEURISTIC):
            return queue
    return HOURS


def trainer_queue(database: Database, run: dg.DagsterRun) -> str:
    """The queue of a training: that of machines with a GPU if its batch was frozen for one."""
    with database.connect() as connection:
        batch = read_batch(connection, run.tags.get(PARTITION_NAME_TAG, ""))
    return GPU_TRAINER if batch is not None and batch.backend == GPU else TRAINER


def worker_queues(asked: Sequence[str] | None, gpu: bool) -> tuple[str, ...]:
    """The queues of a worker that was asked for some, or for all.

    A trainer with a ``gpu`` takes the batches that need one, too.

    Raises:
        UsageError: there is no queue of that name.
    """
    names = dict.fromkeys(asked or [name for name in QUEUES if name != GPU_TRAINER])
    if unknown := [name for name in names if name not in QUEUES]:
        raise UsageError(f"{unknown[0]} is not a queue. Choose from {', '.join(QUEUES)}.")
    return (*names, GPU_TRAINER) if gpu and TRAINER in names and GPU_TRAINER not in names else tuple(names)


def _assets_of(job: str) -> set[str]:
    from babylon_rl.automation.jobs import AB_TEST_JOB, BATCHED, HOURLY, HOURS_JOB, JUDGE_REPORT_JOB

    wholes = {TRAIN_JOB: BATCHED, HOURS_JOB: HOURLY, SCORE_JOB: ("scored_groups",)}
    wholes |= {JUDGE_REPORT_JOB: ("judge_report",), AB_TEST_JOB: ("ab_test_report",)}
    return set(wholes.get(job, ()))


@cache
def code_version() -> str:
    """The version of this process's code.

    It is that of the package, the number of the newest migration, and a hash of the sources.

    Read once, early: files that are replaced later are not what this process executes.
    """
    migrations = sorted(project_file("migrations").glob("[0-9]*.sql"))
    newest = int(migrations[-1].name.partition("_")[0]) if migrations else 0
    return f"{version('babylon-rl')}+{newest}.{files_version(Path(__file__).resolve().parents[1], '*.py')[:8]}"


def why_refused(run: dg.DagsterRun, own: str, judge: str) -> str | None:
    """A sentence if this machine's code, or its ``judge``, does not fit the run's; else None.

    Code does not if it is older, or another of the same version. Newer code takes a run: the migrations that it needs are looked for
    before anything is written.
    """
    wanted = run.tags.get(CODE_TAG, own)
    if wanted != own and _ordered(own) <= _ordered(wanted):
        return (
            f"This worker has code version {own}, and run {run.run_id} was started by {wanted}: the worker takes no run and ends. "
            "Install the same version here, then start it again."
        )
    asked, queue = run.tags.get(JUDGE_TAG, judge), run.tags.get(QUEUE_TAG)
    # Of the hours only those by the heuristic are scored there.
    scores = queue in (JUDGE, TRAINER, GPU_TRAINER) or (queue == HOURS and asked == HEURISTIC)
    if asked != judge and scores:
        return (
            f"This worker's JUDGE_MODEL is {judge}, and where run {run.run_id} was started it is {asked}: it takes no run and ends. "
            "Give it the same settings, then start it again."
        )
    return None


def _ordered(code: str) -> tuple[tuple[int, ...], int]:
    package, _, rest = code.partition("+")
    return tuple(int(part) for part in package.split(".") if part.isdecimal()), int(rest.partition(".")[0] or 0)


def expect_worker(database: Database, run_id: str) -> None:
    """Note that a run is handed over now."""
    with database.connect() as connection:
        expect_run(connection, run_id)


def claim_run(instance: dg.DagsterInstance, database: Database, run_id: str, task: str, holder: str) -> str | None:
    """Take a run that was handed over; a sentence if it cannot be had.

    Of several workers with a message of the same run exactly one gets it, once. ``task`` is the id of the message: only the newest
    counts, because that is the one by which a run is interrupted.
    """
    with database.connect() as connection:
        why_not = _why_void(instance, run_id, task)
        if why_not is None and not claim(connection, run_id, holder):
            why_not = f"Run {run_id} was taken by another worker."
        # Looked at again: before the claim locked the row, the run may have been put back into the queue.
        why_not = why_not or _why_void(instance, run_id, task)
        if why_not is not None:
            connection.rollback()
    return why_not


def _why_void(instance: dg.DagsterInstance, run_id: str, task: str) -> str | None:
    run = instance.get_run_by_id(run_id)
    if run is None:
        return (
            f"Run {run_id} is not in this worker's database: it was deleted, or is another installation's. Those need a database of "
            "Redis, or a virtual host of RabbitMQ, of their own, as they take each other's messages."
        )
    if run.status != dg.DagsterRunStatus.STARTING:
        return f"Run {run_id} does not wait for a worker any more: {run.status.value.lower()}."
    return None if run.tags.get(TASK_TAG) == task else f"Run {run_id} was handed over again since this message."


def refuse_run(instance: dg.DagsterInstance, database: Database, run_id: str, why: str) -> None:
    """Put a run for other workers back into Dagster's queue, unless one has taken it."""
    with database.connect() as connection:
        # Another worker may have claimed it meanwhile, which executes it then, or the sensor have put it back.
        for heartbeat in lock_heartbeats(connection, [run_id]):
            if not heartbeat.holder and _put_back(instance, run_id, why):
                forget_run(connection, run_id)


def put_back_untaken(instance: dg.DagsterInstance, database: Database, *, by_workers: bool = True) -> list[str]:
    """Put runs that no live worker holds back into Dagster's queue; a sentence for each.

    ``by_workers``: every run is meant for a worker, also one that was not sent, because the daemon ended in between.
    """
    from babylon_rl.automation.instance import is_ours

    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])
    waiting = [run.run_id for run in instance.get_runs(filters) if TASK_TAG in run.tags or (by_workers and is_ours(run))]
    if not waiting:
        return []
    sentences = []
    try:
        with database.connect() as connection:
            for heartbeat in lock_heartbeats(connection, waiting):
                dead = why_dead(heartbeat)
                # It was claimed, and its process is about to begin it.
                if heartbeat.holder and dead is None:
                    continue
                # Its message still waits for a free worker.
                if not heartbeat.holder and heartbeat.silent_s < UNTAKEN_S:
                    continue
                why = dead if heartbeat.holder else f"No worker took it within {heartbeat.silent_s:.0f} s."
                if _put_back(instance, heartbeat.run_id, str(why)):
                    forget_run(connection, heartbeat.run_id)
                    sentences.append(f"Run {heartbeat.run_id} waits again. {why}")
    except SchemaMismatch:
        return []
    return sentences


def _put_back(instance: dg.DagsterInstance, run_id: str, why: str) -> bool:
    """Put a run that was handed over and has not begun back into Dagster's queue.

    False if it has begun or ended.

    The caller holds the row of its heartbeat. Dagster does the same when a code server does not answer.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.status != dg.DagsterRunStatus.STARTING:
        return False
    instance.report_engine_event(f"{why} It is handed over again.", run)
    instance.report_dagster_event(DagsterEvent.job_enqueue(run), run_id=run_id)
    return True
