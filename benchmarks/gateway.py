"""Latency that the gateway adds, and its highest rate: `python -m benchmarks.gateway [--litellm PYTHON] [--portkey FOLDER] [--minutes 10]`.

A mock model, the load and the gateway share the machine: each target is asked in turn, at the same rates, in rounds; a figure is the
median over rounds of the difference to the mock asked directly. Calls are recorded into an embedded Postgres of its own. `--minutes`
instead watches the gateway's memory, `--highest` measures the highest sustained rates alone. Beside it stand LiteLLM's proxy, Portkey's
gateway, and `bare`: our server and client passing bodies on, which is the least that any gateway of these parts adds:

    python3 -m venv litellm && litellm/bin/pip install 'litellm[proxy]==1.108.7'
    npm install --prefix portkey @portkey-ai/gateway@1.15.2
    python -m benchmarks.gateway --litellm litellm/bin/python --portkey portkey
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httptools
import psutil
import uvicorn
import uvloop

from babylon_rl.serving import releases
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.store.releases import ReleaseAuthor
from babylon_rl.windows import utc_now
from babylon_rl_tests.serving.gateways import add_version

RATES = (100, 300, 800)
RAMP = (10, 25, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1_000, 1_300, 1_600)
SUSTAINED_P99_MS = 1_000
ROUNDS, ROUND_S = 5, 4.0
KEY = "sk-bench"
PORTS = {"direct": 9301, "gateway": 9302, "litellm": 9303, "portkey": 9304, "bare": 9305}
RIVALS = ("litellm", "portkey", "bare")
WORDS = 20
_LOGPROBS = [{"token": "hold", "logprob": -0.1, "bytes": None, "top_logprobs": []}] * WORDS
_MESSAGES = [{"role": "system", "content": "You trade. " * 40}, {"role": "user", "content": "Prices: " + "1.23 " * 150}]
_MESSAGE = {"role": "assistant", "content": "hold " * WORDS}
_CHOICE = {"index": 0, "finish_reason": "stop", "message": _MESSAGE, "logprobs": {"content": _LOGPROBS}}
_USAGE = {"prompt_tokens": 300, "completion_tokens": WORDS, "total_tokens": 300 + WORDS}
_ANSWER = {"id": "c", "object": "chat.completion", "created": 1, "model": "base", "choices": [_CHOICE], "usage": _USAGE}


def mock_model(port: int) -> None:
    """Answer every chat at once, whole or as a stream, with as little work as possible."""
    body = json.dumps(_ANSWER).encode()
    whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "base"}
    choices = [{"index": 0, "delta": {"content": "hold "}, "finish_reason": None}, {"index": 0, "delta": {}, "finish_reason": "stop"}]
    events = [b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n" for choice in choices]
    first = _chunked(events[0])
    rest = b"".join(map(_chunked, [*[events[0]] * (WORDS - 1), events[1], b"data: [DONE]\n\n"])) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.parser, self.body = transport, httptools.HttpRequestParser(self), b""

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            streamed, self.body = b'"stream":true' in self.body.replace(b" ", b""), b""
            self.transport.write(head + first if streamed else whole)
            if streamed:
                asyncio.get_running_loop().call_later(0.005, self.transport.write, rest)

    async def serve() -> None:
        await (await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=2048)).serve_forever()

    uvloop.run(serve())


def bare_proxy(port: int) -> None:
    """uvicorn and aiohttp alone: pass a body on, and its answer back, with nothing read, chosen or recorded."""
    session: aiohttp.ClientSession | None = None

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        nonlocal session
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        session = session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        async with session.post(f"http://127.0.0.1:{PORTS['direct']}{scope['path']}", data=body) as response:
            await send({"type": "http.response.start", "status": response.status, "headers": [(b"content-type", b"application/json")]})
            async for piece in response.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    uvicorn.run(app, host="127.0.0.1", port=port, http="h11", loop="uvloop", lifespan="off", access_log=False, log_level="error")


def _chunked(piece: bytes) -> bytes:
    return b"%x\r\n" % len(piece) + piece + b"\r\n"


class Caller(asyncio.Protocol):
    """One connection that sends a request and times the first token and the end of its answer."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.ended = transport, None

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, float, float]]":
        self.parser, self.first_at = httptools.HttpResponseParser(self), 0.0
        self.ended = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.ended

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if not self.first_at and b"hold" in body:
            self.first_at = time.perf_counter()

    def on_message_complete(self) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_result((self.parser.get_status_code(), self.first_at, time.perf_counter()))

    def connection_lost(self, error: Exception | None) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_exception(ConnectionError())


@dataclass
class Round:
    """Seconds of each answer, to its end and to its first token, measured from the moment it was due."""

    latencies: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    errors: int = 0

    def at(self, share: float, values: list[float] | None = None) -> float:
        """A quantile in milliseconds."""
        ordered = sorted(self.latencies if values is None else values)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


async def load(port: int, rate: float, seconds: float, *, stream: bool = False) -> Round:
    """Send requests at fixed times, whether or not earlier ones are answered."""
    loop, round_, free, tasks = asyncio.get_running_loop(), Round(), list[Caller](), set[asyncio.Task[None]]()
    body = json.dumps({"model": "base", "messages": _MESSAGES, "temperature": 0.7, "max_tokens": 64, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    # Portkey is told its upstream by each request; the others pass over these headers.
    head += f"x-portkey-provider: openai\r\nx-portkey-custom-host: http://127.0.0.1:{PORTS['direct']}/v1\r\n"
    request = f"{head}x-babylon-agent: agent-1\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    async def call(due: float) -> None:
        try:
            caller = free.pop() if free else (await loop.create_connection(Caller, "127.0.0.1", port))[1]
            status, first, end = await asyncio.wait_for(caller.ask(request), 30)
        except (OSError, TimeoutError):
            round_.errors += 1
            return
        free.append(caller)
        if status != 200 or not first:
            round_.errors += 1
            return
        round_.latencies.append(end - due)
        round_.first_tokens.append(first - due)

    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.add(task := asyncio.create_task(call(due)))
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for caller in free:
        caller.transport.close()
    return round_


@contextmanager
def process(command: list[str], port: int, path: str, **variables: str) -> Iterator[psutil.Process]:
    """Run a server until the block ends; entered when it answers."""
    child = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while subprocess.run(["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}{path}"], check=False).returncode:
            assert child.poll() is None and time.monotonic() < deadline, f"{command} did not start"
            time.sleep(0.2)
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait()


@contextmanager
def targets(litellm: str | None, portkey: str | None) -> Iterator[tuple[dict[str, int], psutil.Process]]:
    """Start everything; yields the ports by name, and the gateway's process."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports = {name: PORTS[name] for name in ("direct", "gateway")}
        stack.enter_context(process([sys.executable, "-m", "benchmarks.gateway", "--mock", "9301"], 9301, "/"))
        variables = {"LOCAL_ENDPOINT": "http://127.0.0.1:9301", "BABYLON_RL_HOME": folder}
        command = [sys.executable, "-m", "babylon_rl"]
        subprocess.run([*command, "migrate"], env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
        gateway = stack.enter_context(process([*command, "serve", "gateway", "--port", "9302"], 9302, "/health", **variables))
        if litellm is not None or portkey is not None:
            ports["bare"] = PORTS["bare"]
            stack.enter_context(process([sys.executable, "-m", "benchmarks.gateway", "--bare", str(ports["bare"])], ports["bare"], "/"))
        if litellm is not None:
            model = {"model": "openai/base", "api_base": "http://127.0.0.1:9301/v1", "api_key": "none"}
            settings = {"model_list": [{"model_name": "base", "litellm_params": model}], "general_settings": {"master_key": KEY}}
            file = Path(folder, "litellm.yaml")
            file.write_text(json.dumps(settings))
            run = [str(Path(litellm).with_name("litellm")), "--config", str(file), "--port", "9303", "--host", "127.0.0.1"]
            ports["litellm"] = PORTS["litellm"]
            stack.enter_context(process(run, 9303, "/health/liveliness", LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR"))
        if portkey is not None:
            server = Path(portkey, "node_modules/@portkey-ai/gateway/build/start-server.js")
            ports["portkey"] = PORTS["portkey"]
            stack.enter_context(process(["node", str(server), f"--port={PORTS['portkey']}", "--headless"], PORTS["portkey"], "/"))
        yield ports, gateway


def compare(ports: dict[str, int], rates: tuple[int, ...], rounds: int, *, stream: bool) -> list[dict[str, Any]]:
    """A row per rate and target, with what it adds to the mock asked directly; ``times_gateway`` is p50 and p99 over the gateway's."""
    rows: list[dict[str, Any]] = []
    for rate in rates:
        measured: dict[str, list[Round]] = {name: [] for name in ports}
        for _ in range(rounds):
            for name, port in ports.items():
                measured[name].append(uvloop.run(load(port, rate, ROUND_S, stream=stream)))
        for name, those in measured.items():
            pairs = list(zip(those, measured["direct"], strict=True))
            added = {
                f"added_{label}_ms": round(statistics.median(one.at(share) - other.at(share) for one, other in pairs), 2)
                for label, share in (("p50", 0.5), ("p99", 0.99))
            }
            first = statistics.median(one.at(0.5, one.first_tokens) - other.at(0.5, other.first_tokens) for one, other in pairs)
            p50 = round(statistics.median(one.at(0.5) for one in those), 2)
            errors, answered = sum(one.errors for one in those), sum(len(one.latencies) for one in those)
            row = {"target": name, "rate": rate, "stream": stream, "answered": answered, "errors": errors, "p50_ms": p50}
            ours = next((one for one in rows if one["target"] == "gateway" and one["rate"] == rate and name in RIVALS), None)
            times = {} if ours is None else {"times_gateway": [round(added[part] / ours[part], 1) for part in added]}
            rows.append(row | added | {"added_first_token_p50_ms": round(first, 2)} | times)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def highest_rates(ports: dict[str, int], rounds: int) -> dict[str, Any]:
    """The highest rate of RAMP that each target sustains: no error, and 99 of 100 answers within a second; medians over rounds.

    The targets take turns at each rate, so that other work on the machine hits all of them.
    """
    found: dict[str, list[int]] = {name: [] for name in ports}
    for _ in range(rounds):
        highest, going = dict.fromkeys(ports, 0), dict(ports)
        for rate in RAMP:
            for name, port in list(going.items()):
                round_ = uvloop.run(load(port, rate, ROUND_S))
                if round_.errors or round_.at(0.99) > SUSTAINED_P99_MS:
                    del going[name]
                    continue
                highest[name] = rate
        for name, rate in highest.items():
            found[name].append(rate)
        print(json.dumps({"highest_sustained_rate": highest, "load_average": os.getloadavg()[0]}), flush=True)
    return {"highest_sustained_rate": {name: statistics.median(rates) for name, rates in found.items()}, "rounds": rounds}


def watch_memory(port: int, gateway: psutil.Process, minutes: float, rate: int) -> dict[str, Any]:
    """Megabytes of the gateway's process by minute under a steady load, and their slope from the third minute on."""
    megabytes = []
    for _ in range(round(minutes * 60 / 15)):
        uvloop.run(load(port, rate, 15.0))
        megabytes.append(gateway.memory_info().rss / 1e6)
    later = megabytes[min(8, len(megabytes) // 3) :]
    slope = statistics.linear_regression([at / 4 for at in range(len(later))], later).slope
    return {"rate": rate, "minutes": minutes, "megabytes": [round(value, 1) for value in megabytes], "slope_mb_a_minute": round(slope, 3)}


async def _watch_versions(port: int, rate: int, seconds: float, changes: list[tuple[float, Callable[[], object]]]) -> dict[str, Any]:
    """Ask at a rate, and call each change at its second; milliseconds from its return until the last request that got the old version."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", "x-babylon-agent": "agent-1"}
    url, body = f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps({"model": "auto", "messages": _MESSAGES}).encode()
    answers, done, failed = list[tuple[float, str]](), list[float](), 0

    async def call() -> None:
        nonlocal failed
        sent = time.perf_counter()
        async with session.post(url, data=body) as response:
            await response.read()
        failed += response.status != 200
        answers.append((sent, response.headers.get("x-babylon-version", "")))

    async def change(at: float, what: Callable[[], object]) -> None:
        await asyncio.sleep(at)
        await asyncio.to_thread(what)
        done.append(time.perf_counter())

    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        began, tasks = time.perf_counter(), [asyncio.create_task(change(at, what)) for at, what in changes]
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(call()))
        await asyncio.gather(*tasks)
    answers.sort()
    switches = [later[0] for earlier, later in itertools.pairwise(answers) if earlier[1] != later[1]]
    effect = [round(1000 * (switch - returned), 1) for switch, returned in zip(switches, done, strict=True)]
    return {"rate": rate, "answers": len(answers), "failed": failed, "ms_to_effect": effect}


def watch_switches() -> dict[str, Any]:
    """A rollback and a deployment in the middle of 200 requests a second."""
    with tempfile.TemporaryDirectory() as folder, use_server(Path(folder)) as url, ExitStack() as stack:
        database, settings = Database(url, url), Settings()
        migrate(database)
        stack.enter_context(process([sys.executable, "-m", "benchmarks.gateway", "--mock", "9301"], 9301, "/"))
        connection = stack.enter_context(database.connect())
        author = ReleaseAuthor("benchmark", "to see it arrive", utc_now())
        for version in ("v1.0.0", "v1.0.1"):
            add_version(database, version, "ready")
            releases.deploy(connection, version, settings, author, strategy="immediate")
        variables = {"LOCAL_ENDPOINT": "http://127.0.0.1:9301", "BABYLON_RL_HOME": folder, "DATABASE_URL": url}
        command = [sys.executable, "-m", "babylon_rl", "serve", "gateway", "--port", "9302"]
        stack.enter_context(process(command, 9302, "/health", **variables))
        changes: list[tuple[float, Callable[[], object]]] = [
            (3.0, lambda: releases.rollback(connection, settings, author)),
            (7.0, lambda: releases.deploy(connection, "v1.0.1", settings, author, strategy="immediate")),
        ]
        return uvloop.run(_watch_versions(9302, 200, 10.0, changes))


def main() -> None:
    """Measure and print JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mock", type=int)
    parser.add_argument("--bare", type=int)
    parser.add_argument("--litellm")
    parser.add_argument("--portkey")
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--highest", action="store_true", help="the highest sustained rates alone")
    parser.add_argument("--switch", action="store_true", help="a rollback and a deployment under load instead")
    options = parser.parse_args()
    if options.mock is not None:
        mock_model(options.mock)
        return
    if options.bare is not None:
        bare_proxy(options.bare)
        return
    if options.switch:
        print(json.dumps(watch_switches()))
        return
    with targets(options.litellm, options.portkey) as (ports, gateway):
        uvloop.run(load(ports["gateway"], 200, 3))  # warm
        if options.minutes is not None:
            print(json.dumps(watch_memory(ports["gateway"], gateway, options.minutes, 100)))
            return
        if options.highest:
            print(json.dumps(highest_rates({name: port for name, port in ports.items() if name != "direct"}, options.rounds)))
            return
        rates = tuple(map(int, options.rates.split(",")))
        # The others are compared at the lowest rate, as they queue without end above it.
        compare(ports, rates[:1], options.rounds, stream=False)
        compare(ports, rates[:1], options.rounds, stream=True)
        compare({name: port for name, port in ports.items() if name not in RIVALS}, rates[1:], options.rounds, stream=False)
        print(json.dumps(highest_rates({name: port for name, port in ports.items() if name != "direct"}, options.rounds)))


if __name__ == "__main__":
    main()
