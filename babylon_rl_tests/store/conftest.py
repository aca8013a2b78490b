"""The recorded game after all its hours were run once, copied for every test that asks."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.conftest import TEMPLATES
from babylon_rl_tests.store.pipeline import run_every_hour


def _run_every_hour(url: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        run_every_hour(Database(url, url), Settings(_env_file=None, babylon_rl_home=Path(home)))


TEMPLATES["every_hour"] = ("sample", _run_every_hour)


@pytest.fixture
def every_hour(copy_of: Callable[[str], Database]) -> Database:
    """The recorded game with every hour read, given its outcomes and scored."""
    return copy_of("every_hour")
