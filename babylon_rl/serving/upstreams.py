"""Upstreams of the gateway: OpenAI-compatible servers behind a pooled HTTP client, with a circuit breaker for each model.

Of an upstream's error a client gets type, param, code, message and all other fields as they came, but for keys.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import msgspec
from yarl import URL

from babylon_rl.api_errors import ApiError
from babylon_rl.chats import finish_reason
from babylon_rl.llm.retries import CircuitBreaker, CircuitOpen, scrubbed, without_keys
from babylon_rl.llm.transports import AnswerTooLong, secrets_of, whole_body, with_version
from babylon_rl.services import LOCAL, SERVICES
from babylon_rl.serving.chat_request import ChatRequest
from babylon_rl.serving.server_sent_events import DONE, NO_END, Event, StreamReader, Usage, read_usage
from babylon_rl.settings import Settings
from babylon_rl.tolerant_json import NotJson, objects, read_json, whole_text

_LOG = logging.getLogger("babylon_rl.gateway")
MAX_HEAD_BYTES = 1024 * 1024
_OPENAI = URL("https://api.openai.com")
_OPEN_S = 10.0
_CHECK_S = 5.0
_CONNECT_TIMEOUT_S, _IDLE_S = 5.0, 30.0
_BUFFERED_BYTES = 256 * 1024
# A server has a second to end its response after the last event; a connection that is read to the end is used again.
_LAST_S = 1.0
_FAILED = re.compile(r"[45]\d\d", re.ASCII)
# Headers that tell a client how long to wait, and how much it may still ask.
_LIMITS = re.compile(r"retry-after(-ms)?|x-ratelimit-.*", re.IGNORECASE)
_SHOWN = 1000  # characters of a page or another body that is no error of the API
# Of a connection that cannot be made, breaks, or carries what is no HTTP.
_BROKEN = (aiohttp.ClientError, OSError)
# Statuses of a field that a server does not take, and failures that say nothing of the request.
_OF_THE_FORM = (400, 422)
_WITHOUT_REASON = ("rate_limited", "refused", "timeout", "circuit_open")


@dataclass(eq=False)
class UpstreamFailed(Exception):
    """A failure that another model may cure: its word for metrics, the answer without a fallback, the system's error."""

    cause: str
    error: ApiError
    detail: str = ""


@dataclass(frozen=True)
class ReportedError:
    """An error as a server reported it: its ``fields``, and those that stood ``beside`` it."""

    fields: Mapping[str, Any]
    beside: Mapping[str, Any]

    @classmethod
    def read(cls, body: bytes, secrets: Sequence[str] = ()) -> Self:
        """Read the body of an error; its text is the message where it has no such form."""
        try:
            return cls.of(read_json(body), secrets)
        except NotJson:
            return cls.of(body[:_SHOWN].decode(errors="replace"), secrets)

    @classmethod
    def of(cls, document: Any, secrets: Sequence[str] = ()) -> Self:
        """Take an error from its document, without ``secrets``."""
        try:
            document = _without_keys(document, secrets)
        except RecursionError:
            document = "an error that is nested too deeply"
        if not isinstance(document, dict):
            return cls({"message": str(document)}, {})
        # Some servers send the fields without the envelope.
        error = document.get("error", document)
        beside = {} if error is document else {name: value for name, value in document.items() if name != "error"}
        return cls(error if isinstance(error, dict) else {"message": str(error)}, beside)

    @property
    def message(self) -> str:
        said = self.fields.get("message")
        return said if isinstance(said, str) and said else msgspec.json.encode(self.fields).decode()

    @property
    def status(self) -> int | None:
        """The status that its code stands for, as in the event of a stream; None without one."""
        code = str(self.fields.get("code"))
        return int(code) if _FAILED.fullmatch(code) else None

    def names(self, names: Collection[str]) -> bool:
        """True if it concerns one of these fields of a request."""
        param = self.fields.get("param")
        return isinstance(param, str) and param.partition(".")[0].partition("[")[0] in names

    def api_error(self, status: int, message: str, code: str = "upstream_error", headers: Mapping[str, str] | None = None) -> ApiError:
        """Our error with its fields, and another message."""
        kept = {name: value for name, value in self.fields.items() if name != "message" and value is not None}
        return ApiError(status, message, code, headers=headers or {}, fields=kept)

    def body(self, status: int) -> bytes:
        """The body of a response with this error."""
        envelope = ApiError(status, self.message, fields={**self.fields, "message": self.message}).body
        return msgspec.json.encode({**self.beside, **msgspec.json.decode(envelope)})


def _without_keys(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return without_keys(whole_text(value), secrets)
    if isinstance(value, list):
        return [_without_keys(entry, secrets) for entry in value]
    if isinstance(value, dict):
        return {_without_keys(name, secrets): _without_keys(entry, secrets) for name, entry in value.items()}
    return value


@dataclass(frozen=True)
class WholeAnswer:
    """A complete response.

    ``usage`` is None where the server counts no tokens, and for errors of the client. ``headers`` are those of an error. ``ended`` is
    False where a choice gives a reason of its end that the API does not know, such as an error.
    """

    status: int
    body: bytes
    usage: Usage | None = None
    ended: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


class StreamedAnswer:
    """A stream whose first token has come, followed by ``reader``; its owner closes the ``response``."""

    def __init__(
        self, head: list[Event], reader: StreamReader, response: aiohttp.ClientResponse, timeout_s: float, secrets: Sequence[str]
    ) -> None:
        self.reader, self.response = reader, response
        self._head, self._timeout_s, self._secrets = head, timeout_s, secrets

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yield whole events; the last is ``[DONE]``. Raises UpstreamFailed: it broke, reported an error or paused too long."""
        reader, received = self.reader, b" "
        yield self._head
        while received and reader.fault is None and not reader.closed:
            try:
                received = await self._read(self._timeout_s)
            # Broken off in the middle: only the closing event proves that the answer was whole.
            except _BROKEN:
                raise self._broken() from None
            if events := reader.feed(received) if received else reader.rest():
                yield events
        if reader.fault is not None or not reader.finished:
            raise self._broken()
        # The answer was whole and the server left the closing event out; clients wait for it.
        if not reader.closed:
            yield [DONE]
        with suppress(*_BROKEN):
            while received:
                received = await self._read(_LAST_S)

    async def _read(self, within_s: float) -> bytes:
        async with asyncio.timeout(within_s):
            return await self.response.content.readany()

    def _broken(self) -> UpstreamFailed:
        error = ReportedError.of({"error": self.reader.fault or NO_END}, self._secrets)
        return UpstreamFailed("broken", error.api_error(502, error.message))


class Upstream:
    """One OpenAI-compatible server; ``timeout_s`` limits an answer and each pause of a stream."""

    def __init__(self, name: str, base_url: str, key: str | None, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self.name = name
        self._session, self._url = session, URL(f"{with_version(base_url)}/chat/completions")
        self._secrets = secrets_of(self._url, key)
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "babylon-rl"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s = timeout_s
        self._noted: set[tuple[str, frozenset[str]]] = set()
        self._breakers: dict[str, CircuitBreaker] = {}
        self._checks: dict[str, asyncio.Task[bool]] = {}

    @property
    def url(self) -> str:
        """Its base URL, without credentials."""
        return str(self._url.with_user(None).with_query(None).parent.parent)

    async def ask(self, model: str, request: ChatRequest) -> WholeAnswer | StreamedAnswer:
        """Send a request with what the gateway adds; a stream is returned once its first token has come.

        Raises:
            UpstreamFailed: no answer, no chat completion, or a stream that broke before its first token; not for an error of the request.
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
                answer = await self._ask_with_additions(model, request)
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

    async def _ask_with_additions(self, model: str, request: ChatRequest) -> WholeAnswer | StreamedAnswer:
        """Ask with the fields that the gateway adds; where that fails, without those that are to blame, for this request alone."""
        added = request.open_fields
        while True:
            try:
                answer = await self._ask(request.body_for(model, added), request)
                if not added or isinstance(answer, StreamedAnswer) or answer.status not in _OF_THE_FORM:
                    return answer
                said = answer.body
                # The client's own field is at fault.
                if ReportedError.read(said).names(request.document.keys() - added):
                    return answer
            except UpstreamFailed as failed:
                if not added or failed.cause in _WITHOUT_REASON:
                    raise
                said = failed.error.message.encode()
            named = frozenset(name for name in added if re.search(rb"\b%b\b" % name.encode(), said)) or added
            added -= named | ({"return_token_ids"} if "logprobs" in named else set())
            if (model, named) not in self._noted:
                self._noted.add((model, named))
                _LOG.warning("%s at %s failed with %s and is asked without.", model, self.name, ", ".join(sorted(named)))

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

    async def _ask(self, body: bytes, request: ChatRequest) -> WholeAnswer | StreamedAnswer:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._post(body)
                try:
                    # Until the first token nothing goes to the client, so that the base can still answer instead.
                    if request.stream and response.status == 200:
                        return await self._first_token(response, request.choices)
                    return await self._whole(response)
                # Also when cancelled: an answer that is read in part leaves a connection that nobody can use.
                except BaseException:
                    response.close()
                    raise
        except TimeoutError:
            message = f"The model did not answer within {self._timeout_s:g} s."
            raise UpstreamFailed("timeout", ApiError(504, message, "upstream_timeout")) from None
        except _BROKEN as broken:
            detail = type(broken.os_error if isinstance(broken, aiohttp.ClientConnectorError) else broken).__name__
            elsewhere = "" if self.name == LOCAL else " Its weights are there, so LOCAL_ENDPOINT is not asked."
            raise _failed("unreachable", f"The model's server {self.url} cannot be reached ({detail}).{elsewhere}", detail) from None

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
        try:
            body = await whole_body(response)
        except AnswerTooLong as failed:
            raise _failed("no_completion", f"The model's server failed: {failed}.") from None
        if response.status != 200:
            return self._refusal(response.status, ReportedError.read(body, self._secrets), response)
        try:
            completion = read_json(body)
        except NotJson:
            completion = None
        choices = objects(completion.get("choices")) if isinstance(completion, dict) else []
        if not choices:
            raise _failed("no_completion", f"The model's server answered with {_kind(response)}, which is no chat completion.")
        # Servers leave the reason out, or name one of their own.
        ended = all(not (reason := choice.get("finish_reason")) or finish_reason(reason) is not None for choice in choices)
        return WholeAnswer(200, body, read_usage(completion), ended)

    def _refusal(self, status: int, error: ReportedError, response: aiohttp.ClientResponse) -> WholeAnswer:
        """Return an error that the client's request caused, as the server reports it; raise any other."""
        headers = {name.lower(): value for name, value in response.headers.items() if _LIMITS.fullmatch(name)}
        message = scrubbed(error.message)
        if status == 429:
            busy = error.api_error(429, f"The model's server is busy: {message}", "rate_limited", headers)
            raise UpstreamFailed("rate_limited", busy)
        if status >= 500 or status == 408:
            failed = ApiError(max(status, 500), f"The model's server failed: {message}", "upstream_error", headers=headers)
            raise UpstreamFailed("server_error", failed)
        # Its credentials and the name of its model are the gateway's concern, not the client's.
        if status in (401, 403, 404) or status < 400:
            raise _failed("refused", f"The model's server refused the gateway with status {status}: {message}")
        return WholeAnswer(status, error.body(status), headers=headers)

    async def _first_token(self, response: aiohttp.ClientResponse, choices: int) -> WholeAnswer | StreamedAnswer:
        if _kind(response) != "text/event-stream":
            raise _failed("no_completion", f"The model's server answered with {_kind(response)} instead of a stream.")
        reader, head, size, received = StreamReader(choices), list[Event](), 0, b" "
        while received and reader.fault is None and size <= MAX_HEAD_BYTES:
            received = await response.content.readany()
            size += len(received)
            head += reader.feed(received) if received else reader.rest()
            if reader.begun:
                return StreamedAnswer(head, reader, response, self._timeout_s, self._secrets)
        error = ReportedError.of({"error": reader.fault or NO_END}, self._secrets)
        if error.status is not None:
            response.close()
            return self._refusal(error.status, error, response)
        message = f"The model's stream broke before its first token: {scrubbed(error.message)}"
        raise UpstreamFailed("broken", error.api_error(502, message))


class Upstreams:
    """All upstreams of one gateway process, by the names that routes use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._upstreams: dict[str, Upstream] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def get(self, name: str) -> Upstream:
        if name not in self._upstreams:
            service = None if name == LOCAL else SERVICES[name]
            url, key = (self._settings.local_endpoint, None) if service is None else (service.base_url, service.key(self._settings) or None)
            self._session = self._session or _session()
            self._upstreams[name] = Upstream(name, url, key, self._session, self._settings.gateway_timeout_seconds)
        return self._upstreams[name]

    async def embeddings(self, body: bytes) -> tuple[int, bytes]:
        """Pass a request for embeddings on; status and body of the answer. Raises ApiError: no server is set, or none answers."""
        settings = self._settings
        if settings.embedding_endpoint is None:
            message = "POST /v1/embeddings is not served here: set EMBEDDING_ENDPOINT to a server that makes embeddings."
            raise ApiError(404, message, "not_found")
        url = URL(f"{with_version(settings.embedding_endpoint)}/embeddings")
        # The key is OpenAI's: no other server gets it.
        key = settings.openai_api_key if url.origin() == _OPENAI else None
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key.get_secret_value()}"} if key else {})
        self._session = self._session or _session()
        try:
            async with asyncio.timeout(settings.gateway_timeout_seconds):
                async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    content, status = await whole_body(response), response.status
        except AnswerTooLong as failed:
            raise ApiError(502, f"The server of EMBEDDING_ENDPOINT failed: {failed}.", "upstream_error") from None
        except TimeoutError:
            message = f"The server of EMBEDDING_ENDPOINT did not answer within {settings.gateway_timeout_seconds:g} s."
            raise ApiError(504, message, "upstream_timeout") from None
        except _BROKEN as broken:
            message = f"The server of EMBEDDING_ENDPOINT cannot be reached ({type(broken).__name__})."
            raise ApiError(502, message, "upstream_error") from None
        # Its credentials are the gateway's concern, not the client's.
        if status in (401, 403) or status < 200 or 300 <= status < 400:
            raise ApiError(502, f"The server of EMBEDDING_ENDPOINT refused the gateway with status {status}.", "upstream_error")
        # Its error may repeat what it was sent.
        for secret in secrets_of(url, None if key is None else key.get_secret_value()):
            content = content.replace(secret.encode(), b"[key]")
        return status, content


def _failed(cause: str, message: str, detail: str = "") -> UpstreamFailed:
    return UpstreamFailed(cause, ApiError(502, message, "upstream_error"), detail)


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
