"""Pooled HTTP/1.1 client of one server, for POSTs: asyncio's transports and httptools' parser.

General clients cost as much as all the rest of a gateway's work for a request. Left out on purpose: redirects, cookies, proxies,
compression. Every failure of the connection is an OSError.
"""

import asyncio
import ssl
from collections.abc import Mapping
from time import monotonic
from typing import cast
from urllib.parse import urlsplit

import httptools

from babylon_rl.traces import outgoing_headers

CONNECT_TIMEOUT_S = 5.0
IDLE_S = 30.0
_BUFFERED_BYTES = 256 * 1024


class ServerConnection(asyncio.Protocol):
    """One connection, and the response that it receives at the moment."""

    def __init__(self) -> None:
        self.is_open, self.idle_since = True, 0.0
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers = 0, dict[bytes, bytes]()
        self.is_complete, self.is_reusable, self._has_head = False, False, False
        self._parts, self._buffered = list[bytes](), 0

    async def send(self, request: bytes) -> None:
        """Send a request, and wait for the head of its response.

        Raises:
            ConnectionError: the connection broke before.
        """
        assert self._transport is not None
        self._reset()
        self._transport.write(request)
        while not self._has_head:
            await self._change()

    async def read(self) -> bytes:
        """Wait for the next bytes of the body; empty at its end.

        Raises:
            ConnectionError: the connection broke before the end.
        """
        while not self._parts:
            if self.is_complete:
                return b""
            await self._change()
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._buffered = [], 0
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()
        return part

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    async def _change(self) -> None:
        if not self.is_open:
            raise ConnectionResetError("the server closed the connection")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have these methods, and are no asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        # Without a length the end of the connection is the end of the body.
        if self._has_head and exc is None and not {b"content-length", b"transfer-encoding"} & self.headers.keys():
            self.is_complete = True
        self._wake()

    # Of the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200
        self.is_reusable = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._buffered += len(body)
        # A client that reads slowly slows the model down, too.
        if self._buffered > _BUFFERED_BYTES and self._transport is not None and not self.is_complete:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self.is_complete = self._has_head


class ServerPool:
    """Connections to the server of an address.

    ``headers`` go with every request, and those that continue the open span.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if secure else 80)
        self._ssl = ssl.create_default_context() if secure else None
        host = parts.netloc.rpartition("@")[2]  # a user and password are no part of this header
        lines = [f"POST {parts.path or '/'} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
        self._head = "".join(f"{line}\r\n" for line in lines).encode()
        self._idle: list[ServerConnection] = []

    async def post(self, body: bytes) -> ServerConnection:
        """Send a body; returns when the head of the response is there. ``release`` must follow.

        Raises:
            OSError: no connection, or one that broke.
        """
        traced = "".join(f"{name}: {value}\r\n" for name, value in outgoing_headers().items()).encode()
        request = b"%s%sContent-Length: %d\r\n\r\n%s" % (self._head, traced, len(body), body)
        pooled = self._pooled()
        if pooled is not None:
            try:
                return await self._sent(pooled, request)
            except ConnectionError:
                pass  # the server had closed it meanwhile: one more try, on a new one
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, fresh = await asyncio.get_running_loop().create_connection(ServerConnection, self._host, self._port, ssl=self._ssl)
        return await self._sent(fresh, request)

    def release(self, connection: ServerConnection) -> None:
        """Keep the connection if its response was read to the end, else close it."""
        if connection.is_open and connection.is_complete and connection.is_reusable:
            connection.idle_since = monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    def _pooled(self) -> ServerConnection | None:
        while self._idle:
            # The newest, so that those that are not needed grow old.
            connection = self._idle.pop()
            if connection.is_open and monotonic() - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        return None

    async def _sent(self, connection: ServerConnection, request: bytes) -> ServerConnection:
        try:
            await connection.send(request)
        # Also when cancelled: a request that is sent in part leaves a connection that nobody can use.
        except BaseException:
            connection.close()
            raise
        return connection
