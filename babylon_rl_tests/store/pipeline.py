"""The whole way of the recorded game as a person would run it: observe, hours, freeze, train; for tests of how the database is reached."""

from datetime import timedelta

from babylon_rl.automation.launch import observe_hours, run_batch, run_hours
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.training.sample import NOW

TABLES = {
    "babylon_rl.windows": "computedAt",
    "babylon_rl.episodes": "",
    "babylon_rl.rejections": "",
    "babylon_rl.market_windows": "computedAt",
    "babylon_rl.group_scores": "judgedAt",
    "babylon_rl.episode_scores": "",
    "babylon_rl.hindsight": "computedAt",
    "babylon_rl.action_outcomes": "",
    "babylon_rl.leaks": "",
    "public.market_outcomes": "createdAt",
}


def dry(settings: Settings) -> Settings:
    """Settings that choose the trainer that trains nothing."""
    return settings.model_copy(update={"train_rl_local": True, "local_base_model": "dry", "iterations": 1})


def recorded_hours(database: Database) -> list[str]:
    """The hours of the game that hold rows."""
    with database.connect() as connection:
        return windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)


def run_every_hour(database: Database, settings: Settings) -> list[str]:
    """Observe and materialize all recorded hours; returns them."""
    database.prepare_dagster_schema()
    hours = recorded_hours(database)
    observe_hours(database, settings, now=lambda: NOW)
    run_hours(database, settings, hours, now=lambda: NOW)
    return hours


def train_once(database: Database, settings: Settings) -> Batch:
    """Freeze everything and run the job ``train`` on it with the dry trainer."""
    chosen = dry(settings)
    with database.connect() as connection:
        batch = freeze(connection, chosen, NOW).batch
    assert batch is not None
    run_batch(database, chosen, batch.batch_id, now=lambda: NOW + timedelta(minutes=5))
    return batch


def content(database: Database, hours: list[str]) -> dict[str, list[str]]:
    """What the hourly tables hold of some hours, times of writing left out, as sorted text."""
    with database.connect() as connection:
        connection.execute("SET LOCAL extra_float_digits = 1")
        found = {}
        for table, written in TABLES.items():
            column = "windowId" if table.startswith("public.") else "window"
            rows = connection.execute(
                f'SELECT (to_jsonb(t) - %s)::text FROM {table} t WHERE t."{column}" = ANY(%s)',
                (written, hours),
            ).fetchall()
            found[table] = sorted(row for (row,) in rows)
    return found
