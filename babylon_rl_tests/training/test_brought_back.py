"""Trainings that go on: from a backup brought back at another place, on a database of an earlier version."""

import shutil
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.backup import backup, restore
from babylon_rl.files.durable import sha256
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import WEIGHTS, verify
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.migrate import migrate, read_migrations
from babylon_rl.store.registry import Model, read_models
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.store.test_backup import of_version
from babylon_rl_tests.store.test_copying import contents
from babylon_rl_tests.training.conftest import read_every_hour
from babylon_rl_tests.training.sample import NOW


def train(connection: Connection, settings: Settings) -> Model:
    batch = freeze(connection, settings, NOW, max_trajectories=60).batch
    assert batch is not None
    prepare_batch(connection, batch.batch_id, settings, NOW)
    return train_batch(connection, batch.batch_id, settings, NOW, DryTrainer()).model


@pytest.mark.slow
def test_a_line_that_was_brought_back_elsewhere_goes_on_from_its_checkpoint(
    connection: Connection, read_sample: Database, settings: Settings, empty_database: Database, tmp_path: Path
) -> None:
    model = train(connection, settings)
    assert model.checkpoint is not None
    weights = sha256(Path(model.checkpoint) / WEIGHTS)
    made = backup(settings.model_copy(update={"database_url": SecretStr(read_sample.url)}), tmp_path / "kept.zip", NOW)
    assert (made.versions, made.left_out) == ([model.version], [])
    assert (tmp_path / "kept.zip").stat().st_mode & 0o777 == 0o600
    shutil.move(settings.home, tmp_path / "gone")  # nothing of the old place may be needed
    new = settings.model_copy(update={"database_url": SecretStr(empty_database.url), "babylon_rl_home": tmp_path / "new"})
    assert restore(new, tmp_path / "kept.zip") == made
    assert contents(empty_database) == contents(read_sample) == made.tables
    with empty_database.connect() as restored:
        (same,) = (one for one in read_models(restored) if not one.foreign)
        directory = checkpoint_of(same, new)
        assert directory == new.home / "checkpoints" / model.version and sha256(directory / WEIGHTS) == weights
        assert verify(directory).batch_id == model.training_batch
        following = train(restored, new)
    assert following.parent_version == model.version != following.version


@pytest.mark.slow
def test_the_game_on_an_earlier_version_is_upgraded_in_place_and_trains(
    raw_sample_database: Database, settings: Settings, tmp_path: Path
) -> None:
    game = of_version(raw_sample_database, read_migrations()[-4].name, tmp_path / "migrations")
    before = contents(game)
    assert migrate(game).applied == tuple(file.name for file in read_migrations()[-3:])
    after = contents(game)
    assert {name: content for name, content in before.items() if name.startswith('"public"')}.items() <= after.items()
    read_every_hour(game.url)
    with game.connect() as connection:
        assert train(connection, settings).status == "ready"
