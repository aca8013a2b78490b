"""OpenAI-compatible server for a base model and its checkpoints: /v1/chat/completions, /v1/models, /health.

Requests of all clients are answered together, whichever adapters they ask for (batcher.py). A version that is published while the server
runs is loaded when it is first asked for. A stream of free text is sent token by token; an answer under a grammar comes whole. Several
choices, top_p and tools are deliberately not supported.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from babylon_rl.errors import ModelError, ModelUnavailable, UsageError
from babylon_rl.http_server import BODY_TIMEOUT_S, NOT_JSON, ApiError, ClientGone, bind, error_handlers, read_body, refusal, server_config
from babylon_rl.models.batcher import Batcher, FindAdapter, PendingAnswer
from babylon_rl.models.policy import Completion, CompletionRequest, Policy
from babylon_rl.models.threads import set_threads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_MODEL_NAME = "base"
DEFAULT_MAX_TOKENS = 256
MAX_BODY_BYTES = 4 * 1024**2


class ChatMessage(msgspec.Struct, frozen=True):
    """One message; content may be OpenAI's list of text parts."""

    role: str
    content: str | list[dict[str, Any]]


class ChatBody(msgspec.Struct, frozen=True):
    """Supported fields of a request; others are ignored, because OpenAI's clients send many."""

    model: str
    messages: list[ChatMessage]
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    stream: bool | None = None
    n: int | None = None
    top_p: float | None = None
    tools: list[Any] | None = None


def create_app(
    policy: Policy,
    find_adapter: FindAdapter = lambda name: None,
    on_failure: Callable[[Exception], None] = lambda failure: None,
) -> Starlette:
    """Create the application; model ``base`` is the base, other names are adapters.

    ``find_adapter`` gives the directory of an adapter that the policy does not have, None if there is none; it is called in a thread.
    ``on_failure`` gets the error after which no request is answered any more.
    """
    batcher = Batcher(policy, find_adapter)
    started = int(time.time())

    async def answer() -> None:
        try:
            await batcher.run()
        except Exception as failure:
            on_failure(failure)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(answer())
        yield
        worker.cancel()

    async def chat(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await read_body(request.receive, MAX_BODY_BYTES, BODY_TIMEOUT_S), type=ChatBody)
        except NOT_JSON as invalid:
            raise ApiError(400, f"The request is not a chat completion: {invalid}") from None
        try:
            served = body.model == BASE_MODEL_NAME or await batcher.serves(body.model)
        except ModelUnavailable as away:
            raise ApiError(503, str(away), "model_unavailable") from None
        except ModelError as damaged:
            raise ApiError(404, str(damaged), "model_not_found") from None
        if not served:
            known = ", ".join((BASE_MODEL_NAME, *policy.adapters))
            raise ApiError(404, f"The model {body.model!r} is not served here; served: {known}.", "model_not_found") from None
        # Invalid requests are refused before they join a batch.
        try:
            row = policy.row(_completion_request(body))
        except UsageError as refused:
            raise ApiError(400, str(refused)) from None
        asked = batcher.ask(row)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        # The status of a stream is decided by its first token.
        if not await _unless_left(asked, request, to_end=not body.stream):
            raise ClientGone
        if body.stream:
            return StreamingResponse(_events(head, asked, policy, bool(body.logprobs)), media_type="text/event-stream")
        return JSONResponse(head | _answer(body, policy.completion(row), policy.tokenizer))

    async def models(_: Request) -> JSONResponse:
        names = (BASE_MODEL_NAME, *policy.adapters)
        return JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model", "created": started, "owned_by": "babylon-rl"} for name in names]}
        )

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models), Route("/health", health)]
    handlers = error_handlers(
        refusal, "served: POST /v1/chat/completions; GET /v1/models, /health", "The model server failed; its log has the reason."
    )
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


def serve(policy: Policy, bound: socket.socket, announce: Callable[[str], None], find_adapter: FindAdapter = lambda name: None) -> None:
    """Serve until interrupted; ``announce`` gets one JSON line, {"host", "port", "models"}, once requests are accepted.

    Raises:
        Exception: the error after which no request could be answered.
    """
    import uvicorn

    failures: list[Exception] = []

    def end(failure: Exception) -> None:
        failures.append(failure)
        server.should_exit = True

    app = create_app(policy, find_adapter=find_adapter, on_failure=end)
    server = uvicorn.Server(server_config(app))
    # Before the announcement: whoever reads it may connect at once.
    bound.listen(512)
    host, port = bound.getsockname()[:2]
    announce(json.dumps({"host": host, "port": port, "models": [BASE_MODEL_NAME, *policy.adapters]}))
    server.run(sockets=[bound])
    for failure in failures:
        raise failure


def main(arguments: list[str] | None = None) -> None:
    """Run ``python -m babylon_rl.models.server``, the program of ``running_server``."""
    import argparse

    parser = argparse.ArgumentParser(prog="babylon_rl.models.server")
    parser.add_argument("base", type=Path)
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--end-with-stdin", action="store_true", help="stop when standard input closes, as it does when the parent dies")
    options = parser.parse_args(arguments)
    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    # The port is bound before the model is loaded: a used port fails at once.
    bound = bind(options.host, options.port)
    # Before the policy: torch reads how its threads wait when it is first imported.
    set_threads(options.threads)
    policy = Policy.load(options.base)
    for entry in options.adapter:
        name, _, directory = entry.partition("=")
        policy.add_adapter(name, Path(directory))
    serve(policy, bound, lambda line: print(line, flush=True))


def _completion_request(body: ChatBody) -> CompletionRequest:
    if body.n not in (None, 1) or body.top_p not in (None, 1) or body.tools:
        raise UsageError("n above 1, top_p below 1 and tools are not served here.")
    if not body.messages:
        raise UsageError("messages is empty.")
    # max_tokens is the older name of the same limit in OpenAI's API; 1 is its default temperature.
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    response_format = body.response_format
    return CompletionRequest(
        messages=[{"role": message.role, "content": _text(message.content)} for message in body.messages],
        response_format=None if response_format is None or response_format.get("type") == "text" else response_format,
        temperature=1.0 if body.temperature is None else body.temperature,
        seed=secrets.randbits(32) if body.seed is None else body.seed,
        max_tokens=DEFAULT_MAX_TOKENS if limit is None else limit,
        adapter=None if body.model == BASE_MODEL_NAME else body.model,
    )


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
        raise UsageError("Only text parts are served in a message's content.")
    return "".join(part["text"] for part in content)


async def _unless_left(asked: PendingAnswer, request: Request, *, to_end: bool) -> bool:
    """Wait for the first tokens, or all; False if the client has left."""

    async def tokens() -> None:
        while await asked.more() and to_end:
            pass

    # After the body the next message is that the client has left.
    waits = [asyncio.ensure_future(tokens()), asyncio.ensure_future(request.receive())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        asked.left = not waits[0].done()
        if not asked.left:
            # Raises what the batch failed with, which becomes status 500.
            waits[0].result()
        return not asked.left
    finally:
        for wait in waits:
            wait.cancel()


async def _events(head: dict[str, Any], asked: PendingAnswer, policy: Policy, logprobs: bool) -> AsyncIterator[bytes]:
    """Stream an answer as events, each with the tokens since the last."""
    sent, shown, delta = 0, "", {"role": "assistant"}
    head |= {"object": "chat.completion.chunk", "usage": None}
    try:
        while True:
            tokens, values, ended = asked.tokens, asked.logprobs, asked.ended
            text = policy.text(tokens)
            # A character may be cut between two tokens; it is shown once it is whole.
            if not ended:
                text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            if len(tokens) > sent:
                entries = {"content": _logprobs(tokens[sent:], values[sent:], policy.tokenizer)} if logprobs else None
                choice = {"index": 0, "delta": delta | {"content": text[len(shown) :]}, "finish_reason": None, "logprobs": entries}
                yield _event(head | {"choices": [choice]})
                sent, shown, delta = len(tokens), text, {}
            if ended:
                break
            await asked.more()
        completion = policy.completion(asked.row)
        choice = {"index": 0, "delta": {}, "finish_reason": completion.finish_reason, "logprobs": None}
        yield _event(head | {"choices": [choice], "usage": _usage(completion)}) + b"data: [DONE]\n\n"
    finally:
        asked.left = True


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _answer(body: ChatBody, completion: Completion, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": completion.finish_reason,
        "message": {"role": "assistant", "content": completion.text},
        "logprobs": {"content": _logprobs(completion.token_ids, completion.logprobs, tokenizer)} if body.logprobs else None,
    }
    return {"object": "chat.completion", "choices": [choice], "usage": _usage(completion)}


def _usage(completion: Completion) -> dict[str, int]:
    used = len(completion.token_ids)
    return {"prompt_tokens": completion.prompt_tokens, "completion_tokens": used, "total_tokens": completion.prompt_tokens + used}


def _logprobs(tokens: Sequence[int], logprobs: Sequence[float], tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """Log-probabilities in OpenAI's format, with each token's id.

    The end token is included; ``bytes`` is null where a token is part of a character.
    """
    texts = [str(tokenizer.decode([token])) for token in tokens]
    return [
        {
            "token": text,
            "logprob": logprob,
            "bytes": None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode()),
            "top_logprobs": [],
            "token_id": token,
        }
        for text, logprob, token in zip(texts, logprobs, tokens, strict=True)
    ]


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # the parent is gone: nobody waits for an answer or an orderly end


if __name__ == "__main__":
    main()
