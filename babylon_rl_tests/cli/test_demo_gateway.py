"""The demo's agents behind a gateway that runs: who answers them, and what the next training takes from their recorded calls."""

from collections import Counter
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.cli.demo_stages import AGENTS, RELEASE_AGENTS, Demo, planned, play, release
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.serving.access import key_hash, new_key
from babylon_rl.serving.releases import deploy
from babylon_rl.serving.routing import route
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.client_keys import ClientKey, create_key
from babylon_rl.store.database import Database
from babylon_rl.store.recording import read_sources
from babylon_rl.store.releases import ReleaseAuthor, read_routing
from babylon_rl.training.batches import Trained, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import utc_now, window_end, window_of
from babylon_rl_tests.serving.gateways import rows

TICKS = 12  # of an hour


@pytest.fixture
def demo(database: Database, settings: Settings, tiny_base: Path) -> Demo:
    database.prepare_dagster_schema()
    chosen = {
        "database_url": SecretStr(database.url), "train_rl_local": True, "local_base_model": str(tiny_base), "iterations": 2,
        "windows_per_iteration": 1, "training_min_trajectories": 10, "learning_rate": 0.01, "kl_penalty": 0.0,
        "credit": "hour",  # so that recorded calls train
    }  # fmt: skip
    return Demo(settings.model_copy(update=chosen), database, 2, seed=4, generations=2)


def trained(demo: Demo, hours: list[str]) -> Trained:
    """A version trained on these hours."""
    with demo.database.connect() as connection:
        sync_windows(connection, hours, demo.settings, utc_now())
        connection.commit()
        batch = freeze(connection, demo.settings, utc_now(), windows=(hours[0], window_of(window_end(hours[-1]))), seed=demo.seed).batch
        assert batch is not None
        prepare_batch(connection, batch.batch_id, demo.settings, utc_now())
        return train_batch(connection, batch.batch_id, demo.settings, utc_now())


def answered(database: Database) -> list[tuple[str, str | None, int]]:
    """Agent, version and status of each call through the gateway, in order."""
    found = rows(database, 'SELECT "agentId", "version", "status" FROM babylon_rl.gateway_calls ORDER BY "at", "agentId"')
    return [(call["agentId"], call["version"], call["status"]) for call in found]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_agents_get_versions_at_the_rollouts_share_and_train_the_next_one_with_their_own_logprobs(demo: Demo) -> None:
    first, second = planned(demo)
    with demo.database.connect() as connection:
        spawn(connection, SpawnRequest(AGENTS, 0, len(first), demo.seed, start=first[0]), utc_now(), None)
    version = trained(demo, first).model.version
    with demo.database.connect() as connection:
        deploy(connection, version, demo.settings, ReleaseAuthor("test", "a half", utc_now()), percentage=50)
        table = read_routing(connection)
        # Clients' keys close the gateway to others, not to the demo's own agents.
        create_key(connection, ClientKey("agents", key_hash(new_key()), None, None, utc_now()))

    assert release(demo, version, first)
    expected = {agent: route(table, demo.settings, None, agent).version for agent in (f"test-agent-{n + 1}" for n in range(RELEASE_AGENTS))}
    calls = answered(demo.database)
    assert Counter(calls) == {(agent, chosen, 200): TICKS for agent, chosen in expected.items()}
    assert set(expected.values()) == {None, version}

    play(demo, second, version)
    with demo.database.connect() as connection:  # what can read goes on to the larger edition
        assert {source.edition for _, _, source in read_sources(connection, second).values() if source is not None} == {TRAINING}
    assert answered(demo.database)[len(calls) :] == [(f"test-agent-{AGENTS}", version, 200)] * TICKS * len(second)
    following = trained(demo, second)
    assert following.model.parent_version == version
    with demo.database.connect() as connection:
        batch = read_batch(connection, following.batch.batch_id)
    assert batch is not None and batch.preflight is not None
    assert batch.preflight["logprobShare"] == pytest.approx(1 / AGENTS) and batch.preflight["stalenessVersions"]["0"] == TICKS * len(second)
    begun, ended = (step.metrics or {} for step in following.steps)
    # The version that served is the one that is trained on: the policy is close to it at the start, and leaves it with every update.
    assert begun["recordedShare"] == pytest.approx(1 / AGENTS, abs=0.03)
    assert begun["servedKlAtStart"] < 0.0005 < ended["servedKlAtStart"]
    assert abs(ended["ratioAtStart"] - 1) > 0.002 > abs(begun["ratioAtStart"] - 1)
    assert ended["servedKl"] > begun["servedKl"] > 0
