"""Embeddings at the gateway: passed to a server of their own, where one is set."""

import openai
import pytest
from pydantic import SecretStr

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.acting_stand_in import acting_stand_in
from babylon_rl_tests.serving.gateways import running_gateway


def test_without_a_server_the_refusal_names_the_variable(settings: Settings, database: Database) -> None:
    with running_gateway(settings, database) as gateway:
        with pytest.raises(openai.NotFoundError, match="EMBEDDING_ENDPOINT"):
            gateway.client().embeddings.create(model="text-embedding-3-small", input="hi")
        # Names that a client asks for by default are models of this gateway.
        assert gateway.client().models.retrieve("gpt-5-mini").id == "gpt-5-mini"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_with_one_they_are_passed_on_without_a_key_that_is_not_its_own(settings: Settings, database: Database, path: str) -> None:
    with acting_stand_in() as upstream:
        changed = settings.model_copy(
            update={"embedding_endpoint": upstream.url + path, "openai_api_key": SecretStr("sk-openai"), "gateway_timeout_seconds": 5.0}
        )
        with running_gateway(changed, database) as gateway:
            answer = gateway.client().embeddings.create(model="text-embedding-3-small", input=["hi"], encoding_format="float")
            assert answer.data[0].embedding == [0.5, 0.25]
            with pytest.raises(openai.BadRequestError) as refused:
                gateway.client().embeddings.create(model="unknown", input="hi")
            assert (refused.value.code, refused.value.param) == ("gone", "model")
        assert upstream.embedded[0] == ({"model": "text-embedding-3-small", "input": ["hi"], "encoding_format": "float"}, None)


def test_a_server_that_is_away_is_said_to_be(settings: Settings, database: Database) -> None:
    away = settings.model_copy(update={"embedding_endpoint": "http://127.0.0.1:1"})
    with (
        running_gateway(away, database) as gateway,
        pytest.raises(openai.InternalServerError, match="EMBEDDING_ENDPOINT cannot be reached"),
    ):
        gateway.client().embeddings.create(model="text-embedding-3-small", input="hi")
