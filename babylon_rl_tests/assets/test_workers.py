"""Runs for Celery workers: dagster.yaml of the settings, queues by tags, and workers that do not fit."""

import contextlib
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from babylon_rl.assets.workers import CODE_TAG, JUDGE_TAG, TASK_TAG, code_version, job_tags, why_refused, worker_queues
from babylon_rl.automation.dagster_yaml import CONFIG, broker_variables, celery_config, instance_config
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.schedules import train_daily
from babylon_rl.automation.sensors import start_training
from babylon_rl.errors import MissingPackage, SettingsError, UsageError
from babylon_rl.serving.admin_api import AdminApi, AdminRequest
from babylon_rl.serving.admin_shapes import TriggerRequest
from babylon_rl.serving.dagster_client import QUEUE_TAG, training_tags
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import Database
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.assets.conftest import DRY, NOW, Bench, ask, repository
from babylon_rl_tests.serving.admin_server import dagster_stand_in
from babylon_rl_tests.store.servers import ROOT

BROKER = "redis://:swordfish@127.0.0.1:1/0"


@pytest.fixture
def spread(settings: Settings) -> Settings:
    """Settings with a broker."""
    return settings.model_copy(update={"celery_broker_url": SecretStr(BROKER), "max_concurrent_runs": 7})


def rendered(settings: Settings, **changed: Any) -> dict[str, Any]:
    return dict(yaml.safe_load(instance_config(settings.model_copy(update=changed))))


def test_without_settings_the_file_is_the_projects_with_the_limit_of_runs(settings: Settings):
    expected = yaml.safe_load(CONFIG.read_text())
    expected["concurrency"]["runs"] = {"max_concurrent_runs": settings.max_concurrent_runs}
    assert rendered(settings) == expected


def test_a_broker_chooses_dagsters_own_launcher_and_limits_each_queue(spread: Settings):
    made = rendered(spread)
    launcher = made["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_celery.launcher", "CeleryRunLauncher")
    assert launcher["config"]["broker"] == {"env": "CELERY_BROKER_URL"} and launcher["config"]["default_queue"] == "hours"
    assert [(limit["key"], limit["limit"]) for limit in made["concurrency"]["runs"]["tag_concurrency_limits"]] == [
        ("dagster-celery/queue", 7), ("dagster/backfill", 7),
    ]  # fmt: skip
    assert made["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}
    assert "swordfish" not in instance_config(spread)
    variables = broker_variables(spread, "postgresql+psycopg2://u@host/db")
    assert variables == {"CELERY_BROKER_URL": BROKER, "CELERY_RESULT_BACKEND": "db+postgresql+psycopg2://u@host/db"}


@pytest.mark.slow
def test_the_instance_has_the_launcher_of_the_settings_and_the_password_is_nowhere(
    database: Database, settings: Settings, spread: Settings, caplog: pytest.LogCaptureFixture
):
    database.prepare_dagster_schema()
    with open_instance(database, settings) as instance:
        assert type(instance.run_launcher).__name__ == "DefaultRunLauncher"
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 4
    with open_instance(database, spread) as instance, caplog.at_level(logging.DEBUG):
        launcher = instance.run_launcher
        assert type(launcher).__name__ == "CeleryRunLauncher" and launcher.supports_check_run_worker_health
        queue = instance.get_concurrency_config().run_queue_config
        assert queue.max_concurrent_runs == -1 and [each["limit"] for each in queue.tag_concurrency_limits] == [7, 7]
        assert "swordfish" not in f"{launcher!r} {instance.get_ref()!r} {caplog.text}"


@pytest.mark.parametrize(
    ("url", "class_name", "place"),
    [
        ("s3://bucket/some/where", "S3ComputeLogManager", {"bucket": "bucket", "prefix": "some/where"}),
        ("s3://bucket", "S3ComputeLogManager", {"bucket": "bucket", "prefix": "dagster"}),
    ],
)
def test_the_output_of_runs_goes_where_the_setting_says(settings: Settings, url: str, class_name: str, place: dict[str, str]):
    made = rendered(settings, compute_logs_url=url)["compute_logs"]
    assert made["class"] == class_name and place.items() <= made["config"].items()
    assert made["config"]["local_dir"] == str(settings.home / "dagster" / "storage")


@pytest.mark.parametrize(("url", "package"), [("gs://bucket/x", "dagster-gcp"), ("az://container/x", "dagster-azure")])
def test_an_integration_that_is_not_installed_is_named(settings: Settings, url: str, package: str):
    with pytest.raises(MissingPackage, match=f"pip install {package}"):
        rendered(settings, compute_logs_url=url)


def test_addresses_that_nothing_reads_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMPUTE_LOGS_URL", "sftp://host/logs")
    with pytest.raises(SettingsError, match="COMPUTE_LOGS_URL.*must start with s3://, gs:// or az://"):
        load_settings()
    monkeypatch.delenv("COMPUTE_LOGS_URL")
    monkeypatch.setenv("CELERY_BROKER_URL", "swordfish")
    with pytest.raises(SettingsError, match="CELERY_BROKER_URL") as refused:
        load_settings()
    assert "must start with one of redis://" in str(refused.value)


def test_jobs_carry_their_queue_where_there_are_workers(settings: Settings):
    """In a process of its own: tags are made when the code location is loaded."""
    code = (
        "import json; from babylon_rl.automation.jobs import jobs; from babylon_rl.automation.sensors import hours_follow_changes; "
        "print(json.dumps([{job.name: job.tags for job in jobs}, hours_follow_changes.run_tags]))"
    )
    environment = {"PATH": "", "HOME": str(settings.home), "CELERY_BROKER_URL": BROKER, "JUDGE_MODEL": "heuristic"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    tags, automatic = json.loads(done.stdout)
    queues = {name: (each or {}).get(QUEUE_TAG) for name, each in tags.items()}
    assert {name: queues[name] for name in ("hours", "score", "train", "ab_test_hourly", "observe")} == {
        "hours": "hours", "score": "hours", "train": "trainer", "ab_test_hourly": "evidence", "observe": "hours",
    }  # fmt: skip
    assert tags["hours"] == automatic == {QUEUE_TAG: "hours", CODE_TAG: code_version(), JUDGE_TAG: "heuristic"}
    assert tags["train"]["dagster/max_retries"] == "0"


def test_a_batch_goes_to_the_trainers_that_can_train_it(ready: Bench, spread: Settings):
    with ready.babylon.database.connect() as connection:
        batch = freeze(connection, ready.babylon.settings, NOW).batch
    assert batch is not None
    assert [training_tags(each, batch.backend) for each in (ready.babylon.settings, spread)] == [{}, {QUEUE_TAG: "trainer"}]
    assert training_tags(spread, "gpu") == {QUEUE_TAG: "trainer-gpu"}
    assert worker_queues(["hours", "trainer"], gpu=False) == ("hours", "trainer")
    assert worker_queues(["hours", "trainer"], gpu=True) == ("hours", "trainer", "trainer-gpu")
    assert worker_queues(None, gpu=False) == ("hours", "trainer", "evidence") == worker_queues(None, gpu=True)[:-1]
    assert worker_queues(["trainer-gpu"], gpu=True) == ("trainer-gpu",)
    with pytest.raises(UsageError, match="judge is not a queue. Choose from hours, trainer, trainer-gpu, evidence."):
        worker_queues(["judge"], gpu=False)


def test_code_that_is_older_or_another_of_the_same_version_refuses_a_run(spread: Settings, monkeypatch: pytest.MonkeyPatch):
    def refused(own: str, wanted: str) -> bool:
        monkeypatch.setattr("babylon_rl.assets.workers.code_version", lambda: own)
        return why_refused({TASK_TAG: "task", CODE_TAG: wanted}, spread) is not None

    assert refused("0.1.0+56.aaaa", "0.1.0+57.bbbb") and refused("0.1.0+57.aaaa", "0.1.0+57.bbbb") and refused("0.9.0+57.a", "0.10.0+57.a")
    assert not refused("0.1.0+57.aaaa", "0.1.0+57.aaaa") and not refused("0.2.0+57.aaaa", "0.1.0+57.bbbb")
    # No worker executes it, or nobody said which code it expects.
    assert why_refused({CODE_TAG: "99.0.0+999.ffff"}, spread) is why_refused({TASK_TAG: "task"}, spread) is None


def test_a_run_that_asks_for_another_judge_fails_with_a_sentence_and_nothing_is_scored(bench: Bench):
    asked = {**job_tags(bench.babylon.settings.model_copy(update={"celery_broker_url": SecretStr(BROKER)}), "hours"), TASK_TAG: "task"}
    assert why_refused(asked, bench.babylon.settings) is None
    other = why_refused(asked | {JUDGE_TAG: "openai/m"}, bench.babylon.settings)
    assert other is not None and "This worker's JUDGE_MODEL is heuristic, and openai/m where the run was asked for" in other


@pytest.mark.slow
@pytest.mark.parametrize(("broker", "assets"), [(None, None), (SecretStr(BROKER), ["training_batch", "trained_checkpoint"])])
def test_with_workers_training_and_evidence_are_runs_of_their_own(
    make_bench: Callable[..., Bench], ready: Bench, tmp_path: Path, broker: SecretStr | None, assets: list[str] | None
):
    def names(request: dg.RunRequest) -> list[str] | None:
        return request.asset_selection and [key.to_user_string() for key in request.asset_selection]

    spread = make_bench(ready.babylon.database, NOW + timedelta(days=2), **DRY, celery_broker_url=broker, training_max_trajectories=40)
    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
        dg.build_schedule_context(instance, resources={"babylon": spread.babylon}, repository_def=repository(spread)) as context,
    ):
        (daily,) = train_daily.evaluate_tick(context).run_requests
    (request,) = ask(spread, start_training).run_requests
    with dagster_stand_in() as webserver:
        api = AdminApi(spread.babylon.settings.model_copy(update={"dagster_url": webserver.url}), spread.babylon.database)
        api.trigger(AdminRequest("test", spread.babylon.now(), TriggerRequest(force=True)))
    assert [names(daily), names(request), *webserver.selected] == [assets] * 3
    queue = None if broker is None else "trainer"
    assert [daily.tags.get(QUEUE_TAG), request.tags.get(QUEUE_TAG)] == [queue] * 2


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A port where a server answers by TLS with a certificate that it made itself, and the file of that."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)

    def answer(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as spoken:
                    while spoken.recv(4096):
                        spoken.sendall(b"+OK\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=[server], daemon=True).start()
        yield server.getsockname()[1], certificate


@pytest.mark.parametrize("scheme", ["rediss", "amqps"])
def test_a_broker_must_show_a_certificate_that_is_trusted(tls_server: tuple[int, Path], scheme: str, monkeypatch: pytest.MonkeyPatch):
    port, certificate = tls_server

    def asked() -> None:
        broker = f"{scheme}://localhost:{port}/0"
        config = celery_config(Settings(_env_file=None, celery_broker_url=SecretStr(broker)))
        with Celery(broker=broker, config_source=config).connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)

    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        asked()
    if scheme == "rediss":
        # It is read from then on, and is no Redis.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(OperationalError, match="response from PING"):
            asked()
