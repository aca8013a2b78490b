"""A TCP proxy that passes bytes on until it is told to cut its lines, call a function, go deaf, delay, truncate, duplicate or repeat."""

import contextlib
import http.client
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType

_COMMIT = b"COMMIT\x00"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


class Proxy:
    """A proxy on 127.0.0.1 for the server of ``url``, a database's or http; its own ``url`` differs in host and port.

    ``after(n, act)`` arms it: once ``n`` more bytes have come, or a piece with the bytes ``n``, ``act`` is called once, in the proxy's own
    thread; ``act`` None cuts every line. ``deaf`` passes nothing on any more, in either direction, and closes nothing; ``silence`` does so
    to the lines that are open. ``away`` answers nobody new.
    ``swallow_commits`` is how many COMMITs reach the server although their client is cut off before the answer.
    Of what the server sends, or with ``of_client`` the client, ``after`` counts the bytes, each piece comes ``delay_s`` late,
    ``truncates`` passes half of a piece on and closes the line, and ``duplicates`` passes each piece on twice. TCP itself does neither:
    they stand for a broken peer. ``repeats`` delivers each HTTP request twice, and passes on the second answer alone, as a proxy that lost
    the first one. ``met`` counts the pieces, requests and new lines that any of these faults has met, but not ``swallow_commits``.
    """

    def __init__(self, url: str) -> None:
        place = re.search(r"(?<=[@/])([^@:/]+):(\d+)(?=/|$)", url)
        assert place is not None
        self._server = (place[1], int(place[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{url[: place.start()]}127.0.0.1:{self._listener.getsockname()[1]}{url[place.end() :]}"
        self._lines: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._left: int | bytes | None = None
        self._act: Callable[[], None] | None = None
        self.deaf = self.away = self.of_client = self.truncates = self.duplicates = self.repeats = False
        self.delay_s = 0.0
        self.connections = self.fired = self.swallow_commits = self.met = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def after(self, passed: int | bytes, act: Callable[[], None] | None = None) -> None:
        """Arm it once."""
        with self._lock:
            self._left, self._act = passed, act

    @property
    def armed(self) -> bool:
        return self._left is not None

    def cut(self, *, away: bool = False, last: Collection[socket.socket] = ()) -> None:
        """Close every line that is open, as a cable that is pulled and a network that says so; ``away``: and answer nobody new.

        ``last``: the line of whoever waits, closed when all others are, so that no line outlives the news.
        """
        with self._lock:
            self.away |= away
            lines, self._lines = self._lines, set()
        for line in sorted(lines, key=lambda line: line in last):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def silence(self) -> None:
        """Pass nothing on through the lines that are open now, as a network that forgot them; new ones work."""
        with self._lock:
            self._silent |= self._lines

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed at the end
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                with self._lock:
                    if self.away:
                        self.met += 1
                        client.close()
                        continue
                    try:
                        server = socket.create_connection(self._server)
                    except ConnectionRefusedError:  # as the server would say itself
                        client.close()
                        continue
                    self._lines |= {client, server}
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        others, request = {client: server, server: client}, b""
        with contextlib.suppress(OSError, ValueError):  # the line was cut
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    received = ready.recv(65536)
                    self.met += bool(received) and (self.deaf or client in self._silent)
                    while self.deaf or client in self._silent:
                        select.select([], [], [], 0.05)
                    if not received:
                        raise OSError
                    if ready is client and self.swallow_commits and _COMMIT in received:
                        self.swallow_commits -= 1
                        client.shutdown(socket.SHUT_RDWR)
                        server.sendall(received)
                        server.recv(65536)  # it is committed
                        raise OSError
                    if ready is client and self.repeats:
                        request += received
                        if not _is_whole(request):
                            if request.endswith(b"\r\n\r\n"):  # the client may wait to be asked for the body
                                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                            continue
                        self._deliver(request)
                        received, request = request, b""
                    if ready is (client if self.of_client else server):
                        if self._count(received, (client, server)):
                            continue
                        received = self._spoil(received, others[ready])
                    others[ready].sendall(received)
        for line in (client, server):
            line.close()

    def _spoil(self, received: bytes, receiver: socket.socket) -> bytes:
        self.met += self.delay_s > 0 or self.truncates or self.duplicates
        time.sleep(self.delay_s)
        if self.truncates:
            receiver.sendall(received[: len(received) // 2])
            raise OSError
        return received * 2 if self.duplicates else received

    def _deliver(self, request: bytes) -> None:
        """Send a request to the server through a line of its own, and drop the answer."""
        self.met += 1
        with socket.create_connection(self._server) as line:
            line.sendall(request)
            with http.client.HTTPResponse(line, method=request.partition(b" ")[0].decode()) as answer:
                answer.begin()
                answer.read()

    def heal(self) -> None:
        """Pass everything on again; lines that are open stay so."""
        with self._lock:
            self._silent.clear()
            self._left = None
        self.deaf = self.away = self.of_client = self.truncates = self.duplicates = self.repeats = False
        self.delay_s = 0.0
        self.swallow_commits = 0

    def _count(self, passed: bytes, line: Collection[socket.socket]) -> bool:
        with self._lock:
            if self._left is None:
                return False
            if isinstance(self._left, bytes):
                if self._left not in passed:
                    return False
            else:
                self._left -= len(passed)
                if self._left > 0:
                    return False
            self._left, act = None, self._act
        self.fired += 1
        self.met += 1
        if act is None:
            self.cut(last=line)
        else:
            act()
        return act is None

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.deaf = False
        self._silent.clear()
        self._listener.close()
        self.cut()


def _is_whole(request: bytes) -> bool:
    """True if these bytes are a request with its whole body, whose length its head says."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return bool(end) and len(body) >= (0 if length is None else int(length[1]))
