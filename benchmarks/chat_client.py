"""Chat requests as llm/ sends them beside OpenAI's client: `python -m benchmarks.chat_client`, a minute or two.

A server in another process answers after 50 ms; both ask the same, one after the other. Milliseconds of processor time a request
and requests a second, by how many are under way at once.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

from babylon_rl.llm.transports import OpenAITransport

REQUESTS, LATENCY_S = 1000, 0.05
MESSAGES = [{"role": "user", "content": "a market of an hour " * 50}]
SERVER = f"""
import asyncio, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

choice = {{"index": 0, "finish_reason": "stop", "message": {{"role": "assistant", "content": "a sentence " * 50}}}}

async def answer(request):
    await request.body()
    await asyncio.sleep({LATENCY_S})
    return JSONResponse({{"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}})

server = uvicorn.Server(uvicorn.Config(Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])]), log_level="error"))
listening = server.config.bind_socket()
print(listening.getsockname()[1], flush=True)
server.run([listening])
"""


Ask = Callable[[], Coroutine[Any, Any, object]]


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Ask]:
    """The transport of llm/."""
    transport = OpenAITransport(url, "m", None)
    yield lambda: transport.send(MESSAGES, {})
    await transport.aclose()


@asynccontextmanager
async def openais(url: str) -> AsyncIterator[Ask]:
    """OpenAI's client."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield lambda: client.chat.completions.create(model="m", messages=MESSAGES)


CLIENTS: dict[str, Callable[[str], AbstractAsyncContextManager[Ask]]] = {
    "OpenAI's": openais,
    "ours": ours,
}


async def measure(client: AbstractAsyncContextManager[Ask], at_once: int) -> tuple[float, float]:
    """Milliseconds of processor time a request, and requests a second."""
    async with client as ask:
        slots = asyncio.Semaphore(at_once)

        async def one(_: int) -> None:
            async with slots:
                await ask()

        await asyncio.gather(*map(one, range(at_once)))
        started, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(one, range(REQUESTS)))
        return 1000 * (time.process_time() - used) / REQUESTS, REQUESTS / (time.perf_counter() - started)


def main() -> None:
    """Print the table."""
    table = Table("at once", *(f"{name}: ms, a second" for name in CLIENTS), title="Chat requests")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        try:
            for at_once in (1, 16, 64):
                figures = [asyncio.run(measure(client(url), at_once)) for client in CLIENTS.values()]
                table.add_row(str(at_once), *(f"{ms:.2f}, {rate:.0f}" for ms, rate in figures))
        finally:
            server.kill()
    Console().print(table)


if __name__ == "__main__":
    main()
