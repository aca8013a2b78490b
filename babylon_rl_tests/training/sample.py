"""The moment at which the tests look at the recorded game, and ways to look at its tables."""

from datetime import datetime
from typing import Any

from babylon_rl.store.connection import Connection

NOW = datetime(2025, 10, 30, 12, 0, 0)


def value(connection: Connection, query: str, *parameters: Any) -> Any:
    """The single value of a query."""
    row = connection.execute(query, parameters).fetchone()
    connection.commit()
    return row[0] if row is not None else None
