"""HTTP servers: uvicorn with h11, sockets, access, limits of bodies, JSON responses and refusals.

A head has a limit of bytes and none of time: a slow one holds its own connection only (docs/decisions/0027-http-by-kept-parts.md).
Every application stands behind ``Door``, which refuses requests that a page of another site makes a browser send.
"""

import asyncio
import ipaddress
import re
import resource
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Scope, Send
from starlette.types import Receive as AsgiReceive

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import ModelUnavailable

if TYPE_CHECKING:
    import uvicorn

MAX_HEAD_BYTES = 64 * 1024
STALLED_S = 60
BODY_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 75  # agents think between requests
MOST_NESTED = 128  # a decoder that recurses ends at a thousand, and each server at another depth
_MOST_FILES = 65_536
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d*)?", re.ASCII)
# A second one would be read by one server and not by another.
_ONCE = (b"host", b"authorization", b"content-type", b"origin", b"cookie")
# Headers that proxies add, besides all that begin with x-forwarded.
_OF_PROXIES = frozenset({
    b"via", b"forwarded", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip", b"cf-connecting-ip", b"cdn-loop",
})  # fmt: skip
# Names that a stranger cannot register: of containers, of a local network.
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


def uvicorn_server(app: Any, **options: Any) -> "uvicorn.Server":
    """Make a server that strangers may reach; ``options`` are those of uvicorn's configuration.

    h11 reads a request with ``Upgrade`` as any other. Raises this process's limit of open files, as each connection is one.
    """
    import uvicorn

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    # The peer is the connection's: headers that a proxy adds are read where access is decided. A line for each request that asks
    # for an upgrade, as Java's client does by default, would be a warning.
    chosen: dict[str, Any] = {
        "http": "h11", "loop": "uvloop", "ws": "none", "lifespan": "on",
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES, "timeout_keep_alive": KEEP_ALIVE_S, "timeout_graceful_shutdown": 3,
        "access_log": False, "server_header": False, "proxy_headers": False, "log_level": "error",
    }  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, **(chosen | options)))


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


class Door:
    """Application in front of a server that passes on well-formed requests of permitted origins.

    A browser on this machine counts as this machine, whatever site its page is of, and a site can point its own name here.

    Args:
        respond: makes the response of a refusal in the server's envelope.
        keyed: True while keys decide who is served; then the server may have any name.
        pages: paths that other sites may link to.
    """

    def __init__(
        self, app: ASGIApp, respond: Callable[[ApiError], Response], keyed: Callable[[], bool] = lambda: False, pages: Collection[str] = ()
    ) -> None:
        self._app, self._respond, self._keyed, self._pages = app, respond, keyed, pages

    async def __call__(self, scope: Scope, receive: AsgiReceive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as refused:
                await self._respond(refused)(scope, receive, send)
                return
            # An encoded slash is part of a name and separates nothing.
            if b"%2f" in scope["raw_path"].lower():
                scope["path"] = unquote(re.sub("%2f", "%252F", scope["raw_path"].decode("ascii"), flags=re.IGNORECASE))
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = dict[bytes, bytes]()
        for name, value in scope["headers"]:
            if name in headers and (name in _ONCE or name.startswith(b"x-babylon-")):
                raise ApiError(400, f"The header {name.decode()} is there twice: send it once.", "repeated_header")
            headers[name] = value
        # h11 reads the chunks and goes on behind them; a proxy that believes the length has let a request pass there.
        if b"transfer-encoding" in headers and b"content-length" in headers:
            message = "The headers content-length and transfer-encoding are there both: send one of them."
            raise ApiError(400, message, "ambiguous_length", headers={"connection": "close"})
        host = _HOST.fullmatch(headers.get(b"host", b"").decode("latin-1"))
        if host is None:
            raise ApiError(400, "Send one header Host: the server's name or address, and its port.", "host")
        if scope["path"] != "/" and scope["path"].endswith("/"):
            raise ApiError(404, f"{scope['path']} is not served here: leave out the slash at its end.", "not_found")
        is_link = scope["method"] == "GET" and headers.get(b"sec-fetch-mode") == b"navigate" and scope["path"] in self._pages
        if _is_of_another_site(headers) and not is_link:
            raise ApiError(403, "Requests from the pages of other sites are refused.", "cross_site")
        if not self._keyed() and _may_be_a_stranger_s(host[1]):
            message = "This server answers to localhost, addresses and names of a local network only"
            raise ApiError(403, f"{message}: a proxy in front sends one of them as Host, or keys decide who is served.", "host")


def _is_of_another_site(headers: Mapping[bytes, bytes]) -> bool:
    """True for a request that a browser sends for another site's page."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site not in (b"none", b"same-origin")
    # Over plain HTTP browsers name the page's origin alone, and a proxy may have ended TLS.
    return origin is not None and origin.rpartition(b"://")[2].lower() != headers[b"host"].lower()


def why_not_local(scope: Mapping[str, Any]) -> str:
    """Reason why a request does not come from this machine, as the end of a sentence; empty if it does.

    A proxy on this machine makes everybody look like loopback, so any sign of one counts. nginx asks by HTTP/1.0 unless it is configured.
    """
    if not _is_address_here(scope["client"][0] if scope.get("client") else ""):
        return "comes from another"
    for name, value in scope["headers"]:
        if name in _OF_PROXIES or name.startswith(b"x-forwarded"):
            return f"came through a proxy (it has the header {name.decode()})"
        host = _HOST.fullmatch(value.decode("latin-1")) if name == b"host" else None
        if host is not None and not (f".{host[1].lower()}".endswith(".localhost") or _is_address_here(host[1])):
            return f"names another as its Host ({host[1][:100]})"
    return "came through a proxy (by HTTP/1.0)" if scope.get("http_version") == "1.0" else ""


@lru_cache(maxsize=1024)
def _is_address_here(host: str) -> bool:
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _may_be_a_stranger_s(host: str) -> bool:
    name = host.lower()
    own = "." not in name or name.endswith(_PRIVATE_SUFFIXES) or name == socket.gethostname().lower()
    return not own and _address(host) is None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").split("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def client_address(scope: Mapping[str, Any]) -> str:
    """Address of a client; of IPv6 its network, all of which one client has."""
    host = scope["client"][0] if scope.get("client") else ""
    address = _address(host)
    if address is None or address.version == 4:
        return str(address or host)
    return str(ipaddress.ip_network((address, 64), strict=False))


async def read_json(receive: Receive, content_type: str | None, longest: int, within_s: float) -> bytes:
    """Read a body of JSON within its limits of length, time and depth; it is not decoded.

    Raises:
        ApiError: of another type, too long, too slow, or nested too deeply.
        ClientGone: the client left before the body was complete.
    """
    kind = "application/json" if content_type is None else content_type.partition(";")[0].strip().lower()
    body = await read_body(receive, longest, within_s)
    # A form or a text would be sent by a browser for any page without asking this server first.
    if body and kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "Send JSON, with the header content-type: application/json.", "content_type")
    refuse_nesting(body)
    return body


def refuse_nesting(document: bytes) -> None:
    """Refuse JSON that is nested too deeply for any decoder behind. Raises ApiError: it is."""
    if document.count(b"[") + document.count(b"{") > MOST_NESTED:
        brackets = _STRING.sub(b"", document).translate(None, _NOT_BRACKETS)
        depth = 0
        for bracket in brackets:
            depth += 1 if bracket in b"[{" else -1
            if depth > MOST_NESTED:
                message = f"The JSON is nested too deeply: at most {MOST_NESTED} lists and objects in each other."
                raise ApiError(400, message, "invalid_json")


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
                # uvicorn reads the rest and drops it, so that a client that is still sending sees the answer.
                if size > longest:
                    raise ApiError(413, f"The body has more than {longest:,} bytes.", "body_too_large")
                parts.append(part)
                if not message.get("more_body"):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        slow = f"The body did not arrive within {within_s:g} s."
        raise ApiError(408, slow, "body_timeout", headers={"connection": "close"}) from None


@contextmanager
def cancelled_when_gone(receive: Receive) -> Iterator[None]:
    """Cancel the block, and raise ClientGone, when the client closes its connection; its body must have been read."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # One from outside, as at the server's end, goes on.
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watching.cancel()


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, headers, "application/json")


def refusal(error: ApiError) -> Response:
    """Response with an error in OpenAI's envelope."""
    return Response(error.body, error.status, error.headers, "application/json")


def error_handlers(respond: Callable[[ApiError], Response], served: str, failed: str, *, unknown: str = "not_found") -> dict[Any, Any]:
    """Starlette's handlers of unknown paths, of ApiError and ClientGone, and of errors of our own.

    ``respond`` makes the response in the server's envelope; ``served`` says what is served, ``failed`` is the sentence of the last,
    ``unknown`` the code of the first.
    """

    async def answered(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientGone):
            return Response(status_code=499)  # nginx's status; nobody is there to read it
        if isinstance(error, HTTPException):
            message = f"{request.method} {request.url.path} is not served here; {served}."
            return respond(ApiError(error.status_code, message, unknown, headers=error.headers or {}))
        return respond(error if isinstance(error, ApiError) else ApiError(500, failed, "internal_error"))

    return dict.fromkeys((HTTPException, ApiError, ClientGone, Exception), answered)
