"""A base at an S3 server: uploaded by the machine that trains, found by machines with neither its directory nor its package."""

import json
import shutil
from pathlib import Path

import pytest

from babylon_rl.cli.system_checks import PASS, check_system
from babylon_rl.errors import ModelUnavailable, TrainingPaused
from babylon_rl.files.durable import sha256
from babylon_rl.models.base_model import BASE_MANIFEST, DIRECTORY, base_model_dir, stored_base
from babylon_rl.models.checkpoint_store import upload_base
from babylon_rl.settings import Settings
from babylon_rl_tests.object_store import ObjectStore
from babylon_rl_tests.tiny_model import make_base

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("soon_given_up")]
GIVEN = "/of/another/machine/our-base"


@pytest.fixture(autouse=True)
def _no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def stored(object_store: ObjectStore, settings: Settings) -> Settings:
    """Settings of a machine with an empty home, and a bucket."""
    return settings.model_copy(update={"model_storage_url": object_store.bucket()})


def files_of(directory: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in directory.iterdir() if path.name != BASE_MANIFEST}


def given(settings: Settings, name: str = GIVEN) -> Settings:
    return settings.model_copy(update={"local_base_model": name})


@pytest.mark.long
@pytest.mark.parametrize(("name", "below"), [(None, DIRECTORY), (GIVEN, "given/our-base-*")])
def test_a_base_is_fetched_once_and_is_what_was_uploaded(
    stored: Settings, object_store: ObjectStore, tiny_base: Path, tmp_path: Path, name: str | None, below: str
) -> None:
    chosen = stored if name is None else given(stored, name)
    before = set(tiny_base.iterdir())
    upload_base(tiny_base, chosen)
    upload_base(tiny_base, chosen)
    assert set(tiny_base.iterdir()) == before
    object_store.downloads.clear()
    fetched = base_model_dir(chosen)
    assert [fetched] == list((stored.home / "models").glob(below))
    assert files_of(base_model_dir(chosen)) == files_of(tiny_base)
    assert object_store.downloaded("model.safetensors") == object_store.downloaded(BASE_MANIFEST) == 1
    # A machine that has fetched it trains, too; then the storage is changed.
    upload_base(fetched, chosen)
    moved = chosen.model_copy(update={"model_storage_url": object_store.bucket()})
    upload_base(fetched, moved)
    assert files_of(base_model_dir(moved.model_copy(update={"babylon_rl_home": tmp_path / "third"}))) == files_of(tiny_base)


def test_one_that_is_here_or_at_the_hub_asks_no_storage(stored: Settings, object_store: ObjectStore, tiny_base: Path) -> None:
    upload_base(tiny_base, stored)
    shutil.copytree(tiny_base, stored.home / "models" / DIRECTORY)
    object_store.downloads.clear()
    assert base_model_dir(stored) == stored.home / "models" / DIRECTORY
    assert base_model_dir(given(stored, str(tiny_base))) == tiny_base
    upload_base(tiny_base, given(stored, "owner/base"))
    assert stored_base(given(stored, "owner/base")) is None
    assert object_store.downloads == []


def test_another_base_of_that_name_is_not_replaced_and_the_same_weights_are_the_same_base(
    stored: Settings, tiny_base: Path, tmp_path: Path
) -> None:
    upload_base(tiny_base, given(stored))
    # As another version of the library would have written it.
    other = Path(shutil.copytree(tiny_base, tmp_path / "our-base"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"transformers_version": "99"}))
    upload_base(other, given(stored))
    another = make_base(tmp_path / "elsewhere" / "our-base", seed=5)
    with pytest.raises(TrainingPaused, match=rf"another base for LOCAL_BASE_MODEL={GIVEN}, and nothing there is replaced.*another name"):
        upload_base(another, given(stored))
    # A checkpoint refuses a base with another template, so it is another one, too.
    (other / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(TrainingPaused, match="another base for LOCAL_BASE_MODEL"):
        upload_base(other, given(stored))
    # A directory of the same last name is another base.
    upload_base(another, given(stored, "/of/a/third/our-base"))
    assert files_of(base_model_dir(given(stored, "/of/a/third/our-base"))) == files_of(another)
    assert files_of(base_model_dir(given(stored))) == files_of(tiny_base)


def test_weights_may_have_any_name_and_the_rights_of_a_file_do_not_matter(settings: Settings, tiny_base: Path, tmp_path: Path) -> None:
    chosen = given(settings.model_copy(update={"model_storage_url": f"file://{tmp_path}/shared"}))
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "model.safetensors").rename(base / "Model2.5-0.1B.safetensors")
    (base / "config.json").chmod(0o400)
    upload_base(base, chosen)
    assert files_of(base_model_dir(chosen)) == files_of(base)
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "shared").rglob("*.*") if path.is_file())


def test_where_the_storage_has_none_the_error_says_so(stored: Settings) -> None:
    with pytest.raises(ModelUnavailable, match="no such directory, and no such base at MODEL_STORAGE_URL"):
        base_model_dir(given(stored))
    with pytest.raises(ModelUnavailable, match="cannot be downloaded"):
        base_model_dir(stored)


@pytest.mark.long
def test_a_storage_that_fails_leaves_nothing_and_the_packaged_model_comes_from_its_package(
    stored: Settings, object_store: ObjectStore, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for chosen in (stored, given(stored)):
        upload_base(tiny_base, chosen)
    object_store.fail("model.safetensors", "other", 1000)
    with pytest.raises(ModelUnavailable, match=r"The base cannot be fetched from s3://.*/models: model.safetensors is not the file"):
        base_model_dir(given(stored))
    for chosen in (stored, stored.model_copy(update={"model_storage_url": "nonsense://x"})):
        with pytest.raises(ModelUnavailable, match="cannot be downloaded"):  # as this test has no registry
            base_model_dir(chosen)
        assert "It is made from its package." in capsys.readouterr().err
    assert not [path for path in (stored.home / "models").rglob("*") if path.suffix == ".safetensors"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../../outside.safetensors", "below/config.json", BASE_MANIFEST])
def test_a_manifest_that_names_anything_but_a_base_is_refused(
    stored: Settings, object_store: ObjectStore, tiny_base: Path, name: str
) -> None:
    upload_base(tiny_base, stored)
    place = f"{(stored.model_storage_url or '').removeprefix('s3://')}/bases/{DIRECTORY}/{BASE_MANIFEST}"
    document = json.loads(object_store.files().cat_file(place))
    document["files"][name] = document["files"]["config.json"]
    object_store.files().pipe_file(place, json.dumps(document).encode())
    with pytest.raises(ModelUnavailable, match="only its weights, configs and tokenizer are fetched"):
        stored_base(stored)
    with pytest.raises(ModelUnavailable, match="cannot be downloaded"):
        base_model_dir(stored)


def test_verify_system_finds_a_base_that_only_the_storage_has(stored: Settings, tiny_base: Path) -> None:
    upload_base(tiny_base, given(stored))
    [(status, words)] = [(check.status, check.detail) for check in check_system(given(stored)) if check.name == "weights"]
    assert status == PASS and "our-base, at MODEL_STORAGE_URL" in words
