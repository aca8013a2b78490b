"""An OpenAI-compatible server on a real socket that does what a request asks: it calls a tool first, fills a schema, streams by words.

A word after # in the last message makes it ``refuse``, ``cut`` or ``break`` its answer, or say a text ``before`` its call.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from babylon_rl.http_server import bind

SAID = "Buy BTC now, héllo \N{GRINNING FACE} end."
VALUES = {"string": "BTC", "integer": 3, "number": 1.5, "boolean": True}
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "prompt_tokens_details": {"cached_tokens": 3}}


def filled(schema: dict[str, Any]) -> Any:
    """A value that a schema of objects takes."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: filled(part) for name, part in schema.get("properties", {}).items()}
    return VALUES.get(schema.get("type", ""))


class ActingStandIn:
    """``seen`` are the bodies of chats, ``embedded`` those of embeddings with their Authorization."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.embedded: list[tuple[Any, str | None]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        message, finish, tag = self._answer(body)
        head = {"id": "chatcmpl-1", "created": 1700000000, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            return web.json_response(head | {"object": "chat.completion", "choices": [choice], "usage": USAGE})
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)

        async def put(delta: dict[str, Any], reason: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            chunk = head | {"object": "chat.completion.chunk", "choices": [choice]}
            await answer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        await put({"role": "assistant"})
        for name in ("content", "refusal"):
            for word in (message[name] or "").split():
                await put({name: word + " "})
                if tag == "break":
                    request.transport.abort()  # type: ignore[union-attr]
                    return answer
        for place, call in enumerate(message.get("tool_calls", ())):
            function = call["function"]
            await put({"tool_calls": [call | {"index": place, "function": {"name": function["name"], "arguments": ""}}]})
            for at in range(0, len(function["arguments"]), 5):
                await put({"tool_calls": [{"index": place, "function": {"arguments": function["arguments"][at : at + 5]}}]})
        await put({}, finish)
        if (body.get("stream_options") or {}).get("include_usage"):
            await answer.write(b"data: " + json.dumps(head | {"choices": [], "usage": USAGE}).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.embedded.append((body, request.headers.get("authorization")))
        if body["model"] == "unknown":
            return web.json_response({"error": {"message": "no such model", "type": "x", "param": "model", "code": "gone"}}, status=400)
        vectors = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        return web.json_response(
            {"object": "list", "data": vectors, "model": body["model"], "usage": {"prompt_tokens": 2, "total_tokens": 2}}
        )

    def _answer(self, body: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
        asked = str(body["messages"][-1].get("content"))
        tag = asked.partition("#")[2].partition(" ")[0]
        answer: dict[str, Any] = {"role": "assistant", "content": SAID, "refusal": None}
        if tag == "refuse":
            return answer | {"content": None, "refusal": "I cannot do that."}, "stop", tag
        if body.get("tools") and body["messages"][-1]["role"] != "tool" and body.get("tool_choice") != "none":
            calls = [
                {
                    "id": f"call_{place}",
                    "type": "function",
                    "function": {"name": one["name"], "arguments": json.dumps(filled(one["parameters"]))},
                }
                for place, one in enumerate(tool["function"] for tool in body["tools"])
            ]
            return answer | {"content": "Let me see." if tag == "before" else None, "tool_calls": calls}, "tool_calls", tag
        if (form := body.get("response_format") or {}).get("type") == "json_schema":
            return answer | {"content": json.dumps(filled(form["json_schema"]["schema"]))}, "stop", tag
        return answer, "length" if tag == "cut" else "stop", tag


@contextmanager
def acting_stand_in() -> Iterator[ActingStandIn]:
    """A stand-in that serves in a thread of its own until the block ends."""
    stand_in, loop, ready = ActingStandIn(), asyncio.new_event_loop(), threading.Event()

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", stand_in.chat)
        app.router.add_post("/v1/embeddings", stand_in.embeddings)
        runner = web.AppRunner(app)
        await runner.setup()
        bound = bind("127.0.0.1", 0)
        stand_in.port = bound.getsockname()[1]
        await web.SockSite(runner, bound).start()
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    task = loop.create_task(run())

    def work() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield stand_in
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
        loop.close()
