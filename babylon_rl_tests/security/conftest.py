"""A connection to a migrated database, and the service and the hours of serverless trainings."""

from collections.abc import Iterator

import pytest

from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl_tests.training.remote_play import played_database, stand_in

__all__ = ["played_database", "stand_in"]


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A connection to an empty, migrated database."""
    with database.connect() as opened:
        yield opened
