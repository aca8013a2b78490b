"""Addresses in rows, files and answers: none of them chooses a host that this machine asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from babylon_rl.alerts import send_test
from babylon_rl.errors import CheckpointError, ModelUnavailable
from babylon_rl.llm.client import ChatClient
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import RemoteCheckpoint, verify, write_document
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.registry import read_models
from babylon_rl.training.backends.protocol import address_of
from babylon_rl_tests.http_stand_in import Handler, served
from babylon_rl_tests.serving.gateways import MESSAGES, NOW, running_gateway
from babylon_rl_tests.serving.model_stand_in import model_stand_in

METADATA = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"


@contextmanager
def trap() -> Iterator[tuple[str, list[str]]]:
    """A server of this machine, and what it was asked."""
    asked: list[str] = []

    class Answers(Handler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers.get('authorization')}")
            self.body()
            self.answer(b"{}")

        do_POST = do_GET

    with served(Answers) as url:
        yield url, asked


@contextmanager
def redirecting(status: int, to: str) -> Iterator[str]:
    class Answers(Handler):
        def do_POST(self) -> None:
            self.body()
            self.answer(status=status, location=to)

    with served(Answers) as url:
        yield url


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_answer_sends_a_request_of_ours_elsewhere(settings: Settings, database: Database, status: int) -> None:
    """The judge, a version's server, the server of embeddings, a webhook."""
    with trap() as (url, asked), redirecting(status, f"{url}/secret") as first:
        with pytest.raises(ModelUnavailable, match=str(status)), ChatClient(f"{first}/v1", "sk-judge-key", "m", attempts=1) as client:
            client.complete_now([{"role": "user", "content": "?"}])
        sent = send_test(settings.model_copy(update={"alert_webhook_url": SecretStr(first), "discord_webhook_url": SecretStr(first)}), NOW)
        assert sent.failures == {"webhook": f"status {status}", "discord": f"status {status}"}
        changed = settings.model_copy(update={"local_endpoint": first, "embedding_endpoint": first, "rl_fallback_to_base": False})
        with running_gateway(changed, database) as gateway:
            with pytest.raises(openai.InternalServerError):
                gateway.client().chat.completions.create(model="base", messages=MESSAGES)
            with pytest.raises(openai.InternalServerError):
                gateway.client().embeddings.create(model="e", input="hi")
        assert asked == []


PLACES = (METADATA, "file:///etc/passwd", "/etc", "../../../etc", "s3://somebody/else", "\\\\host\\share", "gopher://127.0.0.1:6379/_INFO")


@pytest.mark.parametrize("place", PLACES)
def test_the_storage_path_of_a_row_is_a_directory_here_or_nothing(settings: Settings, database: Database, place: str) -> None:
    add_row(database, place)
    with database.connect() as connection:
        (model,) = read_models(connection)
    # With a storage too: of a version of another producer nothing is fetched.
    for chosen in (settings, settings.model_copy(update={"model_storage_url": "s3://ours/models"})):
        directory = checkpoint_of(model, chosen)
        assert directory == Path(place)
        with pytest.raises(CheckpointError, match="is no checkpoint"):
            verify(directory)


def test_a_call_of_a_version_goes_to_a_server_of_the_settings_whatever_its_row_says(settings: Settings, database: Database) -> None:
    with trap() as (url, asked), model_stand_in() as upstream:
        add_row(database, f"{url}/v1")
        changed = settings.model_copy(update={"local_endpoint": upstream.url, "rl_fallback_to_base": False})
        with running_gateway(changed, database) as gateway:
            client = gateway.client()
            answer = client.chat.completions.with_raw_response.create(model="v9.0.0", messages=MESSAGES)
        assert answer.headers["x-babylon-version"] == "v9.0.0" and asked == []


@pytest.mark.parametrize("url", [METADATA, "http://127.0.0.1:1/v1", "https://api.inference.wandb.ai@evil.example/v1", "file:///etc/passwd"])
def test_the_key_of_a_service_goes_to_its_own_addresses_whatever_a_checkpoint_names(settings: Settings, tmp_path: Path, url: str) -> None:
    write_document(
        tmp_path,
        RemoteCheckpoint(service="wandb", model="m", step=1, artifact="a", inference_name="wandb-artifact:///a", inference_url=url),
    )
    keyed = settings.model_copy(update={"wandb_api_key": SecretStr("wandb-key")})
    address: Any = address_of(keyed, "v1.0.0", tmp_path)
    assert address.key == "" and "WANDB_API_KEY is not sent there" in address.refusal


def add_row(database: Database, storage_path: str) -> None:
    """A deployed version of another producer."""
    with database.connect(autocommit=True) as connection:
        connection.execute(
            'INSERT INTO trained_models (id, "modelId", version, "baseModel", "trainingBatch", status, "storagePath", "deployedAt", '
            "\"updatedAt\") VALUES ('x', 'babylon-agent-v9.0.0', 'v9.0.0', 'base', 'theirs', 'deployed', %s, %s, %s)",
            (storage_path, NOW, NOW),
        )
