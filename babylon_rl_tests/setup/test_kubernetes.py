"""The files of docs/howto/deploy/kubernetes fit Kubernetes' schemas, the settings and Dagster; a run's pod is what they say.

A stand-in for the cluster's API keeps the jobs that Dagster's own run launcher posts; one pod's command is run here.
"""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from psycopg.conninfo import conninfo_to_dict

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation import jobs
from babylon_rl.automation.jobs import KUBERNETES_TAG, trainer_tags
from babylon_rl.automation.launch import job_definition
from babylon_rl.cli import COMMANDS
from babylon_rl.errors import SettingsError
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import Database
from babylon_rl_tests.http_stand_in import Handler, served
from babylon_rl_tests.setup.test_deploy_files import DEPLOY, ROOT

FILES = DEPLOY / "kubernetes"
VALUES = yaml.safe_load((FILES / "values.yaml").read_text())
OBJECTS = [item for name in ("settings", "servers") for item in yaml.safe_load_all((FILES / f"{name}.yaml").read_text())]
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()
OTHERS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"}
IMAGE = "babylon-rl:0.1.0"
CODE_SERVER = "babylon-dagster-user-deployments-babylon-rl"
RUN_ACCOUNT = "babylon-dagster-user-deployments-user-deployments"
GPU = {
    "container_config": {"image": "babylon-rl-gpu:0.1.0", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
    "pod_spec_config": {"node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}},
}


def snake_key(key: str) -> str:
    """``maxRetries`` as ``max_retries``."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: "_" + found[1].lower(), key)


def snake(value: Any) -> Any:
    """A part of the values as the chart's templates write it into dagster.yaml."""
    return {snake_key(key): snake(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def launcher_config(kubeconfig: Path) -> dict[str, Any]:
    """The run launcher's configuration as the chart makes it of the values, at another API."""
    values = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    return {
        "load_incluster_config": False, "kubeconfig_file": str(kubeconfig), "job_namespace": "trading",
        "image_pull_policy": values["imagePullPolicy"], "service_account_name": "babylon-dagster",
        "dagster_home": "/opt/dagster/dagster_home", "instance_config_map": "babylon-dagster-instance",
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"], "env_vars": values["envVars"],
        "fail_pod_on_run_failure": values["failPodOnRunFailure"], "security_context": values["securityContext"],
        # The parts themselves are passed on as they are.
        "run_k8s_config": {snake_key(key): part for key, part in values["runK8sConfig"].items()},
    }  # fmt: skip


def instance_config(database: Database, kubeconfig: Path) -> dict[str, Any]:
    """dagster.yaml as the chart makes it of the values and its own defaults (docs/howto/kubernetes.md), on another server."""
    place, values = conninfo_to_dict(database.url), VALUES["postgresql"]
    storage = {
        "postgres_db": {
            "username": str(place["user"]), "password": {"env": "DAGSTER_PG_PASSWORD"}, "hostname": str(place.get("host", "")),
            "port": int(place.get("port") or 5432), "db_name": str(place["dbname"]), "params": values["postgresqlParams"],
        }
    }  # fmt: skip
    daemon, threads = VALUES["dagsterDaemon"], {"use_threads": True, "num_workers": 4}
    dequeue = {f"dequeue_{key}": value for key, value in threads.items()}
    return {
        "scheduler": {"module": "dagster.core.scheduler", "class": "DagsterDaemonScheduler"},
        "run_storage": {"module": "dagster_postgres.run_storage", "class": "PostgresRunStorage", "config": storage},
        "event_log_storage": {"module": "dagster_postgres.event_log", "class": "PostgresEventLogStorage", "config": storage},
        "schedule_storage": {"module": "dagster_postgres.schedule_storage", "class": "PostgresScheduleStorage", "config": storage},
        "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher_config(kubeconfig)},
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator", "config": dequeue},
        "compute_logs": {"module": "dagster.core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"},
        "sensors": threads, "schedules": threads,
        "run_monitoring": snake(daemon["runMonitoring"]), "run_retries": snake(daemon["runRetries"]),
        "concurrency": {key: snake(part) for key, part in VALUES["concurrency"].items() if key != "enabled"},
        "telemetry": VALUES["telemetry"],
        "retention": {key: part for key, part in snake(VALUES["retention"]).items() if key != "enabled"},
        **VALUES["additionalInstanceConfig"],
    }  # fmt: skip


@contextmanager
def kubernetes_api(directory: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """A kubeconfig of an API that takes jobs and keeps them."""
    posted: list[dict[str, Any]] = []

    class Api(Handler):
        def do_POST(self) -> None:
            body = self.body()
            posted.append(json.loads(body))
            self.answer(body, 201, content_type="application/json")

    with served(Api) as address:
        cluster = {"server": address}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here", "users": [{"name": "nobody", "user": {}}],
            "clusters": [{"name": "here", "cluster": cluster}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
        }  # fmt: skip
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        yield path, posted


@pytest.fixture
def launch(sample_database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """``launch(job, tags)``: the Kubernetes job of a run, posted by the launcher, and the instance's directory."""
    sample_database.prepare_dagster_schema()
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", str(conninfo_to_dict(sample_database.url).get("password") or "none"))
    deployment = VALUES["dagster-user-deployments"]["deployments"][0]
    # As the chart writes it into the code server's environment: its own objects too, and no security context.
    context = {
        "image_pull_policy": deployment["image"]["pullPolicy"], "namespace": "trading", "service_account_name": RUN_ACCOUNT,
        "volumes": deployment["volumes"], "volume_mounts": deployment["volumeMounts"], "resources": deployment["resources"],
        "env_config_maps": [f"{CODE_SERVER}-user-env", *(item["name"] for item in deployment["envConfigMaps"])],
        "env_secrets": [item["name"] for item in deployment["envSecrets"]],
        "run_k8s_config": {"pod_spec_config": {"automount_service_account_token": True}},
    }  # fmt: skip
    image = "{repository}:{tag}".format(**deployment["image"])
    pointer = ModuleCodePointer(deployment["codeServerArgs"][1], "defs", working_directory=str(ROOT))
    with kubernetes_api(tmp_path) as (kubeconfig, posted):
        home = tmp_path / "dagster"
        home.mkdir()
        (home / "dagster.yaml").write_text(yaml.safe_dump(instance_config(sample_database, kubeconfig)))
        with dg.DagsterInstance.from_config(str(home)) as instance:

            def launched(job: str, tags: dict[str, str]) -> tuple[dict[str, Any], Path, dg.DagsterInstance, str]:
                repository = RepositoryPythonOrigin(sys.executable, pointer, image, ["dagster"], {"k8s": context})
                run = instance.create_run_for_job(
                    job_definition(job, Babylon(settings, sample_database)), tags=tags, job_code_origin=JobPythonOrigin(job, repository)
                )
                instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
                return posted[-1], home, instance, run.run_id

            yield launched


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_objects_fit_the_schemas(item: dict[str, Any]) -> None:
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(item, version, strict=True)


def test_the_schemas_refuse_a_field_that_kubernetes_does_not_know() -> None:
    (gateway,) = [item for item in OBJECTS if item["kind"] == "Deployment" and "gateway" in item["metadata"]["name"]]
    wrong = json.loads(json.dumps(gateway).replace("readinessProbe", "readynessProbe"))
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_names_in_the_files_are_settings_commands_and_objects() -> None:
    given = {name for item in OBJECTS if item["kind"] in ("ConfigMap", "Secret") for name in item.get("data", item.get("stringData"))}
    assert {name.lower() for name in given - OTHERS - {"postgresql-password"}} <= set(Settings.model_fields)
    text = "\n".join((FILES / f"{name}.yaml").read_text() for name in ("servers", "values"))
    commands = re.findall(r"command: \[babylon-rl, (\w+)", text)
    assert set(commands) == {"migrate", "dagster", "serve"} <= set(COMMANDS)
    held = {(item["kind"], item["metadata"]["name"]) for item in OBJECTS}
    assert {("ConfigMap", name) for name in re.findall(r"(?:configMapRef: \{|envConfigMaps: \[\{)name: ([\w-]+)", text)} <= held
    assert {("Secret", name) for name in re.findall(r"(?:secretRef: \{|envSecrets: \[\{|SecretName: )(?:name: )?([\w-]+)", text)} <= held
    assert set(re.findall(r"image: (babylon-rl\S*)", text)) == {IMAGE}
    (release,) = re.findall(r"chart, release (\S+):", text)
    assert f"dagster=={release}" in (ROOT / "requirements.in").read_text()


def test_the_values_keep_what_the_projects_dagster_yaml_says(sample_database: Database, tmp_path: Path) -> None:
    ours, theirs = yaml.safe_load((ROOT / "dagster.yaml").read_text()), instance_config(sample_database, tmp_path)
    for name in ("telemetry", "nux", "freshness", "run_retries"):
        assert ours[name] == theirs[name]
    assert ours["concurrency"]["pools"] == theirs["concurrency"]["pools"]
    for name, part in ours["retention"].items():
        expected = part["purge_after_days"]
        assert theirs["retention"][name]["purge_after_days"] == (expected if isinstance(expected, int) else {**expected, "started": -1})
    slower = {"start_timeout_seconds", "free_slots_after_run_end_seconds"}
    assert {key: value for key, value in theirs["run_monitoring"].items() if key not in slower} == {
        key: value for key, value in ours["run_monitoring"].items() if key not in slower
    }


@pytest.mark.long
def test_a_training_gets_the_gpu_and_hours_do_not(launch: Callable[..., Any], settings: Settings) -> None:
    chosen = settings.model_copy(update={"trainer_kubernetes": json.dumps(GPU)})
    training, *_ = launch("train", {"dagster/partition": "batch-1"} | trainer_tags(chosen))
    hours, *_ = launch("hours", {"dagster/partition": "2025-10-30T14:00"})
    for job in (training, hours):
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(job, version, strict=True)
        pod = job["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] == 0
        assert pod["volumes"][-1]["name"] == "state" and not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert pod["securityContext"]["runAsNonRoot"] and pod["terminationGracePeriodSeconds"] == 120
        assert pod["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert pod["serviceAccountName"] == RUN_ACCOUNT
    pods = [job["spec"]["template"]["spec"] for job in (training, hours)]
    assert [pod.get("nodeSelector") for pod in pods] == [GPU["pod_spec_config"]["node_selector"], None]
    assert [pod["containers"][0]["image"] for pod in pods] == ["babylon-rl-gpu:0.1.0", IMAGE]
    assert [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods] == ["1", None]


@pytest.mark.long
def test_the_command_of_a_pod_does_the_run(launch: Callable[..., Any], sample_database: Database, tmp_path: Path) -> None:
    job, home, instance, run_id = launch("hours", {"dagster/partition": "2025-10-30T14:00"})
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {item["name"]: item["value"] for item in container["env"] if "value" in item} | {"DAGSTER_HOME": str(home)}
    places = {"DATABASE_URL": sample_database.url, "DIRECT_DATABASE_URL": sample_database.url, "BABYLON_RL_HOME": str(tmp_path / "state")}
    program = [sys.executable, "-m", *container["args"]]
    done = subprocess.run(program, env={**os.environ, **given, **places}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.SUCCESS
    assert container["args"][:3] == ["dagster", "api", "execute_run"] and given["DAGSTER_EVENT_BATCH_SIZE"] == "1000"


def test_the_setting_reaches_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_KUBERNETES", json.dumps(GPU))
    made = runpy.run_path(jobs.__file__)
    assert json.loads(made["train_job"].tags[KUBERNETES_TAG]) == GPU
    assert KUBERNETES_TAG not in (made["hours_job"].tags or {})


@pytest.mark.parametrize("value", ["gpu", '{"pod_spec_config": 1}', "[]"])
def test_a_pod_that_is_no_object_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_KUBERNETES", value)
    with pytest.raises(SettingsError, match="TRAINER_KUBERNETES"):
        load_settings()
