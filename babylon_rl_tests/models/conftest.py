"""Policies and published checkpoints of the tiny base."""

from pathlib import Path
from typing import Any

import pytest

from babylon_rl.files import file_sets
from babylon_rl.models.checkpoints import base_identity, publish
from babylon_rl.models.policy import Policy
from babylon_rl_tests.tiny_model import make_adapter, make_base, make_manifest, tiny_adapter, tiny_base, trade_format

__all__ = ["make_adapter", "make_base", "make_manifest", "tiny_adapter", "tiny_base", "trade_format"]


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that fails is tried twice, with hardly a pause."""
    monkeypatch.setattr(file_sets, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(file_sets, "ATTEMPTS", 2)


@pytest.fixture
def published(tiny_base: Path, tmp_path: Path) -> Path:
    """A published checkpoint of the tiny base."""
    made = make_adapter(tiny_base, tmp_path / ".making")
    publish(made, tmp_path / "checkpoints" / "v1.0.0", make_manifest(base_identity(tiny_base, "tiny")))
    return tmp_path / "checkpoints" / "v1.0.0"


@pytest.fixture
def policy(loaded_policy: Policy) -> Policy:
    """The loaded policy, without what it was asked by other tests."""
    return fresh(loaded_policy)


def fresh(policy: Policy) -> Policy:
    """The same policy without kept prompts."""
    return Policy(policy.model, policy.tokenizer, policy._adapters)


@pytest.fixture(scope="session")
def loaded_policy(tiny_base: Path, tiny_adapter: Path) -> Policy:
    """Base and one adapter (v1.0.0) in float32, where rounding hides nothing."""
    import torch

    torch.set_num_threads(1)
    return Policy.load(tiny_base, tiny_adapter, dtype=torch.float32, adapter_name="v1.0.0")


@pytest.fixture(scope="session")
def tokenizer(loaded_policy: Policy) -> Any:
    return loaded_policy.tokenizer
