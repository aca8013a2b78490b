"""Dagster's configuration: the project's dagster.yaml, and in it what follows from the settings.

Every class that it names is shipped by Dagster or one of its integrations. Addresses with passwords are read from the environment.
"""

from typing import Any
from urllib.parse import urlsplit

import yaml

from babylon_rl.errors import require
from babylon_rl.project_files import project_file
from babylon_rl.serving.dagster_client import HOURS, QUEUE_TAG
from babylon_rl.settings import AutomationSettings, Settings

CONFIG = project_file("dagster.yaml")
# Celery's own names: it reads both by itself, too.
BROKER, RESULTS = "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"
UPLOAD_EVERY_S = 30
ANSWER_S = 5  # of a broker, before it counts as away
SILENT_BROKER_S, LOOKED_AT_S = 15, 10  # a line to Redis that is open and silent
RESULT_DAYS = 30  # longer than any run: a run whose state has expired counts as lost


def instance_config(settings: Settings) -> str:
    """Text of the instance's dagster.yaml.

    Raises:
        MissingPackage: a package of the integration that the settings ask for is not installed.
    """
    config = yaml.safe_load(CONFIG.read_text())
    config["concurrency"]["runs"] = _limits(settings)
    if settings.celery_broker_url is not None:
        require("dagster_celery", "redis")
        celery = {
            "broker": {"env": BROKER},
            "backend": {"env": RESULTS},
            "default_queue": HOURS,
            "config_source": celery_config(settings),
        }
        config["run_launcher"] = {"module": "dagster_celery.launcher", "class": "CeleryRunLauncher", "config": celery}
    if settings.compute_logs_url is not None:
        config["compute_logs"] = _compute_logs(settings.compute_logs_url, str(settings.home / "dagster" / "storage"))
    text: str = yaml.safe_dump(config, sort_keys=False)
    return text


def broker_variables(settings: AutomationSettings, storage_url: str) -> dict[str, str]:
    """The environment of Dagster's processes and workers with a broker; states of tasks are kept beside Dagster's storage.

    In the database and not in Redis: a Redis that was emptied would make Dagster fail every run that is executed.
    """
    if settings.celery_broker_url is None:
        return {}
    return {BROKER: settings.celery_broker_url.get_secret_value(), RESULTS: f"db+{storage_url}"}


def celery_config(settings: AutomationSettings) -> dict[str, Any]:
    url = "" if settings.celery_broker_url is None else settings.celery_broker_url.get_secret_value()
    config: dict[str, Any] = {
        "broker_connection_timeout": ANSWER_S,
        "result_expires": RESULT_DAYS * 24 * 3600,
        # The daemon's queue waits until the broker takes a message; otherwise each run in it would fail.
        "task_publish_retry_policy": {"max_retries": None, "interval_start": 0, "interval_step": 1, "interval_max": 5},
    }
    if url.startswith("redis"):
        config["broker_transport_options"] = {
            "socket_connect_timeout": ANSWER_S, "socket_timeout": SILENT_BROKER_S, "socket_keepalive": True,
            "health_check_interval": LOOKED_AT_S,
        }  # fmt: skip
    if url.startswith("rediss:"):
        # By itself kombu takes any certificate of a Redis, and what a message says is executed.
        config["broker_use_ssl"] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    return config


def _limits(settings: AutomationSettings) -> dict[str, Any]:
    """With workers the limit of each queue: runs that wait for the workers of one hold up no other's."""
    most = settings.max_concurrent_runs
    if settings.celery_broker_url is None:
        return {"max_concurrent_runs": most}
    each_queue = {"key": QUEUE_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": most}
    # Runs of a backfill from a page of an asset have no tag of a job.
    backfills = {"key": "dagster/backfill", "limit": most}
    return {"max_concurrent_runs": -1, "tag_concurrency_limits": [each_queue, backfills]}


def _compute_logs(url: str, local_directory: str) -> dict[str, Any]:
    parts = urlsplit(url)
    shared = {"prefix": parts.path.strip("/") or "dagster", "local_dir": local_directory, "upload_interval": UPLOAD_EVERY_S}
    package, module, manager = {
        "s3": ("dagster_aws", "s3", "S3ComputeLogManager"),
        "gs": ("dagster_gcp", "gcs", "GCSComputeLogManager"),
        "az": ("dagster_azure", "blob", "AzureBlobComputeLogManager"),
    }[parts.scheme]
    require(package)
    account = {"storage_account": {"env": "AZURE_STORAGE_ACCOUNT_NAME"}, "default_azure_credential": {}}
    place = {"container": parts.netloc, **account} if parts.scheme == "az" else {"bucket": parts.netloc}
    return {"module": f"{package}.{module}.compute_log_manager", "class": manager, "config": place | shared}
