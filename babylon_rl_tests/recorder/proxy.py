"""A way to a Postgres server that a test can cut: at once, or when the answer to a COMMIT is on its way back."""

import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import urlsplit

_COMMIT = b"COMMIT\x00"


class Proxy:
    """Listens on 127.0.0.1 and passes bytes on to ``url``'s server for the length of a ``with`` block."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        user, _, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()
        self._open: list[socket.socket] = []
        self._down = threading.Event()
        self._lock = threading.Lock()
        self.swallow_commits = 0

    def cut(self) -> None:
        """End every connection, and every later one at once, until ``mend``."""
        with self._lock:
            self._down.set()
            for one in self._open:
                _close(one)
            self._open.clear()

    def mend(self) -> None:
        """Let new connections through again."""
        self._down.clear()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cut()
        _close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._down.is_set():
                    _close(client)
                    continue
                server = socket.create_connection(self._server)
                self._open += [client, server]
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pass_back, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        for sent in _chunks(client):
            if _COMMIT in sent and self.swallow_commits:
                self.swallow_commits -= 1
                _close(client)  # the server gets the COMMIT, nobody gets its answer
                server.sendall(sent)
                return
            try:
                server.sendall(sent)
            except OSError:
                break
        _close(server)

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        for answer in _chunks(server):
            try:
                client.sendall(answer)
            except OSError:
                break
        _close(client)


def _chunks(source: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            read = source.recv(65_536)
        except OSError:
            return
        if not read:
            return
        yield read


def _close(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already
    one.close()
