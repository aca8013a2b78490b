"""Incremental forward pass with a KV cache for ragged batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SHARED_PREFIX_MINIMUM = 12


class KVCache:
    """Keys and values of the tokens that the model has read, row by row.

    Rows may have different lengths at every step.
    """

    def __init__(self, causal: Any, pad: int, device: "torch.device") -> None:
        import torch
        from transformers import DynamicCache

        self._backbone = causal.base_model
        self._cache: Any = DynamicCache(config=causal.config)
        self._pad = pad
        self._past = torch.zeros((1, 0), dtype=torch.long, device=device)

    def read_prompts(self, prompts_u: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Read U different prompts, their common prefix once; return the last hidden states, [U, D]."""
        shared = shared_prefix(prompts_u)
        if shared:
            self.read([prompts_u[0][:shared]])
        self.keep([0] * len(prompts_u))
        return self.read([prompt[shared:] for prompt in prompts_u])

    def read(self, rows: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Append B rows of tokens; return their last hidden states, [B, D]."""
        import torch

        width, device = max(map(len, rows)), self._past.device
        ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        # Positions count real tokens only; padding is masked.
        positions = (self._past.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)
        self._past = torch.cat([self._past, mask], dim=1)
        out = self._backbone(input_ids=ids, attention_mask=self._past, position_ids=positions, past_key_values=self._cache, use_cache=True)
        hidden: torch.Tensor = out.last_hidden_state[torch.arange(len(rows), device=device), mask.sum(1) - 1]
        return hidden

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        import torch

        indices = torch.tensor(rows, device=self._past.device)
        self._past = self._past[indices]
        if self._past.shape[1]:
            self._cache.batch_select_indices(indices)

    def join(self, other: "KVCache") -> None:
        """Append the rows of another cache of the same model.

        Each row's tokens move to the front first: columns that only rows which have left were using are dropped.
        """
        import torch

        width = int(torch.cat([self._past.sum(1), other._past.sum(1)]).max())
        ours, theirs = self._packed(width), other._packed(width)
        for layer, mine, its in zip(self._cache.layers, ours, theirs, strict=True):
            layer.keys, layer.values = (torch.cat(pair) for pair in zip(mine, its, strict=True))
        lengths = torch.cat([self._past.sum(1), other._past.sum(1)])
        self._past = (torch.arange(width, device=lengths.device)[None] < lengths[:, None]).long()

    def _packed(self, width: int) -> "list[tuple[torch.Tensor, torch.Tensor]]":
        """Keys and values by layer, each [B, heads, width, D], every row's tokens first."""
        import torch

        first = self._past.argsort(dim=1, descending=True, stable=True)[:, :width]
        rows = torch.arange(len(first), device=first.device)[:, None]
        missing = width - first.shape[1]

        def pack(states: "torch.Tensor") -> "torch.Tensor":
            # Indexing rows and columns puts them first: [B, width, heads, D].
            return torch.nn.functional.pad(states[rows, :, first].transpose(1, 2), (0, 0, 0, missing))

        return [(pack(layer.keys), pack(layer.values)) for layer in self._cache.layers]


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix of all prompts, leaving each at least one token.

    0 when it is too short to be worth a separate pass.
    """
    if len(prompts) == 1:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # the lexicographic extremes share what all share
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if shared >= SHARED_PREFIX_MINIMUM else 0
