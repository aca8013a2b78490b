"""Device of a model: the processor, or a GPU where torch sees one.

One code computes on both; the differences lie here. On a GPU weights are bfloat16, the default stream does all, and batches are as large as
the free memory allows. Adapters and their optimizer's state are float32 on both. ``CUDA_VISIBLE_DEVICES=`` hides a GPU.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

# Of the memory that is free before the weights are loaded: a training and a model server may share a GPU.
SHARE_OF_MEMORY = 0.5
KEPT_SCORES = 768  # of a token, for a head: longer rows are fused, and keep none (row_attention.py)
GPU_ROWS = 64


@dataclass(frozen=True)
class Device:
    """A device of torch by its name, and on a GPU the bytes that are free there (None: the processor)."""

    name: str = "cpu"
    free_bytes: int | None = None

    @property
    def gpu(self) -> bool:
        """True if computed as on a GPU."""
        return self.free_bytes is not None

    def dtype(self) -> torch.dtype:
        """Precision of a base's weights."""
        return torch.bfloat16 if self.gpu else best_dtype()

    def place(self, causal: Any) -> Any:
        """Move a loaded base to the device."""
        return causal.to(self.name)


PROCESSOR = Device()


def best_device() -> Device:
    """The GPU if torch sees one, else the processor."""
    if not torch.cuda.is_available():
        return PROCESSOR
    torch.cuda.empty_cache()  # torch keeps the memory of a model that is gone
    return Device("cuda", torch.cuda.mem_get_info()[0])


@dataclass(frozen=True)
class BatchSizes:
    """Most rows and tokens that are computed at once; by default on the processor.

    ``training_tokens`` are of a group of packs, ``prompt_tokens`` of prompts that are read together by ``rows`` requests, ``cache_tokens``
    of all texts that a server continues.
    """

    training_tokens: int = 864  # small operations are worth it with more, and with two threads each has a group
    prompt_tokens: int = 4096
    rows: int = 16
    cache_tokens: int = 32_768  # with the packaged base 23 kB each


def batch_sizes(device: Device, causal: Any) -> BatchSizes:
    """Sizes for a base; on a GPU powers of two, so that a little free memory changes neither a batch nor its bits."""
    if device.free_bytes is None:
        return BatchSizes()
    config, least = causal.config, BatchSizes()
    weights = sum(weight.nbytes for weight in causal.parameters())
    room = int(device.free_bytes * SHARE_OF_MEMORY) - weights
    kept = config.num_hidden_layers * 4 * config.num_key_value_heads * _head_width(config)  # keys and values in bfloat16
    training = max(least.training_tokens, _power_of_two(room // training_bytes(config)))
    return BatchSizes(training, max(least.prompt_tokens, training), GPU_ROWS, max(least.cache_tokens, _power_of_two(room // 2 // kept)))


def training_bytes(config: Any) -> int:
    """Bytes that a pass keeps of a token for its backward pass, at most.

    Of a layer: inputs of products, also in float32 for the adapters, of norms and activations; and its scores.
    """
    width = max(config.hidden_size, config.num_attention_heads * _head_width(config))
    of_layer = 32 * width + 10 * config.intermediate_size + 4 * config.num_attention_heads * KEPT_SCORES
    return int(config.num_hidden_layers * of_layer)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _power_of_two(number: int) -> int:
    """The largest one that is not above ``number``, 0 for none."""
    return 1 << number.bit_length() - 1 if number > 0 else 0


def best_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies faster in it, else float32.

    By AMX, or by AVX512_BF16 but for Intel's: with AMX switched off, as in some virtual machines, these are half as fast as float32.
    """
    fast = "amx_bf16" in _cpu_words("flags") or ("avx512_bf16" in _cpu_words("flags") and "GenuineIntel" not in _cpu_words("vendor_id"))
    return torch.bfloat16 if fast else torch.float32


@lru_cache
def _cpu_words(name: str) -> frozenset[str]:
    """Words of a line about the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith(name)), []))
