"""A tiny random Llama with a byte-level tokenizer and a chat template: everything but the wits of the real base, in 200 KB.

Rooms that need a model import the fixtures into their conftest, which therefore does without torch until a test asks for one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.models.base_model import quiet_loading
from babylon_rl.models.checkpoints import BaseIdentity, Manifest
from babylon_rl_tests.tiny_tokenizer import make_tokenizer


def make_base(directory: Path, seed: int = 0, tokenizer: Any = None, positions: int = 512, family: str = "llama", **changes: Any) -> Path:
    """Weights are drawn wide, so that distributions are far from uniform and adapters matter; ``changes`` are of its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,  # the lowest stays frozen in training
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
    }
    with quiet_loading():
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape | changes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_adapter(base: Path, directory: Path, seed: int = 1, targets: Sequence[str] = ("q_proj", "v_proj")) -> Path:
    """A LoRA adapter of some modules whose B matrices are not zero: it changes what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets))
    with quiet_loading():
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        model.save_pretrained(directory)
    return directory


def make_manifest(base: BaseIdentity, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "version": "v1.0.0",
        "base": base,
        "created_at": "2025-10-29T15:00:00",
        "windows": ("2025-10-29T14:00",),
        "metrics": {"loss": 0.5},
    }
    return Manifest(**{**values, **changes})


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def trade_format() -> dict[str, Any]:
    """hold, or buy or sell one of three markets: seven answers."""
    markets = ["OPENLIE", "TESLAI", "Will it rain?"]
    hold = {"type": "object", "properties": {"action": {"const": "hold"}}, "required": ["action"]}
    trade = {
        "type": "object",
        "properties": {"action": {"enum": ["buy", "sell"]}, "market": {"enum": markets}},
        "required": ["action", "market"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "trade", "schema": {"anyOf": [hold, trade]}}}
