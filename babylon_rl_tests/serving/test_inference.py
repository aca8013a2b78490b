"""Agents without the gateway get the same model as through it, from functions with the game's names."""

import time
from datetime import datetime

import openai
import pytest
from pydantic import SecretStr

from babylon_rl.errors import CheckpointError, ModelUnavailable, ReleaseRefused
from babylon_rl.serving import inference as rl
from babylon_rl.serving.releases import deploy, rollback
from babylon_rl.serving.routing import route
from babylon_rl.store.releases import ReleaseAuthor, read_routing
from babylon_rl.training.backends.protocol import address_of
from babylon_rl_tests.evaluation.endpoint import endpoint, hold

FORM = {
    "type": "json_schema",
    "json_schema": {"name": "trade", "schema": {"anyOf": [{"properties": {"market": {"enum": ["Acme"]}}}]}},
}
AUTHOR = ReleaseAuthor("tester", "a test", datetime(2025, 11, 21, 9))


@pytest.fixture
def settings(settings, database):
    return settings.model_copy(update={"database_url": SecretStr(database.url)})


def read_again() -> None:
    """Wait until the table that was read is too old."""
    time.sleep(rl.MAX_AGE_S * 1.2)


def test_nothing_is_available_before_a_release_and_the_base_answers(connection, settings, make_version) -> None:
    config = rl.get_rl_model_config(settings)
    assert (config.enabled, config.available, config.base_model) == (True, False, "base")
    found = rl.get_model_for_inference("agent-1", settings=settings)
    assert (found.version, found.model, found.base_url) == (None, "base", "http://localhost:8000/v1")
    assert not rl.should_use_rl_model("agent-1", settings) and rl.get_latest_rl_model(settings) is None


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_local_endpoint_means_the_same_with_and_without_its_version(end: str, connection, settings, tmp_path) -> None:
    changed = settings.model_copy(update={"local_endpoint": f"http://127.0.0.1:8000{end}"})
    assert rl.get_model_for_inference("agent-1", settings=changed).base_url == "http://127.0.0.1:8000/v1"
    assert address_of(changed, "v9.0.0", tmp_path).url == "http://127.0.0.1:8000/v1"


@pytest.mark.slow
def test_each_agent_gets_what_the_gateway_would_give_it(connection, settings, make_version) -> None:
    for version in ("v1.0.0", "v1.0.1"):
        make_version(version)
    deploy(connection, "v1.0.0", settings, AUTHOR, strategy="immediate")
    deploy(connection, "v1.0.1", settings, AUTHOR, percentage=50)
    assert rl.get_latest_rl_model(settings).version == "v1.0.0" and rl.is_rl_model_available(settings)
    table = read_routing(connection)
    agents = [f"agent-{number}" for number in range(40)]
    found = [rl.get_model_for_inference(agent, settings=settings).version for agent in agents]
    assert found == [route(table, settings, None, agent).version for agent in agents] and set(found) == {"v1.0.0", "v1.0.1"}
    rollback(connection, settings, AUTHOR)
    read_again()
    assert {rl.get_model_for_inference(agent, settings=settings).version for agent in agents} == {"v1.0.0"}
    assert not rl.should_use_rl_model("agent-1", settings.model_copy(update={"use_rl_model": False}))
    with pytest.raises(ModelUnavailable, match="no model v9"):
        rl.get_model_for_inference(model="v9", settings=settings)


def test_a_version_at_a_service_is_asked_there_with_its_key(connection, settings, make_version) -> None:
    make_version("v1.0.0", service="http://127.0.0.1:9/v1")
    connection.execute("UPDATE babylon_rl.model_lineage SET backend = 'serverless'")
    connection.execute("UPDATE trained_models SET \"storagePath\" = 'v1.0.0@service'")
    connection.commit()
    stranger = settings.model_copy(update={"wandb_api_key": SecretStr("secret")})
    with pytest.raises(ModelUnavailable, match=r"http://127\.0\.0\.1:9 is no address of Weights & Biases, so WANDB_API_KEY is not sent"):
        rl.get_model_for_inference(model="v1.0.0", settings=stranger)
    keyed = stranger.model_copy(update={"serverless_base_url": "http://127.0.0.1:9/other"})
    found = rl.get_model_for_inference(model="v1.0.0", settings=keyed)
    assert (found.model, found.base_url, found.api_key) == ("v1.0.0@service", "http://127.0.0.1:9/v1", "secret")
    assert "secret" not in repr(found)
    connection.execute("UPDATE babylon_rl.model_lineage SET \"manifestSha\" = 'of another batch'")
    connection.commit()
    read_again()
    with pytest.raises(CheckpointError, match=r"another checkpoint than the one registered as v1\.0\.0"):
        rl.get_model_for_inference(model="v1.0.0", settings=keyed.model_copy(update={"model_storage_url": "memory://models"}))


def test_a_version_at_an_unknown_service_is_refused_and_not_replaced(connection, settings, make_version) -> None:
    make_version("v1.0.0", status="deployed")
    connection.execute("UPDATE babylon_rl.model_lineage SET backend = 'other'")
    connection.commit()
    for ask in (lambda: rl.get_model_for_inference("agent-1", settings=settings), lambda: rl.client("v1.0.0", settings=settings)):
        with pytest.raises(ModelUnavailable, match="it is at the service other, which this release does not know"):
            ask()
    make_version("v1.0.1")
    connection.execute("UPDATE babylon_rl.model_lineage SET backend = 'other'")
    connection.commit()
    with pytest.raises(ReleaseRefused, match=r"v1\.0\.1 cannot be asked"):
        deploy(connection, "v1.0.1", settings, AUTHOR)


def test_a_client_asks_the_version(connection, settings, make_version) -> None:
    make_version("v1.0.0")
    with endpoint(**{"v1.0.0": hold}) as served:
        here = settings.model_copy(update={"local_endpoint": served.url.removesuffix("/v1")})
        with rl.client("v1.0.0", settings=here) as client:
            answer = client.complete_now([{"role": "user", "content": "What now?"}], temperature=0.0, max_tokens=20, response_format=FORM)
    assert answer.text == '{"action": "hold"}' and served.asked == {"v1.0.0": 1}


def test_openais_own_client_asks_the_version_and_sends_it_no_key_of_openai(connection, settings, make_version, monkeypatch) -> None:
    make_version("v1.0.0", status="deployed")
    monkeypatch.setenv("OPENAI_API_KEY", "for openai")
    with endpoint(**{"v1.0.0": hold}) as served:
        here = settings.model_copy(update={"local_endpoint": served.url.removesuffix("/v1")})
        model = rl.get_model_for_inference("agent-1", settings=here)
        asked = {"model": model.model, "messages": [{"role": "user", "content": "What now?"}], "temperature": 0, "response_format": FORM}
        with model.openai_client() as client:
            assert isinstance(client, openai.OpenAI) and client.api_key == "none"
            assert client.chat.completions.create(**asked).choices[0].message.content == '{"action": "hold"}'
    assert served.asked == {"v1.0.0": 1}


def test_a_registry_that_is_away_leaves_the_base_where_that_is_allowed(settings) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://u@127.0.0.1:9/none")})
    assert rl.get_model_for_inference("agent-1", settings=away).reason == "the registry does not answer"
    with pytest.raises(ModelUnavailable, match="The registry does not answer"):
        rl.get_model_for_inference("agent-1", settings=away.model_copy(update={"rl_fallback_to_base": False}))
