"""A tiny model for the commands that need one."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model; torch is loaded by the tests that ask for it."""
    from babylon_rl_tests.tiny_model import make_base

    return make_base(tmp_path_factory.mktemp("base"))
