"""Prepacked layers give the same bits as plain ones, hold each weight once, and take adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch

from babylon_rl.models.device import best_dtype
from babylon_rl.models.policy import Policy
from babylon_rl.models.prepacked import PrepackedLinear
from babylon_rl.training.backends.cpu.policy import load_policy

pytestmark = [
    pytest.mark.slow,  # torch is imported
    pytest.mark.skipif(best_dtype() != torch.bfloat16, reason="weights are packed where the processor has products of bfloat16"),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(192, 576), (48, 40)])
def test_products_and_gradients_have_the_same_bits(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(shape[1], shape[0], bias, dtype=torch.bfloat16).requires_grad_(False)
    packed = PrepackedLinear(plain)
    assert torch.equal(packed.weight, plain.weight)
    for tokens in (1, 2, 3, 16, 17, 110, 500, 864):
        given, back = torch.randn(1, tokens, shape[1]).bfloat16(), torch.randn(1, tokens, shape[0]).bfloat16()
        found = []
        for layer in (plain, packed):
            start = given.clone().requires_grad_()
            out = layer(start)
            found.append((out, *torch.autograd.grad(out, start, back), layer(given)))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)), tokens


def test_a_base_is_packed_once_for_all_threads_and_its_adapters(tiny_base: Path, tiny_adapter: Path) -> None:
    policy = Policy.load(tiny_base, tiny_adapter, adapter_name="v1.0.0")
    packed, plain = layers(policy.model)
    assert len(packed) == 7 * policy.model.config.num_hidden_layers
    assert not any(parameter.numel() for layer in packed for parameter in layer.parameters())
    assert all("lora" in name or "head" in name for name in plain)
    again, _ = layers(policy.twin().model)
    assert [id(layer._packed) for layer in packed] == [id(layer._packed) for layer in again]


def test_a_base_in_float32_stays_plain(tiny_base: Path) -> None:
    assert not layers(load_policy(tiny_base, None, torch.float32)[1])[0]


def layers(model: Any) -> tuple[list[PrepackedLinear], list[str]]:
    """The packed layers of a model, and the names of its plain ones."""
    packed = [module for module in model.modules() if isinstance(module, PrepackedLinear)]
    return packed, [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
