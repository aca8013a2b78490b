"""Servers behind Caddy and nginx, with the lines of the gateway's page and with none: no body is a request, and nobody is this machine."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import openai
import pytest

from babylon_rl.serving.access import key_hash
from babylon_rl.settings import Settings
from babylon_rl.store.client_keys import ClientKey, create_key
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.admin_server import dagster_stand_in, running_admin
from babylon_rl_tests.serving.gateways import MESSAGES, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn
from babylon_rl_tests.serving.test_http_servers import Served, answers, model_port, status_of, tiny_base, web
from babylon_rl_tests.store.servers import ROOT, free_port

__all__ = ["model_port", "tiny_base", "web"]
pytestmark = pytest.mark.slow
PROXIES = ("caddy", "caddy of the page", "nginx", "nginx of the page")
UPGRADES = ("", "connection: upgrade\r\nupgrade: h2c\r\n", "connection: upgrade\r\nupgrade: websocket\r\n")
Proxy = Callable[[int], int]


def block(language: str, first: str) -> str:
    """The block of the gateway's page that holds a text."""
    page = (ROOT / "docs/howto/gateway.md").read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return next(text for kind, text in found if kind == language and first in text)


def caddy(port: int, upstream: int, *, as_on_the_page: bool) -> str:
    own = "{\n admin off\n auto_https off\n}\n"
    if not as_on_the_page:
        return f"{own}http://127.0.0.1:{port}, http://gateway.example.com:{port} {{\n reverse_proxy 127.0.0.1:{upstream}\n}}\n"
    text = block("", "reverse_proxy").replace("{\n", "{\n admin off\n auto_https off\n", 1).replace(":8080", f":{upstream}")
    return text.replace("gateway.example.com {", f"http://127.0.0.1:{port}, http://gateway.example.com:{port} {{")


def nginx(port: int, upstream: int, *, as_on_the_page: bool, directory: Path) -> str:
    server = f"server {{ location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }}"
    if as_on_the_page:
        server = re.sub(r" *ssl_.*\n| *listen .*\n", "", block("nginx", "proxy_pass")).replace(":8080", f":{upstream}")
    return with_nginx(server.replace("{", f"{{ listen 127.0.0.1:{port};", 1), directory)


def with_nginx(server: str, directory: Path) -> str:
    """The configuration of an nginx with one server, which writes into ``directory`` alone."""
    places = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"daemon off; user root; pid {directory}/pid; events {{}} http {{ access_log off; {places} {server} }}"


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    """``proxy(upstream)``: the port of a proxy before it."""
    program, _, page = request.param.partition(" ")
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    with running(program, tmp_path, as_on_the_page=bool(page)) as start:
        yield start


@contextmanager
def running(program: str, directory: Path, *, as_on_the_page: bool) -> Iterator[Proxy]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(upstream: int) -> int:
        port = free_port()
        file = directory / "proxy.conf"
        if program == "caddy":
            file.write_text(caddy(port, upstream, as_on_the_page=as_on_the_page))
            command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]
        else:
            file.write_text(nginx(port, upstream, as_on_the_page=as_on_the_page, directory=directory))
            command = ["nginx", "-p", str(directory), "-e", str(directory / "errors"), "-c", str(file)]
        home = {"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "HOME": str(directory), "XDG_DATA_HOME": str(directory)}
        with (directory / "said").open("wb") as said:
            processes.append(subprocess.Popen(command, env=home, stderr=said))
        wait_for(lambda: listens(port), f"{program}: {(directory / 'said').read_text()}")
        return port

    try:
        yield start
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)


def listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("web", ["model", "market", "gateway", "admin"], indirect=True)
def test_a_request_inside_a_body_is_never_one_behind_a_proxy(web: Served, proxy: Proxy) -> None:
    through = Served(proxy(web.port), web.method, web.path, web.body, web.status, web.effects)
    for upgrade in UPGRADES:
        for pause_s in (0, 0.2):
            with through.connect() as line:
                head = through.head(len(web.body), upgrade)
                line.sendall(head)
                time.sleep(pause_s)
                line.sendall(web.body)
                # The gateway and the admin API are behind a proxy without keys here, which is not this machine.
                assert status_of(answers(line)) in (web.status, 403)
            before = web.effects()
            inner = web.head(len(web.body)) + web.body
            with through.connect() as line:
                line.sendall(through.head(len(inner), upgrade).replace(web.path.encode(), b"/nothing", 1))
                time.sleep(pause_s)
                line.sendall(inner)
                assert answers(line).count(b"HTTP/1.1 ") == 1
            assert web.effects() == before


def test_without_keys_nobody_is_this_machine_behind_a_proxy(
    settings: Settings, database: Database, upstream: ModelStandIn, proxy: Proxy
) -> None:
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:
        gateway.url = f"http://127.0.0.1:{proxy(gateway.port)}/v1"
        with pytest.raises(openai.PermissionDeniedError, match="keys create"):
            gateway.client().chat.completions.create(model="base", messages=MESSAGES)
    assert not upstream.seen


def test_without_a_secret_cron_paths_answer_nobody_behind_a_proxy(settings: Settings, database: Database, proxy: Proxy) -> None:
    with connect(database.url) as connection:
        create_key(connection, ClientKey("key", key_hash("brl-key"), None, None, datetime(2025, 11, 1), admin=True))
    with dagster_stand_in() as dagster, running_admin(settings.model_copy(update={"dagster_url": dagster.url}), database) as admin:
        port = proxy(int(admin.url.rpartition(":")[2]))
        for path in ("/api/cron/training", "/api/cron/training-check"):
            for host in ("localhost", "127.0.0.1", "gateway.example.com"):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
                    line.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer brl-key\r\n\r\n".encode())
                    answer = answers(line)
                # Caddy knows one of the names alone, and answers another with nothing.
                assert b"CRON_SECRET" in answer or b"content-length: 0" in answer.lower()
        assert not dagster.launched


def test_with_a_key_streams_and_records_come_through(settings: Settings, database: Database, upstream: ModelStandIn, proxy: Proxy) -> None:
    with connect(database.url) as connection:
        create_key(connection, ClientKey("key", key_hash("brl-key"), None, None, datetime(2025, 11, 1)))
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database, writes=True) as gateway:
        wait_for(lambda: gateway.gateway.state.reads, "the keys")
        gateway.url = f"http://127.0.0.1:{proxy(gateway.port)}/v1"
        client = gateway.client("brl-key", default_headers={"x-babylon-agent": "mine", "host": "gateway.example.com"})
        assert len(list(client.chat.completions.create(model="base", messages=MESSAGES, stream=True))) > 3
        wait_for(lambda: rows(database, "SELECT FROM llm_call_logs"), "the call")
    assert json.dumps(upstream.seen[0]["messages"]) == json.dumps(MESSAGES)
