"""OpenAI-compatible server for a base model and its checkpoints: /v1/chat/completions, /v1/models, /health.

Waiting requests are answered together: one worker thread takes all that arrived (after a linger of a few milliseconds) as one batch of the
policy, whichever adapters they ask for. A version that is published while the server runs is loaded when it is first asked for. A stream
is sent once its answer is complete. Several choices, top_p and tools are deliberately not supported.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from babylon_rl.errors import ModelError, ModelUnavailable, UsageError
from babylon_rl.models.policy import Completion, CompletionRequest, Policy
from babylon_rl.models.threads import set_threads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_MODEL_NAME = "base"
BATCH_LIMIT = 32
LINGER_S = 0.005
DEFAULT_MAX_TOKENS = 256
FindAdapter = Callable[[str], Path | None]


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


class Batcher:
    """Collects requests from the event loop and answers them in batches on one thread."""

    def __init__(self, policy: Policy, find_adapter: FindAdapter) -> None:
        self._policy, self._find_adapter = policy, find_adapter
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._queue: asyncio.Queue[tuple[CompletionRequest, asyncio.Future[Completion]]] = asyncio.Queue()

    async def complete(self, request: CompletionRequest) -> Completion:
        """Queue this request and wait for its answer."""
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        await self._queue.put((request, answer))
        return await answer

    async def serves(self, name: str) -> bool:
        """Return True if requests may name this model; an adapter that is not loaded yet is loaded between two batches.

        Raises:
            ModelError: its files are damaged, or of another base.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._load, name) if not self._is_loaded(name) else True

    def _is_loaded(self, name: str) -> bool:
        return name == BASE_MODEL_NAME or name in self._policy.adapters

    def _load(self, name: str) -> bool:
        # Asked again in the policy's own thread: another request may have loaded it meanwhile.
        if not self._is_loaded(name):
            directory = self._find_adapter(name)
            if directory is None:
                return False
            self._policy.add_adapter(name, directory)
        return True

    async def run(self) -> None:
        """Serve until cancelled."""
        with self._executor:
            await self._run()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            waiting = [await self._queue.get()]
            # A short wait lets concurrent requests join the batch.
            await asyncio.sleep(LINGER_S)
            while len(waiting) < BATCH_LIMIT and not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            batch = [(request, answer) for request, answer in waiting if not answer.cancelled()]
            done = await asyncio.wait([loop.run_in_executor(self._executor, self._policy.complete, [request for request, _ in batch])])
            outcome = done[0].pop()
            # A failed batch fails every request in it; cancelled ones are skipped.
            for index, (_, answer) in enumerate(batch):
                if answer.cancelled():
                    continue
                if (failure := outcome.exception()) is not None:
                    answer.set_exception(failure)
                else:
                    answer.set_result(outcome.result()[index])


def create_app(
    policy: Policy,
    adapters: Mapping[str, Path] | None = None,
    clock: Callable[[], float] = time.time,
    find_adapter: FindAdapter = lambda name: None,
) -> Starlette:
    """Create the application; the model name ``base`` is the base model, every other name an adapter.

    ``adapters`` (name -> checkpoint directory) are loaded first when the policy does not have them; ``find_adapter`` gives the directory
    of one that is asked for later, None if there is none.

    Raises:
        ModelUnavailable: an adapter cannot be loaded.
    """
    for name, directory in (adapters or {}).items():
        if name not in policy.adapters:
            policy.add_adapter(name, directory)
    batcher = Batcher(policy, find_adapter)
    started = int(clock())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    async def chat(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=ChatBody)
        except (msgspec.MsgspecError, UnicodeDecodeError) as invalid:
            return _refusal(400, f"The request is not a chat completion: {invalid}")
        try:
            served = await batcher.serves(body.model)
        except ModelError as damaged:
            return _refusal(404, str(damaged), "model_not_found")
        if not served:
            known = ", ".join((BASE_MODEL_NAME, *policy.adapters))
            return _refusal(404, f"The model {body.model!r} is not served here; served: {known}.", "model_not_found")
        # Invalid requests are refused before they join a batch.
        try:
            completion_request = _completion_request(body)
            policy.check(completion_request)
        except UsageError as refused:
            return _refusal(400, str(refused))
        answer = _answer(body, await batcher.complete(completion_request), policy.tokenizer, int(clock()))
        return Response(_events(answer), media_type="text/event-stream") if body.stream else JSONResponse(answer)

    async def models(_: Request) -> JSONResponse:
        names = (BASE_MODEL_NAME, *policy.adapters)
        return JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model", "created": started, "owned_by": "babylon-rl"} for name in names]}
        )

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket without listening; ``port`` 0 takes a free one.

    Called first, so that a used port is reported before minutes of work.

    Raises:
        ModelUnavailable: the address cannot be used.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as taken:
        bound.close()
        reason = taken.strerror or str(taken)
        raise ModelUnavailable(f"Port {port} on {host} cannot be used ({reason}): choose another port.") from taken
    return bound


def serve(policy: Policy, bound: socket.socket, announce: Callable[[str], None], find_adapter: FindAdapter = lambda name: None) -> None:
    """Serve until interrupted; ``announce`` gets one JSON line, {"host", "port", "models"}, once requests are accepted."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(create_app(policy, find_adapter=find_adapter), log_level="warning", timeout_graceful_shutdown=3))
    bound.listen(512)
    host, port = bound.getsockname()[:2]
    announce(json.dumps({"host": host, "port": port, "models": [BASE_MODEL_NAME, *policy.adapters]}))
    server.run(sockets=[bound])


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


def _answer(body: ChatBody, completion: Completion, tokenizer: "PreTrainedTokenizerBase", created: int) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": completion.finish_reason,
        "message": {"role": "assistant", "content": completion.text},
        "logprobs": {"content": _logprobs(completion, tokenizer)} if body.logprobs else None,
    }
    used = len(completion.token_ids)
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": created,
        "model": body.model,
        "choices": [choice],
        "usage": {"prompt_tokens": completion.prompt_tokens, "completion_tokens": used, "total_tokens": completion.prompt_tokens + used},
    }


def _events(answer: dict[str, Any]) -> bytes:
    """A whole answer as a stream of three events."""
    (choice,) = answer["choices"]
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"], "logprobs": None}
    first = last | {"delta": choice["message"], "finish_reason": None, "logprobs": choice["logprobs"]}
    chunks = [answer | {"object": "chat.completion.chunk", "choices": [part], "usage": None} for part in (first, last)]
    chunks[-1]["usage"] = answer["usage"]
    return b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def _logprobs(completion: Completion, tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """Log-probabilities in OpenAI's format, with each token's id.

    The end token is included; ``bytes`` is null where a token is part of a character.
    """
    texts = [str(tokenizer.decode([token])) for token in completion.token_ids]
    return [
        {
            "token": text,
            "logprob": logprob,
            "bytes": None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode()),
            "top_logprobs": [],
            "token_id": token,
        }
        for text, logprob, token in zip(texts, completion.logprobs, completion.token_ids, strict=True)
    ]


def _refusal(status: int, message: str, code: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}, status)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # the parent is gone: nobody waits for an answer or an orderly end


if __name__ == "__main__":
    main()
