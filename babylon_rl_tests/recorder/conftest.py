"""Small tests of this room share one database and roll back; those of the writer have one of their own, with agents in it."""

import pytest

from babylon_rl.store.database import Database
from babylon_rl_tests.recorder.builders import AGENTS, add_users
from babylon_rl_tests.scratch import connection, scratch_url

__all__ = ["connection", "scratch_url"]


@pytest.fixture
def game(database: Database) -> Database:
    """A migrated database with eight agents."""
    with database.connect() as connection:
        add_users(connection, *AGENTS)
    return database
