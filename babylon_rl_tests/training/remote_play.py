"""Simulated hours for the serverless trainer: agents that ask the stand-in's model, recorded with its log-probabilities."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, connect
from babylon_rl.store.database import Database
from babylon_rl_tests.conftest import TEMPLATES
from babylon_rl_tests.training.serverless_stand_in import Service, StandIn, standing_in
from babylon_rl_tests.training.serverless_stand_in.base import base_tokenizer, write_base
from babylon_rl_tests.training.serverless_stand_in.chat import Chat

PLAYED_NOW = datetime(2025, 11, 15, 15, 0)
HOURS = ["2025-11-15T10:00", "2025-11-15T11:00"]


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer and config of a tiny base: a service's base has its weights elsewhere."""
    return write_base(tmp_path_factory.mktemp("remote-base"))


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A fresh service whose base is the tiny one; jobs end at once."""
    tokenizer = base_tokenizer()
    with standing_in(Service(len(tokenizer)), Chat(tokenizer)) as served:
        yield served


@pytest.fixture
def remote(settings: Settings, stand_in: StandIn, base_directory: Path) -> Settings:
    """Settings that choose serverless training at the stand-in, one iteration."""
    chosen = {
        "wandb_api_key": SecretStr("x"), "serverless_base_url": stand_in.url, "base_model": str(base_directory), "iterations": 1,
        "train_rl_local": False, "local_base_model": None, "lookback_hours": 24,
    }  # fmt: skip
    return settings.model_copy(update=chosen)


@pytest.fixture
def played_database(copy_of: Callable[[str], Database]) -> Database:
    """Two hours in which two scripted agents and three of the stand-in's model played, read into episodes."""
    return copy_of("played")


@pytest.fixture
def played(played_database: Database) -> Iterator[Connection]:
    """A connection to those hours."""
    with played_database.connect() as connection:
        yield connection


def _play(url: str) -> None:
    tokenizer = base_tokenizer()
    with standing_in(Service(len(tokenizer)), Chat(tokenizer)) as served, ChatClient(served.url, None, "base") as client:
        request = SpawnRequest(agents=5, model_agents=3, windows=len(HOURS), seed=1, start=HOURS[0])
        with connect(url) as connection:
            spawn(connection, request, PLAYED_NOW, model_agent(client))
            sync_windows(connection, HOURS, Settings(_env_file=None), PLAYED_NOW)


TEMPLATES["played"] = ("migrated", _play)
SEQUENCES, TRAINABLE = 120, 72  # twelve ticks of two hours: five agents, three of them with log-probabilities
