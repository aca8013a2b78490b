"""An OpenAI-compatible server that answers each request as the test says, byte for byte."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Answer = web.Response | list[bytes | float | None]


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """One event of a stream."""
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish} | more
    return event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def event(document: Any) -> bytes:
    return b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"


def completion(text: Any = "hold", finish: str | None = "stop", message: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text} | (message or {})} | choice
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def said(document: Any, status: int = 200, **headers: str) -> web.Response:
    """A whole response."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(body=body, status=status, content_type="application/json", headers=named)


DONE = event(b"[DONE]")


class ScriptedUpstream:
    """``answer`` gives the response to a body, or the parts of a stream: bytes are sent, numbers waited, None breaks it off."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: said(completion())
        self.seen: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        """The address for LOCAL_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        self.raw.append(await request.read())
        self.seen.append(json.loads(self.raw[-1]))
        answer = self.answer(self.seen[-1])
        if isinstance(answer, web.Response):
            return answer
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        for part in answer:
            if part is None:
                assert request.transport is not None
                request.transport.abort()
                break
            if isinstance(part, bytes):
                await stream.write(part)
            else:
                await asyncio.sleep(part)
        return stream


@contextmanager
def scripted_upstream() -> Iterator[ScriptedUpstream]:
    """A server in a thread of its own until the block ends."""
    upstream, loop = ScriptedUpstream(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_post("/v1/chat/completions", upstream.handle)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        upstream.port = runner.addresses[0][1]
        return runner

    async def stop() -> None:
        await runner.cleanup()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield upstream
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
