"""Small tests of this room share one database and roll back; hours that are written get a database of their own."""

from typing import Any

import pytest

from babylon_rl_tests.scratch import connection, scratch_url

__all__ = ["connection", "scratch_url"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer with a chat template."""
    from babylon_rl_tests.tiny_model import make_tokenizer

    return make_tokenizer()
