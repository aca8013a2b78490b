"""Checkpoints at MODEL_STORAGE_URL: whole or not there, compared after they arrived, and never replaced."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import fsspec
import pytest

from babylon_rl.cli import run
from babylon_rl.errors import BatchConflict, TrainingPaused
from babylon_rl.files.durable import copy_tree, sha256
from babylon_rl.files.file_sets import INCOMING, content_folder
from babylon_rl.models.checkpoint_store import check_storage, checkpoint_named, upload_checkpoint
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, publish, verify
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.registry import read_models
from babylon_rl.store.write_ahead import finished_steps
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.lifecycle import WORK
from babylon_rl_tests.object_store import ObjectStore, ignored
from babylon_rl_tests.store.servers import free_port
from babylon_rl_tests.tiny_model import make_manifest
from babylon_rl_tests.training.sample import NOW, value
from babylon_rl_tests.training.weights_and_biases import weights_and_biases


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "made", tmp_path / "here" / "v1.0.0")


def make_checkpoint(made: Path, final: Path, step: int = 1, batch_id: str | None = None) -> Path:
    from babylon_rl.training.backends.dry import _write_adapter

    made.mkdir()
    _write_adapter(made, "dry", bytes(range(step, 32 + step)))
    publish(made, final, make_manifest(DryTrainer().base_identity(), step=step, batch_id=batch_id))
    return final


def checkpoint_at(place: Path, version: str = "v1.0.0") -> Path:
    """The directory of the checkpoint that is a version at a place."""
    return place / content_folder(version, sha256(place / version / MANIFEST))


class Died(BaseException):
    """Stands for the death of the process."""


def test_an_upload_is_the_checkpoint_and_a_second_one_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    uploaded, there = upload_checkpoint(checkpoint, url), checkpoint_at(tmp_path / "there")
    assert uploaded == f"file://{there}" and there.parent == tmp_path / "there" / "v1.0.0"
    assert verify(there) == verify(checkpoint)
    assert [path.name for path in (tmp_path / "there" / INCOMING).iterdir()] == []
    written = {path: path.stat().st_mtime_ns for path in there.parent.rglob("*")}
    assert upload_checkpoint(checkpoint, url) == uploaded
    assert {path: path.stat().st_mtime_ns for path in there.parent.rglob("*")} == written


def test_an_interrupted_upload_has_no_manifest_and_goes_on_with_what_is_missing(checkpoint: Path) -> None:
    url = "memory://uploads/interrupted"
    store = fsspec.filesystem("memory")
    beats = iter(range(2))

    def die() -> None:
        if next(beats, None) is None:
            raise Died

    with pytest.raises(Died):
        upload_checkpoint(checkpoint, url, die)
    assert not store.exists("/uploads/interrupted/v1.0.0/manifest.json")
    up = [path for path in store.find("/uploads/interrupted") if INCOMING in path]
    assert len(up) == 2
    store.pipe_file(up[0], b"cut off")  # what arrived in part is not taken for whole
    folder = upload_checkpoint(checkpoint, url).removeprefix("memory:/")
    sent = {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in checkpoint.iterdir()}
    assert {path.removeprefix(f"{folder}/"): store.cat_file(path) for path in store.find(folder)} == sent
    assert set(store.find("/uploads/interrupted")) == {"/uploads/interrupted/v1.0.0/manifest.json", *(f"{folder}/{name}" for name in sent)}


def test_another_checkpoint_of_that_version_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    upload_checkpoint(make_checkpoint(tmp_path / "m2", tmp_path / "other" / "v1.0.0", step=2), url)
    with pytest.raises(TrainingPaused, match="holds another checkpoint of that version"):
        upload_checkpoint(checkpoint, url)
    assert verify(checkpoint_at(tmp_path / "there")).step == 2


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_stood_still_during_its_upload_replaces_nothing_of_a_newer_one(checkpoint: Path, tmp_path: Path, step: int) -> None:
    newer, url = make_checkpoint(tmp_path / "m2", tmp_path / "other" / "v1.0.0", step), f"file://{tmp_path}/there"
    beats = iter(range(len(verify(checkpoint).files)))  # one for each file but the last, the manifest

    def stand_still_at_the_last_file() -> None:
        if next(beats, None) is None:
            upload_checkpoint(newer, url)

    if step == verify(checkpoint).step:
        upload_checkpoint(checkpoint, url, stand_still_at_the_last_file)
    else:
        with pytest.raises(TrainingPaused, match="holds another checkpoint of that version"):
            upload_checkpoint(checkpoint, url, stand_still_at_the_last_file)
    assert verify(checkpoint_at(tmp_path / "there")) == verify(newer)
    assert len(list((tmp_path / "there" / "v1.0.0").iterdir())) == 2  # nothing is left of the other one
    assert [path.name for path in (tmp_path / "there" / INCOMING).iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "S3"])
def test_of_two_machines_that_place_one_version_at_once_one_does_and_the_other_says_so(
    kind: str, tmp_path: Path, object_store: ObjectStore
) -> None:
    ours = [make_checkpoint(tmp_path / f"made-{step}", tmp_path / str(step) / "v1.0.0", step) for step in (1, 2)]
    for attempt in range(3):
        url = object_store.bucket() if kind == "S3" else f"file://{tmp_path}/there-{attempt}"
        together = Barrier(2)

        def place(checkpoint: Path, url: str = url, together: Barrier = together) -> str:
            beats = iter(range(len(list(checkpoint.iterdir()))))  # one for each file; the last comes before any is moved

            def wait_at_the_last() -> None:
                if next(beats, None) is None:
                    together.wait(30)

            return upload_checkpoint(checkpoint, url, wait_at_the_last)

        with ThreadPoolExecutor(2) as machines:
            ends = [machines.submit(place, checkpoint) for checkpoint in ours]
        refused = [end.exception() for end in ends if end.exception() is not None]
        (winner,) = [number for number, end in enumerate(ends) if end.exception() is None]
        assert len(refused) == 1 and isinstance(refused[0], TrainingPaused) and "holds another checkpoint" in str(refused[0])
        assert_is_all_there_is(url, ends[winner].result(), ours[winner])


@pytest.mark.slow
def test_a_machine_that_stood_still_between_two_files_replaces_nothing_of_the_one_that_took_over(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    slow, newer = (make_checkpoint(tmp_path / f"made-{step}", tmp_path / str(step) / "v1.0.0", step) for step in (1, 2))
    url, uploaded = object_store.bucket(), list[str]()

    def at_its_first_copy(environ: dict[str, Any]) -> None:
        if "HTTP_X_AMZ_COPY_SOURCE" in environ:
            object_store.on_request = ignored
            uploaded.append(upload_checkpoint(newer, url))

    object_store.on_request = at_its_first_copy
    with pytest.raises(TrainingPaused, match="holds another checkpoint"):
        upload_checkpoint(slow, url)
    assert_is_all_there_is(url, uploaded[0], newer)


def assert_is_all_there_is(url: str, uploaded: str, checkpoint: Path) -> None:
    """A place holds a whole checkpoint, a copy of its manifest, and nothing else."""
    files, place = fsspec.core.url_to_fs(url)
    folder = fsspec.core.url_to_fs(uploaded)[1]
    files.invalidate_cache()
    sent = {f"{folder}/{path.name}": path.read_bytes() for path in checkpoint.iterdir()}
    assert {path: files.cat_file(path) for path in files.find(place)} == sent | {
        f"{place}/v1.0.0/{MANIFEST}": (checkpoint / MANIFEST).read_bytes()
    }


def test_a_file_system_without_hard_links_takes_a_checkpoint_and_keeps_it_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    url = f"file://{tmp_path}/there"
    uploaded = upload_checkpoint(checkpoint, url)
    with pytest.raises(TrainingPaused, match="holds another checkpoint"):
        upload_checkpoint(make_checkpoint(tmp_path / "m2", tmp_path / "other" / "v1.0.0", step=2), url)
    assert_is_all_there_is(url, uploaded, checkpoint)


def test_a_version_of_an_earlier_release_lies_beside_its_manifest_and_is_found(
    checkpoint: Path, settings: Settings, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/there"
    copy_tree(checkpoint, tmp_path / "there" / "v1.0.0")
    assert upload_checkpoint(checkpoint, url) == f"{url}/v1.0.0"
    fetched = checkpoint_named("v1.0.0", settings.model_copy(update={"model_storage_url": url}))
    assert fetched is not None and verify(fetched) == verify(checkpoint)
    with pytest.raises(TrainingPaused, match="holds another checkpoint"):
        upload_checkpoint(make_checkpoint(tmp_path / "m2", tmp_path / "other" / "v1.0.0", step=2), url)


def test_a_run_that_was_taken_over_while_its_last_file_was_sent_moves_none_into_place(checkpoint: Path, tmp_path: Path) -> None:
    beats = iter(range(len(list(checkpoint.iterdir()))))

    def taken_over() -> None:
        if next(beats, None) is None:
            raise BatchConflict("a newer run has it")

    with pytest.raises(BatchConflict):
        upload_checkpoint(checkpoint, f"file://{tmp_path}/there", taken_over)
    assert not (tmp_path / "there" / "v1.0.0").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [("nonsense://x/y", "cannot be opened"), ("gs://bucket/x", "not installed"), ("file://{tmp}/file/below", "cannot be written to")],
)
def test_a_place_that_cannot_be_written_is_noticed_before_a_training(settings: Settings, tmp_path: Path, url: str, said: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingPaused, match=said):
        check_storage(settings.model_copy(update={"model_storage_url": url.format(tmp=tmp_path)}), "batch-1")


@pytest.mark.slow
def test_a_store_that_does_not_answer_or_refuses_lets_a_training_wait(
    settings: Settings, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = settings.model_copy(update={"model_storage_url": object_store.bucket()})
    check_storage(there, "batch-1")
    with pytest.raises(TrainingPaused, match="cannot be written to"):
        check_storage(settings.model_copy(update={"model_storage_url": "s3://no-such-bucket/models"}), "batch-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(TrainingPaused, match="cannot be written to"):
        check_storage(there, "batch-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_batch_is_uploaded_before_it_is_registered_and_waits_in_uploading(connection, settings, tmp_path) -> None:
    place = tmp_path / "there"
    stored = settings.model_copy(update={"model_storage_url": f"file://{place}"})
    batch = freeze(connection, stored, NOW, max_trajectories=60).batch
    prepare_batch(connection, batch.batch_id, stored, NOW)

    class PlaceGoes(DryTrainer):
        """While it trains, the place becomes one that takes nothing."""

        def train(self, iteration, parent, out, on_step):
            if place.is_dir():
                place.rmdir()
                place.write_text("no directory")
            return super().train(iteration, parent, out, on_step)

    with pytest.raises(TrainingPaused, match=r"waits for MODEL_STORAGE_URL.*Not a directory"):
        train_batch(connection, batch.batch_id, stored, NOW, PlaceGoes())
    assert read_batch(connection, batch.batch_id).state == "uploading"
    assert all(model.foreign for model in read_models(connection))
    place.unlink()

    class Untrained(DryTrainer):
        def train(self, iteration, parent, out, on_step):
            raise AssertionError("nothing is trained again")

    mistyped = stored.model_copy(update={"model_storage_url": "nonsense://x"})
    with pytest.raises(TrainingPaused, match=r"waits for MODEL_STORAGE_URL.*nonsense://x cannot be opened"):
        train_batch(connection, batch.batch_id, mistyped, NOW, Untrained())
    trained = train_batch(connection, batch.batch_id, stored, NOW, Untrained())
    model = trained.model
    assert model.storage_path == model.uploaded_url == f"file://{checkpoint_at(place, model.version)}"
    assert (checkpoint_at(place, model.version) / WEIGHTS).read_bytes() == (trained.checkpoint / WEIGHTS).read_bytes()
    assert json.loads((place / model.version / MANIFEST).read_text())["batchId"] == batch.batch_id


def test_a_place_that_is_down_stops_no_iteration_of_a_training_that_goes_on(connection, settings, tmp_path) -> None:
    place = tmp_path / "there"
    stored = settings.model_copy(update={"model_storage_url": f"file://{place}", "iterations": 2})
    batch = freeze(connection, stored, NOW, max_trajectories=60).batch
    prepare_batch(connection, batch.batch_id, stored, NOW)

    class DiesInTheSecond(DryTrainer):
        def train(self, iteration, parent, out, on_step):
            if iteration.step == 2:
                raise Died
            return super().train(iteration, parent, out, on_step)

    with pytest.raises(Died):
        train_batch(connection, batch.batch_id, stored, NOW, DiesInTheSecond())
    assert read_batch(connection, batch.batch_id).state == "training"
    place.rmdir()
    place.write_text("no directory")
    with pytest.raises(TrainingPaused, match=r"waits for MODEL_STORAGE_URL.*Not a directory"):
        train_batch(connection, batch.batch_id, stored, NOW, DryTrainer())
    assert read_batch(connection, batch.batch_id).state == "uploading"
    assert sorted(finished_steps(connection, batch.batch_id)) == [1, 2]


@pytest.mark.slow
def test_what_a_machine_publishes_is_its_own_last_iteration_though_another_trained_it_again(connection, settings, tmp_path) -> None:
    place = tmp_path / "there"
    first = settings.model_copy(update={"model_storage_url": f"file://{place}"})
    second = first.model_copy(update={"babylon_rl_home": tmp_path / "second"})
    batch = freeze(connection, first, NOW, max_trajectories=60).batch
    prepare_batch(connection, batch.batch_id, first, NOW)

    class PlaceGoes(DryTrainer):
        """While it trains, the place becomes one that takes nothing."""

        def train(self, iteration, parent, out, on_step):
            shutil.rmtree(place, ignore_errors=True)
            place.write_text("no directory")
            return super().train(iteration, parent, out, on_step)

    with pytest.raises(TrainingPaused, match="waits for MODEL_STORAGE_URL"):
        train_batch(connection, batch.batch_id, first, NOW, PlaceGoes())
    place.unlink()
    # The second machine finds no checkpoint at the storage and trains before that goes again.
    with pytest.raises(TrainingPaused, match="waits for MODEL_STORAGE_URL"):
        train_batch(connection, batch.batch_id, second, NOW, PlaceGoes())
    *_, last = finished_steps(connection, batch.batch_id).values()
    assert (last.checkpoint or "").startswith(str(second.home))
    shutil.rmtree(second.home)  # which is no directory of the first machine
    place.unlink()
    trained = train_batch(connection, batch.batch_id, first, NOW, DryTrainer())
    kept = first.home / "checkpoints" / WORK / batch.batch_id / str(last.iteration) / WEIGHTS
    up = checkpoint_at(place, trained.model.version)
    assert (trained.checkpoint / WEIGHTS).read_bytes() == (up / WEIGHTS).read_bytes() == kept.read_bytes()


def test_a_copy_of_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        copy_tree(tmp_path / "gone", tmp_path / "copy")


@pytest.fixture
def version_by_hand(connection, settings, read_sample, monkeypatch, tmp_path: Path) -> str:
    """A trained version of the database and state directory that commands find in the environment."""
    batch = freeze(connection, settings, NOW, max_trajectories=60).batch
    prepare_batch(connection, batch.batch_id, settings, NOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", read_sample.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(settings.home))
    return train_batch(connection, batch.batch_id, settings, NOW).model.version


def test_by_hand_a_version_is_uploaded_and_what_makes_no_sense_is_a_sentence(
    settings, version_by_hand, monkeypatch, capsys, tmp_path: Path
) -> None:
    version = version_by_hand
    assert run(["models", "upload", version]) == 2
    assert "set MODEL_STORAGE_URL, or WANDB_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("MODEL_STORAGE_URL", f"file://{tmp_path}/there")
    assert run(["models", "upload", "v1.0.9"]) == 2
    assert "another producer" in capsys.readouterr().err
    assert run(["models", "upload", version, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["uploadedUrl"] == f"file://{checkpoint_at(tmp_path / 'there', version)}"
    assert shown["storagePath"] == str(settings.home / "checkpoints" / version)  # what agents call stays as it is
    assert verify(checkpoint_at(tmp_path / "there", version)).version == version
    assert run(["models", "export", version, "out"]) == 2
    assert "dry run" in capsys.readouterr().err


@pytest.mark.long
def test_by_hand_a_version_becomes_an_artifact_and_is_noted_only_when_it_is_one(
    connection, version_by_hand, monkeypatch, capsys, tmp_path: Path
) -> None:
    version = version_by_hand
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_PROJECT", "p")

    def noted() -> str | None:
        return value(connection, 'SELECT "wandbArtifactId" FROM trained_models WHERE version = %s', version)

    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(["models", "upload", version]) == 0
    said = capsys.readouterr().err
    assert "Written for `wandb sync " in said and "none is noted" in said and noted() is None
    with weights_and_biases() as service:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        assert run(["models", "upload", version]) == 0
    assert noted() == f"me/p/babylon-agent-{version}:{version}"
    assert any(path.endswith("adapter_model.safetensors") for path in service.files)
