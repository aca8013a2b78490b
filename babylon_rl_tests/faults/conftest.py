"""Two worlds to die in: made by hand for trainers of this machine, and played at the stand-in for the service."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.faults.world import World, make_world
from babylon_rl_tests.training.remote_play import base_directory, played, played_database, remote, stand_in

__all__ = ["base_directory", "played", "played_database", "remote", "stand_in"]
MEMORY = Path("/dev/shm")  # a disk that syncs at once, where there is one


@pytest.fixture
def home() -> Iterator[Path]:
    """A state directory."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture
def world(database: Database, settings: Settings, home: Path) -> Iterator[World]:
    """Hours of a few agents, and the dry trainer."""
    with database.connect() as connection:
        made = make_world(database.url, settings.model_copy(update={"babylon_rl_home": home}), connection)
        made.reset()
        yield made


@pytest.fixture
def played_world(played_database: Database, remote: Settings, home: Path) -> Iterator[World]:
    """Two hours that the stand-in's model played, and serverless training there."""
    with played_database.connect() as connection:
        chosen = remote.model_copy(
            update={"babylon_rl_home": home, "iterations": 6, "epochs": 3, "windows_per_iteration": 1, "checkpoints_kept": 1}
        )
        made = World(played_database.url, chosen, connection)
        made.reset()
        yield made
