"""One migrated database for many small tests: each works in a transaction of its own that is rolled back at its end."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg
import pytest

from babylon_rl.store.connection import Connection, connect


@pytest.fixture(scope="session")
def scratch_url(server: str, template: Callable[[str], str]) -> Iterator[str]:
    """A migrated, empty database that nothing is committed to."""
    name = f"scratch_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {name} TEMPLATE {template('migrated')}")
        yield f"{server.rpartition('/')[0]}/{name}"
        administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(scratch_url: str) -> Iterator[Connection]:
    """A connection to a migrated, empty database; whatever a test writes is undone."""
    with connect(scratch_url) as opened:
        yield opened
        opened.rollback()
