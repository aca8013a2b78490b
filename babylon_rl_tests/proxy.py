"""A TCP proxy that passes bytes on until it is told to cut its lines, call a function, or go deaf."""

import contextlib
import re
import select
import socket
import threading
from collections.abc import Callable, Collection
from types import TracebackType

_COMMIT = b"COMMIT\x00"


class Proxy:
    """A proxy on 127.0.0.1 for the server of ``url``; its own ``url`` differs in host and port.

    ``after(n, act)`` arms it: once ``n`` more bytes have come from the server, ``act`` is called once, in the proxy's own thread;
    ``act`` None cuts every line. ``deaf`` passes nothing on any more, in either direction, and closes nothing; ``silence`` does so to the
    lines that are open. ``away`` answers nobody new.
    ``swallow_commits`` is how many COMMITs reach the server although their client is cut off before the answer.
    """

    def __init__(self, url: str) -> None:
        host, port = re.search(r"@([^:/]+):(\d+)/", url).groups()  # type: ignore[union-attr]
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f"@{host}:{port}/", f"@127.0.0.1:{self._listener.getsockname()[1]}/")
        self._lines: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._left: int | None = None
        self._act: Callable[[], None] | None = None
        self.deaf = self.away = False
        self.connections = self.fired = self.swallow_commits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def after(self, received: int, act: Callable[[], None] | None = None) -> None:
        """Arm it once."""
        with self._lock:
            self._left, self._act = received, act

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
                        client.close()
                        continue
                    server = socket.create_connection(self._server)
                    self._lines |= {client, server}
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        others = {client: server, server: client}
        with contextlib.suppress(OSError, ValueError):  # the line was cut
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    received = ready.recv(65536)
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
                    if ready is server and self._count(len(received), (client, server)):
                        continue
                    others[ready].sendall(received)
        for line in (client, server):
            line.close()

    def _count(self, received: int, line: Collection[socket.socket]) -> bool:
        with self._lock:
            if self._left is None:
                return False
            self._left -= received
            if self._left > 0:
                return False
            self._left, act = None, self._act
        self.fired += 1
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
