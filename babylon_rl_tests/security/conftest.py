"""A connection to a migrated database."""

from collections.abc import Iterator

import pytest

from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A connection to an empty, migrated database."""
    with database.connect() as opened:
        yield opened
