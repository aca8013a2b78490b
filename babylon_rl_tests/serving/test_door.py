"""The door of all servers: pages of other sites, foreign names, repeated headers, other types than JSON, deep JSON, odd paths."""

import json
from pathlib import Path

import pytest

from babylon_rl.models.server_process import running_server
from babylon_rl_tests.serving.test_http_servers import Served, answers, model_port, status_of, tiny_base, web

__all__ = ["model_port", "tiny_base", "web"]
pytestmark = pytest.mark.slow
POSTING = pytest.mark.parametrize("web", ["gateway", "market", "model"], indirect=True)


def asked(web: Served, lines: str = "", body: bytes | None = None, path: str = "", host: str = "", version: str = "1.1") -> bytes:
    """The answer to a request of its own with those further lines; ``host`` is the line."""
    body = web.body if body is None else body
    kind = "" if "content-type" in lines else "content-type: application/json\r\n"
    head = f"{web.method} {path or web.path} HTTP/{version}\r\n{host or f'host: 127.0.0.1:{web.port}'}\r\n{kind}{lines}"
    with web.connect() as line:
        line.sendall(f"{head}content-length: {len(body)}\r\n\r\n".replace("host: -\r\n", "").encode() + body)
        return answers(line)


@pytest.mark.parametrize(
    "lines",
    [
        "sec-fetch-site: cross-site", "sec-fetch-site: same-site", "origin: https://evil.example", "origin: null", "origin: http://127.0.0.1",
        "origin: http://localhost:{port}", "origin: http://127.0.0.1:{port}\r\nsec-fetch-site: cross-site",
        "origin: http://127.0.0.1:{port}.evil.example",
    ],
)  # fmt: skip
def test_what_a_page_of_another_site_sends_is_refused(web: Served, lines: str) -> None:
    before = web.effects()
    for method in ("sec-fetch-mode: no-cors\r\n", "sec-fetch-mode: navigate\r\n", ""):
        answer = asked(web, lines.format(port=web.port) + "\r\n" + method)
        assert status_of(answer) == 403 and b"other sites" in answer
    assert web.effects() == before


@pytest.mark.parametrize("lines", ["sec-fetch-site: none", "sec-fetch-site: same-origin", "origin: http://127.0.0.1:{port}"])
def test_its_own_pages_are_answered(web: Served, lines: str) -> None:
    assert status_of(asked(web, lines.format(port=web.port) + "\r\n")) == web.status


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "xn--e1awd7f.com", "a.b"])
def test_a_name_that_a_stranger_may_own_is_refused(web: Served, host: str) -> None:
    before = web.effects()
    assert status_of(asked(web, host=f"host: {host}")) == 403
    assert status_of(asked(web, host=f"host: {host}", path="/")) == 403
    assert web.effects() == before


@pytest.mark.parametrize("host", ["localhost", "LocalHost:{port}", "[::1]:{port}", "127.0.0.1"])
def test_names_of_this_machine_are_answered(web: Served, host: str) -> None:
    assert status_of(asked(web, host=f"host: {host.format(port=web.port)}")) == web.status


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    "host", ["host: -", "host:", "host: localhost\r\nhost: localhost", "host: a b", "host: me@localhost", "host: localhost/"]
)
def test_a_request_without_one_proper_host_is_400(web: Served, host: str, version: str) -> None:
    assert status_of(asked(web, host=host, version=version)) == 400


@pytest.mark.parametrize("name", ["authorization", "content-type", "origin", "x-babylon-agent", "X-Babylon-Trajectory"])
def test_a_header_that_decides_is_sent_once(web: Served, name: str) -> None:
    value = "application/json" if name == "content-type" else f"http://127.0.0.1:{web.port}" if name == "origin" else "Bearer a"
    answer = asked(web, f"{name}: {value}\r\n" * 2)
    assert status_of(answer) == 400 and name.lower().encode() in answer


@POSTING
@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain; a=application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
)
def test_a_body_of_another_type_is_refused(web: Served, kind: str) -> None:
    before = web.effects()
    assert status_of(asked(web, f"content-type: {kind}\r\n")) == 415
    assert web.effects() == before
    assert status_of(asked(web, "content-type: Application/JSON; charset=utf-8\r\n")) == web.status


@POSTING
@pytest.mark.parametrize("depth", [129, 500, 950, 970, 985, 3000, 100_000])
def test_json_that_is_nested_too_deeply_is_400(web: Served, depth: int) -> None:
    if depth > 10_000 and web.path == "/start":
        pytest.skip("a longer body than the market takes")
    before = web.effects()
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        deep = f"{opened * depth}{'1' if opened != '[' else ''}{closed * depth}"
        for body in (deep, web.body.decode().replace("{", f'{{"more": {deep}, "quoted": "\\"[\\\\", ', 1)):
            if len(body) < 16_000 or web.path != "/start":
                assert status_of(asked(web, body=body.encode())) == 400, body[:100]
    assert web.effects() == before


@pytest.mark.parametrize("web", ["gateway", "model"], indirect=True)
def test_brackets_in_texts_are_no_nesting(web: Served) -> None:
    for text in ("[" * 5000, '"' + "{" * 5000, "\\" + "[{" * 300, '\\"' * 300 + "[" * 300):
        body = json.loads(web.body) | {"messages": [{"role": "user", "content": text}]}
        assert b"nested" not in asked(web, body=json.dumps(body).encode())


def test_slashes_at_the_end_and_encoded_ones_lead_nowhere(web: Served) -> None:
    before = web.effects()
    first, _, rest = web.path.removeprefix("/").partition("/")
    for path in (f"{web.path}/", f"{web.path}%2F", f"{web.path}%2f", f"/{first}%2F{rest}", f"/%2F{first}/{rest}", f"/{web.path}"):
        answer = asked(web, path=path)
        assert status_of(answer) in (404, 405) and b"location" not in answer.lower(), path
    assert web.effects() == before


def test_a_body_that_is_too_long_is_refused_while_it_is_sent(web: Served) -> None:
    if web.method == "GET":
        pytest.skip("the answer needs no body")
    with web.connect() as line:
        for _ in range(2):
            line.sendall(web.head(10_000_000) + b" " * 10_000_000)
            assert status_of(answers(line)) == 413


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_prompts_of_megabytes_leave_no_memory(tiny_base: Path) -> None:
    with running_server(tiny_base) as running:
        served = Served(running.port, "POST", "/v1/chat/completions", b"", 400, lambda: 0)

        def resident_mb() -> int:
            with open(f"/proc/{running.pid}/status") as status:
                return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) // 1024

        def ask(text: str) -> bytes:
            return asked(
                served, body=json.dumps({"model": "base", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}).encode()
            )

        ask("hello")
        before = resident_mb()
        for text in ("buy 5 " * 650_000, " " * 3_900_000, "a" * 3_900_000, "abc\n" * 700_000, "\u4e00" * 600_000, "x y " * 2_500_000):
            answer = ask(text)
            assert status_of(answer) in (400, 413) and (b"context_length_exceeded" in answer or b"body_too_large" in answer)
        assert resident_mb() < before + 60
