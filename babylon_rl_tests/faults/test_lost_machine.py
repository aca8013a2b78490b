"""A machine that is lost, with its disk, at any moment of its upload: another one ends the batch from what the storage and the rows say."""

import re
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from babylon_rl.errors import CheckpointError
from babylon_rl.files.durable import sha256
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import MANIFEST, verify
from babylon_rl.store.registry import read_models
from babylon_rl.training.batches import pending_batches, train_batch
from babylon_rl_tests.faults.test_training_crashes import MOST, live
from babylon_rl_tests.faults.world import HOURS, NOW, World, registry

ALL = HOURS * MOST


def on_machine(world: World, name: str) -> World:
    """The same database and storage, and a home of its own."""
    home = world.settings.home
    chosen = {"babylon_rl_home": home / name, "model_storage_url": f"file://{home}/store"}
    return replace(world, settings=world.settings.model_copy(update=chosen))


def begin_again(world: World) -> None:
    world.reset()
    shutil.rmtree(world.settings.home)


def uploading(world: World, machine: World, most: int = ALL) -> tuple[int, int, int]:
    """A whole training there: the numbers of the boundary of its upload, of the row's, and of the last one."""
    begin_again(world)
    boundaries = live(machine, None, most)
    upload = next(at for at, boundary in enumerate(boundaries, 1) if "/store/.incoming/v" in boundary)
    row = next(at for at, boundary in enumerate(boundaries, 1) if at > upload and "INSERT INTO public.trained_models" in boundary)
    return upload, row, len(boundaries)


def known(world: World) -> dict[str, object]:
    """The registry; an iteration that two machines have trained is on record for both, with the same figures.

    Less the folder of an uploaded version, which is named by the hash of its manifest, and that has the time.
    """
    found = registry(world)
    steps = {str(step) for step in found["steps"]}
    models = [re.sub(r"(/store/v[0-9.]+)/[0-9a-f]{12}", r"\1", str(model)) for model in found["models"]]
    return {"models": models, "batches": found["batches"], "marks": found["marks"], "steps": steps}


@pytest.mark.long
def test_whatever_was_up_when_a_machine_was_lost_is_one_version_in_the_end(world: World) -> None:
    first, second = on_machine(world, "first"), on_machine(world, "second")
    upload, row, last = uploading(world, first)
    (uploaded_weights,) = (world.settings.home / "store" / "v0.9.1").glob("*/adapter_model.safetensors")
    expected, weights = known(world), uploaded_weights.read_bytes()
    registered_untrained = 0
    for dies_at in range(upload, last + 1, 2):
        begin_again(world)
        live(first, dies_at, ALL)
        uploaded = (world.settings.home / "store" / "v0.9.1" / "manifest.json").is_file()
        assert uploaded or dies_at <= row  # no row without its files
        shutil.rmtree(first.settings.home)
        passed = live(second, None, ALL)
        trained_again = any("/.work/" in boundary and "write" in boundary for boundary in passed)
        assert not (uploaded and trained_again), dies_at
        registered_untrained += uploaded and not trained_again
        assert known(world) == expected, dies_at
        (model,) = [model for model in read_models(world.connection) if not model.foreign]
        directory = checkpoint_of(model, second.settings)
        assert verify(directory).batch_id == model.training_batch and (directory / "adapter_model.safetensors").read_bytes() == weights
        world.connection.commit()
    assert registered_untrained > 2


@pytest.mark.slow
def test_a_checkpoint_of_a_batch_that_failed_keeps_its_number_at_the_storage(world: World) -> None:
    first, second = on_machine(world, "first"), on_machine(world, "second")
    _, row, _ = uploading(world, first)
    begin_again(world)
    live(first, row, ALL)  # dies after the upload, before the row
    world.connection.execute("""UPDATE babylon_rl.batches SET "state" = 'failed'; DELETE FROM babylon_rl.batch_items""")
    world.connection.execute("""UPDATE training_batches SET status = 'failed' WHERE status NOT IN ('pending')""")
    world.connection.commit()
    live(second, None, ALL)
    assert [model.version for model in read_models(world.connection) if not model.foreign] == ["v0.9.2"]
    assert {path.name for path in (world.settings.home / "store").glob("v*")} == {"v0.9.1", "v0.9.2"}


@pytest.mark.slow
def test_a_machine_that_comes_back_goes_on_with_the_checkpoint_that_another_one_registered(world: World) -> None:
    keeping = replace(world, settings=world.settings.model_copy(update={"checkpoints_kept": 2}))
    first, second = on_machine(keeping, "first"), on_machine(keeping, "second")
    upload, _, _ = uploading(world, first, MOST)
    begin_again(world)
    live(first, upload, MOST)  # it has published, and is lost
    (batch,) = pending_batches(world.connection)
    world.connection.commit()
    # A second later, as its manifest says: within the same millisecond the two would be equal.
    registered = train_batch(world.connection, batch.batch_id, second.settings, NOW + timedelta(seconds=1)).model
    shutil.rmtree(second.settings.home)  # which is no directory of the first machine
    own = first.checkpoints / registered.version
    assert verify(own).batch_id == registered.training_batch and sha256(own / MANIFEST) != registered.manifest_sha
    live(first, None, MOST)
    newest, model = [model for model in read_models(world.connection) if not model.foreign]
    assert newest.parent_version == model.version == registered.version
    assert checkpoint_of(model, first.settings) == own and sha256(own / MANIFEST) == registered.manifest_sha
    assert {path.name for path in first.checkpoints.iterdir() if path.is_dir()} == {".work", own.name, newest.version}


def test_a_version_that_nobody_uploaded_is_absent_with_advice(world: World) -> None:
    live(world, None, ALL)
    (model,) = [model for model in read_models(world.connection) if not model.foreign]
    away = on_machine(world, "elsewhere")
    shutil.rmtree(world.checkpoints)
    with pytest.raises(CheckpointError, match=r"There is no checkpoint v0\.9\.1 in .*elsewhere.* none at file://.*models upload v0\.9\.1"):
        checkpoint_of(model, away.settings)
