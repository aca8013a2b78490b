"""Dagster's webserver: what a page of another site makes it do, read-only, and behind the nginx of the page on deployment."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from babylon_rl_tests.serving.gateways import wait_for
from babylon_rl_tests.serving.test_behind_proxies import listens, with_nginx
from babylon_rl_tests.store.servers import ROOT, free_port

pytestmark = pytest.mark.long
MUTATION = 'mutation { deletePipelineRun(runId: "none") { __typename } }'
LINK = f"/graphql?query={quote(MUTATION)}"
# What a browser sends of itself for a picture, a form, a link and a script of another site's page.
IMAGE = {"accept": "image/avif,image/webp,*/*;q=0.8", "sec-fetch-site": "cross-site"}
FORM = {"content-type": "text/plain", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
OLD_FORM = {"content-type": "text/plain", "origin": "https://evil.example"}
NAME = "dagster.example.com"
OWN = {"origin": f"https://{NAME}", "sec-fetch-site": "same-origin", "content-type": "application/json"}
LOGIN = {"authorization": "Basic " + b64encode(b"me:secret").decode()}
QUERY = json.dumps({"query": "{ version }"})


@contextmanager
def webserver(home: Path, **variables: str) -> Iterator[int]:
    """Dagster's webserver on a new instance, started as `dagster dev` starts it; yields its port."""
    home.mkdir()
    (home / "dagster.yaml").touch()
    environment = os.environ | {"DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "yes"} | variables
    port = free_port()
    command = [sys.executable, "-m", "dagster_webserver", "--empty-workspace", "--port", str(port)]
    with (home / "log").open("wb") as log, subprocess.Popen(command, env=environment, cwd=home, stderr=log, stdout=log) as process:
        try:
            wait_for(lambda: listens(port), "Dagster's webserver", within_s=60)
            yield port
        finally:
            process.terminate()


@contextmanager
def nginx_of_the_page(port: int, directory: Path) -> Iterator[int]:
    """The server of the page without TLS before a webserver; yields its port."""
    page = (ROOT / "docs/howto/deploy.md").read_text()
    found = re.search(r"^```nginx\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    users, own = directory / "users", free_port()
    hashed = subprocess.run(["openssl", "passwd", "-6", "secret"], capture_output=True, text=True, check=True).stdout.strip()
    users.write_text(f"me:{hashed}\n")
    server = re.sub(r" *ssl_.*\n", "", found[1]).replace("listen 443 ssl", f"listen 127.0.0.1:{own}")
    server = server.replace("127.0.0.1:3000", f"127.0.0.1:{port}").replace("/etc/nginx/dagster.users", str(users))
    file = directory / "nginx.conf"
    file.write_text(with_nginx(server, directory))
    with subprocess.Popen(["nginx", "-p", str(directory), "-e", str(directory / "errors"), "-c", str(file)]) as process:
        try:
            wait_for(lambda: listens(own), "nginx")
            yield own
        finally:
            process.terminate()


def ask(port: int, method: str, path: str, headers: dict[str, str], body: str = "", host: str = NAME) -> tuple[int, str]:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    line.request(method, path, body or None, {"host": host, **headers})
    answer = line.getresponse()
    text = answer.read().decode()
    line.close()
    return answer.status, text


def test_dagster_s_page_executes_links_of_other_sites_and_read_only_refuses_them(tmp_path: Path) -> None:
    """Where the first half fails Dagster checks who asks: then its rows in threats.md and deploy.md go."""
    with webserver(tmp_path / "writes") as port:
        for host in ("evil.example", "localhost"):
            for method, headers in (("GET", IMAGE), ("POST", FORM)):
                assert "RunNotFoundError" in ask(port, method, LINK, headers, host=host)[1]
    with webserver(tmp_path / "reads", DAGSTER_WEBSERVER_READ_ONLY="true") as port:
        for method, headers in (("GET", IMAGE), ("POST", FORM)):
            assert "UnauthorizedError" in ask(port, method, LINK, headers)[1]
        assert ask(port, "POST", "/graphql", OWN, QUERY)[0] == 200


@pytest.mark.skipif(shutil.which("nginx") is None or shutil.which("openssl") is None, reason="nginx or openssl is not installed")
def test_behind_the_nginx_of_the_page_dagster_answers_its_own_page_and_persons_with_a_login(tmp_path: Path) -> None:
    with webserver(tmp_path / "dagster") as behind, nginx_of_the_page(behind, tmp_path) as port:
        # A browser sends a login that it knows with the requests of other sites too.
        for method, headers in (
            ("GET", IMAGE),
            ("POST", FORM),
            ("POST", OLD_FORM),
            ("GET", {}),
            ("HEAD", {}),
            ("GET", {"accept": "text/html"}),
        ):
            for path in (LINK, LINK.replace("graphql", "%67raphql"), LINK.replace("query", "%71uery"), LINK.replace("/", "//", 1)):
                status, text = ask(port, method, path, LOGIN | headers)
                assert status == 403 and "RunNotFound" not in text, (method, headers, path)
        assert ask(port, "GET", "/logs/none", LOGIN | IMAGE)[0] == 403
        assert ask(port, "GET", "/", LOGIN, host="evil.example")[0] == 421
        assert ask(port, "POST", "/graphql", LOGIN | OWN, QUERY, host="rebound.example")[0] == 421
        assert ask(port, "POST", "/graphql", OWN, QUERY)[0] == ask(port, "GET", "/", {})[0] == 401
        assert ask(port, "GET", "/", LOGIN | {"sec-fetch-site": "none"})[1].lstrip().lower().startswith("<!doctype html>")
        assert ask(port, "GET", "/runs", LOGIN | {"sec-fetch-site": "same-origin"})[0] == 200
        status, text = ask(port, "POST", "/graphql", LOGIN | OWN, QUERY)
        assert status == 200 and "version" in json.loads(text)["data"]
        assert opened_websocket(port, LOGIN, f"https://{NAME}") == "connection_ack"
        for login, origin in ((LOGIN, "https://evil.example"), ({}, f"https://{NAME}")):
            with pytest.raises(InvalidStatus, match="403|401"):
                opened_websocket(port, login, origin)


def opened_websocket(port: int, headers: dict[str, str], origin: str) -> str:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as line,
        connect(
            f"ws://{NAME}/graphql", sock=line, origin=origin, subprotocols=["graphql-ws"], additional_headers=headers, compression=None
        ) as opened,  # fmt: skip
    ):
        opened.send(json.dumps({"type": "connection_init"}))
        return str(json.loads(opened.recv(60))["type"])
