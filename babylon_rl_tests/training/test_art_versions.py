"""Versions of openpipe-art spell a model's name differently (name=, run_name= from 0.5.23): after an upgrade the same one must be found.

Needs neither a database nor torch. `make test-art` runs it under the newest version, and tells it the Python that holds the project's own.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_rl.settings import Settings
from babylon_rl.training.backends.base_tokens import BaseTokens
from babylon_rl.training.backends.openpipe_art import RUN_NAME, Installed, art_groups, installed, load_art, sent_groups
from babylon_rl.training.backends.serverless.service import ServerlessService, serverless_art
from babylon_rl_tests.training.serverless_stand_in import standing_in
from babylon_rl_tests.training.serverless_stand_in.base import write_base
from babylon_rl_tests.training.test_remote_contract import make_sequence

OTHER = "BABYLON_RL_OTHER_ART"  # a Python with another openpipe-art
ROOT = Path(__file__).parents[2]


def make_settings(url: str, home: Path) -> Settings:
    return Settings(_env_file=None, wandb_api_key=SecretStr("x"), serverless_base_url=url, babylon_rl_home=home)


def other_spelling() -> Any:
    """A trainable model as the installed version does not spell it, over the installed one's wire."""
    art = load_art()

    class RunNamed(art.TrainableModel):  # type: ignore[name-defined] # as 0.5.23: what the service knows it by is the run's name
        def __init__(self, *, name: str, run_name: str, **more: Any) -> None:
            super().__init__(name=run_name, **more)

    class Named(art.TrainableModel):  # type: ignore[name-defined] # as 0.5.18 and 0.5.20
        def __init__(self, *, name: str, **more: Any) -> None:
            super().__init__(name=name, run_name=name, **more)

    return Named if RUN_NAME in serverless_art().model else RunNamed


async def registered(url: str, settings: Settings, model_class: Any, home: Path) -> str:
    art = load_art()
    backend = art.ServerlessBackend(api_key="x", base_url=url)
    spelled: Installed = installed(art.ServerlessBackend.train, model_class.__init__)
    names = spelled.model_arguments(settings.art_model_name)
    model = model_class(**names, project=settings.wandb_project, base_model="tiny", base_path=str(home))
    try:
        await backend.register(model)
    finally:
        await backend.close()
    return str(model.id)


@pytest.mark.slow
def test_both_spellings_of_a_name_find_one_model(tmp_path: Path) -> None:
    with standing_in() as served:
        settings = make_settings(served.url, tmp_path)
        classes = [load_art().TrainableModel, other_spelling()]
        ids = [asyncio.run(registered(served.url, settings, model_class, tmp_path)) for model_class in classes]
        assert ids[0] == ids[1]
        assert [model.name for model in served.service.models.values()] == [settings.art_model_name]


def found_at(url: str, home: Path) -> str:
    """The installed version, and the newest step that its client finds of the model."""

    async def ask() -> int:
        async with ServerlessService(make_settings(url, home), "tiny", 1.0, lambda: None) as service:
            return (await service.newest())[0]

    return f"{serverless_art().version} {asyncio.run(ask())}"


@pytest.mark.skipif(OTHER not in os.environ, reason="only one openpipe-art is here; `make test-art` brings another")
def test_a_step_that_one_version_trained_is_found_by_the_other(tmp_path: Path) -> None:
    base = BaseTokens(make_settings("http://127.0.0.1:1", tmp_path), str(write_base(tmp_path)))
    groups = art_groups(sent_groups([make_sequence(agent) for agent in range(2)], base), "batch-1", 1, False)

    async def train(url: str) -> None:
        async with ServerlessService(make_settings(url, tmp_path), "tiny", 1.0, lambda: None) as service:
            await service.post(groups, {}, lambda: None)

    def found_by(python: str) -> list[str]:
        code = f"from {__name__} import *; print(found_at({served.url!r}, Path({str(tmp_path)!r})))"
        done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    with standing_in() as served:
        asyncio.run(train(served.url))
        own, other = found_by(sys.executable), found_by(os.environ[OTHER])
        assert own[0] != other[0] and own[1] == other[1] == "1"
        assert len(served.service.models) == 1
