"""Secrets after a run of everything: planted in every setting that holds one, then searched for wherever something was written."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.serving.dagster_client import LOCATION, REPOSITORY, DagsterClient
from babylon_rl.setting_sources import secret_settings
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.e2e.dev import ask
from babylon_rl_tests.http_stand_in import Handler, served
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scale.machines import PASSWORD, Redis, site
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.tiny_model import make_base
from babylon_rl_tests.training.remote_play import HOURS, PLAYED_NOW
from babylon_rl_tests.training.serverless_stand_in import StandIn
from babylon_rl_tests.training.serverless_stand_in.base import base_tokenizer
from babylon_rl_tests.training.weights_and_biases import weights_and_biases

HOUR = "2025-10-29T14:00"
# Read by settings, or by libraries from the environment.
NAMES = (
    *(name.upper() for name in Settings.model_fields if name in secret_settings(Settings)),
    "LOCAL_ENDPOINT", "EMBEDDING_ENDPOINT", "MODEL_STORAGE_URL", "GEMINI_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN",
)  # fmt: skip
CANARIES = {name: f"canary{number:02}x{name.lower().replace('_', '')}q" for number, name in enumerate(NAMES)}
DRY = {"TRAINER": "dry", "ITERATIONS": "1", "WANDB_MODE": "disabled", "AUTOMATION_STATUS": "stopped"}


@contextmanager
def repeating() -> Iterator[str]:
    """A service that refuses with its caller's credentials, and the path that it was asked, in its error."""

    class Answers(Handler):
        def do_POST(self) -> None:
            self.body()
            said = f"refused: {self.headers.get('authorization')} at {self.path}"
            self.answer(json.dumps({"error": {"message": said, "code": said}}).encode(), 401, content_type="application/json")

        do_GET = do_POST

    with served(Answers) as url:
        yield url


@contextmanager
def process_lists() -> Iterator[set[str]]:
    """Command lines of all processes of this machine that were seen in the block."""
    seen, ended = set[str](), threading.Event()

    def look() -> None:
        while not ended.wait(0.25):
            seen.update(" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@contextmanager
def role_of(database: Database) -> Iterator[str]:
    """The address of a game's database for a role whose password is a canary."""
    name = f"canary_{os.getpid()}"
    with database.connect(autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{CANARIES['DATABASE_URL']}'")
    yield re.sub("//[^@]*@", f"//{name}:{CANARIES['DATABASE_URL']}@", database.url)
    with database.connect(autocommit=True) as connection:
        connection.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
        connection.execute(f"DROP OWNED BY {name}")
        connection.execute(f"DROP ROLE {name}")


def planted(service: str, role: str, home: Path) -> dict[str, str]:
    """The environment of every process, with a canary in each secret."""
    address = service.partition("://")[2]
    values = dict(CANARIES) | {
        "DATABASE_URL": role,
        "DIRECT_DATABASE_URL": role,
        "CELERY_BROKER_URL": f"redis://:{CANARIES['CELERY_BROKER_URL']}@127.0.0.1:1/0",
        "DISCORD_WEBHOOK_URL": f"{service}/{CANARIES['DISCORD_WEBHOOK_URL']}",
        "ALERT_WEBHOOK_URL": f"{service}/{CANARIES['ALERT_WEBHOOK_URL']}",
        "LOCAL_ENDPOINT": f"http://user:{CANARIES['LOCAL_ENDPOINT']}@{address}/v1",
        "EMBEDDING_ENDPOINT": f"http://user:{CANARIES['EMBEDDING_ENDPOINT']}@{address}/v1",
        "MODEL_STORAGE_URL": f"ftp://user:{CANARIES['MODEL_STORAGE_URL']}@127.0.0.1:1/models",
    }
    return environment(home, **values, **DRY, JUDGE_MODEL="openai/scripted", JUDGE_BASE_URL=f"{service}/v1")


def forms(secret: str) -> list[str]:
    """A secret as it is, and the parts of base64 that show it whatever stands before and behind it."""
    shifted = [b64encode(b" " * shift + secret.encode()).decode() for shift in range(3)]
    return [secret, *(coded[4 * (shift > 0) : -4] for shift, coded in enumerate(shifted))]


def found_in(text: str, canaries: dict[str, str]) -> list[str]:
    """Names of the secrets that a text holds, as they are or in base64, as in the header of basic authentication."""
    return [name for name, canary in canaries.items() if any(form in text for form in forms(canary))]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_no_secret_is_written_anywhere_by_a_run_of_everything(sample_database: Database, tmp_path: Path) -> None:
    home, said = tmp_path / "home", dict[str, str]()
    with ExitStack() as stack:
        role = stack.enter_context(role_of(sample_database))
        service, judge = stack.enter_context(repeating()), stack.enter_context(judging())
        values = planted(service, role, home)
        lists = stack.enter_context(process_lists())

        def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
            done = run_command(*arguments, environment=values | changes, directory=tmp_path)
            said[" ".join(arguments)] = done.stdout + done.stderr
            return done

        away = {name: values.pop(name) for name in ("MODEL_STORAGE_URL", "CELERY_BROKER_URL")}
        answers = {"JUDGE_BASE_URL": judge.url}
        assert run("migrate").returncode == 0
        assert run("spawn-agents", "--agents", "3", "--duration", "10", "--start", HOUR).returncode == 0
        assert run("score", "--window", HOUR).returncode != 0, "the judge refuses with the key in its words"
        assert run("train", **answers, MODEL_STORAGE_URL=away["MODEL_STORAGE_URL"]).returncode != 0, "the storage does not answer"
        assert run("train", **answers).returncode == 0, said
        for command in ("settings --json", "status", "alerts --test", "verify-system"):
            run(*command.split(), **away)
        run("status", DATABASE_URL=re.sub("@.*/", "@127.0.0.1:1/", role), DIRECT_DATABASE_URL="")
        key = json.loads(run("keys", "create", "canary", "--admin", "--json").stdout)["key"]
        said["keys create canary --admin --json"] = ""  # shown once, to its owner
        canaries = CANARIES | {"a client's key": key}
        said |= servers(FAILING, values, key, tmp_path)
    assert {name: found for name, text in said.items() if (found := found_in(text, canaries))} == {}
    assert found_in("\n".join(lists), canaries) == []
    assert files_with(home, canaries) == {}
    assert rows_with(sample_database, canaries) == {}
    # The search itself: it finds what is there.
    name, canary = next(iter(CANARIES.items()))
    (home / "dagster" / "control").write_text(f"a line with {canary}")
    with psycopg.connect(sample_database.url) as connection:
        assert connection.execute("SELECT count(*) FROM babylon_dagster.snapshots").fetchone() != (0,)
        tracebacks = "SELECT count(*) FROM babylon_dagster.event_logs WHERE event LIKE '%StepFailureData%File %, line %'"
        assert connection.execute(tracebacks).fetchone() != (0,), "the training whose storage does not answer left one"
        connection.execute(
            "INSERT INTO babylon_dagster.snapshots (snapshot_id, snapshot_body, snapshot_type) VALUES ('control', %s, 'PIPELINE')",
            [zlib.compress(canary.encode())],
        )
        connection.execute(
            "INSERT INTO babylon_dagster.kvs (key, value) VALUES ('control', %s)", [b64encode(f"any:{canary}".encode()).decode()]
        )
    assert files_with(home, canaries) == {Path("dagster/control"): [name]}
    assert rows_with(sample_database, canaries) == {"babylon_dagster.kvs": [name], "babylon_dagster.snapshots": [name]}


PAGES = (
    "{ instance { info daemonHealth { allDaemonStatuses { lastHeartbeatErrors { message } } } } }",
    '{ logsForRun(runId: "%s") { ... on EventConnection { events { __typename ... on MessageEvent { message } } } } }',
    f"""{{ allTopLevelResourceDetailsOrError(
    repositorySelector: {{repositoryName: "{REPOSITORY}", repositoryLocationName: "{LOCATION}"}}
    ) {{ ... on ResourceDetailsList {{ results {{ name configuredValues {{ key value }} }} }} }} }}""",
)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_secret_is_written_by_dev_a_worker_trainings_and_servers(
    played_database: Database, stand_in: StandIn, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(Redis.program) is None:
        pytest.skip(Redis.missing())
    canaries, said = CANARIES | {"CELERY_BROKER_URL": PASSWORD}, dict[str, str]()
    secrets = {name: value for name, value in CANARIES.items() if not name.endswith(("_URL", "_ENDPOINT"))}
    secrets["WANDB_API_KEY"] = CANARIES["WANDB_API_KEY"].ljust(40, "0")  # the client takes no shorter one
    # Two of them: a training here cannot go on from a version whose weights a service keeps.
    base, other = (make_base(tmp_path / name, tokenizer=base_tokenizer()) for name in ("base", "other"))
    monkeypatch.setenv("HOME", str(tmp_path))  # where the client of Weights & Biases keeps what it knows
    with ExitStack() as stack:
        role, lists = stack.enter_context(role_of(played_database)), stack.enter_context(process_lists())
        tracked = stack.enter_context(weights_and_biases())
        bases = {"BASE_MODEL": str(other), "LOCAL_BASE_MODEL": str(base)}
        chosen = {"TRAINER": "cpu", "ITERATIONS": "1", "WANDB_BASE_URL": tracked.url, "DIRECT_DATABASE_URL": role}
        place, _ = stack.enter_context(site(tmp_path, role, ScriptedJudge(), **secrets | bases | chosen))
        assert place.dev is not None
        place.worker("worker").ready()
        values = dict(place.dev.environment)

        def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
            done = run_command(*arguments, environment=values | changes, directory=tmp_path)
            said[" ".join(arguments)] = done.stdout + done.stderr
            return done

        place.backfill("scored_groups", HOURS)
        place.wait(lambda: place.at_rest() and place.scored(HOURS) == len(HOURS))
        first = ["--iterations", "1", "--from", HOURS[0], "--to", HOURS[1]]
        remote = {"TRAINER": "serverless", "SERVERLESS_BASE_URL": stand_in.url}
        assert run("train", *first, **remote).returncode == 0, said
        with played_database.connect(autocommit=True) as connection:
            here = settings.model_copy(update={"trainer": "cpu", "local_base_model": str(base), "iterations": 1})
            frozen = freeze(connection, here, PLAYED_NOW).batch
        assert frozen is not None
        training = DagsterClient(place.dev.url()).launch_training(frozen.batch_id, None, {})
        place.wait(place.at_rest)
        assert place.status(training) == "SUCCESS", place.state()
        assert run("benchmark", "generate", "--preset", "quick", "--out", "market.json").returncode == 0, said
        served = {"model": ["/v1/models", "/v1/chat/completions", "/metrics"], "market market.json": ["/", "/v1/sessions"]}
        said |= servers(served, values, "", tmp_path)
        for page in PAGES:
            said[page] = json.dumps(ask(place.dev.url(), page.replace("%s", training)))
        assert '"name": "babylon"' in said[PAGES[2]] and "RunSuccessEvent" in said[PAGES[1]], said
    assert len(tracked.history) > 1 and found_in("".join(tracked.keys), canaries) == ["WANDB_API_KEY"], tracked
    assert {name: found for name, text in said.items() if (found := found_in(text, canaries))} == {}
    assert found_in("\n".join(line for line in lists if not line.startswith(Redis.program)), canaries) == []
    assert files_with(tmp_path, canaries) == {}
    assert rows_with(played_database, canaries) == {}


def files_with(home: Path, canaries: dict[str, str]) -> dict[Path, list[str]]:
    """Files below a directory that hold a canary."""
    files = {path: found_in(path.read_bytes().decode("latin-1"), canaries) for path in home.rglob("*") if path.is_file()}
    return {path.relative_to(home): found for path, found in files.items() if found}


# What is asked of gateway and admin API while their services fail.
FAILING = {
    "gateway": ["/v1/chat/completions", "/v1/embeddings", "/v1/models", "/ready", "/metrics"],
    "admin": ["/api/admin/training/status", "/api/cron/training-check", "/admin", "/metrics"],
}


def servers(asked: Mapping[str, Sequence[str]], variables: dict[str, str], key: str, directory: Path) -> dict[str, str]:
    """Call servers, by their command; what they said and logged."""
    said = {}
    for name, paths in asked.items():
        command = [sys.executable, "-m", "babylon_rl", "serve", *name.split(), "--port", "0"]
        with subprocess.Popen(
            command, env=variables, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_allow_core_dumps
        ) as process:
            assert process.stdout is not None
            lines, address = list[str](), None
            for line in process.stdout:
                lines.append(line)
                if (address := re.search(r"on (http://127\.0\.0\.1:\d+)", line)) is not None:
                    break
            assert address is not None, lines
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            assert re.search(r"Max core file size +0 ", limits), "a core dump would hold every secret"
            try:
                for path in paths:
                    said[f"{name} {path}"] = _asked(address[1] + path, key)
            finally:
                process.send_signal(signal.SIGINT)
                lines.append(process.stdout.read())
        said[name] = "".join(lines)
    return said


def _allow_core_dumps() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def _asked(url: str, key: str) -> str:
    body = json.dumps({"model": "base", "input": "hi", "messages": [{"role": "user", "content": "hi"}]}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    asked = urllib.request.Request(url, body if "/v1/c" in url or "/v1/e" in url else None, headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return str(answer.headers) + answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return str(refused.headers) + refused.read().decode()


def rows_with(database: Database, canaries: dict[str, str]) -> dict[str, list[str]]:
    """Tables of the game, of ours and of Dagster whose rows hold a canary."""
    found, patterns = {}, [f"%{form}%" for canary in canaries.values() for form in forms(canary)]
    with psycopg.connect(database.url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for (table,) in tables:
            texts = connection.execute(f"SELECT t::text FROM {table} t WHERE t::text LIKE ANY(%s)", [patterns])
            names = {name for (text,) in texts for name in found_in(text, canaries)}
            for (column,) in connection.execute(
                "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass AND atttypid = 'bytea'::regtype",
                [table],
            ).fetchall():
                values = connection.execute(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
                names |= {name for (value,) in values for name in found_in(unpacked(value), canaries)}
            if names:
                found[table] = sorted(names)
    return found


def unpacked(value: bytes) -> str:
    """Bytes as text; Dagster packs the snapshots of its jobs."""
    try:
        return zlib.decompress(value).decode("latin-1")
    except zlib.error:
        return value.decode("latin-1")


def test_a_printed_setting_or_error_shows_no_secret(settings: Settings) -> None:
    secret = {name.lower(): SecretStr(canary) for name, canary in CANARIES.items() if name.lower() in Settings.model_fields}
    whole = settings.model_copy(update=secret | {"model_storage_url": CANARIES["MODEL_STORAGE_URL"]})
    for text in (repr(whole), str(whole), whole.model_dump_json(exclude={"model_storage_url", "local_endpoint", "embedding_endpoint"})):
        assert found_in(text, CANARIES) == []
