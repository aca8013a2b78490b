"""What the training benchmarks work on: hours of the simulated market or the recorded game, judged, frozen into a batch and converted.

Scripted agents alone play the simulated market, so that no model is asked; their calls hold the same prompts and the same grammar as a
model agent's.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.scoring import score_windows
from babylon_rl.market.outcomes import sync_outcomes
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl.training.batches import Prepared, prepare_batch
from babylon_rl.training.conversion import convert
from babylon_rl.training.freezing import freeze

NOW = datetime(2025, 11, 15, 12)
SAMPLE_HOURS = 24 * 60  # before NOW, more than enough for the recorded game


@dataclass(frozen=True)
class Played:
    """A database with a prepared batch, and the settings under which it was frozen."""

    database: Database
    settings: Settings
    prepared: Prepared


def settings_of(windows: int) -> Settings:
    """The CPU line, with room for all the hours in one iteration."""
    return Settings(_env_file=None, train_rl_local=True, windows_per_iteration=windows, iterations=1)


@contextlib.contextmanager
def own_database(prefix: str) -> Iterator[Database]:
    """A migrated database of its own on the embedded server, dropped at the end."""
    with use_server(load_settings().home) as server, psycopg.connect(server, autocommit=True) as administrator:
        name = f"{prefix}_{os.getpid()}"
        administrator.execute(f"CREATE DATABASE {name}")
        try:
            url = f"{server.rpartition('/')[0]}/{name}"
            database = Database(url, url)
            migrate(database)
            yield database
        finally:
            administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def played(windows: int, agents: int) -> Iterator[Played]:
    """``windows`` simulated hours of ``agents`` scripted agents, as one prepared batch."""
    settings = settings_of(windows)
    with own_database("benchmark_training") as database, database.connect(autocommit=True) as connection:
        hours = [hour.window for hour in spawn(connection, SpawnRequest(agents, 0, windows, seed=0), NOW, None)]
        yield Played(database, settings, prepared_batch(connection, hours, settings))


def prepared_batch(connection: Connection, hours: Sequence[str], settings: Settings) -> Prepared:
    """Judge hours, freeze them into a batch and prepare it."""
    for sync in (sync_windows, sync_outcomes, score_windows):
        sync(connection, hours, settings, NOW)
    batch = freeze(connection, settings, NOW).batch
    if batch is None:
        raise SystemExit("Nothing of the hours can be frozen.")
    return prepare_batch(connection, batch.batch_id, settings, NOW)


def demo_sequences(windows: int = 12, agents: int = 6) -> Sequence[TrainSequence]:
    """The sequences of half a demo's hours."""
    with played(windows, agents) as game, game.database.connect() as connection:
        return convert(connection, game.prepared.remaining, game.settings).sequences


def sample_sequences() -> Sequence[TrainSequence]:
    """The sequences of the recorded game's ready hours, free texts all of them."""
    from judge_tokens import sample

    settings = settings_of(SAMPLE_HOURS).model_copy(update={"lookback_hours": SAMPLE_HOURS})
    with sample(None) as url:
        database = Database(url, url)
        migrate(database)
        with database.connect(autocommit=True) as connection:
            hours = windows_with_rows(connection, "2025-01-01T00:00", "2026-01-01T00:00")
            return convert(connection, prepared_batch(connection, hours, settings).remaining, settings).sequences
