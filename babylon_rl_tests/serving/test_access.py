"""Keys and budgets: who is served, and that keys are stored nowhere."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from babylon_rl.api_errors import ApiError
from babylon_rl.http_server import why_not_local
from babylon_rl.serving.access import Access, key_hash
from babylon_rl.settings import Settings
from babylon_rl.store.client_keys import ClientKey, create_key, revoke_key
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.serving.gateways import MESSAGES, RunningGateway, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn

NOW = datetime(2025, 11, 1, 12)
Keys = Callable[..., Any]


@pytest.fixture
def gateway(settings: Settings, database: Database, upstream: ModelStandIn) -> Iterator[RunningGateway]:
    """A gateway without keys."""
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database, writes=True) as running:
        yield running


@pytest.fixture
def keys(database: Database, tmp_path: Path) -> Keys:
    """``keys("create", "game")``: the JSON of the command."""

    def run(*arguments: str) -> Any:
        variables = environment(tmp_path / "home", DATABASE_URL=database.url)
        done = run_command("keys", *arguments, "--json", environment=variables, directory=tmp_path)
        done.check_returncode()
        return json.loads(done.stdout)

    return run


def chat(gateway: RunningGateway, key: str, **headers: str) -> Any:
    return gateway.client(key).chat.completions.create(model="base", messages=MESSAGES, extra_headers=headers)


@pytest.mark.long
def test_a_key_opens_the_gateway_and_its_revocation_closes_it(
    gateway: RunningGateway, keys: Keys, database: Database, upstream: ModelStandIn
) -> None:
    chat(gateway, "anything")
    key = keys("create", "game")["key"]
    # The other processes learn it by a notification.
    wait_for(lambda: refused(gateway, "anything"), "loopback to be closed")
    chat(gateway, key)
    for path in ("/v1/models", "/metrics"):
        with pytest.raises(urllib.error.HTTPError, match="401") as raised:
            urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}{path}")
        raised.value.close()
    wait_for(lambda: keys("list")["keys"][0]["lastUsedAt"], "the use of the key to be recorded")
    keys("revoke", "game")
    wait_for(lambda: refused(gateway, key), "the key to be refused")
    assert refused(gateway, "anything")
    stored = json.dumps(
        [rows(database, "SELECT * FROM babylon_rl.client_keys"), rows(database, "SELECT * FROM llm_call_logs")], default=str
    )
    assert key not in stored and not any(key in head for head in upstream.heads)


def refused(gateway: RunningGateway, key: str) -> bool:
    try:
        chat(gateway, key)
    except openai.AuthenticationError:
        return True
    return False


def test_a_proxy_on_this_machine_is_not_taken_for_this_machine(gateway: RunningGateway) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="keys create"):
        chat(gateway, "none", **{"x-forwarded-for": "203.0.113.9"})


def test_names_of_keys_are_used_once(keys: Keys) -> None:
    keys("create", "game", "--requests", "60", "--tokens", "1000")
    keys("revoke", "game")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        keys("create", "game")
    assert failed.value.returncode == 2 and "another name" in failed.value.stderr
    assert keys("list")["keys"][0]["limits"] == {"requestsPerMinute": 60, "tokensPerMinute": 1000}


@pytest.mark.slow
def test_a_client_has_its_budget_of_requests_and_tokens(settings: Settings, database: Database, upstream: ModelStandIn) -> None:
    with connect(database.url) as connection:
        create_key(connection, ClientKey("few", key_hash("brl-few"), 2, None, NOW))
        create_key(connection, ClientKey("short", key_hash("brl-short"), None, 20, NOW))
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:
        for key, calls in (("brl-few", 2), ("brl-short", 2)):  # 14 tokens each
            for _ in range(calls):
                chat(gateway, key)
            with pytest.raises(openai.RateLimitError) as limited:
                chat(gateway, key)
            assert 0 < int(limited.value.response.headers["retry-after"]) <= 60


@pytest.mark.slow
def test_streams_and_calls_that_the_client_left_take_from_its_budget(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    names = ("whole", "uncounted", "left")
    with connect(database.url) as connection:
        for name in names:
            create_key(connection, ClientKey(name, key_hash(f"brl-{name}"), None, 60_000, NOW))
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:

        def stream(name: str) -> openai.Stream[ChatCompletionChunk]:
            return gateway.client(f"brl-{name}").chat.completions.create(model="base", messages=MESSAGES, stream=True)

        def spent(name: str) -> float:
            (client,) = [one for one in gateway.gateway.access._clients.values() if one.name == name]  # type: ignore[union-attr]
            assert client.tokens is not None
            return client.tokens.limit - client.tokens._left

        list(stream("whole"))
        upstream.behaviour["base"] = "no usage"
        list(stream("uncounted"))
        upstream.pause_s = 0.2
        left = stream("left")
        next(iter(left))
        left.close()
        wait_for(gateway.quiet, "the call to end")
        request_tokens = len(json.dumps({"messages": MESSAGES, "model": "base", "stream": True}, separators=(",", ":"))) // 4
        assert spent("whole") == pytest.approx(14)
        assert spent("uncounted") == pytest.approx(request_tokens + 3)
        assert request_tokens < spent("left") < request_tokens + 3


def key(name: str, *, revoked: bool = False, requests: int | None = None) -> ClientKey:
    return ClientKey(name, key_hash(name), requests, None, NOW, revoked_at=NOW if revoked else None)


def scope(peer: str | None, http_version: str = "1.1", **headers: str) -> dict[str, Any]:
    """A request as servers have it."""
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in ({"host": "localhost"} | headers).items()]
    return {"client": peer and (peer, 1), "headers": named, "http_version": http_version}


def test_before_the_database_has_answered_only_loopback_is_served() -> None:
    access = Access()
    assert access.admit(scope("127.0.0.1"), {}).name is None and access.admit(scope("::1"), {}).name is None
    for peer in ("203.0.113.9", None, "odd"):
        with pytest.raises(ApiError, match="503"):
            access.admit(scope(peer), {"authorization": "Bearer game"})
    access.update([])
    with pytest.raises(ApiError, match="403"):
        access.admit(scope("203.0.113.9"), {})


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", "0.0.0.0:8080", "me.localhost", "[::ffff:127.0.0.1]"],
)
def test_this_machine_has_these_names(host: str) -> None:
    assert why_not_local(scope("127.0.0.1", host=host)) == ""


@pytest.mark.parametrize(
    "sign",
    [
        {"via": "1.1 Caddy"}, {"forwarded": "for=203.0.113.9"}, {"x_forwarded_for": "127.0.0.1"}, {"x_forwarded_proto": "https"},
        {"x_forwarded_host": "a"}, {"x_forwarded_server": "a"}, {"x_real_ip": "127.0.0.1"}, {"cf_connecting_ip": "127.0.0.1"},
        {"host": "gateway.example.com"}, {"host": "gateway"}, {"host": "192.168.1.7:8080"}, {"host": "localhost.example.com"},
        {"host": "127.0.0.1.nip.io"}, {"http_version": "1.0"},
    ],
)  # fmt: skip
def test_any_sign_of_a_proxy_is_not_this_machine(sign: dict[str, str]) -> None:
    access = Access()
    access.update([])
    with pytest.raises(ApiError, match="this request (came through a proxy|names another as its Host)"):
        access.admit(scope("127.0.0.1", **sign), {})


def test_revoking_the_last_key_does_not_open_the_server_again() -> None:
    access = Access()
    access.update([key("game", revoked=True)])
    with pytest.raises(ApiError, match="401"):
        access.admit(scope("127.0.0.1"), {"authorization": "Bearer game"})


def test_a_budget_fills_again_with_time_and_survives_a_reload() -> None:
    now = [0.0]
    access, headers = Access(lambda: now[0]), {"authorization": "Bearer game"}
    access.update([key("game", requests=2)])
    access.admit(None, headers)
    access.admit(None, headers)
    access.update([key("game", requests=2)])
    with pytest.raises(ApiError, match="429"):
        access.admit(None, headers)
    now[0] = 30.0
    assert access.admit(None, headers).name == "game"


def test_a_revoked_key_keeps_its_first_date(database: Database) -> None:
    with connect(database.url) as connection:
        create_key(connection, key("game"))
        assert revoke_key(connection, "game", NOW) == NOW
        assert revoke_key(connection, "game", datetime(2026, 1, 1)) == NOW
