"""HTTP servers: uvicorn's protocol with limits on slow, large and stalled requests, bodies, JSON responses, errors."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from babylon_rl.serving.api_errors import ApiError

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 64 * 1024
STALLED_S = 60.0
BODY_TIMEOUT_S = 30.0
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


class LimitedProtocol(HttpToolsProtocol):
    """Connection with limits on a request's head and on slow clients.

    Closed if the head is too late or too long, or the client stops reading the answer.

    uvicorn alone would hold a connection that sends a header line every few seconds, or that reads nothing, for ever.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    stalled_s = STALLED_S
    _head_timer: asyncio.TimerHandle | None = None
    _stalled_timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = 0  # of an open head; None while there is none

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request's head."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_timer()
        self._stop_stalled_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to read; an orderly close would wait as well."""
        super().pause_writing()
        self._stop_stalled_timer()
        self._stalled_timer = self.loop.call_later(self.stalled_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop_stalled_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, and limit its time if it is not complete."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # Most heads come whole, and pay for no timer.
        if self._head_bytes is None or self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError(431, f"The head of the request has more than {MAX_HEAD_BYTES:,} bytes.", "head_too_large"))
        elif self._head_timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        """Expect the head of a further request on this connection."""
        super().on_message_begin()
        if self._head_bytes is None:
            self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Stop the clock of the head."""
        self._head_bytes = None
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP, in OpenAI's envelope."""
        self._refuse(ApiError(400, msg, "invalid_http"))

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._refuse_late_head)

    def _refuse_late_head(self) -> None:
        self._refuse(ApiError(408, f"The head of the request did not arrive within {self.head_timeout_s:g} s.", "head_timeout"))

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stalled_timer(self) -> None:
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()
            self._stalled_timer = None

    def _refuse(self, error: ApiError) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = error.body
        head = (
            f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


async def read_body(receive: Receive, longest: int, within_s: float) -> bytes:
    """Read a body within its limits of length and time.

    Raises:
        ApiError: too long, or too slow.
        ClientGone: the client left before the body was complete.
    """
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(within_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                # The rest is not read, so this connection can carry no further request.
                if size > longest:
                    raise ApiError(413, f"The body has more than {longest:,} bytes.", "body_too_large", headers={"connection": "close"})
                parts.append(part)
                if not message.get("more_body"):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        slow = f"The body did not arrive within {within_s:g} s."
        raise ApiError(408, slow, "body_timeout", headers={"connection": "close"}) from None


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Response with a document as JSON."""
    return Response(msgspec.json.encode(document), status, headers, "application/json")


def error_handlers(respond: Callable[[ApiError], Response], served: str, failed: str) -> dict[Any, Any]:
    """Starlette's handlers of unknown paths, of ApiError and ClientGone, and of errors of our own.

    ``respond`` makes the response in the server's envelope; ``served`` says what is served, ``failed`` is the sentence of the last.
    """

    async def no_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path} is not served here; {served}."
        return respond(ApiError(error.status_code, message, "not_found", headers=error.headers or {}))

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return respond(error)

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody is there to read it

    async def internal(_: Request, error: Exception) -> Response:
        return respond(ApiError(500, failed, "internal_error"))

    return {HTTPException: no_path, ApiError: refused, ClientGone: gone, Exception: internal}


def server_options(**options: Any) -> dict[str, Any]:
    """Return uvicorn's options for servers that strangers may reach."""
    # The peer is the connection's: headers that a proxy adds are looked at where access is decided.
    hidden = {"access_log": False, "server_header": False, "proxy_headers": False}
    return {"http": LimitedProtocol, "loop": "uvloop", "ws": "none", "lifespan": "on"} | hidden | options
