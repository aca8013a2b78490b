"""What lies where a version is to be published: what is ours and was left behind gives way, anything else keeps its number."""

import shutil
from pathlib import Path

import pytest

from babylon_rl.models.checkpoints import publish
from babylon_rl.training.backends.dry import DryTrainer, _write_adapter
from babylon_rl.training.batches import train_batch
from babylon_rl_tests.tiny_model import make_manifest
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.training.test_batches import KilledTrainer, assert_registered_once, batch, server_lost_while_registering

__all__ = ["batch"]


def publish_dry(final: Path, batch_id: str) -> None:
    shutil.rmtree(final, ignore_errors=True)
    made = final.with_name("made")
    made.mkdir(parents=True)
    _write_adapter(made, "dry", bytes(range(16)))
    publish(made, final, make_manifest(DryTrainer().base_identity(), batch_id=batch_id))


def take_number(connection) -> None:
    """Another producer registers the number that the batch has reserved."""
    connection.execute(
        'INSERT INTO trained_models (id, "modelId", version, "baseModel", "storagePath", "updatedAt")'
        " VALUES ('m', 'babylon-agent-v1.0.11', 'v1.0.11', 'x', 'x', %s)",
        [NOW],
    )
    connection.commit()


@pytest.mark.slow
def test_a_damaged_published_checkpoint_is_published_again(connection, settings, batch):
    final = settings.home / "checkpoints" / "v1.0.11"

    def damage(metrics):  # as a run before this one may have left it
        publish_dry(final, batch.batch_id)
        (final / "adapter_model.safetensors").write_bytes(b"damaged")

    train_batch(connection, batch.batch_id, settings, NOW, DryTrainer(optimizer_steps=1), on_step=damage)
    assert_registered_once(connection, batch, settings.home)


def test_what_no_manifest_calls_ours_keeps_its_number(connection, settings, batch):
    final = settings.home / "checkpoints" / "v1.0.11"
    final.mkdir(parents=True)
    (final / "adapter_config.json").write_text("{}")
    assert train_batch(connection, batch.batch_id, settings, NOW).model.version == "v1.0.12"
    assert [path.name for path in final.iterdir()] == ["adapter_config.json"]


@pytest.mark.slow
def test_a_version_that_a_foreign_row_took_is_left_to_it(connection, settings, batch):
    take_number(connection)
    trained = train_batch(connection, batch.batch_id, settings, NOW)
    assert trained.model.version == "v1.0.12" and trained.batch.version == "v1.0.12"
    assert trained.checkpoint.name == "v1.0.12"


@pytest.mark.slow
def test_a_number_that_was_taken_between_publishing_and_registering_is_left_to_it(connection, settings, batch):
    with server_lost_while_registering(connection):
        train_batch(connection, batch.batch_id, settings, NOW)
    take_number(connection)
    trainer = KilledTrainer(at=99)
    trained = train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert trained.model.version == "v1.0.12" and trainer.trained == []
    assert [path.name for path in (settings.home / "checkpoints").glob("v*")] == ["v1.0.12"]
