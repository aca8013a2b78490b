"""HTTP server of the scripted judge: /v1/chat/completions, /v1/models, /stats, /reset.

Faults of the connection are real: a reset is a TCP reset, a time-out is a request without an answer. Left out on purpose: streaming on
request, several choices, tools.
"""

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from babylon_rl.errors import UsageError
from babylon_rl.http_server import in_thread, url_of
from babylon_rl_tests.scripted_judge.judge import (
    ScriptedJudge,
    answer_text,
    changes_of,
    content_hash,
    fault_of,
    latency_s,
    short_of_marks,
    verdicts_of,
)
from babylon_rl_tests.scripted_judge.parsing import read, text_of

OVERRIDE_HEADER = "x-scripted-judge"
SETTLE_S = 0.02  # time for sent bytes to reach the client, as a reset discards the others
SLOW_PIECES = 20
WEB_PAGE = "<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head><body><h1>Checking your browser</h1></body></html>\n"
_STATUS = {
    "rate-limit": (429, "rate_limit_exceeded", "Rate limit reached: try again later."),
    "server-error": (500, "server_error", "The server had an error while processing your request."),
    "unavailable": (503, "overloaded", "The engine is overloaded: try again later."),
    "bad-key": (401, "invalid_api_key", "Incorrect API key provided."),
    "unknown-model": (404, "model_not_found", "The model does not exist or you do not have access to it."),
    "bad-request": (400, "context_length_exceeded", "This model's maximum context length is exceeded."),
}
_FINISH = {"truncated": "length", "refusal": "content_filter"}


class RequestCounts:
    """Counts since the start or the last reset; ``attempts`` are the requests per content."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.requests = self.answered = self.in_flight = self.most_in_flight = 0
        self.prompt_tokens = self.completion_tokens = 0

    def stats(self) -> dict[str, Any]:
        """Counts as JSON values.

        ``answered`` are answers of status 200 with content of the judge's, ``repeated`` the requests made again.
        """
        return {
            "requests": self.requests,
            "answered": self.answered,
            "contents": len(self.attempts),
            "repeated": self.requests - len(self.attempts),
            "inFlight": self.in_flight,
            "mostInFlight": self.most_in_flight,
            "faults": dict(sorted(self.faults.items())),
            "promptTokens": self.prompt_tokens,
            "completionTokens": self.completion_tokens,
        }


class ChatCompletions:
    """The chat endpoint: one request gives one planned answer or fault."""

    def __init__(self, judge: ScriptedJudge) -> None:
        self.started_as = self.judge = judge
        self.tally = RequestCounts()

    def reset(self, changes: dict[str, Any]) -> None:
        """Clear all counts and return to the initial settings plus ``changes``."""
        self.judge = self.started_as.but(changes)
        # requests under way end in the new tally
        in_flight, self.tally = self.tally.in_flight, RequestCounts()
        self.tally.in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = json.loads(await request.body())
            judge = self.judge.but(changes_of(request.headers.get(OVERRIDE_HEADER, "")))
            messages = _messages(body)
            parsed = read(messages)
        except ClientDisconnect:  # it was gone before it had asked
            return
        except (UsageError, ValueError) as refused:
            await error(400, "invalid_request", str(refused))(scope, receive, send)
            return
        # the attempt's number decides its fault, so count it before anything can fail
        content, tally = content_hash(messages), self.tally
        attempt = tally.attempts[content]
        tally.attempts[content] += 1
        tally.requests += 1
        tally.in_flight += 1
        tally.most_in_flight = max(tally.most_in_flight, tally.in_flight)
        try:
            fault = fault_of(judge, content, attempt)
            if fault is not None:
                tally.faults[fault] += 1
            await asyncio.sleep(latency_s(judge, content, attempt))
            # faults of the connection send nothing, then those of a status; any other spoils the answer's text or its sending
            if fault == "time-out":
                await _gone(receive)
            elif fault == "reset":
                await _cut(request)
            elif fault in _STATUS:
                await _refused(fault, judge)(scope, receive, send)
            elif fault == "web-page":
                await Response(WEB_PAGE, media_type="text/html")(scope, receive, send)
            else:
                verdicts = short_of_marks(judge, verdicts_of(judge, parsed, content), content, attempt)
                text = answer_text(verdicts, parsed.id_field, fault)
                prompt = sum(len(text_of(message)) for message in messages)
                answer = _completion(judge, _storable(str(body.get("model") or judge.model)), content, text, prompt, fault)
                tally.answered += fault != "reset-mid-body"
                tally.prompt_tokens += answer["usage"]["prompt_tokens"]
                tally.completion_tokens += answer["usage"]["completion_tokens"]
                await _sent(request, send, JSONResponse(answer), fault, judge)
        finally:
            self.tally.in_flight -= 1


def create_app(judge: ScriptedJudge) -> Starlette:
    """Application; ``app.state.chat`` holds the judge and its tally."""
    chat = ChatCompletions(judge)

    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": judge.model, "object": "model", "created": 0, "owned_by": "babylon-rl"}]})

    async def stats(_: Request) -> JSONResponse:
        return JSONResponse(chat.tally.stats() | {"settings": chat.judge.described()})

    async def reset(request: Request) -> JSONResponse:
        try:
            chat.reset(changes_of((await request.body()).decode()))
        except (UsageError, UnicodeDecodeError) as refused:
            return error(400, "invalid_request", str(refused))
        return JSONResponse(chat.judge.described())

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/stats", stats),
            Route("/reset", reset, methods=["POST"]),
        ]
    )
    app.state.chat = chat
    return app


def uvicorn_server(judge: ScriptedJudge) -> uvicorn.Server:
    """Server for the judge, not started."""
    app = create_app(judge)
    config = uvicorn.Config(
        app, http="h11", loop="asyncio", lifespan="off", log_level="warning", access_log=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    app.state.connections = server.server_state.connections
    return server


def serve(judge: ScriptedJudge, bound: socket.socket, announce: Callable[[str], None]) -> None:
    """Serve until interrupted.

    ``announce`` gets the base URL for OpenAI clients once connections are accepted.
    """
    # before the announcement, as whoever reads it may connect at once
    bound.listen(512)
    announce(f"{url_of(bound)}/v1")
    uvicorn_server(judge).run(sockets=[bound])


@contextmanager
def running(judge: ScriptedJudge) -> Iterator[str]:
    """Run the judge on a free loopback port in a thread; yields the base URL.

    The URL is for OpenAI clients. The judge stops at the end of the ``with`` block.

    Raises:
        ModelUnavailable: it does not answer in time.
    """
    with in_thread(uvicorn_server(judge), "scripted-judge", lambda: "The scripted judge did not start in time.") as url:
        yield f"{url}/v1"


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Error response in OpenAI's format."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": _storable(message), "type": kind, "param": None, "code": code}}, status, headers)


def _storable(text: str) -> str:
    """Text without lone surrogates, which no answer can encode."""
    return text.encode("utf-8", "replace").decode()


def _messages(body: Any) -> list[dict[str, Any]]:
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise UsageError("messages is not a list of messages.")
    if body.get("stream") or body.get("n") not in (None, 1):
        raise UsageError("stream and n above 1 are not served here.")
    return messages


def _completion(judge: ScriptedJudge, model: str, content: str, text: str | None, prompt: int, fault: str | None) -> dict[str, Any]:
    """Chat completion for a text; ``prompt`` is the number of characters of the request."""
    prompt_tokens, answer_tokens = (int(count / judge.chars_per_token) + 1 for count in (prompt, len(text or "")))
    message = {"role": "assistant", "content": text, "refusal": "This request was filtered." if fault == "refusal" else None}
    return {
        "id": f"chatcmpl-{content}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH.get(fault or "", "stop")}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens, "total_tokens": prompt_tokens + answer_tokens},
    }


def _refused(fault: str, judge: ScriptedJudge) -> JSONResponse:
    status, code, message = _STATUS[fault]
    return error(status, code, message, {"retry-after": f"{judge.retry_after_s:g}"} if fault == "rate-limit" else None)


async def _sent(request: Request, send: Send, response: JSONResponse, fault: str | None, judge: ScriptedJudge) -> None:
    """Send the answer at once, in half followed by a reset, or piece by piece."""
    if fault not in ("reset-mid-body", "slow-stream"):
        await response(request.scope, request.receive, send)
        return
    # the headers promise the whole body, so the client can tell that half of it is missing
    body = bytes(response.body)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    if fault == "reset-mid-body":
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        await asyncio.sleep(SETTLE_S)
        await _cut(request)
        return
    # no pause is long, so only a limit on the whole answer ends the wait
    size = -(-len(body) // SLOW_PIECES)
    for at in range(0, len(body), size):
        await send({"type": "http.response.body", "body": body[at : at + size], "more_body": at + size < len(body)})
        await asyncio.sleep(judge.slow_s / SLOW_PIECES if at + size < len(body) else 0.0)


async def _cut(request: Request) -> None:
    """Send a TCP reset, as a crashed proxy does."""
    assert request.client is not None
    transport = next(one.transport for one in request.app.state.connections if one.client == tuple(request.client))
    # Lingering for zero seconds makes the kernel send RST in the place of FIN.
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await _gone(request.receive)


async def _gone(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
