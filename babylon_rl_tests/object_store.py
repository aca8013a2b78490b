"""An S3 server (moto's) in a process of its own, behind a proxy of this one: it counts requests, and makes answers fail."""

import http.client
import itertools
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SECRET = "a-secret-that-nobody-may-see"
START_TIMEOUT_S = 60.0
# The command `moto_server`, which chooses a free port and ends with its standard input, as that is a pipe that only its parent holds.
_SERVER = """
import os, sys, threading
from moto.server import main
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
main(["--port", "0"])
"""
_OF_A_LINE = {"connection", "expect", "transfer-encoding"}  # headers that say how a line is used
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def ignored(environ: dict[str, Any]) -> None:
    """Do nothing with a request."""


@dataclass
class Fault:
    """What becomes of the next ``times`` downloads of a path that ends with ``name``: 500, 503, cut, other."""

    name: str
    kind: str
    times: int


@dataclass
class ObjectStore:
    """``variables`` are those by which drivers find it; a bucket of its own keeps tests apart.

    ``on_request`` is called with each request before it is answered, by several threads. ``refuse`` gives the status and code with which
    a request is refused, or None.
    """

    address: str
    downloads: list[str] = field(default_factory=list)
    lists: int = 0
    faults: list[Fault] = field(default_factory=list)
    on_request: Callable[[dict[str, Any]], None] = ignored
    refuse: Callable[[dict[str, Any]], tuple[int, str] | None] = ignored
    _buckets: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _one_by_one: threading.Lock = field(default_factory=threading.Lock)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def bucket(self) -> str:
        """A new bucket's URL."""
        name = f"bucket-{next(self._buckets)}"
        self.files().mkdir(name)
        return f"s3://{name}/models"

    def files(self) -> Any:
        """The store as a file system, for looking and for damage."""
        import fsspec

        return fsspec.filesystem("s3", endpoint_url=self.address, key="key", secret=SECRET, use_listings_cache=False)

    def fail(self, name: str, kind: str, times: int) -> None:
        self.faults.append(Fault(name, kind, times))

    def downloaded(self, name: str) -> int:
        """How often a path that ends with ``name`` was asked for, in answers that were not a fault."""
        return sum(path.endswith(name) for path in self.downloads)

    def answer(self, app: App, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.on_request(environ)
        if refused := self.refuse(environ):
            status, code = refused
            start(f"{status} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>A header implies functionality that is not implemented</Message></Error>".encode()]
        # moto looks at the condition of a write before it writes; S3 does both at once.
        if "HTTP_IF_NONE_MATCH" in environ:
            with self._one_by_one:
                return app(environ, start)
        path = environ["PATH_INFO"]
        listed = "list-type" in environ.get("QUERY_STRING", "")
        self.lists += listed
        if environ["REQUEST_METHOD"] != "GET" or listed:
            return app(environ, start)
        fault = next((fault for fault in self.faults if fault.times and path.endswith(fault.name)), None)
        if fault is None:
            self.downloads.append(path)
            return app(environ, start)
        fault.times -= 1
        if fault.kind in ("500", "503"):
            code = {"500": "InternalError", "503": "ServiceUnavailable"}[fault.kind]
            start(f"{fault.kind} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>made to fail</Message></Error>".encode()]
        # Without what a driver would tell a damaged answer by, as a store that has lost bits itself.
        told: list[Any] = []
        body = b"".join(app(environ, lambda status, headers, *more: told.extend((status, headers))))
        start(told[0], [(name, value) for name, value in told[1] if "checksum" not in name.lower()])
        return _cut(body) if fault.kind == "cut" else [bytes(byte ^ 1 for byte in body)]


def _cut(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    raise ConnectionError("cut, as it was asked for")


def _forwarding(port: int) -> App:
    """An application that answers with the answers of a server on this machine."""
    from werkzeug.datastructures import EnvironHeaders
    from werkzeug.exceptions import ClientDisconnected
    from werkzeug.wsgi import get_input_stream

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        headers = {name: value for name, value in EnvironHeaders(environ).items() if name.lower() not in _OF_A_LINE}
        try:
            sent = get_input_stream(environ).read()
        except ClientDisconnected as cut:  # in the middle of an upload: nothing of it reaches the server
            return cut(environ, start)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as line:
            line.request(environ["REQUEST_METHOD"], environ["REQUEST_URI"], sent, headers)
            answered = line.getresponse()
            body = answered.read()
        start(f"{answered.status} {answered.reason}", [header for header in answered.getheaders() if header[0].lower() not in _OF_A_LINE])
        return [body]

    return answer


@contextmanager
def _moto() -> Iterator[int]:
    """Port of a server that is running within the block, and never outlives this process."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        with process:  # its end waits
            try:
                deadline = time.monotonic() + START_TIMEOUT_S
                while not (bound := re.search(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())):
                    assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.02)
                yield int(bound[1])
            finally:
                process.terminate()


@contextmanager
def running_store() -> Iterator[ObjectStore]:
    import fsspec
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    with _moto() as port:
        store, app = ObjectStore(""), _forwarding(port)
        proxy = make_server("127.0.0.1", 0, lambda environ, start: store.answer(app, environ, start), threaded=True, request_handler=Silent)
        store.address = f"http://127.0.0.1:{proxy.server_port}"
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            proxy.shutdown()
            thread.join()
            proxy.server_close()
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # drivers that have its address


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectStore]:
    with running_store() as store:
        yield store


@pytest.fixture
def object_store(object_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, found by the usual variables, with nothing armed and nothing counted."""
    for name, value in object_server.variables.items():
        monkeypatch.setenv(name, value)
    object_server.downloads.clear()
    object_server.faults.clear()
    object_server.on_request = object_server.refuse = ignored
    return object_server
