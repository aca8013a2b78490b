"""A gateway follows the registry: transitions reach it under load, and no request fails meanwhile."""

import asyncio
from datetime import datetime

import openai

from babylon_rl.serving import releases
from babylon_rl.serving.releases import ReleaseAuthor
from babylon_rl.serving.upstreams import Upstream, UpstreamFailed
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.gateways import MESSAGES, Clients, RunningGateway, add_version, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn
from babylon_rl_tests.store.proxy import Proxy

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


def test_deployments_and_rollbacks_reach_a_gateway_under_load_and_no_request_fails(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    add_version(database, "v1.0.0", "ready")
    add_version(database, "v1.0.1", "ready")
    with (
        running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway,
        connect(database.url) as connection,
        Asking(gateway) as asking,
    ):
        asking.until("base")
        releases.deploy(connection, "v1.0.0", settings, AUTHOR, strategy="immediate")
        asking.until("v1.0.0")
        releases.deploy(connection, "v1.0.1", settings, AUTHOR, strategy="immediate")
        asking.until("v1.0.1")
        releases.rollback(connection, settings, AUTHOR)
        asking.until("v1.0.0")
    assert asking.failed == []


def test_without_notifications_the_registry_is_polled_and_a_lost_database_changes_nothing(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    add_version(database, "v1.0.0")
    proxy = Proxy(database.url)
    changed = settings.model_copy(update={"local_endpoint": upstream.url})
    with running_gateway(changed, Database(proxy.url, proxy.url)) as gateway, Asking(gateway) as asking:
        asking.until("v1.0.0")
        proxy.away = True
        proxy.cut()
        wait_for(lambda: gateway.gateway.state.problem, "the loss to be noticed")
        add_version(database, "v1.0.1")
        reads = gateway.gateway.state.reads
        proxy.away = False
        # The row came without a notification that anybody heard.
        wait_for(lambda: gateway.gateway.state.reads > reads, "the registry to be read again")
        asking.until("v1.0.1")
    assert asking.failed == [] and gateway.gateway.state.problem is None


async def refusal_of(upstream: ModelStandIn, key: str) -> str:
    model = Upstream("wandb", upstream.url, key, 5.0)
    try:
        await model.ask("v1.0.0", b'{"model": "v1.0.0", "messages": []}', False)
    except UpstreamFailed as failed:
        return failed.error.body.decode()
    finally:
        model.pool.close()
    raise AssertionError("it was answered")


def test_an_upstream_that_repeats_the_key_does_not_get_it_to_the_client(upstream: ModelStandIn) -> None:
    upstream.behaviour["v1.0.0"] = "echo"
    message = asyncio.run(refusal_of(upstream, "a key like no other"))
    assert "a key like no other" in upstream.heads[0] and "no other" not in message and "[key]" in message
