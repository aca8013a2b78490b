"""The recorded game with its hours read, and settings that choose the dry trainer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, connect
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl_tests.conftest import TEMPLATES
from babylon_rl_tests.training.remote_play import base_directory, played, played_database, remote, stand_in
from babylon_rl_tests.training.sample import NOW

__all__ = ["base_directory", "played", "played_database", "remote", "stand_in"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"train_rl_local": True, "local_base_model": "dry", "iterations": 3, "epochs": 3})


@pytest.fixture
def read_sample(copy_of: Callable[[str], Database]) -> Database:
    """The recorded game, migrated, every hour of it read into windows and episodes."""
    return copy_of("read_sample")


@pytest.fixture
def connection(read_sample: Database) -> Iterator[Connection]:
    with read_sample.connect() as opened:
        yield opened


def read_every_hour(url: str) -> None:
    """Read every hour of a recorded game into windows and episodes."""
    settings = Settings(_env_file=None)
    with connect(url) as connection:
        sync_windows(connection, windows_with_rows(connection, "2025-01-01T00:00", "2026-01-01T00:00"), settings, NOW)


TEMPLATES["read_sample"] = ("sample", read_every_hour)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model; torch is loaded by the tests that ask for it."""
    from babylon_rl_tests.tiny_model import make_base

    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def cpu_settings(settings: Settings, tiny_base: Path) -> Settings:
    """Settings that choose the CPU trainer on the tiny model, without warm-up."""
    return settings.model_copy(update={"local_base_model": str(tiny_base), "warmup_steps": 0})
