"""Pages of other sites in a browser on this machine: what they send to servers of ours has no effect, and they read nothing."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from babylon_rl.models.server_process import running_server
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.e2e.browser import Page, browser_page, find_browser
from babylon_rl_tests.http_stand_in import Handler
from babylon_rl_tests.http_stand_in import served as stand_in
from babylon_rl_tests.serving.admin_server import dagster_stand_in, running_admin
from babylon_rl_tests.serving.gateways import rows, running_gateway
from babylon_rl_tests.serving.market_server import Player, served, small_market
from babylon_rl_tests.serving.model_stand_in import ModelStandIn, model_stand_in
from babylon_rl_tests.tiny_model import tiny_base

__all__ = ["tiny_base"]
pytestmark = [pytest.mark.long, pytest.mark.skipif(find_browser() is None, reason="no Chromium")]
CHAT = {"model": "base", "user": "victim", "messages": [{"role": "user", "content": "from a page"}], "max_tokens": 1}
TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json", "")


@dataclass(frozen=True)
class Servers:
    """Ports of all servers, and what shows that one of them did something."""

    gateway: int
    model: int
    market: int
    admin: int
    upstream: ModelStandIn
    launched: list[Any]
    database: Database

    def posts(self) -> list[tuple[int, str, str]]:
        chat = json.dumps(CHAT)
        return [
            (self.gateway, "/v1/chat/completions", chat), (self.model, "/v1/chat/completions", chat), (self.market, "/start", "{}"),
            (self.admin, "/api/admin/training/trigger", "{}"),
        ]  # fmt: skip

    def untouched(self) -> bool:
        """No model was asked, nothing launched, and a market was started once, by this very look."""
        attempt = Player(f"http://127.0.0.1:{self.market}").start()["attempt"]
        return not self.upstream.seen and not self.launched and not rows(self.database, "SELECT FROM llm_call_logs") and attempt == 1


@pytest.fixture
def servers(settings: Settings, database: Database, tiny_base: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        upstream, dagster = stack.enter_context(model_stand_in()), stack.enter_context(dagster_stand_in())
        settings = settings.model_copy(update={"local_endpoint": upstream.url, "dagster_url": dagster.url})
        gateway = stack.enter_context(running_gateway(settings, database, writes=True))
        admin = stack.enter_context(running_admin(settings, database))
        market = stack.enter_context(served(small_market()))
        model = stack.enter_context(running_server(tiny_base))
        market_port, admin_port = (urlsplit(url).port or 0 for url in (market, admin.url))
        yield Servers(gateway.port, model.port, market_port, admin_port, upstream, dagster.launched, database)


@pytest.fixture
def page() -> Iterator[Page]:
    """A browser in which every name below example is this machine, as a rebound name is."""
    program = find_browser()
    assert program is not None
    rebound = "--host-resolver-rules=MAP *.example 127.0.0.1"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        browser_page(program, Path(profile) / "own", 1200, 900, rebound) as own,
    ):
        yield own


@pytest.fixture
def evil_port() -> Iterator[int]:
    class Evil(Handler):
        def do_GET(self) -> None:
            self.answer(b"<p>evil</p>", content_type="text/html")

    with stand_in(Evil) as url:
        yield urlsplit(url).port or 0


def fetched(page: Page, url: str, **options: Any) -> str:
    """Status and text of an answer as the page sees it, or why it sees none."""
    said = page.evaluate(f"fetch({json.dumps(url)}, {json.dumps(options)}).then(async a => a.status + ' ' + await a.text(), e => `${{e}}`)")
    assert isinstance(said, str)
    return said


@pytest.mark.parametrize("name", ["evil.example", "localhost", "127.0.0.1"])
def test_a_page_of_another_site_writes_nothing_and_reads_nothing(servers: Servers, page: Page, evil_port: int, name: str) -> None:
    page.open(f"http://{name}:{evil_port}/")
    page.wait_for("evil")
    for port, path, body in servers.posts():
        for host in ("127.0.0.1", "localhost"):
            for kind in TYPES:
                headers = {"content-type": kind} if kind else {}
                for mode in ("no-cors", "cors"):
                    assert fetched(page, f"http://{host}:{port}{path}", method="POST", body=body, headers=headers, mode=mode) in (
                        "0 ", "TypeError: Failed to fetch",
                    )  # fmt: skip
            page.evaluate(f"navigator.sendBeacon({json.dumps(f'http://{host}:{port}{path}')}, {json.dumps(body)})")
            assert "Failed to fetch" in fetched(page, f"http://{host}:{port}/", method="GET")
    page.evaluate(f"fetch('http://127.0.0.1:{servers.admin}/api/cron/training', {{mode: 'no-cors'}}).then(() => 0, () => 0)")
    for port, path, body in servers.posts():
        # As text/plain a form sends NAME=VALUE, which is JSON where the = stands in a text.
        form = f"""const f = document.createElement('form'); f.method = 'post'; f.enctype = 'text/plain';
            f.action = 'http://127.0.0.1:{port}{path}'; const i = document.createElement('input');
            i.name = {json.dumps(body[:-1] + (", " if len(body) > 2 else "") + '"x": "')}; i.value = '"}}'; f.append(i);
            document.body.append(f); f.submit()"""
        page.evaluate(f"(() => {{ {form} }})()")
        page.wait_for("pages of other sites are refused")
        page.open(f"http://{name}:{evil_port}/")
        page.wait_for("evil")
    assert servers.untouched()


def test_a_rebound_name_reads_nothing_and_writes_nothing(servers: Servers, page: Page) -> None:
    for port, path, body in servers.posts():
        page.open(f"http://rebound.example:{port}/health")
        page.wait_for("This server answers to localhost")
        for asked in ("/", "/v1/models", "/ready", "/openapi.json", "/admin", "/api/admin/training/status", "/api/cron/training"):
            assert fetched(page, asked).startswith("403 "), asked
        assert fetched(page, path, method="POST", body=body, headers={"content-type": "application/json"}).startswith("403 ")
    assert servers.untouched()


def test_the_admin_page_is_reached_by_a_link_and_its_cron_paths_are_not(servers: Servers, page: Page, evil_port: int) -> None:
    for path, words in (("/admin", "Readiness"), ("/api/cron/training", "pages of other sites are refused")):
        page.open(f"http://evil.example:{evil_port}/")
        page.wait_for("evil")
        page.evaluate(f"location.href = 'http://127.0.0.1:{servers.admin}{path}'")
        page.wait_for(words)
    assert servers.untouched()
