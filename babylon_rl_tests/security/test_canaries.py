"""Secrets after a run of everything: planted in every setting that holds one, then searched for wherever something was written."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.http_stand_in import Handler, served
from babylon_rl_tests.judge.scripted_server import judging

HOUR = "2025-10-29T14:00"
# Read by settings, or by libraries from the environment.
NAMES = (
    *(name.upper() for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None),
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


@pytest.fixture
def role(sample_database: Database) -> Iterator[str]:
    """The address of the game's database for a role whose password is a canary."""
    name = f"canary_{os.getpid()}"
    with sample_database.connect(autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{CANARIES['DATABASE_URL']}'")
    yield re.sub("//[^@]*@", f"//{name}:{CANARIES['DATABASE_URL']}@", sample_database.url)
    with sample_database.connect(autocommit=True) as connection:
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


def found_in(text: str, canaries: dict[str, str]) -> list[str]:
    """Names of the secrets that a text holds, as they are or in the header of basic authentication."""
    coded = {name: b64encode(f"user:{canary}".encode()).decode() for name, canary in canaries.items()}
    return [name for name, canary in canaries.items() if canary in text or coded[name] in text]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_no_secret_is_written_anywhere_by_a_run_of_everything(sample_database: Database, role: str, tmp_path: Path) -> None:
    home, said = tmp_path / "home", dict[str, str]()
    with ExitStack() as stack:
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
        said |= servers(values, key, tmp_path)
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
            "INSERT INTO babylon_dagster.kvs (key, value) VALUES ('control', %s)", [b64encode(f"user:{canary}".encode()).decode()]
        )
    assert files_with(home, canaries) == {Path("dagster/control"): [name]}
    assert rows_with(sample_database, canaries) == {"babylon_dagster.kvs": [name], "babylon_dagster.snapshots": [name]}


def files_with(home: Path, canaries: dict[str, str]) -> dict[Path, list[str]]:
    """Files below a directory that hold a canary."""
    files = {path: found_in(path.read_bytes().decode("latin-1"), canaries) for path in home.rglob("*") if path.is_file()}
    return {path.relative_to(home): found for path, found in files.items() if found}


def servers(variables: dict[str, str], key: str, directory: Path) -> dict[str, str]:
    """Call a gateway and an admin API, whose services fail; what they said and logged."""
    said = {}
    for name, paths in (
        ("gateway", ("/v1/chat/completions", "/v1/embeddings", "/v1/models", "/ready", "/metrics")),
        ("admin", ("/api/admin/training/status", "/api/cron/training-check", "/admin", "/metrics")),
    ):
        command = [sys.executable, "-m", "babylon_rl", "serve", name, "--port", "0"]
        with subprocess.Popen(
            command, env=variables, cwd=directory, stderr=subprocess.PIPE, text=True, preexec_fn=_allow_core_dumps
        ) as process:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if (address := re.search(r"(?:Gateway|Admin page) on (http://127\.0\.0\.1:\d+)", line)) is not None:
                    break
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            assert re.search(r"Max core file size +0 ", limits), "a core dump would hold every secret"
            try:
                for path in paths:
                    said[f"{name} {path}"] = _asked(address[1] + path, key)
            finally:
                process.send_signal(signal.SIGINT)
                lines.append(process.stderr.read())
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
    found = {}
    with psycopg.connect(database.url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for (table,) in tables:
            texts = connection.execute(f"SELECT t::text FROM {table} t WHERE t::text LIKE '%canary%' OR t::text LIKE '%dXNlcjpjYW5hcnk%'")
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
