"""Reading of rows of different lengths that lie one after another, without padding.

The model computes all rows as one: products see every token at once. Attention is computed for each row alone, over what the row has read.
So no bit of a row's numbers depends on the rows beside it, nor on how many passes it was read in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from babylon_rl.models.scoring import FUSED, best_attention

if TYPE_CHECKING:
    from torch import Tensor

ROWS = "rows"  # the name under which transformers finds it
# Keys and values of what a row has read, [G, M, D] each, by layer.
Cache = list["tuple[Tensor, Tensor]"]


@dataclass(frozen=True)
class Unread:
    """Tokens that a row is to read, and the token before each: its index in ``tokens``, -1 for the last that was read."""

    tokens: Sequence[int]
    before: Sequence[int]

    @classmethod
    def text(cls, tokens: Sequence[int]) -> "Unread":
        """Tokens that follow each other."""
        return cls(tokens, range(-1, len(tokens) - 1))

    def then(self, tree: "Unread") -> "Unread":
        """These tokens, then others whose ``before`` counts from these."""
        return Unread([*self.tokens, *tree.tokens], [*self.before, *tree.before])

    @property
    def branches(self) -> bool:
        """True if a token does not follow the one that stands before it."""
        return list(self.before) != list(range(-1, len(self.tokens) - 1))

    def depths(self) -> list[int]:
        """Number of tokens between the last that was read and each one."""
        depths: list[int] = []
        for before in self.before:
            depths.append(0 if before < 0 else depths[before] + 1)
        return depths


class Reading:
    """One pass over rows that lie one after another, each with the cache of what it has read."""

    def __init__(self, rows: Sequence[Unread], caches: Sequence[Cache]) -> None:
        self.spans: list[tuple[int, int]] = []
        end = 0
        for row in rows:
            self.spans.append((end, end := end + len(row.tokens)))
        self.rows, self.caches = rows, caches
        self._masks: dict[object, Tensor] = {}

    def mask(self, place: int, read: int, like: "Tensor") -> "Tensor":
        """[N, read + N] mask of the scores of a row's N new tokens."""
        import torch

        row = self.rows[place]
        key = place if row.branches else (len(row.tokens), read)
        if key not in self._masks:
            new = len(row.tokens)
            if row.branches:
                sees = torch.zeros((new, new), dtype=torch.bool)
                for token, before in enumerate(row.before):
                    if before >= 0:
                        sees[token] = sees[before]
                    sees[token, token] = True
            else:
                sees = torch.ones((new, new), dtype=torch.bool).tril()
            hidden = torch.zeros((new, read + new), dtype=like.dtype)
            hidden[:, read:].masked_fill_(~sees, float("-inf"))
            self._masks[key] = hidden.to(like.device)
        return self._masks[key]


def attend(
    module: Any, query: "Tensor", key: "Tensor", value: "Tensor", attention_mask: None, scaling: float, reading: Reading, **_: Any
) -> "tuple[Tensor, None]":
    """Attention as transformers calls it: query [1, H, T, D], keys and values [1, G, T, D] of all rows' T tokens."""
    import torch

    layer, outputs = module.layer_idx, []
    queries = query[0] * scaling
    for place, ((start, end), cache) in enumerate(zip(reading.spans, reading.caches, strict=True)):
        keys, values = key[0, :, start:end], value[0, :, start:end]
        if layer < len(cache):
            keys, values = torch.cat([cache[layer][0], keys], 1), torch.cat([cache[layer][1], values], 1)
            cache[layer] = keys, values
        else:
            cache.append((keys, values))
        mask = None if end - start == 1 else reading.mask(place, keys.shape[1] - end + start, query)
        outputs.append(_of_row(queries[:, start:end], keys, values, mask))
    return torch.cat(outputs, 1).transpose(0, 1)[None], None


def _of_row(query: "Tensor", keys: "Tensor", values: "Tensor", mask: "Tensor | None") -> "Tensor":
    """[H, N, D] for N new tokens of M; H heads of queries share G of keys."""
    import torch

    heads, new, width = query.shape
    groups, read = keys.shape[:2]
    if best_attention(new * read) == FUSED:
        fused = torch.nn.functional.scaled_dot_product_attention
        return fused(query[None], keys[None], values[None], mask, scale=1.0, enable_gqa=True)[0]
    # Heads of a group lie one after another, so that keys are not copied for each.
    scores = torch.bmm(query.reshape(groups, -1, width), keys.transpose(1, 2))
    if mask is not None:
        scores.view(groups, -1, new, read).add_(mask)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
    return torch.bmm(weights, values).view(heads, new, width)


def read_rows(causal: Any, rows: Sequence[Unread], caches: Sequence[Cache]) -> "list[Tensor]":
    """Append what rows have not read to their caches; return the hidden states of each row's N new tokens, [N, D].

    Within ``attention_by_row``. After a row that branches its cache holds all branches: nothing can be read after it.
    """
    import torch

    reading, device = Reading(rows, caches), causal.device
    ids = torch.tensor([[token for row in rows for token in row.tokens]], device=device)
    read = [cache[0][0].shape[1] if cache else 0 for cache in caches]
    positions = torch.tensor([[before + depth for row, before in zip(rows, read, strict=True) for depth in row.depths()]], device=device)
    out = causal.base_model(input_ids=ids, position_ids=positions, use_cache=False, reading=reading)
    return [out.last_hidden_state[0, start:end] for start, end in reading.spans]


def first_tokens(cache: Cache, tokens: int) -> Cache:
    """The cache of a row that has read only these first tokens."""
    return [(keys[:, :tokens], values[:, :tokens]) for keys, values in cache]


@contextmanager
def attention_by_row(causal: Any) -> Iterator[None]:
    """Let a model's attention be that of ``read_rows`` within the block."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ROWS, attend)
    # Masks are made for each row, above.
    AttentionMaskInterface.register(ROWS, lambda *_, **__: None)
    before = causal.config._attn_implementation
    causal.set_attn_implementation(ROWS)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)
