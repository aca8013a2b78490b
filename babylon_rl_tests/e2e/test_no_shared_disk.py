"""Three machines with a database and an S3 server between them: one trains, one judges what it trained and deploys it, one serves it."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, verify
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now
from babylon_rl_tests.object_store import SECRET, ObjectStore

FIRST_HOUR = "2025-11-15T10:00"
GATE = """
import sys
from babylon_rl.evaluation.benchmark import evaluate_batch, record_release
from babylon_rl.settings import load_settings
from babylon_rl.store.database import open_database
from babylon_rl.windows import utc_now
settings = load_settings()
with open_database(settings) as database, database.connect() as connection:
    evaluate_batch(connection, sys.argv[1], settings, print)
    print(record_release(connection, sys.argv[1], settings, utc_now()).decision)
"""


@dataclass(frozen=True)
class Machine:
    """Processes with a home of their own, which is empty at first."""

    home: Path
    variables: dict[str, str]

    def starts(self, *command: str, **how: Any) -> "subprocess.Popen[str]":
        self.home.mkdir(exist_ok=True)
        environment = {**os.environ, **self.variables, "BABYLON_RL_HOME": str(self.home)}
        return subprocess.Popen([sys.executable, *command], cwd=self.home, env=environment, text=True, stderr=subprocess.PIPE, **how)

    def runs(self, *command: str) -> str:
        process = self.starts(*command, stdout=subprocess.PIPE)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert SECRET not in out + err
        return str(out)

    def asks(self, *command: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.runs("-m", "babylon_rl", *command, "--json"))
        return document

    @contextmanager
    def serves(self, *command: str) -> Iterator[str]:
        """The address of a server that runs in the block."""
        process = self.starts("-m", "babylon_rl", "serve", *command, "--port", "0")
        try:
            said = ""
            while not (found := re.search(r"(?:Serving .*|Gateway) on (http://127\.0\.0\.1:\d+)", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield found[1]
        finally:
            process.terminate()
            process.communicate()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_version_goes_from_the_machine_that_trains_to_those_that_judge_and_serve_it(
    database: Database, object_store: ObjectStore, tiny_base: Path, tmp_path: Path
) -> None:
    database.prepare_dagster_schema()
    with database.connect() as connection:
        spawn(connection, SpawnRequest(agents=5, model_agents=0, windows=2, seed=4, start=FIRST_HOUR), utc_now(), None)
    variables = {
        **object_store.variables, "DATABASE_URL": database.url, "MODEL_STORAGE_URL": object_store.bucket(), "TRAIN_RL_LOCAL": "true",
        "LOCAL_BASE_MODEL": str(tiny_base), "ITERATIONS": "1", "FIRST_WINDOW": FIRST_HOUR, "BENCHMARK_MARKETS": "2",
    }  # fmt: skip
    trainer, judge, server = (Machine(tmp_path / name, variables) for name in ("trainer", "judge", "server"))

    trained = trainer.asks("train", "--from", FIRST_HOUR, "--to", "2025-11-15T12:00")
    assert trained["checkpoint"] == str(trainer.home / "checkpoints" / "v1.0.0")
    rmtree(trainer.home)

    object_store.downloads.clear()
    assert judge.runs("-c", GATE, trained["batchId"]).splitlines()[-1] in ("pass", "fail", "inconclusive")
    played = judge.asks("benchmark", "standings", "v1.0.0", "base", "--markets", "2")
    assert [row["model"] for row in played["rows"]] == ["v1.0.0", "base"]
    assert judge.asks("models", "deploy", "v1.0.0", "--strategy", "immediate")["version"] == "v1.0.0"
    assert object_store.downloaded(WEIGHTS) == object_store.downloaded(MANIFEST) == 1
    rmtree(judge.home)

    object_store.downloads.clear()
    with ExitStack() as servers:
        model = servers.enter_context(server.serves("model", "base"))
        assert object_store.downloads == []
        gateway = servers.enter_context(Machine(server.home, variables | {"LOCAL_ENDPOINT": model}).serves("gateway"))
        for _ in range(2):
            body = {"model": "auto", "user": "agent-1", "max_tokens": 4, "messages": [{"role": "user", "content": "Buy, sell or hold?"}]}
            request = urllib.request.Request(
                f"{gateway}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    assert answer.headers["x-babylon-version"] == "v1.0.0", answer.read()
            except urllib.error.HTTPError as refused:
                raise AssertionError(refused.read()) from refused
    assert verify(server.home / "checkpoints" / "v1.0.0").batch_id == trained["batchId"]
    assert object_store.downloaded(WEIGHTS) == object_store.downloaded(MANIFEST) == 1
