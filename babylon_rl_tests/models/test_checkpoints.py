import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from babylon_rl.errors import CheckpointError
from babylon_rl.models.checkpoints import MANIFEST, WEIGHTS, base_identity, load_manifest, publish, verify, weights_sha256
from babylon_rl.models.policy import CompletionRequest, Policy
from babylon_rl_tests.models.conftest import make_adapter, make_base, make_manifest

pytestmark = pytest.mark.slow  # torch is imported


def test_a_published_checkpoint_verifies_loads_and_tells_where_it_is_from(published: Path, tiny_base: Path) -> None:
    manifest = verify(published, tiny_base)
    assert manifest == load_manifest(published)
    assert set(manifest.files) == {"README.md", WEIGHTS, "adapter_config.json"}
    assert manifest.windows == ("2025-10-29T14:00",)
    card = (published / "README.md").read_text()
    assert "base_model: tiny" in card
    assert "* 2025-10-29T14:00" in card
    policy = Policy.load(tiny_base, published, dtype=torch.float32, adapter_name="v1.0.0")
    assert policy.complete([CompletionRequest([{"role": "user", "content": "x"}], max_tokens=2, adapter="v1.0.0")])[0].token_ids


def test_no_path_of_this_machine_is_published(published: Path, tiny_base: Path) -> None:
    for name in ("README.md", "adapter_config.json", MANIFEST):
        assert str(tiny_base) not in (published / name).read_text()


def test_nothing_is_left_under_the_temporary_name(published: Path) -> None:
    assert [path.name for path in published.parent.iterdir()] == ["v1.0.0"]


def _cut(path: Path) -> None:
    content = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(content[:-1])


def _flip(path: Path) -> None:
    content = bytearray((path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (path / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "is damaged: adapter_model.safetensors"),
        (_flip, "is damaged: adapter_model.safetensors"),
        (lambda path: (path / WEIGHTS).unlink(), "is incomplete: adapter_model.safetensors"),
        (lambda path: (path / MANIFEST).unlink(), "is no checkpoint"),
        (lambda path: (path / MANIFEST).write_text("{"), "cannot be read"),
        (lambda path: (path / "adapter_model.bin").write_bytes(b"x"), "only safetensors"),
        (lambda path: torch.save({"x": 1}, path / "weights.txt"), "only safetensors"),
        (lambda path: (path / "notes.txt").write_text("x"), "manifest does not list"),
        (lambda path: (path / "link").symlink_to("/etc/passwd"), "holds the link"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_words(published: Path, damage: Any, said: str) -> None:
    damage(published)
    with pytest.raises(CheckpointError, match=said):
        verify(published)


def test_another_format_is_refused(published: Path) -> None:
    manifest = json.loads((published / MANIFEST).read_text())
    (published / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_manifest(published)


def test_another_base_is_refused(published: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0, "transformers_version": "0"}))
    with pytest.raises(CheckpointError, match="trained on tiny; the base given has another config"):
        verify(published, other)


def test_the_same_base_converted_by_another_release_is_the_same(published: Path, tmp_path: Path) -> None:
    again = make_base(tmp_path / "again")
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9"}))
    assert verify(published, again).version == "v1.0.0"


def test_a_published_checkpoint_is_never_replaced(published: Path, tiny_base: Path, tmp_path: Path) -> None:
    again = make_adapter(tiny_base, tmp_path / "again", seed=9)
    with pytest.raises(CheckpointError, match="never replaced"):
        publish(again, published, make_manifest(base_identity(tiny_base, "tiny")))
    verify(published, tiny_base)


def test_a_directory_without_an_adapter_is_not_published(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not an adapter"):
        publish(tmp_path / "empty", tmp_path / "v1.0.0", make_manifest(base_identity(tiny_base, "tiny")))
    assert not (tmp_path / "v1.0.0").exists()


def test_what_is_kept_of_a_base_follows_its_files(tmp_path: Path) -> None:
    made = make_base(tmp_path / "base")
    identity, weights = base_identity(made, "base"), weights_sha256(made)
    assert weights_sha256(made) is weights  # the packaged base's 270 MB are hashed once in a process
    assert base_identity(made, "other") == msgspec.structs.replace(identity, name="other")
    content = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as before
    os.utime(made / "model.safetensors", ns=(0, 1))
    assert weights_sha256(made) != weights
    assert base_identity(made, "base") == identity  # weights are no part of it
    (made / "chat_template.jinja").write_text("another")
    assert base_identity(made, "base") != identity
