"""Chat requests over aiohttp, as llm/ sends them, beside openai's usual transport: `python -m benchmarks.chat_client`, a minute or two.

A server in another process answers after 50 ms; both ask the same, one after the other. Milliseconds of processor time a request
and requests a second, by how many are under way at once.
"""

import asyncio
import subprocess
import sys
import time
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


async def measure(url: str, at_once: int, usual: bool) -> tuple[float, float]:
    """Milliseconds of processor time a request, and requests a second."""
    transport = OpenAITransport(url, "m", None)
    if usual:
        await transport.aclose()
        transport._client = transport._client.with_options(http_client=openai.DefaultAsyncHttpxClient(timeout=None))
        transport._create = transport._client.chat.completions.with_raw_response.create
    slots = asyncio.Semaphore(at_once)

    async def ask(_: Any) -> None:
        async with slots:
            await transport.send(MESSAGES, {})

    await asyncio.gather(*map(ask, range(at_once)))
    started, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(ask, range(REQUESTS)))
    figures = 1000 * (time.process_time() - used) / REQUESTS, REQUESTS / (time.perf_counter() - started)
    await transport.aclose()
    return figures


def main() -> None:
    """Print the table."""
    table = Table("at once", "httpx: ms", "aiohttp: ms", "httpx: a second", "aiohttp: a second", "as fast", title="Chat requests")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        try:
            for at_once in (1, 16, 64):
                (httpx_ms, httpx_rate), (ms, rate) = [asyncio.run(measure(url, at_once, usual)) for usual in (True, False)]
                figures = [f"{httpx_ms:.1f}", f"{ms:.1f}", f"{httpx_rate:.0f}", f"{rate:.0f}", f"{rate / httpx_rate:.1f} times"]
                table.add_row(str(at_once), *figures)
        finally:
            server.kill()
    Console().print(table)


if __name__ == "__main__":
    main()
