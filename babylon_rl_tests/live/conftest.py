"""Tests against real services, run by `make test-live` only: keys come from the environment and .env, as for any command.

A test whose key is absent is skipped and says which key it wants.
"""

from pathlib import Path

import pytest

from babylon_rl.settings import HEURISTIC, Settings, load_settings


@pytest.fixture
def keys(tmp_path: Path) -> Settings:
    """The user's own settings, at home in a temporary directory; the judge is left to its own test."""
    return load_settings(judge_model=HEURISTIC, babylon_rl_home=tmp_path / "home")


@pytest.fixture
def wandb_key(keys: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str | None:
    """The key of Weights & Biases, whose login file and run directories go into a temporary directory."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)  # handed over where it is used; ART makes a run of its own when it finds it
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return None if keys.wandb_api_key is None else keys.wandb_api_key.get_secret_value()
