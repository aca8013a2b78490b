"""A network that fails between the product and each server that it uses, during one small action of the product.

The promise is the same for all: the action ends within its time limits, with its whole effect or with a sentence; with the network back
the same action succeeds, and its effect is there once. What is not promised: duplicated bytes stand for a broken peer, which only a server
with TLS is certain to be refused for; and a middlebox that acknowledges bytes and passes none holds an hour's open connection.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.errors import BabylonError, JudgeUnavailable
from babylon_rl.files import location
from babylon_rl.files.durable import sha256
from babylon_rl.models.checkpoint_store import checkpoint_named, upload_checkpoint
from babylon_rl.models.checkpoints import MANIFEST, verify
from babylon_rl.recorder import TrajectoryRecorder
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, database_sentence
from babylon_rl.store.database import Database
from babylon_rl.store.registry import read_models
from babylon_rl.training.backends.serverless import service
from babylon_rl.training.backends.serverless.runner import Times
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.judge.model_judge import NOW, add_hours, asking, count
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.models.conftest import soon_given_up
from babylon_rl_tests.object_store import ObjectStore
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.recorder.builders import AGENTS, add_users, record_steps, stored
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.serving.gateways import MESSAGES, add_version, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import model_stand_in
from babylon_rl_tests.store.pgbouncer import pgbouncer, program
from babylon_rl_tests.store.servers import free_port
from babylon_rl_tests.training.remote_play import PLAYED_NOW, TRAINABLE
from babylon_rl_tests.training.serverless_stand_in import StandIn
from babylon_rl_tests.training.test_upload import make_checkpoint

__all__ = ["soon_given_up"]
pytestmark = pytest.mark.slow

HOURS, AGENTS_AN_HOUR = 2, 5
# Time limits of one try, shorter than the product's, and what an action itself takes on a machine that others use.
CONNECT_S, POOLER_S, ANSWER_S, FLUSH_S, BROKER_S, STORAGE_CONNECT_S, STORAGE_READ_S = 2, 2, 0.5, 1.0, 1.0, 1.0, 0.3
SERVICE_READ_S, SERVICE_POST_S, SERVICE_AWAY_S, SERVICE_JOB_S, SERVICE_LAG_S = 2.0, 3.0, 0.5, 1.5, 0.3
BUSY_S = 10.0
NO_POOLER = pytest.mark.skipif(program() is None, reason="pgbouncer is not installed (apt-get install pgbouncer)")
NO_BROKER = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed (apt-get install redis-server)")


@dataclass(frozen=True)
class Action:
    """``act`` does it through the proxy and raises where it fails; ``check`` is of the effect, once it has succeeded.

    ``answer_bytes`` lie in the middle of the server's answers; the ``request`` that has an effect there holds these bytes. ``limit_s`` is
    how long the product's own time limits let it wait, and ``stalled_s`` more than the one for an answer, where there is one. Each piece of
    an answer may come ``delay_s`` late, within the limits. ``back`` waits until what stands between has seen that the network is back.
    """

    proxy: Proxy
    act: Callable[[], object]
    check: Callable[[], object]
    answer_bytes: int
    request: bytes
    limit_s: float
    stalled_s: float
    delay_s: float = 0.06
    back: Callable[[], object] = lambda: None

    def timed(self) -> str | None:
        """Do it within the time limits; return the sentence of a failure."""
        began, said = time.monotonic(), None
        try:
            self.act()
        except Exception as failed:
            said = sentence(failed)
        took_s, limit_s = time.monotonic() - began, self.limit_s + self.proxy.met * self.proxy.delay_s + BUSY_S
        assert took_s < limit_s, f"it ended after {took_s:.1f} s, and its time limits allow {limit_s:.1f} s"
        return said

    def at_request(self, act: Callable[[], None]) -> None:
        """Call ``act`` as the client sends the request."""
        self.proxy.of_client = True
        self.proxy.after(self.request, act)

    def at_answer(self, act: Callable[[], None] | None = None) -> None:
        """Call ``act`` as the server begins to answer it; None cuts the line."""

        def sent() -> None:
            self.proxy.of_client = False
            self.proxy.after(1, act)

        self.at_request(sent)


def duplicate_requests(proxy: Proxy) -> None:
    proxy.of_client = proxy.duplicates = True


FAULTS: dict[str, Callable[[Action], object]] = {
    "cut": lambda action: action.proxy.after(action.answer_bytes),
    "away": lambda action: action.proxy.cut(away=True),
    "deaf": lambda action: setattr(action.proxy, "deaf", True),
    "late": lambda action: setattr(action.proxy, "delay_s", action.delay_s),
    "truncated": lambda action: action.proxy.after(action.answer_bytes, lambda: setattr(action.proxy, "truncates", True)),
    "duplicated": lambda action: setattr(action.proxy, "duplicates", True),
    "request truncated": lambda action: action.at_request(lambda: setattr(action.proxy, "truncates", True)),
    "request duplicated": lambda action: duplicate_requests(action.proxy),
    "request repeated": lambda action: setattr(action.proxy, "repeats", True),
    "request unanswered": lambda action: action.at_request(lambda: setattr(action.proxy, "deaf", True)),
    "answer lost": lambda action: action.at_answer(),
    "answer stalled": lambda action: action.at_answer(lambda: time.sleep(action.stalled_s)),
}


def sentence(failed: Exception) -> str:
    """Words for a person; any other error is raised on."""
    if isinstance(failed, openai.APIStatusError):
        return str(failed.body)
    said = str(failed) if isinstance(failed, BabylonError) else database_sentence(failed)
    if said is None:
        raise failed
    return said


def impatient(url: str) -> str:
    """The address with the shortest time limit of connecting that libpq knows."""
    return f"{url}?connect_timeout={CONNECT_S}"


def hours_action(database: Database, proxy: Proxy, url: str, settings: Settings) -> Action:
    """Read and judge hours through ``url``."""
    with database.connect() as connection:
        windows = add_hours(connection, HOURS, AGENTS_AN_HOUR)

    def act() -> None:
        through = Database(impatient(url), database.url)
        with through.connect(autocommit=True) as connection:
            found = score_windows(connection, windows, settings, NOW)
        assert not found.quarantined
        if found.pending:  # the asset shows the reason, and the next run asks again
            raise JudgeUnavailable(next(iter(found.pending.values())))

    def check() -> None:
        for table in ("babylon_rl.episodes", "babylon_rl.episode_scores", "reward_judgments"):
            assert count(database.url, f"SELECT count(*) FROM {table}") == HOURS * AGENTS_AN_HOUR

    return Action(proxy, act, check, answer_bytes=5_000, request=b"INSERT INTO", limit_s=CONNECT_S, stalled_s=0.8)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def postgres(database: Database, settings: Settings, stack: ExitStack) -> Action:
    proxy = stack.enter_context(Proxy(database.url))
    return hours_action(database, proxy, proxy.url, settings)


@pytest.fixture
def pooler(database: Database, settings: Settings, stack: ExitStack, tmp_path: Path) -> Action:
    proxy = stack.enter_context(Proxy(stack.enter_context(pgbouncer(database.url, tmp_path, pool_size=2))))
    return hours_action(database, proxy, proxy.url, settings)


@pytest.fixture
def behind_pooler(database: Database, settings: Settings, stack: ExitStack, tmp_path: Path) -> Action:
    """The fault is between the pooler and the server, and the pooler gives up on it before long."""
    proxy = stack.enter_context(Proxy(database.url))
    more = f"server_connect_timeout = {POOLER_S}\nserver_login_retry = 1\nquery_timeout = {POOLER_S}"
    pooled = stack.enter_context(pgbouncer(proxy.url, tmp_path, pool_size=2, more=more))

    def answers() -> bool:
        try:
            with psycopg.connect(pooled, prepare_threshold=None) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    return replace(
        hours_action(database, proxy, pooled, settings), limit_s=CONNECT_S + POOLER_S, stalled_s=POOLER_S + 0.5,
        back=lambda: wait_for(answers, "the pooler to connect again"),
    )  # fmt: skip


@pytest.fixture
def recorder(database: Database, settings: Settings, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Action:
    monkeypatch.setattr("babylon_rl.recorder.writer.ANSWER_S", ANSWER_S)
    proxy = stack.enter_context(Proxy(database.url))
    with database.connect() as connection:
        add_users(connection, *AGENTS)
    opened = TrajectoryRecorder.connect(impatient(proxy.url), settings=settings)
    stack.callback(opened.close)
    begun: list[str] = []

    def act() -> None:
        for agent in AGENTS:
            with opened.trajectory(agent) as trajectory:
                record_steps(opened, trajectory, 2)
                begun.append(trajectory)
        opened.flush(FLUSH_S)

    def check() -> None:
        assert set(stored(database)) == set(begun) and set(stored(database).values()) == {(agent, 2, 2) for agent in AGENTS}
        assert opened.report().recorded == len(begun)

    return Action(proxy, act, check, answer_bytes=20, request=b"COPY", limit_s=FLUSH_S, stalled_s=ANSWER_S + 0.3, delay_s=0.03)


@pytest.fixture
def judge(database: Database, settings: Settings, stack: ExitStack) -> Action:
    answering = stack.enter_context(judging())
    proxy = stack.enter_context(Proxy(answering.url))
    asked = hours_action(database, proxy, database.url, asking(settings, proxy.url, judge_timeout_seconds=ANSWER_S))

    def check() -> None:
        asked.check()
        # Each answer that has come is kept, so that only requests without one were made again.
        assert count(database.url, "SELECT count(*) FROM babylon_rl.judge_requests") == 2 * HOURS

    # All tries of a request take three times the limit of one.
    limit_s = 2 * HOURS * 3 * ANSWER_S
    return Action(proxy, asked.act, check, answer_bytes=100, request=b"POST ", limit_s=limit_s, stalled_s=ANSWER_S + 0.3)


@pytest.fixture
def training_service(played: Connection, remote: Settings, stand_in: StandIn, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Action:
    monkeypatch.setattr(service, "READ_TIMEOUT_S", SERVICE_READ_S)
    monkeypatch.setattr(service, "POST_TIMEOUT_S", SERVICE_POST_S)
    proxy = stack.enter_context(Proxy(stand_in.url))
    through = remote.model_copy(update={"serverless_base_url": proxy.url})
    times = Times(
        timedelta(seconds=SERVICE_JOB_S), timedelta(hours=1), poll_s=0.02, longest_poll_s=0.05, list_lag_s=SERVICE_LAG_S,
        timeout_s=SERVICE_AWAY_S,
    )  # fmt: skip
    batch = freeze(played, through, PLAYED_NOW).batch
    assert batch is not None
    prepare_batch(played, batch.batch_id, through, PLAYED_NOW)
    done: list[object] = []

    def act() -> None:
        if not done:
            done.append(train_batch(played, batch.batch_id, through, PLAYED_NOW, ServerlessTrainer(through, times)))

    def check() -> None:
        (job,) = [job for job in stand_in.service.trained() if not job.deleted]
        assert len(set(job.trajectories)) == len(job.trajectories) == TRAINABLE
        assert len(stand_in.service.trained()) == 1
        assert played.execute('SELECT count(*) FROM trajectories WHERE "usedInTraining"').fetchone() == (TRAINABLE,)

    # Of three tries of one request, and of a post whose outcome is unknown.
    limit_s = 3 * SERVICE_READ_S + 2 * SERVICE_AWAY_S + SERVICE_POST_S + SERVICE_JOB_S + SERVICE_LAG_S
    return Action(proxy, act, check, answer_bytes=400, request=b"/training-jobs", limit_s=limit_s, stalled_s=SERVICE_POST_S + 0.5)


@pytest.fixture
def storage(
    object_store: ObjectStore, settings: Settings, stack: ExitStack, tmp_path: Path, soon_given_up: None, monkeypatch: pytest.MonkeyPatch
) -> Action:
    import fsspec

    once = {"mode": "standard", "total_max_attempts": 1}
    limits = {"connect_timeout": STORAGE_CONNECT_S, "read_timeout": STORAGE_READ_S, "retries": once}
    monkeypatch.setattr(location, "_TIME_LIMITS", limits)
    bucket = object_store.bucket()
    proxy = stack.enter_context(Proxy(object_store.address))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    clear = fsspec.get_filesystem_class("s3").clear_instance_cache
    clear()
    stack.callback(clear)
    made = make_checkpoint(tmp_path / "made", tmp_path / "elsewhere" / "v1.0.0", batch_id="batch-1")
    here = settings.model_copy(update={"model_storage_url": bucket})

    def act() -> None:
        upload_checkpoint(made, bucket)
        shutil.rmtree(here.home, ignore_errors=True)
        assert checkpoint_named("v1.0.0", here) is not None

    def check() -> None:
        found = here.home / "checkpoints" / "v1.0.0"
        assert verify(found) == verify(made) and sha256(found / MANIFEST) == sha256(made / MANIFEST)
        folders = object_store.files().ls(bucket.removeprefix("s3://"), detail=False)
        assert len(folders) == 1

    # The driver asks five times, with pauses of a second in all, and each file is asked for twice (soon_given_up).
    limit_s = 2 * 2 * (5 * (STORAGE_CONNECT_S + STORAGE_READ_S) + 1)
    return Action(proxy, act, check, answer_bytes=300, request=b"PUT ", limit_s=limit_s, stalled_s=STORAGE_READ_S + 0.3)


@pytest.fixture
def upstream_of_gateway(database: Database, settings: Settings, stack: ExitStack) -> Action:
    upstream = stack.enter_context(model_stand_in())
    proxy = stack.enter_context(Proxy(upstream.url))
    add_version(database, "v1.0.0")
    changed = settings.model_copy(update={"local_endpoint": proxy.url, "gateway_timeout_seconds": ANSWER_S})
    gateway = stack.enter_context(running_gateway(changed, database, writes=True))
    answered: list[str] = []

    def act() -> None:
        answer = gateway.client().chat.completions.create(model="auto", messages=MESSAGES)
        assert answer.choices[0].message.content == "hold your position"
        answered.append(answer.id)

    def check() -> None:
        good = "SELECT 1 FROM babylon_rl.gateway_calls WHERE status = 200"
        wait_for(lambda: len(rows(database, good)) >= len(answered), "the answered calls")
        assert len(rows(database, good)) == len(answered) == len(rows(database, "SELECT 1 FROM llm_call_logs"))

    return Action(proxy, act, check, answer_bytes=100, request=b"POST ", limit_s=ANSWER_S, stalled_s=ANSWER_S + 0.3)


@pytest.fixture
def database_of_gateway(database: Database, settings: Settings, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Action:
    """Answers do not wait for the database, whatever its network does."""
    upstream = stack.enter_context(model_stand_in())
    proxy = stack.enter_context(Proxy(database.url))
    add_version(database, "v1.0.0")
    changed = settings.model_copy(update={"local_endpoint": upstream.url})
    through = Database(proxy.url, proxy.url)
    gateway = stack.enter_context(running_gateway(changed, through, writes=True))
    wait_for(lambda: gateway.gateway.state.reads, "the versions")
    answered: list[str] = []

    def act() -> None:
        raw = gateway.client().chat.completions.with_raw_response.create(model="auto", messages=MESSAGES)
        assert raw.headers["x-babylon-version"] == "v1.0.0"
        answered.append("")

    def check() -> None:
        wait_for(lambda: len(rows(database, "SELECT 1 FROM llm_call_logs")) >= len(answered), "the answered calls", 90)
        assert len(rows(database, "SELECT 1 FROM llm_call_logs")) == len(answered)

    return Action(proxy, act, check, answer_bytes=20, request=b"llm_call_logs", limit_s=0, stalled_s=0.8)


@pytest.fixture
def broker(settings: Settings, stack: ExitStack, tmp_path: Path) -> Action:
    """A task in a worker's queue at Redis, as the launcher sends it; the queue's daemon repeats it without end, here once."""
    from celery import Celery
    from kombu.exceptions import OperationalError

    from babylon_rl.automation.dagster_yaml import celery_config

    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    proxy = stack.enter_context(Proxy(f"redis://127.0.0.1:{port}/0"))
    chosen = settings.model_copy(update={"celery_broker_url": SecretStr(proxy.url)})
    config = celery_config(chosen)
    limits = {"socket_connect_timeout": BROKER_S, "socket_timeout": BROKER_S}
    config |= {"broker_transport_options": config["broker_transport_options"] | limits, "broker_connection_timeout": BROKER_S}
    config["task_publish_retry_policy"] |= {"max_retries": 1, "interval_max": 0}
    app = Celery("test", broker=proxy.url)
    app.conf.update(config)
    stack.callback(app.close)

    def redis(*words: str) -> str:
        return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, check=False).stdout

    wait_for(lambda: "PONG" in redis("ping"), "redis")
    sent: list[str] = []

    def act() -> None:
        sent.append(f"run-{len(sent)}")
        try:
            app.send_task("execute_run", (sent[-1],), queue="hours", task_id=sent[-1])
        # The two last are the client library's for a server that speaks no Redis.
        except (OperationalError, OSError, AttributeError, IndexError) as failed:
            raise BabylonError(f"{type(failed).__name__}: {failed}") from failed

    def check() -> None:
        # A message whose acknowledgement was lost is sent again under its id: the worker's run has begun by then, and is not begun twice.
        waiting = re.findall(r'\\"id\\": \\"(run-\d+)|"id": "(run-\d+)', redis("lrange", "hours", "0", "-1"))
        assert sent[-1] in {found for pair in waiting for found in pair}

    # Two tries of a connection and an answer each.
    return Action(proxy, act, check, answer_bytes=5, request=b"execute_run", limit_s=4 * BROKER_S, stalled_s=BROKER_S + 0.3)


OF_POSTGRES = ("postgres", "pooler", "behind_pooler", "recorder", "database_of_gateway")
OF_HTTP = ("judge", "training_service", "storage", "upstream_of_gateway")
DEPENDENCIES = (*OF_POSTGRES, *OF_HTTP, "broker")
NEEDED = {"pooler": NO_POOLER, "behind_pooler": NO_POOLER, "broker": NO_BROKER}
QUICK = {"postgres", "recorder", "judge", "upstream_of_gateway"}  # with one fault each in `make test`; the others are long
LEFT_OUT = {
    # PgBouncer passes duplicates of its server on; nothing in clear text tells them from answers. TLS refuses them.
    ("behind_pooler", "duplicated"),
    ("behind_pooler", "request duplicated"),
    # An hour's open connection to Postgres or a pooler has no time limit of an answer.
    ("postgres", "request unanswered"),
    ("pooler", "request unanswered"),
    # A proxy repeats requests of HTTP alone, and those that lose an answer are asked once more.
    *((dependency, fault) for dependency in (*OF_POSTGRES, "broker") for fault in ("request repeated", "answer lost")),
    # To a server of HTTP or Redis bytes that come twice are another request.
    *((dependency, "request duplicated") for dependency in (*OF_HTTP, "broker")),
    # Below: the service trains what comes twice, and the model moves by two steps.
    ("training_service", "request repeated"),
}


def pairs() -> Iterator[Any]:
    for dependency in DEPENDENCIES:
        for fault in FAULTS:
            if (dependency, fault) not in LEFT_OUT:
                marks = [] if dependency in QUICK and fault == "cut" else [pytest.mark.long]
                marks += [NEEDED[dependency]] if dependency in NEEDED else []
                yield pytest.param(dependency, fault, marks=marks)


@pytest.mark.parametrize(("dependency", "fault"), pairs())
def test_an_action_ends_whole_or_with_a_sentence_and_succeeds_once_the_network_is_back(
    dependency: str, fault: str, request: pytest.FixtureRequest
) -> None:
    action: Action = request.getfixturevalue(dependency)
    FAULTS[fault](action)
    said = action.timed()
    # The gateway's answer does not wait for its database, so that the fault may come after it.
    wait_for(lambda: action.proxy.met and not action.proxy.armed, f"the fault: {fault}")
    print(dependency, fault, action.proxy.met, "->", said)
    if fault == "late" or dependency == "database_of_gateway":
        assert said is None
    elif fault in ("away", "deaf"):
        assert said is not None
    assert said != "" and not re.search(r"<\w+\(|0x[0-9a-f]{6}", said or ""), "an object is no sentence"
    action.proxy.heal()
    action.back()
    if said is None:
        action.check()
    assert action.timed() is None
    action.check()


@pytest.mark.long
def test_a_job_that_the_network_posts_twice_is_refused_and_nothing_counts_as_trained(
    training_service: Action, stand_in: StandIn, played: Connection
) -> None:
    training_service.proxy.repeats = True
    said = training_service.timed()
    assert len(stand_in.service.jobs) == 2
    assert said is not None and "the model moved by more than one step" in said and "Freeze a new batch" in said
    assert played.execute('SELECT count(*) FROM trajectories WHERE "usedInTraining"').fetchone() == (0,)
    assert read_models(played) == []


@NO_POOLER
@pytest.mark.parametrize(("of_client", "words"), [(False, "bad record mac"), (True, "The database broke off")])
def test_bytes_that_come_twice_within_a_session_are_refused_where_it_has_tls(
    of_client: bool, words: str, database: Database, settings: Settings, stack: ExitStack, tmp_path: Path
) -> None:
    """In clear text a client may take them for answers, so that only TLS, which PgBouncer has here, is certain to refuse them."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"], check=True, capture_output=True)
    tls = f"client_tls_sslmode = require\nclient_tls_key_file = {tmp_path}/key\nclient_tls_cert_file = {tmp_path}/certificate"
    proxy = stack.enter_context(Proxy(stack.enter_context(pgbouncer(database.url, tmp_path, pool_size=2, more=tls))))
    action = hours_action(database, proxy, proxy.url, settings)
    proxy.of_client = of_client
    proxy.after(action.answer_bytes, lambda: setattr(proxy, "duplicates", True))
    with pytest.raises(psycopg.OperationalError) as refused:
        action.act()
    assert words in sentence(refused.value) and proxy.met
    proxy.heal()
    action.act()
    action.check()
