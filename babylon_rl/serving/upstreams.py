"""Upstreams of the gateway: OpenAI-compatible servers behind a pooled HTTP client.

Each model has a circuit breaker.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import SimpleNamespace

import aiohttp
import msgspec
from yarl import URL

from babylon_rl.api_errors import NOT_JSON, ApiError
from babylon_rl.llm.retries import CircuitBreaker, CircuitOpen, scrubbed
from babylon_rl.llm.transports import with_version
from babylon_rl.services import LOCAL, SERVICES
from babylon_rl.serving.server_sent_events import DONE, EventBuffer, has_token, is_closed, is_finished
from babylon_rl.serving.usage import Usage, read_usage
from babylon_rl.settings import Settings

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_HEAD_BYTES = 1024 * 1024
_OPEN_S = 10.0
_CHECK_S = 5.0
_CONNECT_TIMEOUT_S, _IDLE_S = 5.0, 30.0
_BUFFERED_BYTES = 256 * 1024
# Of a connection that cannot be made, breaks, or carries what is no HTTP.
_BROKEN = (aiohttp.ClientError, OSError)


class _Completion(msgspec.Struct, frozen=True):
    choices: list[msgspec.Raw]
    usage: msgspec.Raw = msgspec.Raw(b"null")


_COMPLETIONS = msgspec.json.Decoder(_Completion)


@dataclass(eq=False)
class UpstreamFailed(Exception):
    """A failure that another model may cure.

    ``cause`` is a word for headers and metrics, ``error`` the answer without a fallback.
    """

    cause: str
    error: ApiError


@dataclass(frozen=True)
class WholeAnswer:
    """A complete response.

    ``usage`` is None where the server counts no tokens, and for errors of the client.
    """

    status: int
    body: bytes
    usage: Usage | None = None


class StreamedAnswer:
    """A stream whose first token has come; its owner calls ``close``."""

    def __init__(self, head: bytes, buffer: EventBuffer, response: aiohttp.ClientResponse, timeout_s: float) -> None:
        self._head = head
        self._buffer, self._response, self._timeout_s = buffer, response, timeout_s

    async def events(self) -> AsyncIterator[bytes]:
        """Yield whole events, from the first on; the last is ``[DONE]``.

        Raises:
            UpstreamFailed: the stream broke, or paused for too long; a partial event is not passed on.
        """
        yield self._head
        finished, closed = is_finished(self._head), is_closed(self._head)
        try:
            while received := await self._read():
                if events := self._buffer.feed(received):
                    finished, closed = finished or is_finished(events), closed or is_closed(events)
                    yield events
        except _BROKEN:
            # Broken off in the middle: only the closing event proves that the answer was whole.
            finished = closed
        if not finished:
            raise UpstreamFailed("broken", ApiError(502, "The model's stream ended before its answer did.", "upstream_error"))
        # The answer was whole and the server left the closing event out; clients wait for it.
        if not closed:
            yield DONE

    async def _read(self) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            return await self._response.content.readany()

    def close(self) -> None:
        """Close the connection if the stream has not ended; else it has been given back."""
        self._response.close()


class Upstream:
    """One OpenAI-compatible server.

    ``timeout_s`` limits an answer, a stream's first token and each pause after it. ``refused_fields`` are by model the fields added by the
    gateway that it does not take.
    """

    def __init__(self, name: str, base_url: str, key: str | None, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self.name = name
        self._secrets = (key,) if key else ()
        self._session, self._url = session, URL(f"{with_version(base_url)}/chat/completions")
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "babylon-rl"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s = timeout_s
        self.refused_fields: dict[str, set[str]] = {}
        self._breakers: dict[str, CircuitBreaker] = {}
        self._checks: dict[str, asyncio.Task[bool]] = {}

    async def ask(self, model: str, body: bytes, stream: bool) -> WholeAnswer | StreamedAnswer:
        """Send a request; a stream is returned once its first token has come.

        An error that the client's request caused is a whole answer.

        Raises:
            UpstreamFailed: no answer, no chat completion, or a stream that broke before its first token.
        """
        # One adapter that fails must not keep others of the same server from being asked.
        breaker = self._breakers.setdefault(model, CircuitBreaker(monotonic, open_s=_OPEN_S))
        try:
            is_probe = breaker.enter()
        except CircuitOpen as circuit:
            wait_s = max(1, round(circuit.wait_s))
            message = f"The model has failed {circuit.failures} times in a row and is asked again in {wait_s} s."
            raise UpstreamFailed("circuit_open", ApiError(503, message, "upstream_error", headers={"retry-after": str(wait_s)})) from None
        try:
            try:
                answer = await self._ask(body, stream)
            except UpstreamFailed as failed:
                # Requests that fail by what is in them must not keep those of others from being asked: the model's own answer decides.
                if failed.cause != "rate_limited":
                    if breaker.at_threshold and await self._answers(model):
                        breaker.succeeded()
                    else:
                        breaker.failed(failed.error.message)
                raise
        # Cancelled, a rate limit, or an error of our own: this says nothing of the upstream, so the breaker only frees the probe.
        except BaseException:
            breaker.cancelled(is_probe)
            raise
        breaker.succeeded()
        return answer

    async def _answers(self, model: str) -> bool:
        """True if a model answers a short request of the gateway's own; requests that fail meanwhile share the outcome."""
        if model not in self._checks:
            self._checks[model] = check = asyncio.create_task(self._check(model))
            check.add_done_callback(lambda _: self._checks.pop(model))
        return await asyncio.shield(self._checks[model])

    async def _check(self, model: str) -> bool:
        body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
        try:
            async with asyncio.timeout(min(_CHECK_S, self._timeout_s)):
                async with await self._post(body) as response:
                    await self._whole(response)
        except UpstreamFailed as failed:
            return failed.cause == "rate_limited"
        except (TimeoutError, *_BROKEN):
            return False
        return True

    async def _ask(self, body: bytes, stream: bool) -> WholeAnswer | StreamedAnswer:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._post(body)
                try:
                    # Until the first token nothing goes to the client, so that the base can still answer instead.
                    if stream and response.status == 200:
                        return await self._first_token(response)
                    return await self._whole(response)
                # Also when cancelled: an answer that is read in part leaves a connection that nobody can use.
                except BaseException:
                    response.close()
                    raise
        except TimeoutError:
            message = f"The model did not answer within {self._timeout_s:g} s."
            raise UpstreamFailed("timeout", ApiError(504, message, "upstream_timeout")) from None
        except _BROKEN as broken:
            message = f"The model's server cannot be reached ({type(broken).__name__})."
            raise UpstreamFailed("unreachable", ApiError(502, message, "upstream_error")) from None

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        """Send a body; returns when the head of the response is there."""
        post = partial(self._session.post, self._url, data=body, headers=self._headers, allow_redirects=False)
        connection = SimpleNamespace(reused=False)
        try:
            return await post(trace_request_ctx=connection)
        except _BROKEN:
            # The server had closed it meanwhile: one more try.
            if not connection.reused:
                raise
        return await post()

    async def _whole(self, response: aiohttp.ClientResponse) -> WholeAnswer:
        body = await self._read(response)
        status = response.status
        if status == 200:
            try:
                completion = _COMPLETIONS.decode(body)
            except NOT_JSON:
                message = f"The model's server answered with {_kind(response)}, which is no chat completion."
                raise UpstreamFailed("no_completion", ApiError(502, message, "upstream_error")) from None
            return WholeAnswer(200, body, read_usage(completion.usage))
        message = self._message(body)
        if status == 429:
            wait = response.headers.get("retry-after")
            headers = {"retry-after": wait} if wait else {}
            raise UpstreamFailed("rate_limited", ApiError(429, f"The model's server is busy: {message}", "rate_limited", headers=headers))
        if status >= 500 or status == 408:
            raise UpstreamFailed("server_error", ApiError(max(status, 500), f"The model's server failed: {message}", "upstream_error"))
        # Its credentials and the name of its model are the gateway's concern, not the client's.
        if status in (401, 403, 404) or status < 400:
            error = ApiError(502, f"The model's server refused the gateway with status {status}: {message}", "upstream_error")
            raise UpstreamFailed("refused", error)
        return WholeAnswer(status, ApiError(status, message).body)

    async def _first_token(self, response: aiohttp.ClientResponse) -> StreamedAnswer:
        if _kind(response) != "text/event-stream":
            message = f"The model's server answered with {_kind(response)} instead of a stream."
            raise UpstreamFailed("no_completion", ApiError(502, message, "upstream_error"))
        buffer, head = EventBuffer(), b""
        while received := await response.content.readany():
            head += (events := buffer.feed(received))
            if len(head) + buffer.pending > MAX_HEAD_BYTES:
                break
            try:
                if events and has_token(events):
                    return StreamedAnswer(head, buffer, response, self._timeout_s)
            except (ValueError, RecursionError):
                break
        raise UpstreamFailed("broken", ApiError(502, "The model's stream broke before its first token.", "upstream_error"))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        while part := await response.content.readany():
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                message = f"The model's answer has more than {MAX_ANSWER_BYTES // 1024**2} MB."
                raise UpstreamFailed("no_completion", ApiError(502, message, "upstream_error"))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _message(self, body: bytes) -> str:
        try:
            document = msgspec.json.decode(body)
            error = document.get("error", document) if isinstance(document, dict) else document
            text = error.get("message", error) if isinstance(error, dict) else error
        except NOT_JSON:
            text = body[:1000].decode(errors="replace")
        return scrubbed(str(text), self._secrets)


class Upstreams:
    """All upstreams of one gateway process, by the names that routes use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._upstreams: dict[str, Upstream] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()

    def get(self, name: str) -> Upstream:
        """Return the upstream of a route."""
        if name not in self._upstreams:
            url, key = self._address(name)
            self._session = self._session or _session()
            self._upstreams[name] = Upstream(name, url, key, self._session, self._settings.gateway_timeout_seconds)
        return self._upstreams[name]

    def _address(self, name: str) -> tuple[str, str | None]:
        if name == LOCAL:
            return self._settings.local_endpoint, None
        return SERVICES[name].base_url, SERVICES[name].key(self._settings) or None


def _kind(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("content-type", "no content type").partition(";")[0].strip().lower()


def _session() -> aiohttp.ClientSession:
    """Open a session that passes bytes on as they are and takes no proxy from the environment."""
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, read_bufsize=_BUFFERED_BYTES, trace_configs=[tracing],
    )  # fmt: skip


async def _note_reuse(_: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.reused = True
