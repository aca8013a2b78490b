"""A base at an S3 server: uploaded by the machine that trains, found by machines with neither its directory nor its package."""

import json
import shutil
from pathlib import Path

import pytest

from babylon_rl.cli.system_checks import PASS, check_system
from babylon_rl.errors import ModelUnavailable, TrainingPaused
from babylon_rl.files import file_sets
from babylon_rl.files.durable import sha256
from babylon_rl.models.base_model import BASE_MANIFEST, DIRECTORY, NAME, base_model_dir
from babylon_rl.models.checkpoint_store import upload_base
from babylon_rl.settings import Settings
from babylon_rl_tests.object_store import ObjectStore
from babylon_rl_tests.tiny_model import make_base

pytestmark = pytest.mark.slow
GIVEN = "/of/another/machine/our-base"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sets, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(file_sets, "ATTEMPTS", 2)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def stored(object_store: ObjectStore, settings: Settings) -> Settings:
    """Settings of a machine with an empty home, and a bucket."""
    return settings.model_copy(update={"model_storage_url": object_store.bucket()})


def files_of(directory: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in directory.iterdir() if path.name != BASE_MANIFEST}


@pytest.mark.parametrize(
    ("name", "given", "below"),
    [(NAME, None, DIRECTORY), (GIVEN, GIVEN, "given/our-base"), ("owner/our-base", "owner/our-base", "given/our-base")],
)
def test_a_base_is_fetched_once_and_is_what_was_uploaded(
    stored: Settings, object_store: ObjectStore, tiny_base: Path, name: str, given: str | None, below: str
) -> None:
    before = set(tiny_base.iterdir())
    upload_base(tiny_base, name, stored)
    upload_base(tiny_base, name, stored)
    assert set(tiny_base.iterdir()) == before
    object_store.downloads.clear()
    chosen = stored.model_copy(update={"local_base_model": given})
    assert base_model_dir(chosen) == stored.home / "models" / below
    assert files_of(base_model_dir(chosen)) == files_of(tiny_base)
    assert object_store.downloaded("model.safetensors") == object_store.downloaded(BASE_MANIFEST) == 1


def test_one_that_is_here_asks_no_storage(stored: Settings, object_store: ObjectStore, tiny_base: Path) -> None:
    upload_base(tiny_base, NAME, stored)
    shutil.copytree(tiny_base, stored.home / "models" / DIRECTORY)
    object_store.downloads.clear()
    assert base_model_dir(stored) == stored.home / "models" / DIRECTORY
    assert base_model_dir(stored.model_copy(update={"local_base_model": str(tiny_base)})) == tiny_base
    assert object_store.downloads == []


def test_another_base_of_that_name_is_not_replaced_and_the_same_weights_are_the_same_base(
    stored: Settings, tiny_base: Path, tmp_path: Path
) -> None:
    upload_base(tiny_base, GIVEN, stored)
    # As another version of the library would have written it.
    other = Path(shutil.copytree(tiny_base, tmp_path / "our-base"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"transformers_version": "99"}))
    upload_base(other, str(other), stored)
    with pytest.raises(TrainingPaused, match=r"holds another base named our-base, and nothing there is replaced.*another name"):
        upload_base(make_base(tmp_path / "elsewhere" / "our-base", seed=5), GIVEN, stored)


def test_where_the_storage_has_none_the_error_is_the_hubs_or_the_registrys(stored: Settings) -> None:
    with pytest.raises(ModelUnavailable, match="no such directory, and the hub did not give it"):
        base_model_dir(stored.model_copy(update={"local_base_model": GIVEN}))
    with pytest.raises(ModelUnavailable, match="cannot be downloaded"):
        base_model_dir(stored)


def test_a_storage_that_fails_leaves_nothing_and_the_packaged_model_comes_from_its_package(
    stored: Settings, object_store: ObjectStore, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (NAME, GIVEN):
        upload_base(tiny_base, name, stored)
    object_store.fail("model.safetensors", "other", 1000)
    with pytest.raises(ModelUnavailable, match=r"our-base cannot be fetched from s3://.*/models: model.safetensors is not the file"):
        base_model_dir(stored.model_copy(update={"local_base_model": GIVEN}))
    with pytest.raises(ModelUnavailable, match="cannot be downloaded"):  # as this test has no registry
        base_model_dir(stored)
    assert "It is made from its package." in capsys.readouterr().err
    assert not [path for path in (stored.home / "models").rglob("*") if path.name in (DIRECTORY, "our-base")]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../../outside.json", "below/config.json"])
def test_a_manifest_that_names_anything_but_a_base_is_refused(
    stored: Settings, object_store: ObjectStore, tiny_base: Path, name: str
) -> None:
    upload_base(tiny_base, GIVEN, stored)
    place = f"{(stored.model_storage_url or '').removeprefix('s3://')}/bases/our-base/{BASE_MANIFEST}"
    document = json.loads(object_store.files().cat_file(place))
    document["files"][name] = document["files"]["config.json"]
    object_store.files().pipe_file(place, json.dumps(document).encode())
    with pytest.raises(ModelUnavailable, match="only safetensors, texts and JSON are fetched"):
        base_model_dir(stored.model_copy(update={"local_base_model": GIVEN}))


def test_verify_system_finds_a_base_that_only_the_storage_has(stored: Settings, tiny_base: Path) -> None:
    upload_base(tiny_base, GIVEN, stored)
    chosen = stored.model_copy(update={"local_base_model": GIVEN})
    [(status, words)] = [(check.status, check.detail) for check in check_system(chosen) if check.name == "weights"]
    assert status == PASS and "our-base, at MODEL_STORAGE_URL" in words
