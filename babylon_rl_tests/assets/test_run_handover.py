"""Runs that are handed over to workers: each is taken once, and one that nobody takes waits again."""

import contextlib
import logging
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from kombu.exceptions import OperationalError
from pydantic import SecretStr
from redis import Redis as Client

from babylon_rl.assets.runs import SILENT_S
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.run_handover import (
    CODE_TAG,
    JUDGE_TAG,
    QUEUE_TAG,
    TASK_TAG,
    UNTAKEN_S,
    claim_run,
    code_version,
    expect_worker,
    put_back_untaken,
    queue_of,
    refuse_run,
    trainer_queue,
    why_refused,
    worker_queues,
)
from babylon_rl.automation.schedules import train_daily
from babylon_rl.automation.sensors import start_training
from babylon_rl.errors import SettingsError
from babylon_rl.processes import own_name
from babylon_rl.serving.dagster_client import DagsterClient
from babylon_rl.serving.training_control import TrainingControl
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import Database
from babylon_rl.store.run_heartbeats import beat
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.assets.conftest import DRY, NOW, Bench, ask, repository
from babylon_rl_tests.assets.dead_runs import elsewhere, gone
from babylon_rl_tests.scale.machines import Redis
from babylon_rl_tests.serving.admin_server import dagster_stand_in

STARTING = dg.DagsterRunStatus.STARTING
BROKER = "redis://:swordfish@127.0.0.1:1/0"


def origin_of(job: str) -> RemoteJobOrigin:
    """Where Dagster finds a job of ours."""
    return RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("babylon_rl"), "__repository__"), job)


def handed_over(bench: Bench, *, silent_s: float = 0) -> str:
    """A run that was sent to workers so long ago."""
    tags = {TASK_TAG: "task", "dagster/partition": "2025-10-29T14:00"}
    definition = job_definition("hours", bench.babylon)
    code = JobPythonOrigin("hours", RepositoryPythonOrigin(sys.executable, ModuleCodePointer("babylon_rl.definitions", "defs")))
    run = bench.instance.create_run_for_job(
        definition, status=STARTING, tags=tags, remote_job_origin=origin_of("hours"), job_code_origin=code
    ).run_id
    expect_worker(bench.babylon.database, run)
    later(bench, silent_s)
    return run


def later(bench: Bench, seconds: float) -> None:
    """Let so much time pass since all that was heard."""
    bench.execute("""UPDATE babylon_rl.run_heartbeats SET "seenAt" = "seenAt" - make_interval(secs => %s)""", seconds)


def taken(bench: Bench, run: str, holder: str, task: str = "task") -> str | None:
    return claim_run(bench.instance, bench.babylon.database, run, task, holder)


def put_back(bench: Bench) -> list[str]:
    return put_back_untaken(bench.instance, bench.babylon.database)


def status(bench: Bench, run: str) -> str:
    return bench.instance.get_run_by_id(run).status.value


def test_of_two_workers_with_a_message_of_the_same_run_one_gets_it(ready: Bench):
    run = handed_over(ready)
    assert taken(ready, run, own_name()) is None
    assert taken(ready, run, elsewhere()) == f"Run {run} was taken by another worker."
    with ready.babylon.database.connect() as connection:
        assert beat(connection, run, own_name()) and not beat(connection, run, elsewhere())


def test_a_run_that_no_worker_takes_waits_again_and_an_old_message_of_it_is_void(ready: Bench):
    run = handed_over(ready, silent_s=UNTAKEN_S - 5)
    assert put_back(ready) == []
    later(ready, 6)
    assert put_back(ready)[0].startswith(f"Run {run} waits again. No worker took it within 6")
    assert status(ready, run) == "QUEUED" and put_back(ready) == []
    assert taken(ready, run, own_name()) == f"Run {run} does not wait for a worker any more: queued."


def test_a_run_whose_daemon_died_before_it_was_sent_waits_again_where_there_are_workers(ready: Bench):
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("babylon_rl"), "__repository__"), "hours")
    tags = {"dagster/partition": "2025-10-29T14:00"}
    definition = job_definition("hours", ready.babylon)
    run = ready.instance.create_run_for_job(definition, status=STARTING, tags=tags, remote_job_origin=origin).run_id
    assert put_back_untaken(ready.instance, ready.babylon.database, by_workers=False) == put_back(ready) == []
    later(ready, UNTAKEN_S + 1)
    assert put_back_untaken(ready.instance, ready.babylon.database, by_workers=False) == []  # Dagster's own launcher is starting it
    assert put_back(ready) == [f"Run {run} waits again. No worker took it within 61 s."]
    assert status(ready, run) == "QUEUED"


def test_a_run_whose_worker_died_before_it_began_waits_again_and_one_that_loads_is_left_alone(ready: Bench):
    dead, far, slow = (handed_over(ready) for _ in range(3))
    assert [taken(ready, run, holder) for run, holder in ((dead, gone()), (far, elsewhere()), (slow, own_name()))] == [None] * 3
    assert len(put_back(ready)) == 1 and status(ready, dead) == "QUEUED"
    later(ready, SILENT_S + 1)
    assert "silent for " in put_back(ready)[0]
    assert [status(ready, run) for run in (dead, far, slow)] == ["QUEUED", "QUEUED", "STARTING"]


def test_of_a_run_that_was_handed_over_again_only_the_newest_message_counts(ready: Bench):
    run = handed_over(ready)
    ready.instance.add_run_tags(run, {TASK_TAG: "newer"})
    assert taken(ready, run, own_name()) == f"Run {run} was handed over again since this message."
    assert taken(ready, run, own_name(), "newer") is None


def test_a_worker_that_refuses_a_run_puts_it_back_only_if_nobody_has_taken_it(ready: Bench):
    held, waiting = handed_over(ready), handed_over(ready)
    assert taken(ready, held, elsewhere()) is None
    for run in (held, waiting):
        refuse_run(ready.instance, ready.babylon.database, run, "The code is older.")
    assert [status(ready, run) for run in (held, waiting)] == ["STARTING", "QUEUED"]
    with ready.babylon.database.connect() as connection:
        assert beat(connection, held, elsewhere()) and not beat(connection, held, own_name())


def test_a_run_that_began_or_was_canceled_is_not_taken(ready: Bench):
    run = handed_over(ready)
    ready.instance.report_run_canceling(ready.instance.get_run_by_id(run))
    assert taken(ready, run, own_name()) == f"Run {run} does not wait for a worker any more: canceling."
    assert "it was deleted" in (taken(ready, "ffffffff-0000-0000-0000-000000000000", own_name()) or "")


@pytest.mark.parametrize(
    ("job", "assets", "judge", "queue"),
    [
        ("hours", None, "heuristic", "hours"), ("hours", None, "openai/m", "judge"), ("score", None, "heuristic", "hours"),
        ("train", None, "heuristic", "trainer"), ("train", ["benchmark_report"], "heuristic", "evidence"), ("observe", None, "x", "hours"),
        ("__ASSET_JOB", ["window_groups"], "openai/m", "hours"), ("__ASSET_JOB", ["scored_groups"], "openai/m", "judge"),
        ("train", ["training_batch", "trained_checkpoint"], "x", "trainer"), ("judge_report_daily", None, "x", "judge"),
    ],
)  # fmt: skip
def test_a_run_goes_to_the_queue_of_its_most_demanding_asset(
    settings: Settings, job: str, assets: list[str] | None, judge: str, queue: str
):
    keys = None if assets is None else {dg.AssetKey(name) for name in assets}
    run = dg.DagsterRun(job, asset_selection=keys)
    assert queue_of(run, settings.model_copy(update={"judge_model": judge})) == queue
    assert queue_of(run.with_tags({"dagster-celery/queue": "evidence"}), settings) == "evidence"


def test_a_batch_goes_to_the_trainers_that_can_train_it(ready: Bench):
    with ready.babylon.database.connect() as connection:
        batch = freeze(connection, ready.babylon.settings, NOW).batch
    runs = [dg.DagsterRun("train", tags={"dagster/partition": one}) for one in (batch.batch_id, "batch-of-others")]
    assert [trainer_queue(ready.babylon.database, run) for run in runs] == ["trainer", "trainer"]
    ready.execute("""UPDATE babylon_rl.batches SET "backend" = 'gpu'""")
    assert [trainer_queue(ready.babylon.database, run) for run in runs] == ["trainer-gpu", "trainer"]
    assert worker_queues(["judge", "trainer"], gpu=False) == ("judge", "trainer")
    assert worker_queues(["judge", "trainer"], gpu=True) == ("judge", "trainer", "trainer-gpu")
    assert worker_queues(None, gpu=False) == ("hours", "judge", "trainer", "evidence") == worker_queues(None, gpu=True)[:-1]
    assert worker_queues(["trainer-gpu"], gpu=True) == ("trainer-gpu",)


def test_code_that_is_older_or_another_of_the_same_version_refuses_a_run():
    def refused(own: str, wanted: str) -> bool:
        return why_refused(dg.DagsterRun("hours", tags={CODE_TAG: wanted}), own, "heuristic") is not None

    assert refused("0.1.0+56.aaaa", "0.1.0+57.bbbb") and refused("0.1.0+57.aaaa", "0.1.0+57.bbbb") and refused("0.9.0+57.a", "0.10.0+57.a")
    assert not refused("0.1.0+57.aaaa", "0.1.0+57.aaaa") and not refused("0.2.0+57.aaaa", "0.1.0+57.bbbb")
    run = dg.DagsterRun("hours", tags={CODE_TAG: "99.0.0+999.ffff"})
    assert "Install the same version here" in (why_refused(run, code_version(), "heuristic") or "")


@pytest.mark.parametrize(
    ("queue", "daemon", "worker", "takes"),
    [
        ("judge", "openai/m", "openai/m", True), ("judge", "openai/m", "heuristic", False), ("trainer", "openai/m", "openai/n", False),
        ("hours", "heuristic", "openai/m", False), ("hours", "openai/m", "heuristic", True), ("evidence", "openai/m", "heuristic", True),
    ],
)  # fmt: skip
def test_a_worker_with_another_judge_takes_nothing_that_is_scored(queue: str, daemon: str, worker: str, takes: bool):
    run = dg.DagsterRun("hours", tags={QUEUE_TAG: queue, JUDGE_TAG: daemon})
    why_not = why_refused(run, code_version(), worker)
    assert why_not is None if takes else f"This worker's JUDGE_MODEL is {worker}" in (why_not or "")


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
        control = TrainingControl(spread.babylon.database, spread.babylon.settings, DagsterClient(webserver.url))
        control.trigger(spread.babylon.now(), force=True)
    assert [names(daily), names(request), *webserver.selected] == [assets] * 3


@pytest.mark.slow
def test_runs_that_wait_for_the_workers_of_one_queue_hold_up_no_other(ready: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CELERY_BROKER_URL", BROKER)
    monkeypatch.setenv("MAX_CONCURRENT_RUNS", "2")
    ready.babylon.database.prepare_dagster_schema()
    with open_instance(ready.babylon.database, ready.babylon.settings) as instance:
        bench = replace(ready, instance=instance)
        for _ in range(2):
            instance.add_run_tags(handed_over(bench), {QUEUE_TAG: "hours"})
        for job in ("hours", "train", "train", "train"):
            run = instance.create_run_for_job(job_definition(job, ready.babylon), remote_job_origin=origin_of(job))
            instance.run_coordinator.submit_run(SubmitRunContext(run, None))
        next_runs = QueuedRunCoordinatorDaemon(5)._get_runs_to_dequeue(instance, instance.get_concurrency_config(), None)
    assert [run.job_name for run in next_runs] == ["train", "train"]


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
    from babylon_rl.automation.celery_runs import worker_app

    port, certificate = tls_server

    def asked() -> None:
        broker = SecretStr(f"{scheme}://localhost:{port}/0")
        with worker_app(Settings(_env_file=None, celery_broker_url=broker)).connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)

    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        asked()
    if scheme == "rediss":
        # It is read from then on, and is no Redis.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(OperationalError, match="response from PING"):
            asked()


@pytest.mark.slow
def test_a_broker_that_keeps_its_connections_and_says_nothing_counts_as_away(monkeypatch: pytest.MonkeyPatch):
    from babylon_rl.automation.celery_runs import CONFIG, worker_app

    monkeypatch.setitem(CONFIG["broker_transport_options"], "socket_timeout", 0.5)  # 15 s otherwise
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made and never read
        url = SecretStr(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with pytest.raises(OperationalError, match="Timeout"):
            worker_app(Settings(_env_file=None, celery_broker_url=url)).send_task("run", queue="hours", retry=False)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A broker, where it is installed."""
    if shutil.which(Redis.program) is None:
        pytest.skip(Redis.missing())
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def sending(ready: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The bench with an instance whose launcher sends runs to the broker."""
    monkeypatch.setenv("CELERY_BROKER_URL", redis.url)
    monkeypatch.setattr("babylon_rl.automation.celery_runs.process_database", lambda _: ready.babylon.database)
    ready.babylon.database.prepare_dagster_schema()
    with open_instance(ready.babylon.database, ready.babylon.settings) as instance:
        yield replace(ready, instance=instance)


@pytest.mark.slow
def test_a_run_is_canceled_though_the_broker_has_left_a_connection_that_was_used_before(sending: Bench, redis: Redis):
    def says_so(run: str) -> bool:
        return any("The broker is away" in (entry.message or "") for entry in sending.instance.all_logs(run))

    before, run = handed_over(sending), handed_over(sending)
    assert sending.instance.run_launcher.terminate(before)
    redis.kill()
    assert sending.instance.run_launcher.terminate(run) and status(sending, run) == "CANCELING"
    assert [says_so(before), says_so(run)] == [False, True]


@pytest.mark.slow
def test_a_queue_without_a_worker_does_not_grow(sending: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch):
    def sent(expires_s: float) -> int:
        monkeypatch.setattr("babylon_rl.automation.celery_runs.EXPIRES_S", expires_s)
        run = sending.instance.get_run_by_id(handed_over(sending))
        sending.instance.run_launcher.launch_run(LaunchRunContext(run, None))
        with Client.from_url(redis.url) as broker:
            return int(broker.llen("hours"))

    assert sent(1) == 1
    time.sleep(1)
    assert [sent(60), sent(60)] == [1, 2]


def test_each_app_of_a_process_executes_runs_by_its_own_task(settings: Settings):
    from dagster_celery.config import TASK_EXECUTE_JOB_NAME

    from babylon_rl.automation.celery_runs import worker_app

    apps = [worker_app(settings) for _ in range(2)]
    assert all(app.tasks[TASK_EXECUTE_JOB_NAME].app is app for app in apps)


@pytest.mark.slow
def test_the_setting_chooses_the_launcher_and_its_password_is_nowhere(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    database.prepare_dagster_schema()
    with open_instance(database, settings) as instance:
        assert isinstance(instance.run_launcher, DefaultRunLauncher)
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 4
    monkeypatch.setenv("CELERY_BROKER_URL", BROKER)
    monkeypatch.setenv("MAX_CONCURRENT_RUNS", "7")
    with open_instance(database, settings) as instance, caplog.at_level(logging.DEBUG):
        launcher = instance.run_launcher
        assert type(launcher).__name__ == "CeleryLauncher" and not launcher.supports_check_run_worker_health
        queue = instance.get_concurrency_config().run_queue_config
        assert queue.max_concurrent_runs == -1 and [each["limit"] for each in queue.tag_concurrency_limits] == [7]
        assert "swordfish" not in f"{launcher!r} {instance.get_ref()!r} {load_settings()!r} {caplog.text}"
    monkeypatch.setenv("CELERY_BROKER_URL", "swordfish")
    with pytest.raises(SettingsError, match="CELERY_BROKER_URL") as refused:
        load_settings()
    assert "must start with one of redis://" in str(refused.value)
