"""All servers on raw sockets: requests to upgrade, requests inside bodies, and crowds of slow clients that hold up nobody."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from babylon_rl.models.server_process import running_server
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.admin_server import dagster_stand_in, running_admin
from babylon_rl_tests.serving.gateways import running_gateway, wait_for
from babylon_rl_tests.serving.market_server import served, small_market
from babylon_rl_tests.serving.model_stand_in import model_stand_in
from babylon_rl_tests.tiny_model import tiny_base

__all__ = ["tiny_base"]
pytestmark = pytest.mark.slow

CHAT = json.dumps({"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
JAVA = """
import java.net.URI; import java.net.http.*;
public class Post { public static void main(String[] arguments) throws Exception {
  var request = HttpRequest.newBuilder(URI.create(arguments[0])).header("content-type", "application/json");
  var body = HttpRequest.BodyPublishers.ofString(arguments[1]);
  for (int i = 0; i < 2; i++)
    System.out.println(HttpClient.newHttpClient().send(request.POST(body).build(), HttpResponse.BodyHandlers.ofString()).statusCode());
} }
"""


@dataclass(frozen=True)
class Served:
    """A server, a request that it answers with ``status``, and the number of requests of this kind that had an effect."""

    port: int
    method: str
    path: str
    body: bytes
    status: int
    effects: Callable[[], int]

    def head(self, length: int, extra: str = "") -> bytes:
        lines = f"{self.method} {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n{extra}"
        return f"{lines}content-length: {length}\r\n\r\n".encode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self) -> int:
        url = f"http://127.0.0.1:{self.port}{self.path}"
        request = urllib.request.Request(url, self.body, {"content-type": "application/json"}, method=self.method)
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)


@pytest.fixture(scope="module")
def model_port(tiny_base: Path) -> Iterator[int]:
    with running_server(tiny_base) as running:
        yield running.port


@pytest.fixture(params=["gateway", "admin", "market", "model"])
def web(request: pytest.FixtureRequest, settings: Settings, database: Database) -> Iterator[Served]:
    with ExitStack() as stack:
        if request.param == "gateway":
            model = stack.enter_context(model_stand_in())
            gateway = stack.enter_context(running_gateway(settings.model_copy(update={"local_endpoint": model.url}), database))
            yield Served(gateway.port, "POST", "/v1/chat/completions", CHAT, 200, lambda: len(model.seen))
        elif request.param == "admin":
            dagster = stack.enter_context(dagster_stand_in())
            admin = stack.enter_context(running_admin(settings.model_copy(update={"dagster_url": dagster.url}), database))
            port = urlsplit(admin.url).port
            assert port is not None
            yield Served(port, "GET", "/api/admin/training/status", b"{}", 200, lambda: 0)
        elif request.param == "market":
            port = urlsplit(stack.enter_context(served(small_market()))).port
            assert port is not None
            yield Served(port, "POST", "/start", b'{"name": "one"}', 201, lambda: 0)
        else:
            yield Served(request.getfixturevalue("model_port"), "POST", "/v1/chat/completions", CHAT, 200, lambda: 0)


def answers(line: socket.socket) -> bytes:
    """All that comes until the server is silent for a moment."""
    line.settimeout(20)
    got = line.recv(65536)
    line.settimeout(0.2)
    try:
        while part := line.recv(65536):
            got += part
    except (TimeoutError, ConnectionResetError):  # reset: it closed while bytes were under way to it
        pass
    return got


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "h2c, websocket", "TLS/1.3"])
def test_a_request_to_upgrade_keeps_its_body_and_is_answered_as_any_other(web: Served, upgrade: str) -> None:
    head = web.head(len(web.body), f"connection: upgrade\r\nupgrade: {upgrade}\r\n")
    for pause_s in (0, 0.1):
        with web.connect() as line:
            line.sendall(head)
            time.sleep(pause_s)
            line.sendall(web.body)
            assert status_of(answers(line)) == web.status
            line.sendall(head + web.body)  # the connection goes on
            assert status_of(answers(line)) == web.status


@pytest.mark.parametrize("outer", ["", "/nothing"])
@pytest.mark.parametrize("extra", ["", "connection: upgrade\r\nupgrade: h2c\r\n", "connection: upgrade\r\nupgrade: websocket\r\n"])
def test_a_request_inside_a_body_is_never_one(web: Served, outer: str, extra: str) -> None:
    inner = web.head(len(web.body)) + web.body
    before = web.effects()
    for pause_s in (0, 0.1):
        with web.connect() as line:
            line.sendall(web.head(len(inner), extra).replace(web.path.encode(), outer.encode() or web.path.encode(), 1))
            time.sleep(pause_s)
            line.sendall(inner)
            assert answers(line).count(b"HTTP/1.1 ") == 1
    assert web.effects() == before


# Heads whose end of the body servers and proxies read differently; {n} is the length of what follows.
AMBIGUOUS = {
    "length and chunks": "content-length: {n}\r\ntransfer-encoding: chunked\r\n",
    "chunks and length": "transfer-encoding: chunked\r\ncontent-length: {n}\r\n",
    "no length and chunks": "content-length: 0\r\ntransfer-encoding: chunked\r\n",
    "two lengths": "content-length: 0\r\ncontent-length: {n}\r\n",
    "two lengths, the longer first": "content-length: {n}\r\ncontent-length: 0\r\n",
    "two lengths in one": "content-length: {n}, 0\r\n",
    "a signed length": "content-length: +{n}\r\n",
    "a negative length": "content-length: -0\r\n",
    "a length with a space": "content-length: {n} 0\r\n",
    "a length before a colon with a space": "content-length : {n}\r\n",
    "a length in hexadecimal": "content-length: 0x0\r\n",
    "a length in other digits": "content-length: \u0660\r\n",
    "a length with an underscore": "content-length: 0_0\r\n",
    "chunked, identity": "transfer-encoding: chunked, identity\r\n",
    "identity, chunked": "transfer-encoding: identity, chunked\r\n",
    "chunked twice": "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "a second coding": "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n",
    "xchunked": "content-length: {n}\r\ntransfer-encoding: xchunked\r\n",
    "a vertical tab": "content-length: {n}\r\ntransfer-encoding: \x0bchunked\r\n",
    "a null": "content-length: {n}\r\ntransfer-encoding: chunked\x00\r\n",
    "chunked in quotes": 'content-length: {n}\r\ntransfer-encoding: "chunked"\r\n',
    "chunked before a colon with a space": "content-length: {n}\r\ntransfer-encoding : chunked\r\n",
    "a name after a space": "content-length: {n}\r\n transfer-encoding: chunked\r\n",
    "a folded coding": "content-length: {n}\r\ntransfer-encoding:\r\n chunked\r\n",
    "a folded length": "content-length:\r\n {n}\r\n",
    "a header in a folded line": "content-length: {n}\r\nx: y\r\n\ttransfer-encoding: chunked\r\n",
    "a bare line feed": "content-length: {n}\r\nx: y\ntransfer-encoding: chunked\r\n",
    "bare line feeds alone": "content-length: {n}\ntransfer-encoding: chunked\n",
    "a bare carriage return": "content-length: {n}\r\nx: y\rtransfer-encoding: chunked\r\n",
}


def test_no_byte_of_a_body_of_ambiguous_length_is_answered_as_a_request(web: Served) -> None:
    """Refused, or answered as one request whose body holds the other."""
    inner = web.head(len(web.body)) + web.body
    before = web.effects()
    head = f"{web.method} /nothing HTTP/1.1\r\nhost: 127.0.0.1:{web.port}\r\ncontent-type: application/json\r\n"
    for name, lines in AMBIGUOUS.items():
        for body in (inner, b"0\r\n\r\n" + inner, b"1\r\nZ\r\n0\r\nx: y\n\n" + inner):
            with web.connect() as line:
                line.sendall(f"{head}{lines.format(n=len(body))}\r\n".encode() + body)
                got = answers(line)
            assert got.count(b"HTTP/1.1 ") <= 1 and b"HTTP/1.1 2" not in got, (name, body[:8], got)
    assert web.effects() == before
    assert web.ask() == web.status


def test_a_request_after_a_refused_body_in_chunks_is_one_of_its_own(web: Served) -> None:
    inner = web.head(2) + b"{}"
    with web.connect() as line:
        line.sendall(
            b"POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n"
        )
        assert (got := answers(line)).count(b"HTTP/1.1 ") == 1 and status_of(got) in (404, 405)
        line.sendall(web.head(len(web.body)) + web.body)
        assert status_of(answers(line)) == web.status


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_that_asks_for_http_2_is_answered(web: Served) -> None:
    command = ["curl", "-s", "--http2", "-o", "/dev/null", "-w", "%{http_code}", "-X", web.method, "-H", "content-type: application/json"]
    done = subprocess.run([*command, "-d", web.body, f"http://127.0.0.1:{web.port}{web.path}"], capture_output=True, check=True)
    assert int(done.stdout) == web.status


@pytest.mark.long
@pytest.mark.parametrize("web", ["gateway", "model"], indirect=True)
@pytest.mark.skipif(shutil.which("javac") is None and shutil.which("java") is None, reason="Java is not installed")
def test_java_s_client_is_answered(web: Served, tmp_path: Path) -> None:
    if "jdk.compiler" not in subprocess.run(["java", "--list-modules"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("Java has no compiler")
    (tmp_path / "Post.java").write_text(JAVA)
    url = f"http://127.0.0.1:{web.port}{web.path}"
    done = subprocess.run(["java", "Post.java", url, web.body.decode()], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["200", "200"]


def test_a_thousand_idle_connections_and_slow_heads_and_bodies_hold_up_nobody(web: Served) -> None:
    head = web.head(100)
    with ExitStack() as stack:
        for number in range(1200):
            line = stack.enter_context(web.connect())
            if number >= 1000:
                line.sendall(head[:40] if number % 2 else head + b"{")
        began = time.monotonic()
        assert [web.ask() for _ in range(5)] == [web.status] * 5
        assert time.monotonic() - began < 5
    assert web.ask() == web.status


def test_a_head_without_end_is_refused(web: Served) -> None:
    with web.connect() as line:
        line.sendall(f"GET {web.path} HTTP/1.1\r\nhost: x\r\nx-long: ".encode() + b"a" * 100_000)
        assert status_of(answers(line)) == 400
        wait_for(lambda: line.recv(1) == b"", "the connection to be closed")
    assert web.ask() == web.status
