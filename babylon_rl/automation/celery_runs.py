"""Runs by Celery: the daemon's launcher and the app of `babylon-rl worker`, both dagster_celery's.

What differs from dagster_celery's defaults, and why, is in docs/decisions/0020.
"""

import gc
import json
import logging
import os
from datetime import UTC, datetime
from typing import Any, Self

import dagster as dg
from celery import Celery, Task, signals
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool
from celery.exceptions import WorkerLostError
from dagster._core.launcher import LaunchRunContext
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClassData, pack_value, unpack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from babylon_rl.automation.jobs import RETRIED
from babylon_rl.automation.run_handover import (
    CODE_TAG,
    HOURS,
    JUDGE,
    JUDGE_TAG,
    QUEUE_TAG,
    TASK_TAG,
    TRAINER,
    claim_run,
    code_version,
    expect_worker,
    queue_of,
    refuse_run,
    trainer_queue,
    why_refused,
)
from babylon_rl.processes import own_name
from babylon_rl.settings import AutomationSettings, Settings, load_settings
from babylon_rl.store.database import process_database
from babylon_rl.traces import start_traces, stop_traces

_LOG = logging.getLogger(__name__)
# Results are not stored: whether a run lives is in its heartbeat, how it ended in Dagster's records.
NO_RESULTS = "disabled://"
ANSWER_S = 5  # of a broker, before it counts as unreachable
SILENT_BROKER_S = 15  # more than a worker's reads wait for a message
LOOKED_AT_S = 10  # how often a worker looks whether its lines to Redis are silent; kombu's 25 make it a minute
# More than UNTAKEN_S, after which the next message of a run makes this one void: a void one costs a worker a process, one that has expired
# nothing. The daemon's clock stamps it and the worker's checks it: it must exceed what the two differ by.
EXPIRES_S = 300


class RunProcesses(AsynPool):  # type: ignore[misc]
    """Processes that take one run each."""

    def on_job_ready(self, *_: Any) -> None:
        """Leave a process whose run has ended marked as busy.

        It winds down for a second; a message that it is given waits until it is gone.
        """


class RunPool(TaskPool):  # type: ignore[misc]
    """Pool with a spare process, which takes a run while the last one's process winds down."""

    Pool = RunProcesses

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(limit + 1, **options)

    @property
    def num_processes(self) -> int:
        """Runs at once, from which Celery reckons how many messages the worker may hold."""
        return int(self.limit) - 1


CONFIG: dict[str, Any] = {
    # A worker holds the message of the run that it executes and no other, which an idle one could execute; the third says so for runs
    # that it goes on with after it has lost the broker.
    "worker_prefetch_multiplier": 1,
    "task_acks_late": True,
    "worker_disable_prefetch": True,
    "worker_pool": RunPool,
    "task_ignore_result": True,
    # A worker that loses the broker executes its run to the end, and looks for the broker for ever.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": ANSWER_S,
    # Without socket_timeout a broker that keeps the connection and says nothing would hold up the daemon's queue for ever.
    "broker_transport_options": {
        "socket_connect_timeout": ANSWER_S,
        "socket_timeout": SILENT_BROKER_S,
        "socket_keepalive": True,
        "health_check_interval": LOOKED_AT_S,
        "max_retries": 1,
    },
    "worker_hijack_root_logger": False,
}

VERIFIED = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


def app_arguments(settings: AutomationSettings) -> dict[str, Any]:
    """Arguments of dagster_celery's app, the same for launcher and workers."""
    broker = None if settings.celery_broker_url is None else settings.celery_broker_url.get_secret_value()
    return {
        "broker": broker,
        "backend": NO_RESULTS,
        "include": [],
        # By itself kombu takes any certificate of a Redis.
        "config_source": CONFIG | ({"broker_use_ssl": VERIFIED} if broker is not None and broker.startswith("rediss:") else {}),
        "default_queue": HOURS,
    }


class CeleryLauncher(CeleryRunLauncher):  # type: ignore[misc]
    """Sends each run to the queue of its assets.

    Unlike its base it asks no result backend after runs: one that was emptied would end every run. Each message has a connection of its
    own: that the broker has left one that is kept, Celery learns by losing the message, or never.
    """

    @classmethod
    def of(cls, settings: Settings, inst_data: ConfigurableClassData | None) -> Self:
        """The launcher of the settings."""
        code_version()
        return cls(**app_arguments(settings), inst_data=inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """False: the heartbeat of a run says whether it lives."""
        return False

    @property
    def supports_resume_run(self) -> bool:
        """False: the next run finds the finished work of this one."""
        return False

    def terminate(self, run_id: str) -> bool:
        """Interrupt a run as by Ctrl-C.

        The sensor end_dead_runs cancels one that no worker took, and stops one whose worker is not reached.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or TASK_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        try:
            with self.celery.connection_for_write() as connection:
                self.celery.control.revoke(run.tags[TASK_TAG], terminate=True, signal="SIGINT", connection=connection)
        except OperationalError as failed:
            self._instance.report_engine_event(f"The broker is away ({type(failed).__name__}). The run is stopped by its heartbeat.", run)
        return True

    def launch_run(self, context: LaunchRunContext) -> None:
        """Send a run to the queue of its assets.

        A broker that is away fails nothing: the run goes back into Dagster's queue as one that no worker took.
        """
        run, settings = context.dagster_run, load_settings()
        queue = queue_of(run, settings)
        if queue == TRAINER:
            queue = trainer_queue(process_database(settings), run)
        if run.job_code_origin is None:
            raise AssertionError("a run that Dagster's queue hands out has an origin")
        arguments = ExecuteRunArgs(run.job_code_origin, run.run_id, self._instance.get_ref(), set_exit_code_on_failure=True)
        # Before the message is sent: a free worker looks for this note at once.
        expect_worker(process_database(settings), run.run_id)
        # A new id each time that the run is handed over: only the newest message may claim it.
        tags = {TASK_TAG: f"{run.run_id}-{os.urandom(4).hex()}", QUEUE_TAG: queue}
        tags |= {CODE_TAG: code_version(), JUDGE_TAG: settings.judge_model}
        if queue in (HOURS, JUDGE):
            # A backfill of the UI asks for no retry; with workers one that is lost with its machine is nothing unusual.
            tags |= {name: value for name, value in RETRIED.items() if name not in run.tags}
        self._instance.add_run_tags(run.run_id, tags)
        try:
            with self.celery.connection_for_write() as connection:
                _drop_expired(connection, queue)
                # By its name: dagster_celery makes a task for each run, which the process then keeps.
                self.celery.send_task(
                    TASK_EXECUTE_JOB_NAME,
                    kwargs={"execute_job_args_packed": pack_value(arguments)},
                    task_id=tags[TASK_TAG],
                    queue=queue,
                    routing_key=f"{queue}.{TASK_EXECUTE_JOB_NAME}",
                    expires=EXPIRES_S,
                    retry=False,
                    connection=connection,
                )
        except (OperationalError, RedisError) as failed:
            self._instance.report_engine_event(f"The broker took no message ({type(failed).__name__}). The run is sent again.", run)
            return
        self._instance.report_engine_event(f"Sent to the workers of the queue {queue}.", run)


def _drop_expired(connection: Connection, queue: str) -> None:
    """Remove a queue's oldest messages while they have expired.

    RabbitMQ does that by itself, Redis leaves it to workers.
    """
    redis = getattr(connection.default_channel, "client", None)
    while redis is not None and (oldest := redis.lindex(queue, -1)) is not None:
        try:
            expires = json.loads(oldest)["headers"].get("expires")
        except (ValueError, KeyError, TypeError, AttributeError):
            # Not Celery's: another program uses this list.
            _LOG.warning(f"The list {queue} of the broker holds what is not Celery's. Give babylon_rl a database of Redis of its own.")
            return
        if expires is None or datetime.fromisoformat(expires) > datetime.now(UTC):
            return
        redis.lrem(queue, -1, oldest)


class ClaimedTask(Task):  # type: ignore[misc]
    """Task that executes its run, unless another worker has it, or code or judge do not fit."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Claim the run of the message, then execute it; otherwise say why not."""
        try:
            return self._execute(*args, **kwargs)
        finally:
            # A process of Celery's pool leaves by os._exit, a second after its run.
            stop_traces()

    def _execute(self, *args: Any, **kwargs: Any) -> Any:
        run_id = _run_of(kwargs)
        settings = load_settings()
        database = process_database(settings)
        with dg.DagsterInstance.get() as instance:
            run = instance.get_run_by_id(run_id)
            why_not = None if run is None else why_refused(run, code_version(), settings.judge_model)
            if why_not is not None:
                refuse_run(instance, database, run_id, why_not)
                _LOG.error(why_not)
                # What does not fit one run will not fit the next; a worker that went on would refuse them all.
                self.app.control.shutdown(destination=[self.request.hostname])
                return 1
            why_not = claim_run(instance, database, run_id, self.request.id, own_name())
        if why_not is not None:
            _LOG.log(logging.WARNING if run is None else logging.INFO, why_not)
            return 0
        return super().__call__(*args, **kwargs)


def worker_app(settings: AutomationSettings) -> Celery:
    """The app of a worker, with the task that executes a run."""
    arguments = app_arguments(settings)
    arguments["task_default_queue"] = arguments.pop("default_queue")
    app = make_app(arguments)
    create_execute_job_task(app, base=ClaimedTask, shared=False)  # a shared task is registered in every app of the process
    signals.worker_process_init.connect(_leave_terminal, weak=False)
    signals.task_failure.connect(_report_lost, weak=False)
    signals.setup_logging.connect(_keep_logging, weak=False)
    return app


def load_ahead(settings: Settings, queues: tuple[str, ...]) -> None:
    """Load what runs of some queues need, beside the definitions.

    Runs are forked from this process: each is spared the seconds and shares the memory.
    """
    from babylon_rl.judge.model_scoring import load_judge_libraries
    from babylon_rl.reporting.plots import bar_plot

    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
    start_traces(settings.otel_exporter_otlp_endpoint)
    stop_traces()
    bar_plot("", "", [("", 1.0)])
    if {HOURS, JUDGE} & set(queues):
        load_judge_libraries(settings)
    # Celery collects garbage before each fork. What is frozen it passes over, and the processes of runs do not copy it.
    gc.collect()
    gc.freeze()


def run_worker(settings: AutomationSettings, queues: tuple[str, ...], runs: int, name: str) -> int:
    """Execute runs of some queues until a signal ends the worker; its exit code.

    SIGTERM or Ctrl-C: no further run is taken, and those that are executed end first.
    """
    app = worker_app(settings)
    # A process for each run: what a library leaves in memory or on a GPU ends with it.
    options = ["--loglevel=WARNING", "--max-tasks-per-child=1", f"--concurrency={runs}", f"--hostname={name}@%h", "-Ofair"]
    try:
        app.worker_main(["worker", *options, f"--queues={','.join(queues)}", "--without-mingle", "--without-gossip"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _run_of(arguments: dict[str, Any]) -> str:
    return unpack_value(arguments["execute_job_args_packed"], as_type=ExecuteRunArgs).run_id


def _leave_terminal(**_: Any) -> None:
    """Keep Ctrl-C of the terminal from a run: the worker ends after it."""
    os.setpgrp()


def _keep_logging(**_: Any) -> None:
    """Keep Celery from configuring logs."""


def _report_lost(sender: Any, exception: BaseException, kwargs: dict[str, Any], **_: Any) -> None:
    """Report a run failed whose process was killed alone, as for want of memory."""
    if not isinstance(exception, WorkerLostError):
        return
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(_run_of(kwargs))
        if run is not None and run.status == dg.DagsterRunStatus.STARTED:
            instance.report_run_failed(run, f"Its process was killed: {exception}. What it had finished is kept.")
