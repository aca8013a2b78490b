"""An S3 server (moto's) on this machine, whose answers can be made to fail; what is asked of it is counted."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

SECRET = "a-secret-that-nobody-may-see"
_BUCKETS = itertools.count(1)  # of all servers: moto keeps what they hold in the process


@dataclass
class Fault:
    """What becomes of the next ``times`` downloads of a path that ends with ``name``: 500, 503, cut, other."""

    name: str
    kind: str
    times: int


@dataclass
class ObjectStore:
    """``variables`` are those by which drivers find it; a bucket of its own keeps tests apart."""

    address: str
    downloads: list[str] = field(default_factory=list)
    lists: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def bucket(self) -> str:
        """A new bucket's URL."""
        name = f"bucket-{next(_BUCKETS)}"
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

    def answer(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
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


@contextmanager
def running_store() -> Iterator[ObjectStore]:
    import fsspec
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)
    store = ObjectStore("")
    server = make_server("127.0.0.1", 0, lambda environ, start: store.answer(app, environ, start), threaded=True, request_handler=Silent)
    store.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
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
    return object_server
