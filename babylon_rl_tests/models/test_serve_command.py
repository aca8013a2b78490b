from pathlib import Path

import pytest

from babylon_rl.cli import run


def test_an_unknown_version_is_said_with_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "v1.0.0").mkdir(parents=True)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    assert run(["serve", "model", "v9.9.9"]) == 3
    assert "no checkpoint v9.9.9 in" in (said := capsys.readouterr().err)
    assert "base, v1.0.0" in said
