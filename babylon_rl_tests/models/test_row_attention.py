"""Attention of a row gives the same bits in however many parts the row is read."""

from types import SimpleNamespace

import pytest
import torch

from babylon_rl.models.device import best_dtype
from babylon_rl.models.row_attention import Cache, Reading, Unread, attend

pytestmark = pytest.mark.slow  # torch is imported


@pytest.mark.skipif(best_dtype() != torch.bfloat16, reason="bits are promised where the processor has products of bfloat16")
@pytest.mark.parametrize("first", [1, 16, 47])
def test_a_row_that_is_read_in_parts_has_the_same_bits(first: int) -> None:
    torch.manual_seed(0)
    module, heads, tokens = SimpleNamespace(layer_idx=0), 64, 77
    for _ in range(20):
        query, key, value = (3 * torch.randn(1, heads, tokens, 64).bfloat16() for _ in range(3))
        whole, _ = attend(module, query, key, value, None, 0.125, Reading([Unread.text(range(tokens))], [[]]))
        parts, cache = [], Cache()
        for part in (slice(first), slice(first, tokens)):
            reading = Reading([Unread.text(range(tokens)[part])], [cache])
            parts.append(attend(module, query[:, :, part], key[:, :, part], value[:, :, part], None, 0.125, reading)[0])
        assert torch.equal(torch.cat(parts, 1), whole)
