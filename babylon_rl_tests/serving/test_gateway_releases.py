"""A gateway follows the registry: transitions reach it under load, and no request fails meanwhile."""

import asyncio
import json
import urllib.request
from datetime import datetime

import aiohttp
import openai
import pytest

from babylon_rl.serving import live_state, releases
from babylon_rl.serving.chat_request import ChatRequest
from babylon_rl.serving.upstreams import Upstream, UpstreamFailed
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.registry import mark_pruned
from babylon_rl.store.releases import ReleaseAuthor
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.serving.gateways import MESSAGES, Clients, RunningGateway, add_version, gateway_process, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn

NOW = datetime(2025, 11, 2, 12)
AUTHOR = ReleaseAuthor("a test", "to see it arrive", NOW)


class Asking(Clients):
    """Agents that ask all the time; ``versions`` are those that answered, in order."""

    def __init__(self, gateway: RunningGateway, agents: int = 4) -> None:
        super().__init__(agents)
        self.versions: list[str] = []
        self.failed: list[Exception] = []
        self._clients = [gateway.client() for _ in range(agents)]

    def until(self, version: str) -> None:
        """Wait until answers come from this version alone."""
        wait_for(lambda: self.versions[-8:] == [version] * 8, f"{version} to answer")

    def ask(self, client: int) -> None:
        try:
            raw = self._clients[client].chat.completions.with_raw_response.create(
                model="auto", messages=MESSAGES, extra_headers={"x-babylon-agent": f"agent-{client}"}
            )
            self.versions.append(raw.headers["x-babylon-version"])
        except openai.APIError as failure:
            self.failed.append(failure)


@pytest.mark.slow
def test_deployments_and_rollbacks_reach_every_gateway_by_notification_and_no_request_fails(
    settings: Settings, database: Database, upstream: ModelStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "POLL_S", 60.0)  # longer than the test waits
    settings = settings.model_copy(update={"local_endpoint": upstream.url})
    add_version(database, "v1.0.0", "ready")
    with (
        running_gateway(settings, database) as first,
        running_gateway(settings, database) as second,
        connect(database.url) as connection,
        Asking(first) as asking,
        Asking(second) as others,
    ):

        def until(version: str) -> None:
            asking.until(version)
            others.until(version)

        until("base")
        add_version(database, "v1.0.1", "ready")
        wait_for(lambda: all("v1.0.1" in one.gateway.state.table.versions for one in (first, second)), "the new version")
        releases.deploy(connection, "v1.0.0", settings, AUTHOR, strategy="immediate")
        until("v1.0.0")
        releases.deploy(connection, "v1.0.1", settings, AUTHOR, strategy="immediate")
        until("v1.0.1")
        releases.rollback(connection, settings, AUTHOR)
        until("v1.0.0")
        mark_pruned(connection, ["batch-v1.0.1"], NOW)
        connection.commit()
        wait_for(lambda: first.gateway.state.table.versions["v1.0.1"].pruned, "the pruned version")
    assert asking.failed == others.failed == []


@pytest.mark.long
def test_a_rollback_reaches_each_of_two_gateway_processes(settings: Settings, database: Database, upstream: ModelStandIn) -> None:
    settings = settings.model_copy(update={"local_endpoint": upstream.url})
    add_version(database, "v1.0.0", "ready")
    body = json.dumps({"model": "auto", "messages": MESSAGES}).encode()
    with (
        gateway_process(settings, database) as (_, one),
        gateway_process(settings, database) as (_, two),
        connect(database.url) as connection,
    ):

        def answered() -> list[str]:
            urls = [f"http://127.0.0.1:{port}/v1/chat/completions" for port in (one, two)]
            calls = [urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"})) for url in urls]
            return [call.headers["x-babylon-version"] for call in calls if call.read()]

        releases.deploy(connection, "v1.0.0", settings, AUTHOR, strategy="immediate")
        wait_for(lambda: answered() == ["v1.0.0"] * 2, "both to answer with the version")
        releases.rollback(connection, settings, AUTHOR)
        wait_for(lambda: answered() == ["base"] * 2, "both to answer with the base")


@pytest.mark.slow
def test_polling_alone_brings_a_change_of_which_nothing_notifies(
    settings: Settings, database: Database, upstream: ModelStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "POLL_S", 0.5)
    add_version(database, "v1.0.0", "ready")
    with connect(database.url) as connection, connection.transaction():
        connection.execute("ALTER TABLE babylon_rl.rollouts DISABLE TRIGGER rollouts_notify")
    with (
        running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway,
        connect(database.url) as connection,
        Asking(gateway) as asking,
    ):
        asking.until("base")
        releases.deploy(connection, "v1.0.0", settings, AUTHOR, strategy="immediate")
        asking.until("v1.0.0")
    assert asking.failed == []


@pytest.mark.slow
def test_without_notifications_the_registry_is_polled_and_a_lost_database_changes_nothing(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    add_version(database, "v1.0.0")
    proxy = Proxy(database.url)
    changed = settings.model_copy(update={"local_endpoint": upstream.url})
    with running_gateway(changed, Database(proxy.url, proxy.url)) as gateway, Asking(gateway) as asking:
        asking.until("v1.0.0")
        proxy.cut(away=True)
        wait_for(lambda: gateway.gateway.state.problem, "the loss to be noticed")
        add_version(database, "v1.0.1")
        reads = gateway.gateway.state.reads
        proxy.away = False
        # The row came without a notification that anybody heard.
        wait_for(lambda: gateway.gateway.state.reads > reads, "the registry to be read again")
        asking.until("v1.0.1")
    assert asking.failed == [] and gateway.gateway.state.problem is None


CHAT = ChatRequest.of(b'{"messages": [{"role": "user", "content": "Prices?"}]}')


async def answered_at(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        await Upstream("local", url, None, session, 5.0).ask("v1.0.0", CHAT)


def test_credentials_in_an_address_do_not_reach_the_host_header(upstream: ModelStandIn) -> None:
    asyncio.run(answered_at(upstream.url.replace("//", "//user:secret@")))
    assert f"Host: 127.0.0.1:{upstream.port}\r\n" in upstream.heads[0] and "secret" not in upstream.heads[0]


async def refusal_of(upstream: ModelStandIn, key: str) -> str:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UpstreamFailed) as failed:
            await Upstream("wandb", upstream.url, key, session, 5.0).ask("v1.0.0", CHAT)
    return failed.value.error.body.decode()


def test_an_upstream_that_repeats_the_key_does_not_get_it_to_the_client(upstream: ModelStandIn) -> None:
    upstream.behaviour["v1.0.0"] = "echo"
    message = asyncio.run(refusal_of(upstream, "a key like no other"))
    assert "a key like no other" in upstream.heads[0] and "no other" not in message and "[key]" in message
