"""Checkpoints that another machine has uploaded to an S3 server: fetched once, whole, or refused with a sentence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.cli import run
from babylon_rl.errors import CheckpointError, ModelUnavailable
from babylon_rl.files import file_sets
from babylon_rl.files.durable import sha256
from babylon_rl.files.file_sets import content_folder
from babylon_rl.market.model_endpoints import model_agents
from babylon_rl.models.checkpoint_store import (
    GOING,
    checkpoint_named,
    checkpoint_of,
    checkpoint_to_serve,
    stored_manifest,
    upload_checkpoint,
)
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, verify
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.registry import NewModel, register_import
from babylon_rl_tests.full_disk import full_disk
from babylon_rl_tests.object_store import SECRET, ObjectStore
from babylon_rl_tests.store.servers import free_port
from babylon_rl_tests.training.sample import NOW, make_model
from babylon_rl_tests.training.test_upload import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("soon_given_up")]
BATCH = "batch-1"


@pytest.fixture
def uploaded(object_store: ObjectStore, settings: Settings, tmp_path: Path) -> Settings:
    """Settings of a machine with an empty home; v1.0.0 is at its storage."""
    url = object_store.bucket()
    made = make_checkpoint(tmp_path / "made", tmp_path / "elsewhere" / "v1.0.0", batch_id=BATCH)
    assert upload_checkpoint(made, url) == f"{url}/{content_folder('v1.0.0', sha256(made / MANIFEST))}"
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
    make_checkpoint(tmp_path / "cancelled", here, step=2, batch_id="batch-cancelled")
    with pytest.raises(CheckpointError, match=r"holds another checkpoint than the one registered as v1\.0\.0. Move it away"):
        checkpoint_of(model, uploaded)
    assert checkpoint_to_serve("v1.0.0", uploaded) == here  # without a row nothing says which of the two is registered
    assert verify(here).batch_id == "batch-cancelled"


def test_a_state_directory_that_was_moved_has_its_checkpoints_and_no_others(settings: Settings, tmp_path: Path) -> None:
    here = make_checkpoint(tmp_path / "made", settings.home / "checkpoints" / "v1.0.0", batch_id=BATCH)
    model = make_model(checkpoint="/gone/v1.0.0", manifest_sha=sha256(here / MANIFEST))
    assert checkpoint_of(model, settings) == here
    assert checkpoint_of(make_model(checkpoint="/gone/v1.0.0", manifest_sha="another"), settings) == Path("/gone/v1.0.0")


@pytest.fixture
def trained_twice(uploaded: Settings, tmp_path: Path) -> Settings:
    """Settings of a machine that has trained the batch of v1.0.0 too, and could not upload it."""
    make_checkpoint(tmp_path / "twice", uploaded.home / "checkpoints" / "v1.0.0", step=2, batch_id=BATCH)
    return uploaded


def registered(tmp_path: Path) -> str:
    """Hash of the manifest of v1.0.0, as its row has it."""
    return sha256(tmp_path / "elsewhere" / "v1.0.0" / MANIFEST)


@pytest.mark.parametrize("row", [True, False], ids=["of a row", "by name"])
def test_the_own_checkpoint_of_a_batch_gives_way_to_the_one_that_another_machine_uploaded(
    trained_twice: Settings, tmp_path: Path, row: bool
) -> None:
    here = trained_twice.home / "checkpoints" / "v1.0.0"
    model = make_model(checkpoint=str(here), manifest_sha=registered(tmp_path))
    for _ in range(2):
        assert (checkpoint_of(model, trained_twice) if row else checkpoint_to_serve("v1.0.0", trained_twice)) == here
        assert verify(here).step == 1
        (aside,) = here.parent.glob(f"{GOING}v1.0.0-*")
        assert verify(aside).step == 2


def test_a_checkpoint_that_the_storage_does_not_have_either_is_refused_and_stays(trained_twice: Settings) -> None:
    here = trained_twice.home / "checkpoints" / "v1.0.0"
    with pytest.raises(CheckpointError, match="holds another checkpoint"):
        checkpoint_of(make_model(checkpoint=str(here), manifest_sha="of a third one"), trained_twice)
    assert left_here(trained_twice) == {"v1.0.0"} and verify(here).step == 2


def test_a_link_is_not_renamed(trained_twice: Settings, tmp_path: Path) -> None:
    here = trained_twice.home / "checkpoints" / "v1.0.0"
    here.rename(tmp_path / "kept")
    here.symlink_to(tmp_path / "kept")
    with pytest.raises(CheckpointError, match="holds another checkpoint"):
        checkpoint_of(make_model(checkpoint=str(here), manifest_sha=registered(tmp_path)), trained_twice)
    assert here.is_symlink() and verify(here).step == 2


def test_what_could_not_be_fetched_after_the_own_one_was_renamed_is_fetched_by_the_next(
    trained_twice: Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    here = trained_twice.home / "checkpoints" / "v1.0.0"
    model = make_model(checkpoint=str(here), manifest_sha=registered(tmp_path))
    object_store.fail(WEIGHTS, "500", 1000)
    with pytest.raises(ModelUnavailable, match="cannot be fetched"):
        checkpoint_of(model, trained_twice)
    assert not here.exists()
    object_store.faults.clear()
    assert verify(checkpoint_of(model, trained_twice)).step == 1


def register(database: Database, manifest_sha: str) -> None:
    """A row for v1.0.0."""
    new = NewModel(
        BATCH, 1, "v1.0.0", None, "tiny", "cpu", "/another/machine/v1.0.0", "x", manifest_sha, [], None, {}, NOW,
    )  # fmt: skip
    with database.connect() as connection:
        register_import(connection, new)
        connection.commit()


def test_the_database_says_which_checkpoint_is_served_and_is_asked_before_the_storage(
    trained_twice: Settings, database: Database, object_store: ObjectStore, tmp_path: Path
) -> None:
    settings = trained_twice.model_copy(update={"database_url": SecretStr(database.url)})
    here = settings.home / "checkpoints" / "v1.0.0"
    register(database, registered(tmp_path))
    assert verify(checkpoint_to_serve("v1.0.0", settings) or Path()).step == 1
    object_store.downloads.clear()
    assert checkpoint_to_serve("v1.0.0", settings) == here
    assert object_store.downloads == []


def test_a_model_is_not_served_under_the_name_of_another_one(
    trained_twice: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(database, "of a third one")
    settings = trained_twice.model_copy(update={"database_url": SecretStr(database.url)})
    with pytest.raises(CheckpointError, match="holds another checkpoint"), model_agents(settings, "v1.0.0", temperature=1.0):
        pass
    monkeypatch.setenv("BABYLON_RL_HOME", str(settings.home))
    monkeypatch.setenv("MODEL_STORAGE_URL", settings.model_storage_url or "")
    monkeypatch.setenv("DATABASE_URL", database.url)
    assert run(["serve", "model", "v1.0.0"]) == 3
    assert "holds another checkpoint than the one registered as v1.0.0" in " ".join(capsys.readouterr().err.split())


def test_what_is_here_is_served_while_neither_the_database_nor_the_storage_answers(trained_twice: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    away = {
        "database_url": SecretStr(f"postgresql://me@127.0.0.1:{free_port()}/game"),
        "model_storage_url": f"file://{tmp_path}/file/models",
    }
    for chosen in (away, {"model_storage_url": "nonsense://x"}, {"model_storage_url": None}):
        directory = checkpoint_to_serve("v1.0.0", trained_twice.model_copy(update=chosen))
        assert directory is not None and verify(directory).step == 2


def test_nothing_is_written_where_the_right_checkpoint_is_served(uploaded: Settings) -> None:
    here = checkpoint_to_serve("v1.0.0", uploaded)
    assert here is not None
    here.with_name(".v1.0.0.lock").unlink()
    assert checkpoint_to_serve("v1.0.0", uploaded) == here
    assert list(here.parent.iterdir()) == [here]


PROGRAM = """
import sys
from babylon_rl.models.checkpoint_store import checkpoint_to_serve
from babylon_rl.models.checkpoints import verify
from babylon_rl.settings import load_settings
sys.stdin.readline()
print(verify(checkpoint_to_serve("v1.0.0", load_settings())).step)
"""


@pytest.mark.long
def test_processes_that_ask_at_once_download_it_once(uploaded: Settings, object_store: ObjectStore, monkeypatch) -> None:
    assert ask_at_once(uploaded, monkeypatch) == ["1\n"] * 2
    assert object_store.downloaded(WEIGHTS) == object_store.downloaded(MANIFEST) == 1


def test_processes_that_find_another_checkpoint_of_the_batch_at_once_replace_it_once(
    trained_twice: Settings, object_store: ObjectStore, monkeypatch
) -> None:
    assert ask_at_once(trained_twice, monkeypatch) == ["1\n"] * 2
    assert object_store.downloaded(WEIGHTS) == 1
    assert len(left_here(trained_twice)) == 2


def ask_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("BABYLON_RL_HOME", str(settings.home))
    monkeypatch.setenv("MODEL_STORAGE_URL", settings.model_storage_url or "")
    asking = [subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in asking:  # each has read its program by the time that it waits for this line, or soon after
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in asking]


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
    (weights,) = store.files().glob(f"{place}/*/{WEIGHTS}")
    store.files().rm_file(weights)


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
