"""Transports to chat endpoints: one attempt, one answer, by OpenAI's protocol over aiohttp or by litellm.

OpenAI's own client is not used: it builds its objects from any JSON, even from a proxy's page, and takes 40 MB and a second to import.
Retries, logging and defaults of litellm stay off.
"""

import asyncio
import functools
import ipaddress
import json
import os
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.request import getproxies, proxy_bypass

from babylon_rl.chats import answered_text, finish_reason, log_probability, reasoning_of
from babylon_rl.errors import UsageError, first_cause
from babylon_rl.llm.retries import CallFailed, retry_after_s, scrubbed
from babylon_rl.llm.tokens import litellm_quietly
from babylon_rl.tolerant_json import part_of, read_json

if TYPE_CHECKING:
    import aiohttp
    import yarl

MAX_HEADER_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # unpacked


@dataclass(frozen=True)
class ChatCompletion:
    """One chat completion; ``text`` is None if it has none.

    Tokens are None where the server sent none or an implausible number. ``logprobs`` is [{"token", "logprob", "tokenId"}], None where none
    were requested or given. ``reasoning`` is the text of the field ``reasoning_field``, empty where the model's thinking has none.
    """

    text: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    model: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    reasoning_field: str = ""
    reasoning: str = ""

    @classmethod
    def of(
        cls, message: Mapping[str, Any], finish: object, prompt: object, completion: object, cached: object, *,
        model: object = None, logprobs: list[dict[str, Any]] | None = None,
    ) -> Self:  # fmt: skip
        """Build a completion from the values of a server; implausible counts become None."""
        prompt_tokens = plausible(prompt) or None
        completion_tokens = plausible(completion) if prompt_tokens else None
        name = model if isinstance(model, str) else None
        text = answered_text(message)
        return cls(
            text if isinstance(text, str) else None, prompt_tokens, completion_tokens, plausible(cached), name, logprobs,
            finish_reason(finish), *reasoning_of(message),
        )  # fmt: skip


class AnswerTooLong(Exception):
    """An answer has more than MAX_ANSWER_BYTES."""


async def whole_body(response: "aiohttp.ClientResponse") -> bytes:
    """Read a response's body. Raises AnswerTooLong: it is, and the connection is closed."""
    parts, size = list[bytes](), 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            response.close()
            raise AnswerTooLong(f"the answer has more than {MAX_ANSWER_BYTES // 1024**2} MB")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def secrets_of(url: "yarl.URL", key: str | None) -> tuple[str, ...]:
    """What nobody is shown of a server's credentials: a key, a password of its address, and both parts of that as they are sent."""
    return tuple(secret for secret in (key, url.password, _basic(url)) if secret)


def _basic(url: "yarl.URL") -> str | None:
    """User and password of an address as they are sent."""
    return None if url.user is None else b64encode(f"{url.user}:{url.password or ''}".encode()).decode()


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates: those that SSL_CERT_FILE or SSL_CERT_DIR names, else certifi's; read once, as that takes 30 ms."""
    import certifi

    return ssl.create_default_context(cafile=None if {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys() else certifi.where())


def _proxy(url: "yarl.URL") -> str | None:
    """The environment's proxy for ``url``; none to this machine, which it does not reach. Raises UsageError: a SOCKS proxy."""
    proxies, host = getproxies(), url.host or ""
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or _is_this_machine(host) or proxy_bypass(host):
        return None
    if proxy.startswith("socks"):
        raise UsageError(
            f"The environment sends requests to {url.host} through a SOCKS proxy, and only HTTP proxies work. "
            "Name one in HTTPS_PROXY, or the host in NO_PROXY."
        )
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_this_machine(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def plausible(count: object) -> int | None:
    """A token count as sent by a server; None if it cannot be one."""
    if not isinstance(count, int) or isinstance(count, bool):
        return None
    return count if 0 <= count <= 10_000_000 else None


class OpenAITransport:
    """Transport to ``base_url``, which ends before /chat/completions.

    The caller limits the time of an attempt by cancelling it. ``send`` and ``aclose`` belong to one event loop. A user and password in the
    address are sent instead of the key. Raises UsageError: the environment sends such requests through a SOCKS proxy.
    """

    def __init__(self, base_url: str, model: str, key: str | None) -> None:
        import aiohttp
        import yarl

        url = yarl.URL(base_url)
        self._proxy = _proxy(url)
        self._url = url.with_user(None) / "chat" / "completions"
        self._model = model
        basic = _basic(url)
        credentials = f"Basic {basic}" if basic is not None else f"Bearer {key}" if key else None
        self._headers = {"Authorization": credentials} if credentials else {}
        proxy = yarl.URL(self._proxy or "")
        self._through = f" (through the environment's proxy {proxy.host}:{proxy.port})" if self._proxy else ""
        self._secrets = (*secrets_of(url, key), *secrets_of(proxy, None))
        self._hung_up = aiohttp.ServerDisconnectedError
        self._failures = aiohttp.ClientError, OSError, ValueError  # a header that cannot be sent is a ValueError
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> ChatCompletion:
        """Post one request and read the answer; ``headers`` are sent besides the usual ones.

        Raises:
            CallFailed: the server refused, did not answer, or sent no chat completion.
        """
        body = {"model": self._model, "messages": [_sendable(message) for message in messages], **parameters}
        try:
            async with self._opened().post(self._url, json=body, headers=headers, proxy=self._proxy, allow_redirects=False) as response:
                content = await whole_body(response)
        except AnswerTooLong as failed:
            raise self._failed(str(failed)) from None
        except self._failures as failed:
            cause = first_cause(failed)
            # aiohttp gives the head of an answer that broke off as its text.
            broken = isinstance(cause, self._hung_up) and not isinstance(cause.message, str)
            raise self._failed(f"{type(cause).__name__} {'in the middle of the answer' if broken else cause}".strip()) from None
        if not 200 <= response.status < 300:
            wait_s = retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
            raise self._failed(_error_message(content), response.status, wait_s)
        return self._read(content)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> "aiohttp.ClientSession":
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Idle connections go before servers close them, after 5 s at uvicorn: a request on a closed one would fail.
                connector=aiohttp.TCPConnector(
                    limit=1000, keepalive_timeout=4, ssl=_certificates() if self._url.scheme == "https" else True
                ),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                json_serialize=functools.partial(json.dumps, ensure_ascii=False),
                max_field_size=MAX_HEADER_BYTES,
                max_line_size=MAX_HEADER_BYTES,
            )
        return self._session

    def _read(self, content: bytes) -> ChatCompletion:
        """Parse a completion; anything else is a failed attempt."""
        try:
            document = read_json(content)
            choice = document["choices"][0]
            message = dict(choice["message"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise self._failed(f"answered without a chat completion: {_shown(content)}") from None
        usage = part_of(document, "usage")
        cached = part_of(usage, "prompt_tokens_details").get("cached_tokens")
        return ChatCompletion.of(
            message, choice.get("finish_reason"), usage.get("prompt_tokens"), usage.get("completion_tokens"), cached,
            model=document.get("model"), logprobs=self._logprobs(choice, content),
        )  # fmt: skip

    def _logprobs(self, choice: Mapping[str, Any], content: bytes) -> list[dict[str, Any]] | None:
        entries = part_of(choice, "logprobs").get("content")
        if entries is None:
            return None
        try:
            return [_logprob(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._failed(f"answered without a chat completion that can be read, as to its logprobs: {_shown(content)}") from None

    def _failed(self, reason: str, status: int | None = None, wait_s: float | None = None) -> CallFailed:
        return CallFailed(scrubbed(reason, self._secrets) + self._through, status, wait_s)


def with_version(base_url: str) -> str:
    """Return the address that ends before /chat/completions; one without a path gets OpenAI's version."""
    bare = base_url.rstrip("/").removesuffix("/chat/completions")
    return bare if "/" in bare.partition("://")[2] else f"{bare}/v1"


def _sendable(message: Mapping[str, Any]) -> dict[str, Any]:
    """Message without lone surrogates, which no request can encode."""
    return {name: value.encode(errors="replace").decode() if isinstance(value, str) else value for name, value in message.items()}


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One token's log-probability; some servers write the id into the token's text."""
    token, token_id = entry["token"], entry.get("token_id")
    if token_id is None and token.startswith("token_id:"):
        token_id = int(token.removeprefix("token_id:"))
    logprob = log_probability(entry["logprob"])
    if logprob is None:
        raise ValueError("no log-probability")
    return {"token": token, "logprob": logprob, "tokenId": token_id}


def _error_message(body: bytes) -> str:
    """Message and code of an error document, else the body."""
    try:
        error = read_json(body)["error"]
        return " ".join(str(error[name]) for name in ("message", "code") if error.get(name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _shown(body)


def _shown(body: bytes) -> str:
    return body.decode(errors="replace") if body else "nothing"


class LitellmTransport:
    """Transport for one model by litellm's name.

    ``timeout_s`` is passed to litellm; the caller limits the attempt besides. ``base_url`` None: litellm's default for the provider.
    """

    _open: ClassVar[int] = 0

    def __init__(self, model: str, base_url: str | None, key: str | None, timeout_s: float) -> None:
        self._model = model
        self._base_url = base_url
        self._key = key
        self._timeout_s = timeout_s
        self._litellm = litellm_quietly()
        # litellm follows the environment's proxies, which do not reach this machine's servers; the name in small letters counts first
        name = "no_proxy" if os.environ.get("no_proxy") else "NO_PROXY"
        direct = os.environ.get(name, "")
        if direct != "*":
            os.environ[name] = ",".join(dict.fromkeys([*filter(None, direct.split(",")), "localhost", "127.0.0.1", "::1"]))
        import openai  # after litellm is set up: all its errors are openai's

        # Litellm fails with such errors on an answer that is no chat completion.
        self._errors = (openai.OpenAIError, AttributeError, IndexError, KeyError, TypeError, ValueError)
        LitellmTransport._open += 1

    async def send(self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> ChatCompletion:
        """Make one request and read the answer. Raises CallFailed: no chat completion came."""
        try:
            answer = await self._litellm.acompletion(
                model=self._model,
                messages=list(messages),
                api_key=self._key,
                base_url=self._base_url,
                timeout=self._timeout_s,
                num_retries=0,
                max_retries=0,
                fallbacks=[],  # none; naming them keeps litellm's logging worker, which serializes every answer again, from starting
                **parameters,
            )
        except self._errors as failed:
            raise self._failed(failed) from None
        return self._read(answer)

    async def aclose(self) -> None:
        """Close litellm's connections of this event loop, once the last wire is closed."""
        LitellmTransport._open -= 1
        if LitellmTransport._open == 0:
            # litellm keys its clients by the loop's id
            clients = self._litellm.in_memory_llm_clients_cache.cache_dict
            for key in [key for key in clients if str(key).endswith(f"-{id(asyncio.get_running_loop())}")]:
                await clients.pop(key).close()

    def _read(self, answer: Any) -> ChatCompletion:
        if not getattr(answer, "choices", None):
            raise CallFailed("answered without a chat completion")
        choice = answer.choices[0]
        usage = getattr(answer, "usage", None)
        message = {name: getattr(choice.message, name, None) for name in ("content", "refusal", "reasoning_content")}
        return ChatCompletion.of(
            message,
            getattr(choice, "finish_reason", None),
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
            getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None),
        )

    def _failed(self, error: Exception) -> CallFailed:
        headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "litellm_response_headers", None) or {}
        status = getattr(error, "status_code", None)
        wait_s = retry_after_s(headers.get("retry-after"), datetime.now(UTC))
        reason = scrubbed(str(error) or type(error).__name__, (self._key,) if self._key else ())
        return CallFailed(reason, status if isinstance(status, int) else None, wait_s)


Transport = OpenAITransport | LitellmTransport  # sends one attempt, and raises CallFailed; the caller limits its time by cancelling it
