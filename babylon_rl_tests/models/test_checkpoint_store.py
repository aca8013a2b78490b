"""Checkpoints that another machine has uploaded to an S3 server: fetched once, whole, or refused with a sentence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from babylon_rl.errors import CheckpointError, ModelUnavailable
from babylon_rl.files import file_sets
from babylon_rl.files.durable import sha256
from babylon_rl.models.checkpoint_store import checkpoint_named, checkpoint_of, stored_manifest, upload_checkpoint
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, verify
from babylon_rl.settings import Settings
from babylon_rl_tests.full_disk import full_disk
from babylon_rl_tests.object_store import SECRET, ObjectStore
from babylon_rl_tests.training.sample import make_model
from babylon_rl_tests.training.test_upload import make_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sets, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(file_sets, "ATTEMPTS", 2)


@pytest.fixture
def uploaded(object_store: ObjectStore, settings: Settings, tmp_path: Path) -> Settings:
    """Settings of a machine with an empty home; v1.0.0 is at its storage."""
    url = object_store.bucket()
    assert upload_checkpoint(make_checkpoint(tmp_path / "made", tmp_path / "elsewhere" / "v1.0.0"), url) == f"{url}/v1.0.0"
    object_store.downloads.clear()
    return settings.model_copy(update={"model_storage_url": url})


def left_here(settings: Settings) -> set[str]:
    return {path.name for path in (settings.home / "checkpoints").glob("*") if path.is_dir()}


def test_a_version_is_fetched_once_and_is_what_was_uploaded(uploaded: Settings, object_store: ObjectStore, tmp_path: Path) -> None:
    directory = checkpoint_named("v1.0.0", uploaded)
    assert directory == uploaded.home / "checkpoints" / "v1.0.0"
    assert verify(directory) == verify(tmp_path / "elsewhere" / "v1.0.0") == stored_manifest("v1.0.0", uploaded)
    assert left_here(uploaded) == {"v1.0.0"}
    object_store.downloads.clear()
    assert checkpoint_named("v1.0.0", uploaded) == directory
    assert object_store.downloads == []


def test_what_is_in_neither_place_is_absent_and_the_storage_is_asked_for_versions_only(
    uploaded: Settings, object_store: ObjectStore
) -> None:
    assert checkpoint_named("v1.0.9", uploaded) is None
    object_store.downloads.clear()
    assert checkpoint_named("gpt-4", uploaded) is None
    assert checkpoint_named("v1.0.0", uploaded.model_copy(update={"model_storage_url": None})) is None
    assert object_store.downloads == []


def test_a_directory_of_another_batch_in_a_versions_place_is_refused(uploaded: Settings, tmp_path: Path) -> None:
    registered = sha256(tmp_path / "elsewhere" / "v1.0.0" / MANIFEST)
    here = uploaded.home / "checkpoints" / "v1.0.0"
    model = make_model(checkpoint=str(here), manifest_sha=registered)
    assert checkpoint_of(model, uploaded) == here  # fetched, and the recorded one from now on
    assert checkpoint_of(model, uploaded) == here
    shutil.rmtree(here)
    make_checkpoint(tmp_path / "cancelled", here, step=2)
    with pytest.raises(CheckpointError, match=r"holds another checkpoint than the one registered as v1\.0\.0. Move it away"):
        checkpoint_of(model, uploaded)


PROGRAM = """
import sys
from babylon_rl.models.checkpoint_store import checkpoint_named
from babylon_rl.models.checkpoints import verify
from babylon_rl.settings import load_settings
sys.stdin.readline()
print(verify(checkpoint_named("v1.0.0", load_settings())).version)
"""


def test_processes_that_ask_at_once_download_it_once(uploaded: Settings, object_store: ObjectStore, monkeypatch) -> None:
    monkeypatch.setenv("BABYLON_RL_HOME", str(uploaded.home))
    monkeypatch.setenv("MODEL_STORAGE_URL", uploaded.model_storage_url)
    asking = [subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in asking:  # each has read its program by the time that it waits for this line, or soon after
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in asking] == ["v1.0.0\n"] * 2
    assert object_store.downloaded(WEIGHTS) == object_store.downloaded(MANIFEST) == 1


def test_what_a_killed_process_left_is_removed(uploaded: Settings) -> None:
    half = uploaded.home / "checkpoints" / ".v1.0.0.fetching-killed"
    half.mkdir(parents=True)
    (half / WEIGHTS).write_bytes(b"half of it")
    assert verify(checkpoint_named("v1.0.0", uploaded) or Path()).version == "v1.0.0"
    assert left_here(uploaded) == {"v1.0.0"}


@pytest.mark.parametrize("kind", ["500", "503", "cut", "other"])
def test_a_fault_that_passes_is_not_noticed(uploaded: Settings, object_store: ObjectStore, kind: str) -> None:
    object_store.fail(WEIGHTS, kind, 1)
    assert verify(checkpoint_named("v1.0.0", uploaded) or Path()).version == "v1.0.0"
    assert object_store.faults[0].times == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "said"),
    [("500", "made to fail|InternalError"), ("503", "made to fail|unavailable"), ("cut", ""), ("other", "another SHA-256")],
)
def test_a_fault_that_stays_is_a_sentence_and_leaves_nothing(uploaded: Settings, object_store: ObjectStore, kind: str, said: str) -> None:
    object_store.fail(WEIGHTS, kind, 1000)
    with pytest.raises(
        ModelUnavailable, match=rf"v1\.0\.0 cannot be fetched from s3://.*/models/v1\.0\.0 to .*: .*({said}).*run it again"
    ) as failed:
        checkpoint_named("v1.0.0", uploaded)
    assert SECRET not in str(failed.value)
    assert left_here(uploaded) == set()
    object_store.faults.clear()
    assert checkpoint_named("v1.0.0", uploaded) is not None


def test_a_server_that_is_down_is_a_sentence(uploaded: Settings, monkeypatch) -> None:
    import fsspec

    monkeypatch.setattr(file_sets, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    drivers = fsspec.get_filesystem_class("s3")
    drivers.clear_instance_cache()  # which have the other address
    with pytest.raises(ModelUnavailable, match="Could not connect"):
        checkpoint_named("v1.0.0", uploaded)
    drivers.clear_instance_cache()


def missing(store: ObjectStore, place: str) -> None:
    store.files().rm_file(f"{place}/{WEIGHTS}")


def outside(store: ObjectStore, place: str) -> None:
    document = json.loads(store.files().cat_file(f"{place}/{MANIFEST}"))
    document["files"]["../../outside"] = document["files"].pop(WEIGHTS)
    store.files().pipe_file(f"{place}/{MANIFEST}", json.dumps(document).encode())


def unreadable(store: ObjectStore, place: str) -> None:
    store.files().pipe_file(f"{place}/{MANIFEST}", b"{")


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (missing, ModelUnavailable, f"{WEIGHTS} is missing there, although the manifest names it"),
        (outside, ModelUnavailable, "which is outside of it"),
        (unreadable, CheckpointError, "cannot be read"),
    ],
)
def test_a_set_that_is_damaged_there_is_refused_at_once(
    uploaded: Settings, object_store: ObjectStore, damage: Callable[[ObjectStore, str], None], error: type[Exception], said: str
) -> None:
    damage(object_store, f"{(uploaded.model_storage_url or '').removeprefix('s3://')}/v1.0.0")
    with pytest.raises(error, match=said):
        checkpoint_named("v1.0.0", uploaded)
    assert left_here(uploaded) == set()


def test_a_full_disk_is_a_sentence_and_is_not_tried_again(uploaded: Settings, object_store: ObjectStore) -> None:
    with full_disk(40), pytest.raises(ModelUnavailable, match=r"File too large.*BABYLON_RL_HOME has room"):
        checkpoint_named("v1.0.0", uploaded)
    assert left_here(uploaded) == set()
    assert all(object_store.downloaded(path) == 1 for path in set(object_store.downloads))


def test_a_mistyped_bucket_is_not_made(object_store: ObjectStore, tmp_path: Path) -> None:
    from babylon_rl.errors import TrainingPaused

    with pytest.raises(
        TrainingPaused, match=r"v1\.0\.0 could not be uploaded to s3://no-such-bucket/x: The specified bucket does not exist"
    ):
        upload_checkpoint(make_checkpoint(tmp_path / "made", tmp_path / "here" / "v1.0.0"), "s3://no-such-bucket/x")
    assert not object_store.files().exists("no-such-bucket")


def test_no_secret_is_shown(uploaded: Settings) -> None:
    from babylon_rl.files.location import Location

    secretive = uploaded.model_copy(update={"model_storage_url": "sftp://me:hunter2@host/models"})
    assert "hunter2" not in repr(secretive) and SECRET not in repr(vars(Location(uploaded.model_storage_url or "")))
