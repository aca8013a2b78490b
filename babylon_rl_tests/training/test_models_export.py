"""Exported versions: loaded as other servers load them, and compared with what was trained; refusals in words."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from babylon_rl.errors import BabylonError, CheckpointError, ExportError, ModelUnavailable, UsageError
from babylon_rl.files.durable import sha256
from babylon_rl.models.base_model import quiet_loading
from babylon_rl.models.checkpoints import WEIGHTS, RemoteCheckpoint, base_identity, publish, verify, write_document
from babylon_rl.settings import Settings
from babylon_rl.store.registry import Model
from babylon_rl.training.export.model import export_version, find_version
from babylon_rl.types import BenchmarkReport
from babylon_rl_tests.full_disk import full_disk
from babylon_rl_tests.tiny_model import make_adapter, make_base, make_manifest
from babylon_rl_tests.training.sample import NOW, make_model

pytestmark = pytest.mark.slow  # torch is imported


@pytest.fixture
def here(settings: Settings, tiny_base: Path) -> Settings:
    return settings.model_copy(update={"local_base_model": str(tiny_base)})


@pytest.fixture
def version(here: Settings, tiny_base: Path) -> Model:
    """v1.0.0 as it lies among the checkpoints."""
    directory = here.home / "checkpoints" / "v1.0.0"
    made = make_adapter(tiny_base, here.home / "made")
    (made / "README.md").unlink()
    publish(made, directory, make_manifest(base_identity(tiny_base, "tiny")))
    return make_model(checkpoint=str(directory))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 17, 40, 3, 99]])).logits[0]


def base(directory: Path) -> torch.nn.Module:
    with quiet_loading():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def with_adapter(base_dir: Path, adapter: str | Path | None) -> torch.nn.Module:
    with quiet_loading():
        return PeftModel.from_pretrained(base(base_dir), str(adapter)).eval()


def test_an_exported_adapter_is_the_checkpoint_and_loads_on_the_base(
    version: Model, here: Settings, tiny_base: Path, tmp_path: Path
) -> None:
    _, kl = export_version(version, tmp_path / "out", here)
    assert kl == 0.0 and verify(tmp_path / "out", tiny_base).version == "v1.0.0"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["peft_type"]) == ("tiny", "LORA")
    loaded = with_adapter(tiny_base, tmp_path / "out")
    trained = with_adapter(tiny_base, version.checkpoint)
    assert torch.equal(logits(loaded), logits(trained))
    assert not torch.allclose(logits(loaded), logits(base(tiny_base)), atol=0.1)


@pytest.mark.parametrize("merged", [False, True])
def test_the_card_of_an_export_has_the_benchmark_and_what_was_trained_with(
    version: Model, here: Settings, tiny_base: Path, tmp_path: Path, merged: bool
) -> None:
    own = {"model": "v1.0.0", "pnl": 81.2, "low": 60.0, "high": 101.0, "improvement": 40.5, "improvementLow": 10.0, "improvementHigh": 71.0}
    own |= {"expected": 75.0, "ofCeiling": 0.84, "ofCeilingLow": 0.79, "ofCeilingHigh": 0.88}
    report = BenchmarkReport(
        batch_id="b", version="v1.0.0", reference="base", decision="pass", reason="It earns more.", markets=48, min_improvement=0.0,
        rows=[{"model": "base"}, own], table_markdown="", data_version="", plot_path=None, created_at=NOW,
    )  # fmt: skip
    before = (Path(version.checkpoint or "") / "README.md").read_text()
    assert "`babylon-rl models card v1.0.0`" in before
    export_version(version, tmp_path / "out", here, report, merged=merged)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Decision | pass: It earns more. |" in card and "| Above base, $ an hour | +40.5 (+10.0 to +71.0) |" in card
    assert "| P&L, $ an hour | +81.2 (+60.0 to +101.0) |" in card and "| Markets | 48, unseen in training |" in card
    assert "| Of the best play from the prompt | 84% (79% to 88%) |" in card and "luck of prices, $ an hour | +75.0 |" in card
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"]["README.md"] == sha256(tmp_path / "out" / "README.md")
    assert (Path(version.checkpoint or "") / "README.md").read_text() == before
    if not merged:
        verify(tmp_path / "out", tiny_base)


def test_a_merged_model_needs_neither_peft_nor_the_base(version: Model, here: Settings, tiny_base: Path, tmp_path: Path) -> None:
    files, _ = export_version(version, tmp_path / "out", here, merged=True)
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md", "manifest.json"} <= set(files)
    trained = with_adapter(tiny_base, version.checkpoint)
    assert torch.allclose(logits(base(tmp_path / "out")), logits(trained), atol=1e-4)
    message = [{"role": "user", "content": "x"}]
    ours, theirs = (
        AutoTokenizer.from_pretrained(where).apply_chat_template(message, tokenize=False) for where in (tiny_base, tmp_path / "out")
    )
    assert ours == theirs
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_directory_with_files_is_left_as_it_is(version: Model, here: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_version(version, tmp_path / "out", here)  # an empty one is taken
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(UsageError, match="not empty"):
        export_version(version, tmp_path / "out", here, merged=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_what_cannot_be_exported_says_why(version: Model, here: Settings, tmp_path: Path) -> None:
    remote = here.home / "checkpoints" / "v1.0.1"
    remote.mkdir()
    pointer = {
        "service": "https://a",
        "model": "m",
        "step": 3,
        "artifact": "me/p/m:step3",
        "inference_name": "wandb-artifact:///me",
        "inference_url": "https://b",
    }
    write_document(remote, RemoteCheckpoint(**pointer))
    cases: list[tuple[Model, type[BabylonError], str]] = [
        (make_model(foreign=True, storage_path="s3://theirs"), UsageError, "another producer.*s3://theirs"),
        (make_model(base_model="dry"), UsageError, "dry run"),
        (make_model("v1.0.1", checkpoint=str(remote)), UsageError, "wandb artifact get me/p/m:step3"),
        (make_model("v9.0.0", checkpoint=str(tmp_path / "gone")), CheckpointError, "is not there"),
        (make_model("v9.0.0", checkpoint=str(tmp_path / "gone"), pruned_at=NOW, uploaded_url="s3://b/v9.0.0"), CheckpointError,
         "was pruned on 2025-10-30.*s3://b/v9.0.0"),
    ]  # fmt: skip
    for model, kind, said in cases:
        with pytest.raises(kind, match=said):
            export_version(model, tmp_path / "out", here)
    with pytest.raises(UsageError, match=r"no registered version 'v3'; there are: v1\.0\.0"):
        find_version([version], "v3")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_another_base_or_no_base_is_refused(version: Model, here: Settings, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=3)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    with pytest.raises(CheckpointError, match="the base given has another config.*LOCAL_BASE_MODEL"):
        export_version(version, tmp_path / "out", here.model_copy(update={"local_base_model": str(other)}))
    (other / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors is missing"):
        export_version(version, tmp_path / "out", here.model_copy(update={"local_base_model": str(other)}))
    weights = Path(str(version.checkpoint)) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        export_version(version, tmp_path / "out", here)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("merged", [False, True])
def test_a_full_disk_leaves_nothing(version: Model, here: Settings, tmp_path: Path, merged: bool) -> None:
    with full_disk(2000), pytest.raises(ExportError, match="make room"):
        export_version(version, tmp_path / "out", here, merged=merged)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out-*"))
