"""HTTP servers: uvicorn with h11 and our settings, sockets, limits of bodies, JSON responses and refusals.

A head has a limit of bytes and none of time: a slow one holds a connection and nobody up (docs/decisions/0027-http-by-kept-parts.md).
"""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import ModelUnavailable

if TYPE_CHECKING:
    import uvicorn

MAX_HEAD_BYTES = 64 * 1024
STALLED_S = 60
BODY_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 75  # agents think between requests
_MOST_FILES = 65_536
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


def server_config(app: Any, **options: Any) -> "uvicorn.Config":
    """Return uvicorn's configuration of a server that strangers may reach; ``options`` are uvicorn's own.

    h11 reads a request with ``Upgrade`` as any other. Raises this process's limit of open files, as each connection is one.
    """
    import uvicorn

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    limits: dict[str, Any] = {
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": 3,
    }
    # The peer is the connection's: headers that a proxy adds are looked at where access is decided. A line for each request that asks
    # for an upgrade, as Java's client does by default, would be a warning.
    hidden: dict[str, Any] = {"access_log": False, "server_header": False, "proxy_headers": False, "log_level": "error"}
    stock: dict[str, Any] = {"http": "h11", "loop": "uvloop", "ws": "none", "lifespan": "on"}
    return uvicorn.Config(app, **(stock | limits | hidden | {"timeout_graceful_shutdown": 3} | options))


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket without listening; ``port`` 0 takes a free one.

    Called first, so that a used port is reported before minutes of work.

    Raises:
        ModelUnavailable: the address cannot be used.
    """
    # By its number, without which asyncio leaves out TCP_NODELAY, and answers wait 40 ms for an acknowledgement.
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections have these options from their listener: one whose peer vanished or stopped reading is closed by the kernel.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_S * 1000)
    try:
        bound.bind((host, port))
    except OSError as taken:
        bound.close()
        reason = taken.strerror or str(taken)
        raise ModelUnavailable(f"Port {port} on {host} cannot be used ({reason}): choose another port.") from taken
    return bound


def url_of(bound: socket.socket) -> str:
    """The address of a bound socket as http://HOST:PORT."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def in_thread(
    server: "uvicorn.Server", name: str, late: Callable[[], str], *, ready: Callable[[], object] = lambda: True, within_s: float = 20.0
) -> Iterator[str]:
    """Run a server on a free loopback port in a thread until the block ends; yields its URL.

    Raises:
        ModelUnavailable: it was not started and ``ready()`` within the time; ``late()`` is the sentence.
    """
    with bind("127.0.0.1", 0) as bound:
        # From here on connections wait in the queue, so that one that is made before the server runs is not refused.
        bound.listen(512)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name=name, daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + within_s
            while not (server.started and ready()):
                if time.monotonic() > deadline or not thread.is_alive():
                    raise ModelUnavailable(late())
                time.sleep(0.005)
            yield url_of(bound)
        finally:
            server.should_exit = True
            thread.join()


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


def refusal(error: ApiError) -> Response:
    """Response with an error in OpenAI's envelope."""
    return Response(error.body, error.status, error.headers, "application/json")


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
        return Response(status_code=499)  # nginx's status; nobody is there to read it

    async def internal(_: Request, error: Exception) -> Response:
        return respond(ApiError(500, failed, "internal_error"))

    return {HTTPException: no_path, ApiError: refused, ClientGone: gone, Exception: internal}
