"""Counts for reports on the installation."""

from babylon_rl.store.database import Database

_MODELS = "SELECT status, count(*) FROM trained_models GROUP BY status ORDER BY status"


def count_models(database: Database) -> dict[str, int] | None:
    """Count registered models by status; None without a registry table."""
    with database.connect() as connection:
        if connection.execute("SELECT to_regclass('trained_models')").fetchone() == (None,):
            return None
        return {status: count for status, count in connection.execute(_MODELS)}
