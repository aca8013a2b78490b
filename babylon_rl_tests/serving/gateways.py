"""A gateway on a real socket, in a thread of the test, with the versions that a test needs."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any, Self

import openai
import psycopg
import uvicorn
import uvloop
from pydantic import SecretStr

from babylon_rl.http_server import bind, uvicorn_server
from babylon_rl.serving.call_writer import call_writer
from babylon_rl.serving.gateway import Gateway
from babylon_rl.serving.gateway_process import create_app
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database

NOW = datetime(2025, 11, 1, 12)
MESSAGES: Any = [{"role": "system", "content": "You trade."}, {"role": "user", "content": "Prices?"}]


def add_version(database: Database, version: str, status: str = "deployed", checkpoints: str = "/checkpoints") -> None:
    """A version of ours that LOCAL_ENDPOINT serves under its name."""
    batch = f"batch-{version}"
    with psycopg.connect(database.url) as connection:
        connection.execute(
            'INSERT INTO trained_models (id, "modelId", version, "baseModel", "trainingBatch", status, "storagePath", "deployedAt", '
            "\"updatedAt\") VALUES (%s, %s, %s, 'base', %s, %s, %s, %s, %s)",
            (version, f"babylon-agent-{version}", version, batch, status, f"{checkpoints}/{version}", NOW, NOW),
        )
        connection.execute(
            'INSERT INTO babylon_rl.batches ("batchId", "baseModel", "backend", "version", "seed", "state", "createdAt", "heartbeatAt") '
            "VALUES (%s, 'base', 'cpu', %s, 0, 'completed', %s, %s)",
            (batch, version, NOW, NOW),
        )
        connection.execute(
            'INSERT INTO babylon_rl.model_lineage ("version", "baseModel", "backend", "batchId", "checkpointPath", "manifestSha", '
            "\"windows\", \"metrics\", \"createdAt\") VALUES (%s, 'base', 'cpu', %s, %s, 'sha', '{}', '{}', %s)",
            (version, batch, f"{checkpoints}/{version}", NOW),
        )


class Clients:
    """Threads that call ``ask`` again and again until the block ends."""

    def __init__(self, number: int) -> None:
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(client,)) for client in range(number)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, client: int) -> None:
        while not self._stopping.is_set():
            self.ask(client)

    def ask(self, client: int) -> None:
        """One call by a client, which is known by its number."""
        raise NotImplementedError


class RunningGateway:
    """A gateway that serves; ``url`` is that of OpenAI's clients."""

    def __init__(self, gateway: Gateway, server: uvicorn.Server, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self.gateway, self.server, self.loop, self.port = gateway, server, loop, port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.clients: list[openai.OpenAI] = []

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """The official client, without retries of its own."""
        self.clients.append(openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=30, **options))
        return self.clients[-1]

    def sample(self, name: str, **labels: str) -> float | None:
        """Value of a metric, None while there is none."""
        return self.gateway.metrics.registry.get_sample_value(f"babylon_gateway_{name}", labels)

    def open_calls(self) -> float | None:
        return self.sample("open_requests")

    def quiet(self) -> bool:
        """No request, task or client connection is left over."""

        async def tasks() -> int:
            return len([task for task in asyncio.all_tasks() if "watch" in repr(task) or "run_asgi" in repr(task)])

        left = asyncio.run_coroutine_threadsafe(tasks(), self.loop).result(10)
        return self.open_calls() == 0 and left == 0 and not self.server.server_state.tasks


@contextmanager
def running_gateway(
    settings: Settings, database: Database, *, writes: bool = False, client_timeout_s: float = 10.0
) -> Iterator[RunningGateway]:
    """Serve until the block ends, with the writer of recorded calls if the test reads them; the server must then end in time."""
    settings = settings.model_copy(update={"database_url": SecretStr(database.url)})
    gateway = Gateway(settings, body_timeout_s=client_timeout_s)
    with call_writer(settings) if writes else nullcontext(), bind("127.0.0.1", 0) as bound:
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * client_timeout_s))
        bound.listen(512)
        server = uvicorn_server(create_app(gateway), timeout_graceful_shutdown=2)
        loops: list[asyncio.AbstractEventLoop] = []

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve(sockets=[bound])

        thread = threading.Thread(target=lambda: uvloop.run(run()), daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive(), "the gateway to start")
        running = RunningGateway(gateway, server, loops[0], bound.getsockname()[1])
        try:
            yield running
        finally:
            for client in running.clients:
                client.close()
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


@contextmanager
def gateway_process(settings: Settings, database: Database, workers: int = 1, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``serve gateway`` as a process, and its port."""
    environment = {
        **os.environ, "DATABASE_URL": database.url, "BABYLON_RL_HOME": str(settings.home), "LOCAL_ENDPOINT": settings.local_endpoint,
    }  # fmt: skip
    command = [sys.executable, "-m", "babylon_rl", "serve", "gateway", "--port", str(port), "--workers", str(workers)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("RL Model Configuration:")
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", process.stderr.readline())
        assert found is not None
        port = int(found[1])
        wait_for(lambda: _answers(port), "the gateway to answer")
        yield process, port
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _answers(port: int) -> bool:
    try:
        return bool(json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health")))
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], what: str, within_s: float = 30.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}"
        time.sleep(0.02)


def rows(database: Database, statement: str) -> list[dict[str, Any]]:
    """Rows of a query by column name."""
    with psycopg.connect(database.url, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]
