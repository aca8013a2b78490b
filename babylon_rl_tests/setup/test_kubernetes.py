"""The files of docs/howto/deploy/kubernetes fit Kubernetes' schemas, the settings and the project's dagster.yaml."""

import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from babylon_rl.assets.partitions import AS_LOADED
from babylon_rl.automation import jobs
from babylon_rl.automation.jobs import KUBERNETES_TAG, trainer_tags
from babylon_rl.cli import COMMANDS
from babylon_rl.errors import SettingsError
from babylon_rl.settings import Settings, load_settings
from babylon_rl_tests.setup.test_deploy_files import DEPLOY, ROOT

FILES = DEPLOY / "kubernetes"
VALUES = yaml.safe_load((FILES / "values.yaml").read_text())
OBJECTS = [item for name in ("settings", "servers") for item in yaml.safe_load_all((FILES / f"{name}.yaml").read_text())]
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()
OTHERS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"}
IMAGE = "babylon-rl:0.1.0"
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


def instance_config() -> dict[str, Any]:
    """Parts of dagster.yaml as the chart makes them of the values."""
    daemon = VALUES["dagsterDaemon"]
    return {
        "run_monitoring": snake(daemon["runMonitoring"]), "run_retries": snake(daemon["runRetries"]),
        "concurrency": {key: snake(part) for key, part in VALUES["concurrency"].items() if key != "enabled"},
        "telemetry": VALUES["telemetry"],
        "retention": {key: part for key, part in snake(VALUES["retention"]).items() if key != "enabled"},
        **VALUES["additionalInstanceConfig"],
    }  # fmt: skip


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
    assert f"\ndagster=={release} " in (ROOT / "requirements.lock").read_text()


def test_the_values_keep_what_the_projects_dagster_yaml_says() -> None:
    ours, theirs = yaml.safe_load((ROOT / "dagster.yaml").read_text()), instance_config()
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


def pod(config: dict[str, Any]) -> dict[str, Any]:
    """A pod with one container of such parts, which the tag or the launcher's configuration gives in Dagster's spelling."""
    spec, container = camel(config.get("pod_spec_config", {})), camel(config.get("container_config", {}))
    named = {"name": "dagster", "image": IMAGE} | container
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "run"}, "spec": {"containers": [named]} | spec}


def camel(part: dict[str, Any]) -> dict[str, Any]:
    """Keys such as ``node_selector`` as Kubernetes has them."""
    return {re.sub(r"_(\w)", lambda found: found[1].upper(), key): value for key, value in part.items()}


def test_the_parts_of_a_runs_pod_fit_the_schemas(settings: Settings) -> None:
    values, deployment = VALUES["runLauncher"]["config"]["k8sRunLauncher"], VALUES["dagster-user-deployments"]["deployments"][0]
    shared = values["runK8sConfig"]["podSpecConfig"] | {"volumes": deployment["volumes"]}
    mounted = {
        "volume_mounts": deployment["volumeMounts"],
        "resources": deployment["resources"],
        "security_context": values["securityContext"],
    }
    tag = json.loads(trainer_tags(settings.model_copy(update={"trainer_kubernetes": json.dumps(GPU)}))[KUBERNETES_TAG])
    for made in ({"pod_spec_config": shared, "container_config": mounted}, tag):
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(pod(made), version, strict=True)
    assert shared["terminationGracePeriodSeconds"] == 120 and shared["securityContext"]["runAsNonRoot"]
    assert not [volume for volume in shared["volumes"] if "persistentVolumeClaim" in volume]


def test_the_setting_reaches_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_KUBERNETES", json.dumps(GPU))
    assert json.loads(jobs.trainer_tags(load_settings())[KUBERNETES_TAG]) == GPU
    assert dict(jobs.train_job.tags) == jobs.trainer_tags(AS_LOADED)
    assert KUBERNETES_TAG not in (jobs.hours_job.tags or {})


@pytest.mark.parametrize("value", ["gpu", '{"pod_spec_config": 1}', "[]"])
def test_a_pod_that_is_no_object_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_KUBERNETES", value)
    with pytest.raises(SettingsError, match="TRAINER_KUBERNETES"):
        load_settings()
