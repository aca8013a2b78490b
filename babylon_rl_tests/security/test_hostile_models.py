"""Bases and adapters that bring code: nothing of theirs is run, whoever made them."""

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babylon_rl.errors import CheckpointError, ModelUnavailable
from babylon_rl.files.durable import sha256
from babylon_rl.models.base_model import base_model_dir, damage
from babylon_rl.models.checkpoints import MANIFEST, load_manifest, verify, write_document
from babylon_rl.models.policy import Policy
from babylon_rl.settings import Settings
from babylon_rl_tests.models.conftest import published, tiny_base

__all__ = ["published", "tiny_base"]
pytestmark = pytest.mark.slow  # torch is imported
CLASSES = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model", "AutoTokenizer": ["mine.Tokenizer", None]}


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may change, whose code would leave a file in its directory."""
    copy = tmp_path / "base"
    copy.mkdir()
    for path in tiny_base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def _named(name: str, **entries: Any) -> Any:
    def change(base: Path) -> None:
        document = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps(document | entries))

    return change


def _weights(head: bytes) -> Any:
    return lambda base: (base / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)


class _Opens:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_named("config.json", auto_map=CLASSES), "config.json names code of its own"),
        (_named("tokenizer_config.json", auto_map=CLASSES), "tokenizer_config.json names code of its own"),
        (lambda base: (base / "modeling_mine.py").write_text("open('ran', 'w')"), "modeling_mine.py can run code"),
        (lambda base: (base / "pytorch_model.bin").write_bytes(pickle.dumps(_Opens(base / "ran"))), "pytorch_model.bin can run code"),
        (lambda base: (base / "notes.txt").write_bytes(pickle.dumps(_Opens(base / "ran"))), "notes.txt can run code"),
        (lambda base: (base / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
        (lambda base: (base / "config.json").write_text("[]"), "config.json is no object"),
        (_weights(b"[1]"), "cut off or not safetensors"),
        (_weights(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}}'), "cut off or not safetensors"),
        (_weights(b"[" * 100_000), "cut off or not safetensors"),
    ],
)
def test_a_base_with_code_is_refused_before_it_is_loaded(base: Path, tmp_path: Path, plant: Any, said: str) -> None:
    assert damage(base) is None
    plant(base)
    assert said in str(damage(base))
    with pytest.raises(ModelUnavailable, match=said):
        base_model_dir(Settings(_env_file=None, babylon_rl_home=tmp_path, local_base_model=str(base)))


def test_code_that_a_base_names_is_not_run_where_nobody_looked_before(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers asks at the terminal whether to run it, unless it is told."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ran = base / "ran"
    (base / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nConfig = Model = Tokenizer = None\n")
    document = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(document | {"model_type": "mine", "auto_map": CLASSES}))
    with pytest.raises(ModelUnavailable, match="cannot be loaded as a model"):
        Policy.load(base)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["modeling.py", "adapter_model.bin", "below/weights.pkl"])
def test_an_adapter_with_code_is_refused_although_its_manifest_lists_it(published: Path, name: str) -> None:
    (published / name).parent.mkdir(exist_ok=True)
    (published / name).write_bytes(pickle.dumps(_Opens(published / "ran")))
    listed = load_manifest(published)
    files = {**listed.files, name: sha256(published / name)}
    (published / MANIFEST).unlink()
    write_document(published, msgspec.structs.replace(listed, files=files))
    with pytest.raises(CheckpointError, match=f"{name}, which can run code"):
        verify(published)
    assert not (published / "ran").exists()
