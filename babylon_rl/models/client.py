"""A chat client for any OpenAI-compatible endpoint, that retries what a retry can help and believes no answer that is not one.

Retried, with exponential waits and within one time limit for the whole call: 429 (after its Retry-After), 5xx, and
connections that fail or break off. A 200 that holds no chat completion is an error: proxies answer so.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from babylon_rl.errors import ModelUnavailable

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S = 120.0
ATTEMPTS = 6
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 10.0
_RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 529}


@dataclass(frozen=True)
class ChatAnswer:
    """An answer as it was served. ``logprobs`` is [{"token", "logprob", "tokenId"}], None when the endpoint gave none.

    ``tokenId`` is None where an endpoint does not tell it. ``latency_ms`` is that of the attempt that succeeded.
    """

    text: str
    logprobs: list[dict[str, Any]] | None
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    model: str


class ChatClient:
    """One model at one endpoint. ``base_url`` is OpenAI's, ending in /v1; a bare host gets it appended."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model: str,
        *,
        timeout_s: float = TIMEOUT_S,
        attempts: int = ATTEMPTS,
        logprobs: bool = True,
    ) -> None:
        self.base_url = _with_version(base_url)
        self.model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._logprobs = logprobs
        self._async: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sync: httpx2.Client | None = None
        self._opening = threading.Lock()

    async def complete(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        response_format: dict[str, Any] | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        max_tokens: int = 64,
    ) -> ChatAnswer:
        """Ask once, with retries.

        Raises:
            ModelUnavailable: the endpoint refuses, keeps failing, or answers something else than a chat completion.
        """
        body = self._body(messages, response_format, temperature, seed, max_tokens)
        for attempt in self._attempts_within():
            try:
                response = await self._async_client().post(self._url, json=body, headers=self._headers, timeout=attempt.left_s)
            except _transport_error() as broken:
                await asyncio.sleep(attempt.wait_after(broken))
            else:
                if response.status_code not in _RETRIED_STATUS:
                    return self._answer(response, attempt)
                await asyncio.sleep(attempt.wait_after(response))
        raise AssertionError("the last attempt raises")

    def complete_now(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        response_format: dict[str, Any] | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        max_tokens: int = 64,
    ) -> ChatAnswer:
        """``complete`` for callers without an event loop."""
        body = self._body(messages, response_format, temperature, seed, max_tokens)
        for attempt in self._attempts_within():
            try:
                response = self._sync_client().post(self._url, json=body, headers=self._headers, timeout=attempt.left_s)
            except _transport_error() as broken:
                time.sleep(attempt.wait_after(broken))
            else:
                if response.status_code not in _RETRIED_STATUS:
                    return self._answer(response, attempt)
                time.sleep(attempt.wait_after(response))
        raise AssertionError("the last attempt raises")

    async def aclose(self) -> None:
        """Close the connections of ``complete``."""
        if self._async is not None:
            await self._async.aclose()
            self._async = None

    def close(self) -> None:
        """Close the connections of ``complete_now``."""
        if self._sync is not None:
            self._sync.close()
            self._sync = None

    async def __aenter__(self) -> "ChatClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def _body(
        self,
        messages: Sequence[dict[str, Any]],
        response_format: dict[str, Any] | None,
        temperature: float,
        seed: int | None,
        max_tokens: int,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": temperature,
            "max_tokens": max_tokens,
            "logprobs": self._logprobs,
        }
        if seed is not None:
            body["seed"] = seed
        if response_format is not None:
            body["response_format"] = response_format
        return body

    def _attempts_within(self) -> "Iterator[_Attempt]":
        deadline = time.monotonic() + self._timeout_s
        for number in range(1, self._attempts + 1):
            yield _Attempt(number, number == self._attempts, deadline, time.monotonic(), self._url)

    def _async_client(self) -> "httpx2.AsyncClient":
        import httpx2

        loop = asyncio.get_running_loop()
        if self._async is None or self._loop is not loop:  # connections belong to the loop that opened them
            self._async, self._loop = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=256)), loop
        return self._async

    def _sync_client(self) -> "httpx2.Client":
        import httpx2

        with self._opening:  # threads that ask at once share one
            if self._sync is None:
                self._sync = httpx2.Client()
            return self._sync

    def _answer(self, response: "httpx2.Response", attempt: "_Attempt") -> ChatAnswer:
        return parse_answer(response.status_code, response.content, self._url, (time.monotonic() - attempt.started) * 1000, self.model)


def parse_answer(status: int, body: bytes, url: str, latency_ms: float, model: str) -> ChatAnswer:
    """Read a response; ``model`` names the answer when the endpoint does not.

    Raises:
        ModelUnavailable: another status than 2xx, or no chat completion.
    """
    if not 200 <= status < 300:
        raise ModelUnavailable(f"{url} refused the request with status {status}: {_error_message(body)}")
    try:
        document = json.loads(body)
        choice = document["choices"][0]
        text = choice["message"]["content"]
        usage = document.get("usage") or {}
        entries = (choice.get("logprobs") or {}).get("content")
        logprobs = None if entries is None else [_logprob(entry) for entry in entries]
        prompt_tokens, completion_tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ModelUnavailable(f"{url} answered {status} without a chat completion: {_shortened(body)}") from None
    if not isinstance(text, str):
        raise ModelUnavailable(f"{url} answered {status} with a message that has no text: {_shortened(body)}")
    return ChatAnswer(text, logprobs, prompt_tokens, completion_tokens, latency_ms, str(document.get("model") or model))


@dataclass(frozen=True)
class _Attempt:
    """One try of a call: when it began, how long it may take, how long to wait after it failed."""

    number: int
    last: bool
    deadline: float
    started: float
    url: str

    @property
    def left_s(self) -> float:
        return max(0.001, self.deadline - time.monotonic())

    def wait_after(self, failure: "Exception | httpx2.Response") -> float:
        """Seconds to wait before the next try.

        Raises:
            ModelUnavailable: it was the last, or the wait would pass the deadline.
        """
        wait_s: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (self.number - 1))
        if not isinstance(failure, Exception):
            wait_s = _retry_after_s(failure.headers.get("retry-after")) or wait_s
        if self.last or time.monotonic() + wait_s >= self.deadline:
            reason = _failure(failure).rstrip(".")
            raise ModelUnavailable(
                f"{self.url} does not answer ({self.number} tries): {reason}. Check the address and that the model's server runs."
            ) from None
        return wait_s


def _transport_error() -> type[Exception]:
    import httpx2

    return httpx2.TransportError


def _failure(failure: "Exception | httpx2.Response") -> str:
    if isinstance(failure, Exception):
        return str(failure) or type(failure).__name__
    return f"status {failure.status_code}, {_error_message(failure.content)}"


def _retry_after_s(header: str | None) -> float | None:
    """Retry-After in seconds; its form as a date is left out (model endpoints send seconds)."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None


def _logprob(entry: dict[str, Any]) -> dict[str, Any]:
    token = entry["token"]
    token_id = entry.get("token_id")
    if token_id is None and token.startswith("token_id:"):
        token_id = int(token.removeprefix("token_id:"))
    return {"token": token, "logprob": float(entry["logprob"]), "tokenId": token_id}


def _error_message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return _shortened(body)


def _shortened(body: bytes, limit: int = 200) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return repr(text if len(text) <= limit else f"{text[:limit]}... ({len(body)} bytes)")


def _with_version(base_url: str) -> str:
    bare = base_url.rstrip("/")
    return bare if "/" in bare.partition("://")[2] else f"{bare}/v1"
