"""OpenAI-compatible server for a base model and its checkpoints: /v1/chat/completions, /v1/models, /health.

Requests of all clients are answered together, whichever adapters they ask for (batcher.py). A version that is published while the server
runs is loaded when it is first asked for. A stream of free text is sent token by token; an answer under a grammar comes whole. A field that
is not served is refused by name (chat_request.py).
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
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp
from transformers import PreTrainedTokenizerBase

from babylon_rl.api_errors import ApiError
from babylon_rl.chats import UNLIKELY
from babylon_rl.errors import ModelError, ModelUnavailable, RequestRefused, first_line
from babylon_rl.http_server import (
    BODY_TIMEOUT_S,
    ClientGone,
    Door,
    bind,
    cancelled_when_gone,
    error_handlers,
    read_json,
    refusal,
    uvicorn_server,
)
from babylon_rl.models.base_model import BASE_MODEL_NAME
from babylon_rl.models.batcher import Batcher, FindAdapter, PendingAnswer
from babylon_rl.models.chat_request import ChatBody, read_request
from babylon_rl.models.generation import Row
from babylon_rl.models.policy import Completion, Policy
from babylon_rl.models.threads import set_threads

MAX_BODY_BYTES = 4 * 1024**2


def create_app(
    policy: Policy,
    find_adapter: FindAdapter = lambda name: None,
    on_failure: Callable[[Exception], None] = lambda failure: None,
) -> ASGIApp:
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
            body = read_request(await read_json(request.receive, request.headers.get("content-type"), MAX_BODY_BYTES, BODY_TIMEOUT_S))
            asked_for = body.completion_request()
            served = body.model == BASE_MODEL_NAME or await batcher.serves(body.model)
            if not served:
                known = ", ".join((BASE_MODEL_NAME, *policy.adapters))
                raise ApiError(404, f"The model {body.model!r} is not served here; served: {known}.", "model_not_found", "model")
            # Invalid requests are refused before they join a batch.
            row = policy.row(asked_for)
        except RequestRefused as refused:
            raise ApiError(400, str(refused), refused.code, refused.param) from None
        except ModelUnavailable as away:
            raise ApiError(503, str(away), "model_unavailable", "model") from None
        except ModelError as damaged:
            raise ApiError(404, str(damaged), "model_not_found", "model") from None
        asked = batcher.ask(row)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        try:
            with cancelled_when_gone(request.receive):
                # The status of a stream is decided by its first token.
                while await asked.more() and not body.stream:
                    pass
        except ClientGone:
            asked.left = True
            raise
        if body.stream:
            return StreamingResponse(_events(head, asked, policy, body), media_type="text/event-stream")
        return JSONResponse(head | _answer(body, row, policy))

    async def models(_: Request) -> JSONResponse:
        names = (BASE_MODEL_NAME, *policy.adapters)
        return JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model", "created": started, "owned_by": "babylon-rl"} for name in names]}
        )

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models), Route("/health", health)]
    handlers = error_handlers(refusal, "served: POST /v1/chat/completions; GET /v1/models, /health", failed="")
    return Door(Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers | {Exception: _failure}), refusal)


def serve(policy: Policy, bound: socket.socket, announce: Callable[[str], None], find_adapter: FindAdapter = lambda name: None) -> None:
    """Serve until interrupted or failed; ``announce`` gets one JSON line, {"host", "port", "models"}, once requests are accepted."""
    failures: list[Exception] = []

    def end(failure: Exception) -> None:
        failures.append(failure)
        server.should_exit = True

    server = uvicorn_server(create_app(policy, find_adapter=find_adapter, on_failure=end))
    # Before the announcement: its reader may connect at once.
    bound.listen(512)
    host, port = bound.getsockname()[:2]
    announce(json.dumps({"host": host, "port": port, "models": [BASE_MODEL_NAME, *policy.adapters]}))
    server.run(sockets=[bound])
    for failure in failures:
        raise failure


def main() -> None:
    """Run ``python -m babylon_rl.models.server`` for ``running_server``, which gives base, adapters, threads and port as JSON."""
    base, adapters, threads, port = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    # The port is bound before the model is loaded: a used port fails at once.
    bound = bind("127.0.0.1", port)
    set_threads(threads)
    policy = Policy.load(Path(base))
    for name, directory in adapters.items():
        policy.add_adapter(name, Path(directory))
    serve(policy, bound, lambda line: print(line, flush=True))


async def _events(head: dict[str, Any], asked: PendingAnswer, policy: Policy, body: ChatBody) -> AsyncIterator[bytes]:
    """Stream an answer as events, each with the tokens since the last."""
    sent, shown, delta = 0, "", {"role": "assistant", "content": ""}
    head |= {"object": "chat.completion.chunk"} | ({"usage": None} if body.with_usage else {})
    try:
        while True:
            ended = asked.ended
            if ended:
                completion = policy.completion(asked.row)
                text, number = completion.text, len(completion.token_ids)
            else:
                text, number = _settled(policy, asked.tokens, asked.row.stop)
            if number > sent or len(text) > len(shown):
                entries = {"content": _logprobs(asked.row, sent, number, policy.tokenizer)} if body.logprobs else None
                choice = {"index": 0, "delta": delta | {"content": text[len(shown) :]}, "finish_reason": None, "logprobs": entries}
                yield _event(head | {"choices": [choice]})
                sent, shown, delta = number, text, {}
            if ended:
                break
            await asked.more()
        choice = {"index": 0, "delta": delta, "finish_reason": completion.finish_reason, "logprobs": None}
        yield _event(head | {"choices": [choice]})
        if body.with_usage:
            yield _event(head | {"choices": [], "usage": _usage(completion)})
        yield b"data: [DONE]\n\n"
    finally:
        asked.left = True


def _settled(policy: Policy, tokens: Sequence[int], stop: Sequence[str]) -> tuple[str, int]:
    """The text so far that no later token can change, and the number of tokens that may be shown."""
    # A character may be cut between two tokens; it is shown once it is whole.
    text = policy.text(tokens).rstrip("\N{REPLACEMENT CHARACTER}")
    if not stop:
        return text, len(tokens)
    # What may be the beginning of a stop string waits, and so do its tokens.
    held = max(length for one in stop for length in range(len(one)) if text.endswith(one[:length]))
    return text[: len(text) - held], policy.tokens_within(tokens, len(text) - held)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _answer(body: ChatBody, row: Row, policy: Policy) -> dict[str, Any]:
    completion = policy.completion(row)
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": completion.finish_reason,
        "message": {"role": "assistant", "content": completion.text, "refusal": None},
        "logprobs": {"content": _logprobs(row, 0, len(completion.token_ids), policy.tokenizer)} if body.logprobs else None,
    }
    return {"object": "chat.completion", "choices": [choice], "usage": _usage(completion)}


def _usage(completion: Completion) -> dict[str, int]:
    used = completion.drawn_tokens
    return {"prompt_tokens": completion.prompt_tokens, "completion_tokens": used, "total_tokens": completion.prompt_tokens + used}


def _logprobs(row: Row, first: int, end: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Log-probabilities of some of a row's tokens in OpenAI's format, with each token's id."""
    return [
        _entry(token, logprob, tokenizer) | {"top_logprobs": [_entry(*one, tokenizer) for one in top]}
        for token, logprob, top in zip(row.tokens[first:end], row.logprobs[first:end], row.tops[first:end], strict=True)
    ]


def _entry(token: int, logprob: float, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A token in OpenAI's format; ``bytes`` is null where it is part of a character."""
    text = str(tokenizer.decode([token]))
    data = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": max(logprob, UNLIKELY), "bytes": data, "top_logprobs": [], "token_id": token}


def _failure(_: Request, failure: Exception) -> Response:
    return refusal(ApiError(500, f"The model failed to answer: {first_line(failure)}"))


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # the parent is gone: nobody waits for an answer or an orderly end


if __name__ == "__main__":
    main()
