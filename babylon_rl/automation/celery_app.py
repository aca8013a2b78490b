"""App of the Celery workers that execute runs: dagster_celery's own, with our settings.

A run that is terminated in the UI is interrupted by Celery, and only the worker knows that a person asked for it: it tells Dagster.
"""

import os
from typing import Any

import dagster as dg
from celery import Celery, signals
from dagster_celery.app import app

from babylon_rl.assets.workers import TASK_TAG, code_version
from babylon_rl.automation.dagster_yaml import celery_config
from babylon_rl.settings import load_settings
from babylon_rl.traces import stop_traces


def worker_app() -> Celery:
    app.conf.update(
        celery_config(load_settings()),
        # A worker holds the message of the run that it executes and no other, which an idle one could execute. A message that comes again
        # does no harm: Dagster ignores a run that has begun.
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        # A process for each run: what a library leaves in memory or on a GPU ends with it.
        worker_max_tasks_per_child=1,
        # A worker that loses the broker executes its run to the end, and tries the broker again without limit.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_hijack_root_logger=False,
    )
    # Ctrl-C of the terminal does not reach a run: the worker ends after it.
    signals.worker_process_init.connect(lambda **_: os.setpgrp(), weak=False)
    # The run's spans are sent now: a process of Celery's pool leaves by os._exit.
    signals.task_postrun.connect(lambda **_: stop_traces(), weak=False)
    signals.task_revoked.connect(_report_canceled, weak=False)
    code_version()
    return app


def _report_canceled(request: Any, **_: Any) -> None:
    """Tell Dagster that a person terminated a run, so that it ends as canceled and is not retried."""
    with dg.DagsterInstance.get() as instance:
        for run in instance.get_runs(dg.RunsFilter(tags={TASK_TAG: request.id})):
            if run.status == dg.DagsterRunStatus.STARTED:
                instance.report_run_canceling(run)
            elif not run.is_finished:
                instance.report_run_canceled(run)
