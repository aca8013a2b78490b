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
from babylon_rl_tests.recorder.builders import add_users
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
    names = ("whole", "uncounted", "empty", "left")
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
        upstream.behaviour["base"] = "empty usage"
        list(stream("empty"))
        upstream.pause_s = 0.2
        left = stream("left")
        next(iter(left))
        left.close()
        wait_for(gateway.quiet, "the call to end")
        request_tokens = len(json.dumps({"messages": MESSAGES, "model": "base", "stream": True}, separators=(",", ":"))) // 4
        assert spent("whole") == pytest.approx(14)
        assert spent("uncounted") == spent("empty") == pytest.approx(request_tokens + 3)
        assert request_tokens < spent("left") < request_tokens + 3


@pytest.mark.slow
def test_a_key_of_agents_speaks_for_them_and_in_their_trajectories_alone(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    with connect(database.url) as connection:
        for name, agents in (("mine", ["mine"]), ("team", ["team-*", "agent [7]"]), ("all", [])):
            create_key(connection, ClientKey(name, key_hash(f"brl-{name}"), None, None, NOW, agents=agents))
        add_users(connection, "victim")
        connection.execute(
            'INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "stepsJson", '
            '"rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus", "updatedAt") '
            "VALUES ('t', 'theirs', 'victim', %(now)s, %(now)s, 0, '[]', '{}', '{}', '{}', 0, 0, 'completed', %(now)s)",
            {"now": NOW},
        )
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database, writes=True) as gateway:
        wait_for(lambda: gateway.gateway.state.reads, "the keys")

        def status(key: str, agent: str | None = None, trajectory: str | None = None, user: str | None = None) -> int:
            named = {"x-babylon-agent": agent, "x-babylon-trajectory": trajectory}
            headers = {name: value for name, value in named.items() if value is not None}
            try:
                asked = gateway.client(f"brl-{key}").chat.completions
                asked.create(model="base", messages=MESSAGES, extra_headers=headers, extra_body={} if user is None else {"user": user})
            except openai.PermissionDeniedError as refused:
                assert refused.code == "other_agent"
                return 403
            return 200

        assert [status("mine", agent) for agent in ("mine", None, "mine2", "Mine", "victim", "*", "min")] == [200, 200, *[403] * 5]
        agents = ("team-1", "team-", "agent [7]", "agent 7", "team", "a team-1", None)
        assert [status("team", agent) for agent in agents] == [200, 200, 200, 403, 403, 403, 403]
        assert [status("team", user=user) for user in ("team-2", "victim")] == [200, 403]
        assert status("all", "victim", "said-now") == 200 and status("all", None, "without-agent") == 200
        # Known by the database, by an earlier call to this gateway, by a recorded call; its own goes on.
        assert [status("mine", "mine", place) for place in ("theirs", "said-now", "own", "own")] == [403, 403, 200, 200]
        assert [status("team", "team-1", place) for place in ("own", "theirs", "said-now", "new")] == [403, 403, 403, 200]
        assert status("team", "team-2", "new") == 403
        wait_for(lambda: rows(database, "SELECT 1 FROM llm_call_logs WHERE \"trajectoryId\" = 'new'"), "the calls")
        gateway.gateway.state._owners.clear()
        assert [status("team", "team-2", place) for place in ("new", "said-now", "own")] == [403, 403, 403]
    named = rows(database, 'SELECT DISTINCT "agentId" FROM babylon_rl.gateway_calls WHERE "keyName" = \'mine\'')
    assert [row["agentId"] for row in named] == ["mine"]


@pytest.mark.slow
def test_a_trajectory_of_an_agent_that_is_recorded_by_its_hash_is_its_own(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    with connect(database.url) as connection:
        create_key(connection, ClientKey("mine", key_hash("brl-mine"), None, None, NOW, agents=["mine", "other"]))
    hashed = {"local_endpoint": upstream.url, "record_private_fields": "agent=hash"}
    with running_gateway(settings.model_copy(update=hashed), database, writes=True) as gateway:
        wait_for(lambda: gateway.gateway.state.reads, "the keys")
        headers = {"x-babylon-agent": "mine", "x-babylon-trajectory": "t"}
        chat(gateway, "brl-mine", **headers)
        wait_for(lambda: rows(database, "SELECT 1 FROM llm_call_logs"), "the call")
        gateway.gateway.state._owners.clear()
        with pytest.raises(openai.PermissionDeniedError):
            chat(gateway, "brl-mine", **headers | {"x-babylon-agent": "other"})
        chat(gateway, "brl-mine", **headers)


def test_keys_name_their_agents(keys: Keys) -> None:
    assert keys("create", "team", "--agent", "team-*, agent-7", "--agent", "agent-8")["agents"] == ["team-*", "agent-7", "agent-8"]
    assert keys("create", "game")["agents"] == []
    assert [one["agents"] for one in keys("list")["keys"]] == [["team-*", "agent-7", "agent-8"], []]
    for wrong in (["--agent", ""], ["--agent", "a,,b"], ["--agent", "x" * 201], ["--agent", "a\nb"], ["--agent", "a", "--admin"]):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            keys("create", "wrong", *wrong)
        assert failed.value.returncode == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/metrics"])
@pytest.mark.parametrize("header", ["x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie"])
def test_a_key_elsewhere_than_in_its_header_opens_nothing(
    settings: Settings, database: Database, upstream: ModelStandIn, header: str, path: str
) -> None:
    with connect(database.url) as connection:
        create_key(connection, ClientKey("game", key_hash("brl-game"), None, None, NOW))
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:
        wait_for(lambda: gateway.gateway.state.reads, "the keys")
        chat(gateway, "brl-game")
        body = json.dumps({"model": "base", "messages": MESSAGES}).encode() if "chat" in path else None
        for query in ("", "?key=brl-game", "?api_key=brl-game", "?access_token=brl-game"):
            for value in ("brl-game", "Bearer brl-game"):
                url = f"http://127.0.0.1:{gateway.port}{path}{query}"
                asked = urllib.request.Request(url, body, {header: value, "content-type": "application/json"})
                with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                    urllib.request.urlopen(asked)
                refused.value.close()
    assert len(upstream.seen) == 1


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
