"""Generation of text for rows of one adapter side by side, one token at a time.

Every row has a grammar's state and a random generator of its own; tokens are drawn by the inverse of their distribution function.
New rows may join between two tokens: their prompts are read in a batch of their own, then their caches are put under the others.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from babylon_rl.models.grammar import Trie
from babylon_rl.models.scoring import FUSED, best_attention, legal_logprobs

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Row:
    """State of a request; ``pending`` are the tokens that the model has not read yet."""

    prompt: tuple[int, ...]
    node: Trie | None
    temperature: float
    rng: random.Random
    max_tokens: int
    end: int
    adapter: str | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pending: list[int] = field(init=False)
    done: bool = False

    def __post_init__(self) -> None:
        self.pending = list(self.prompt)

    def take(self, token: int, logprob: float) -> None:
        """Append a chosen token, and every token that it forces."""
        self.pending = []
        self._append(token, logprob)
        self.follow_forced()

    def follow_forced(self) -> None:
        """Append tokens while there is one legal continuation."""
        while not self.done and self.node is not None and len(self.node.children) == 1:
            self._append(next(iter(self.node.children)), 0.0)

    def _append(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.pending.append(token)
        if self.node is not None:
            self.node = self.node.children[token]
        self.done = token == self.end or len(self.tokens) >= self.max_tokens


def choose(rows: Sequence[Row], hidden_bd: "torch.Tensor", head_vd: "torch.Tensor") -> None:
    """Draw each row's next token from the softmax over its legal tokens."""
    import torch

    # Rows under a grammar are computed together, over their legal tokens only.
    bound = [n for n, row in enumerate(rows) if row.node is not None]
    if bound:
        legal_n = [node.legal for row in rows if (node := row.node) is not None]
        values = legal_logprobs(hidden_bd[bound], head_vd, legal_n).tolist()
        for n, legal, logprobs in zip(bound, legal_n, values, strict=True):
            picked = _pick(rows[n], logprobs[: len(legal)])
            rows[n].take(legal[picked], logprobs[picked])
    # Free rows use the whole vocabulary.
    for n, row in enumerate(rows):
        if n not in bound:
            logprobs_v = torch.log_softmax((hidden_bd[n] @ head_vd.T).float(), dim=-1)
            token = int(logprobs_v.argmax()) if row.temperature == 0 else _pick_open(row, logprobs_v)
            row.take(token, float(logprobs_v[token]))


def _pick(row: Row, logprobs: Sequence[float]) -> int:
    if row.temperature == 0:
        return max(range(len(logprobs)), key=logprobs.__getitem__)
    top = max(logprobs)
    # Relative to the likeliest: at a low temperature the exponent of the value itself would leave the range of a float.
    weights = [math.exp((value - top) / row.temperature) for value in logprobs]
    target, running = row.rng.random() * sum(weights), 0.0
    for index, weight in enumerate(weights):
        running += weight
        if target < running:
            return index
    return max(range(len(weights)), key=weights.__getitem__)  # rounding left the target at the very end


def _pick_open(row: Row, logprobs_v: "torch.Tensor") -> int:
    import torch

    cumulative = torch.softmax(logprobs_v.double() / row.temperature, dim=-1).cumsum(-1)
    target = row.rng.random() * float(cumulative[-1])
    return min(int(torch.searchsorted(cumulative, target, right=True)), len(logprobs_v) - 1)


SHARED_PREFIX_MINIMUM = 12


class KVCache:
    """Keys and values of the tokens read so far, by row; lengths may differ."""

    def __init__(self, causal: Any, pad: int, device: "torch.device") -> None:
        import torch
        from transformers import DynamicCache

        self._causal = causal
        self._cache: Any = DynamicCache(config=causal.config)
        self._pad = pad
        self._past = torch.zeros((1, 0), dtype=torch.long, device=device)

    def read_prompts(self, prompts_u: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Read U different prompts, their common prefix once; return the last hidden states, [U, D]."""
        shared = shared_prefix(prompts_u)
        if shared:
            self.read([prompts_u[0][:shared]])
        # The prefix's one row becomes a row of each prompt.
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
        # For a row alone, or a token a row, fused attention is as fast or faster: it copies no keys for each head.
        batch = len(rows) > 1 and width > 1
        self._causal.set_attn_implementation(best_attention(len(rows) * width * self._past.shape[1]) if batch else FUSED)
        backbone = self._causal.base_model
        out = backbone(input_ids=ids, attention_mask=self._past, position_ids=positions, past_key_values=self._cache, use_cache=True)
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

        # Stable, so that a row's tokens keep their order while the padding between them moves behind.
        first = self._past.argsort(dim=1, descending=True, stable=True)[:, :width]
        rows = torch.arange(len(first), device=first.device)[:, None]
        missing = width - first.shape[1]

        def pack(states: "torch.Tensor") -> "torch.Tensor":
            # Indexing rows and columns puts them first: [B, width, heads, D].
            return torch.nn.functional.pad(states[rows, :, first].transpose(1, 2), (0, 0, 0, missing))

        return [(pack(layer.keys), pack(layer.values)) for layer in self._cache.layers]


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix, a token short of any prompt; 0 if too short."""
    if len(prompts) == 1:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # the lexicographic extremes share what all share
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if shared >= SHARED_PREFIX_MINIMUM else 0


class Generation:
    """A running batch; call it under the adapter of its rows."""

    def __init__(self, causal: Any, pad: int) -> None:
        self._causal, self._pad = causal, pad
        self._head = causal.get_output_embeddings().weight
        self._cache: KVCache | None = None
        self.rows: list[Row] = []

    def unfinished(self) -> bool:
        """Return True while a row lacks tokens."""
        return any(not row.done for row in self.rows)

    def admit(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and draw the first token of each."""
        if not rows:
            return
        # Equal prompts are read once, then expanded to their rows.
        prompts = sorted({tuple(row.pending) for row in rows})
        cache = KVCache(self._causal, self._pad, self._head.device)
        hidden_ud = cache.read_prompts(prompts)
        which = [prompts.index(tuple(row.pending)) for row in rows]
        cache.keep(which)
        choose(rows, hidden_ud[which], self._head)
        self.drop_finished()
        if self._cache is None:
            self._cache = cache
        else:
            self._cache.join(cache)
        self.rows.extend(rows)

    def step(self) -> None:
        """Draw the next token of every row that is not finished; those that are leave."""
        self.drop_finished()
        if self._cache is not None:
            # Pending is the token that was drawn and those that the grammar forced after it: all are read in one pass.
            choose(self.rows, self._cache.read([row.pending for row in self.rows]), self._head)

    def drop_finished(self) -> None:
        """Remove finished rows from the batch and its cache."""
        going = [n for n, row in enumerate(self.rows) if not row.done]
        if len(going) < len(self.rows):
            self.rows = [self.rows[n] for n in going]
            if self._cache is not None and going:
                self._cache.keep(going)
            elif not going:
                self._cache = None
