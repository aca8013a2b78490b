"""The services of compose.yaml as processes with the file's commands and environment, one database and one state directory.

scripts/container.sh runs it with BABYLON_RL_IN, the start of a command line that runs the rest of it in a container of the image. Instead
of the network of compose, every service listens on a free port of this machine.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import psycopg
import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.setup.test_deploy_files import compose
from babylon_rl_tests.store.servers import ROOT, free_port

pytestmark = pytest.mark.long
CONTAINER = shlex.split(os.environ.get("BABYLON_RL_IN", ""))
SERVERS = {"pipeline": "/server_info", "gateway": "/ready", "admin": "/api/admin/training/status"}
# A shell's background jobs ignore SIGINT, and so would what they start.
PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from babylon_rl.cli import main; main()"


def command_of(service: dict[str, Any], environment: dict[str, str], *more: str) -> list[str]:
    """The service's command line, with its environment, here or in the container."""
    told = {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in service["environment"].items()} | environment
    program = ["babylon-rl"] if CONTAINER else [sys.executable, "-c", PROGRAM]
    return [*CONTAINER, "env", *(f"{name}={value}" for name, value in told.items()), *program, *service["command"], *more]


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str], address: str) -> Iterator[None]:
    """The command until the end of the block, once it answers; the image's STOPSIGNAL ends it."""
    with log.open("wb") as output:
        process = psutil.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 240
        while not answers(address):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield
        program_of(process).send_signal(signal.SIGINT)
        assert process.wait(120) in (0, 128 + signal.SIGINT, -signal.SIGINT), log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            for one in [*process.children(recursive=True), process]:
                one.kill()
            process.wait()


def program_of(process: psutil.Process) -> psutil.Process:
    """The program itself: buildah, unlike an engine of containers, hands it no signals."""
    while process.cmdline()[0].startswith("buildah"):
        process = process.children()[0]
    return process


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=10) as answer:
            return bool(json.load(answer))
    except OSError:
        return False


def test_every_service_starts_and_answers(empty_database: Database, tmp_path: Path) -> None:
    services = compose()["services"]
    assert set(services) == {"postgres", "migrate", *SERVERS}
    ports = {name: free_port() for name in SERVERS}
    of_services = {"DATABASE_URL": empty_database.url, "DAGSTER_URL": f"http://127.0.0.1:{ports['pipeline']}"}
    of_services |= {} if CONTAINER else {"BABYLON_RL_HOME": str(tmp_path / "state")}
    of_tests = {name: value for name, value in os.environ.items() if name.lower() not in {*Settings.model_fields, "dagster_home"}}
    subprocess.run(command_of(services["migrate"], of_services), cwd=ROOT, env=of_tests, stdin=subprocess.DEVNULL, check=True)
    with psycopg.connect(empty_database.url) as connection:
        assert connection.execute("SELECT count(*) > 0 FROM babylon_rl.migrations").fetchone() == (True,)
    with ExitStack() as stack:
        for name, path in SERVERS.items():
            command = command_of(services[name], of_services, "--port", str(ports[name]))
            stack.enter_context(running(command, tmp_path / f"{name}.log", of_tests, f"http://127.0.0.1:{ports[name]}{path}"))
