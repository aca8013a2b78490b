"""Forward pass over rows of different lengths, one after another, without padding.

The model computes all rows as one: products see every token at once. Attention is computed for each row alone, over what the row has read;
what several rows without caches begin with is computed once, and each of them sees it. So in bfloat16 no bit of a row's numbers depends on
the rows beside it, nor on how many passes it was read in, while it has at most 768 tokens (docs/decisions/0024-batches-side-by-side.md).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import mul
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from babylon_rl.errors import UsageError

# An operation of several threads costs 50 µs of waiting for each other, as much as all of it takes for some tokens. In float32, which a
# processor multiplies a fifth as fast, fewer are worth it.
TOKENS_WORTH_THREADS, IN_FLOAT32 = 512, 64
# Of a row, for a head in a layer: plain products beat torch's fused attention on a processor while scores are few, in the backward pass
# above all (benchmarks/cpu_trainer.py).
FEW_SCORES = 768 * 768
SHARED_PREFIX_MINIMUM = 12  # tokens: fewer are not worth a row of their own
# Scores: softmax sums whole vectors in one order and what is left in another, so that a row is filled up to whole ones.
_VECTOR = 16
ROWS = "rows"  # the name of this attention in transformers
MOST_FILLED = 2**24  # scores of rows that are computed as one, for a head: their mask has a byte for each
# Keys and values of what a row has read, [G, M, D] each, by layer.
Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Unread:
    """Tokens that a row is to read, and ``before`` each the index of the token before it, -1 for the last that was read."""

    tokens: Sequence[int]
    before: Sequence[int]

    @classmethod
    def text(cls, tokens: Sequence[int]) -> "Unread":
        """Tokens that follow each other."""
        return cls(tokens, range(-1, len(tokens) - 1))

    def then(self, tree: "Unread") -> "Unread":
        """These tokens, then others whose ``before`` counts from these."""
        return Unread([*self.tokens, *tree.tokens], [*self.before, *tree.before])

    @cached_property
    def trunk(self) -> int:
        """Number of first tokens that all later ones see."""
        return min((before + 1 for index, before in enumerate(self.before) if before != index - 1), default=len(self.tokens))

    @property
    def branches(self) -> bool:
        """True if a token does not follow the one that stands before it."""
        return self.trunk < len(self.tokens)

    def after(self, read: int) -> "Unread":
        """Return what is left after the first ``read`` tokens, all of the trunk."""
        return Unread(self.tokens[read:], [before - read for before in self.before[read:]])

    def sees(self) -> Tensor:
        """[N, N] which of the tokens each one sees."""
        if not self.branches:
            return torch.ones((len(self.tokens), len(self.tokens)), dtype=torch.bool).tril()
        sees = torch.zeros((len(self.tokens), len(self.tokens)), dtype=torch.bool)
        for token, before in enumerate(self.before):
            if before >= 0:
                sees[token] = sees[before]
            sees[token, token] = True
        return sees

    def depths(self) -> list[int]:
        """Number of tokens between the last that was read and each one."""
        depths: list[int] = []
        for before in self.before:
            depths.append(0 if before < 0 else depths[before] + 1)
        return depths


def shared_length(*texts: Sequence[int]) -> int:
    return len(commonprefix([tuple(text) for text in texts]))


def shared_trunk(rows: Sequence[Unread]) -> int:
    """Length of the prefix that a pass over several rows computes once; 0 where they have too few tokens in common."""
    if len(rows) < 2:
        return 0
    shared = min(shared_length(*(row.tokens for row in rows)), *(min(row.trunk, len(row.tokens) - 1) for row in rows))
    return shared if shared >= SHARED_PREFIX_MINIMUM else 0


def in_one_pass(rows: Sequence[Unread]) -> Unread:
    """Tokens of a pass over rows without caches: the trunk that they share, then the rest of each row."""
    trunk = shared_trunk(rows)
    tokens, before = list(rows[0].tokens[:trunk]), list(range(-1, trunk - 1))
    for row in rows:
        start, left = len(tokens), row.after(trunk)
        tokens += left.tokens
        before += [trunk - 1 if one < 0 else start + one for one in left.before]
    return Unread(tokens, before)


@dataclass
class LowerStates:
    """States [1, T, D] of a pass's T tokens before a layer. None: the pass computes them, and ``record_lower`` records them."""

    layer: int
    tokens: Unread
    states: Tensor | None = None


class KnownStates:
    """Store of tokens' states before a layer, ``most_bytes`` at most.

    A token is found in any row where the same tokens stand before it. What is added is found after ``show``: passes side by side find the
    same, whichever ends first.
    """

    def __init__(self, layer: int, most_bytes: int) -> None:
        self._layer, self._most_bytes, self._shown = layer, most_bytes, 0
        # By the place of the token before, -1 for none, and the token.
        self._places: dict[tuple[int, int], int] = {}
        self._states_md: Tensor | None = None

    def find(self, rows: Sequence[Unread]) -> LowerStates:
        """Return the states of a pass over these rows, without ``states`` if one of them is not known."""
        lower, places = LowerStates(self._layer, in_one_pass(rows)), list[int]()
        for token, before in zip(lower.tokens.tokens, lower.tokens.before, strict=True):
            place = self._places.get((-1 if before < 0 else places[before], token), self._shown)
            if place >= self._shown:
                return lower
            places.append(place)
        if self._states_md is not None:
            lower.states = self._states_md[torch.tensor(places, device=self._states_md.device)][None]
        return lower

    def add(self, lower: LowerStates) -> None:
        """Keep the states of a pass, as many as there is room for."""
        if lower.states is None:
            return
        if self._states_md is None:
            of_token = lower.states[0, 0]
            self._states_md = of_token.new_empty((self._most_bytes // of_token.nbytes, len(of_token)))
        places, new = list[int](), dict[tuple[int, int], int]()
        indexes, start = list[int](), len(self._places)
        for index, (token, before) in enumerate(zip(lower.tokens.tokens, lower.tokens.before, strict=True)):
            key = (-1 if before < 0 else places[before], token)
            place = self._places.get(key, new.get(key))
            if place is None:
                place = start + len(new)
                if place == len(self._states_md):
                    break
                new[key] = place
                indexes.append(index)
            places.append(place)
        self._states_md[start : start + len(new)] = lower.states[0, indexes]
        self._places |= new

    def show(self) -> None:
        self._shown = len(self._places)


@dataclass(frozen=True)
class Filled:
    """B rows, filled up to N ``new`` tokens and M in all; the real numbers are ``new`` and ``whole``.

    ``queries`` [B, N] are indexes of the pass's tokens, ``keys`` [B, M] of all that the rows have read, one after another; ``sees``
    [B, 1, heads x N, M]; ``back`` [T] are the pass's tokens in B x N.
    """

    new: list[int]
    whole: list[int]
    queries: Tensor
    keys: Tensor
    sees: Tensor
    back: Tensor


class Reading:
    """One pass over rows that lie one after another, each with the cache of what it has read.

    Without caches, what all given rows begin with, the trunk, is the first of ``rows``; the others lack it, and see its keys and values.
    ``wanted``: of each given row, the tokens whose states are asked for (None: all), here as their indexes in the pass.
    """

    def __init__(
        self,
        rows: Sequence[Unread],
        caches: Sequence[Cache] | None = None,
        lower: LowerStates | None = None,
        wanted: Sequence[Sequence[int]] | None = None,
    ) -> None:
        asked = [range(len(row.tokens)) for row in rows] if wanted is None else wanted
        self.trunk = shared_trunk(rows) if caches is None else 0
        if self.trunk:
            rows = [Unread.text(rows[0].tokens[: self.trunk]), *(row.after(self.trunk) for row in rows)]
        self.spans: list[tuple[int, int]] = []
        end = 0
        for row in rows:
            self.spans.append((end, end := end + len(row.tokens)))
        self.rows, self.caches, self.lower = rows, caches, lower
        if caches is None:
            read = [self.trunk if row else 0 for row in range(len(rows))]
        else:
            read = [cache[0][0].shape[1] if cache else 0 for cache in caches]
        self.read = read
        self.positions = [before + depth for row, before in zip(rows, read, strict=True) for depth in row.depths()]
        self.filled: Filled | None = None
        self._masks: dict[object, Tensor] = {}
        self.wanted = [[self._index(row, token) for token in tokens] for row, tokens in enumerate(asked)]

    def _index(self, row: int, token: int) -> int:
        """Index in the pass of a token of a given row."""
        return token if token < self.trunk else self.spans[row + bool(self.trunk)][0] + token - self.trunk

    def fill(self, causal: Any) -> None:
        """Let rows with caches be computed as one, unless they are so different that it has many more scores."""
        new = [len(row.tokens) for row in self.rows]
        whole = [read + more for read, more in zip(self.read, new, strict=True)]
        most, width = max(new), -(-max(whole) // _VECTOR) * _VECTOR
        if len(new) * most * width > min(MOST_FILLED, 4 * sum(map(mul, new, whole)) + FEW_SCORES):
            return
        queries, keys = torch.zeros((len(new), most), dtype=torch.long), torch.zeros((len(new), width), dtype=torch.long)
        sees = torch.zeros((len(new), most, width), dtype=torch.bool)
        begins = 0
        for place, (start, end) in enumerate(self.spans):
            read, more, of_row = self.read[place], new[place], whole[place]
            queries[place, :more] = torch.arange(start, end)
            keys[place, :of_row] = torch.arange(begins, begins + of_row)
            sees[place, :more, :read], sees[place, :more, read:of_row] = True, self.rows[place].sees()
            begins += of_row
        back = torch.tensor([place * most + token for place, more in enumerate(new) for token in range(more)])
        heads = causal.config.num_attention_heads // causal.config.num_key_value_heads
        queries, keys, sees, back = (of.to(causal.device) for of in (queries, keys, sees, back))
        self.filled = Filled(new, whole, queries, keys, sees.repeat(1, heads, 1)[:, None], back)

    def mask(self, place: int, before: int, width: int, like: Tensor) -> Tensor:
        """[N, width] mask of the scores of the N new tokens of ``rows[place]``: all that was read is seen, what fills up is not."""
        row, new = self.rows[place], len(self.rows[place].tokens)
        key = (place if row.branches else new, before, width)
        if key not in self._masks:
            hidden = torch.full((new, width), float("-inf"), dtype=like.dtype)
            hidden[:, :before] = 0
            hidden[:, before : before + new].masked_fill_(row.sees(), 0)
            self._masks[key] = hidden.to(like.device)
        return self._masks[key]


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, reading: Reading,
    softcap: float | None = None, sliding_window: int | None = None, s_aux: object = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute attention row by row, called by transformers.

    ``query`` [1, H, T, D], ``key`` and ``value`` [1, G, T, D] are of the T tokens of all rows.

    Raises:
        UsageError: the base caps its scores, has attention sinks, or a window that is shorter than a row.
    """
    if softcap is not None or s_aux is not None:
        raise UsageError("The base model caps attention scores or has attention sinks, which is not computed here: choose another base.")
    if sliding_window is not None and max(reading.positions) >= sliding_window:
        raise UsageError(f"The base model attends to {sliding_window} tokens at most, and a prompt with its answer has more.")
    layer, outputs = module.layer_idx, []
    if reading.filled is not None and reading.caches is not None:
        return _together(reading.filled, reading.caches, layer, query[0] * scaling, key[0], value[0])[None], None
    queries, filling = query[0] * scaling, key.new_zeros((key.shape[1], _VECTOR - 1, key.shape[3]))
    for place, (start, end) in enumerate(reading.spans):
        parts = [(key[0, :, start:end], value[0, :, start:end])]
        if reading.caches is not None and layer < len(reading.caches[place]):
            parts.insert(0, reading.caches[place][layer])
        elif reading.trunk and place:
            parts.insert(0, (key[0, :, : reading.trunk], value[0, :, : reading.trunk]))
        read = sum(keys.shape[1] for keys, _ in parts)
        fused = (end - start) * read > FEW_SCORES
        if not fused and read % _VECTOR:
            parts.append((filling[:, : -read % _VECTOR],) * 2)
        keys, values = (torch.cat(one, 1) if len(one) > 1 else one[0] for one in zip(*parts, strict=True))
        if reading.caches is not None:
            # Appended, or in place of what the cache holds of this layer.
            reading.caches[place][layer : layer + 1] = [(keys[:, :read], values[:, :read])]
        row = _fused if fused else _plain
        outputs.append(row(reading, place, queries[:, start:end], keys, values, read))
    return torch.cat(outputs, 1).transpose(0, 1)[None], None


AttentionInterface.register(ROWS, attend)
# Masks are made for each row, by ``Reading``.
AttentionMaskInterface.register(ROWS, lambda *_, **__: None)


def _together(filled: Filled, caches: Sequence[Cache], layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[T, H, D] for the new tokens of all rows at once; their caches become parts of one tensor."""
    groups, heads = key.shape[0], query.shape[0] // key.shape[0]
    new = zip(caches, key.split(filled.new, 1), value.split(filled.new, 1), strict=True)
    parts = [part for cache, *more in new for part in (*cache[layer : layer + 1], more)]
    keys, values = (torch.cat(of, 1) for of in zip(*parts, strict=True))
    for cache, of_keys, of_values in zip(caches, keys.split(filled.whole, 1), values.split(filled.whole, 1), strict=True):
        cache[layer : layer + 1] = [(of_keys, of_values)]
    # Heads that share keys lie one after another: [B, G, heads x N, D].
    queries = query[:, filled.queries].unflatten(0, (groups, heads)).permute(2, 0, 1, 3, 4).flatten(2, 3)
    keys, values = (of[:, filled.keys].transpose(0, 1) for of in (keys, values))
    found = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, filled.sees, scale=1.0)
    return found.unflatten(2, (heads, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)[filled.back].flatten(1, 2)


def _fused(reading: Reading, place: int, query: Tensor, keys: Tensor, values: Tensor, read: int) -> Tensor:
    """[H, N, D] for N new tokens of those read; H heads of queries share G of keys."""
    new = query.shape[1]
    # Without a mask it leaves out what a token cannot see.
    causal = new == read and not reading.rows[place].branches
    mask = None if causal else reading.mask(place, read - new, read, query)
    if mask is not None and query.device.type != "cpu":
        # A GPU's fused attention with a mask wants as many heads of keys; what it falls back to keeps all scores.
        keys, values = (heads.repeat_interleave(len(query) // len(heads), 0) for heads in (keys, values))
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(query[None], keys[None], values[None], mask, is_causal=causal, scale=1.0, enable_gqa=len(keys) < len(query))[0]


def _plain(reading: Reading, place: int, query: Tensor, keys: Tensor, values: Tensor, read: int) -> Tensor:
    """The same by products of matrices; keys and values are filled up to whole vectors."""
    heads, new, width = query.shape
    groups, filled = keys.shape[:2]
    with one_thread_unless(worth_more=False):
        # Heads of a group lie one after another, so that keys are not copied for each.
        scores = torch.bmm(query.reshape(groups, -1, width), keys.transpose(1, 2))
        if new > 1 or filled > read:
            scores.view(groups, -1, new, filled).add_(reading.mask(place, read - new, filled, query))
        # It is computed in float32, and its backward pass needs half of the memory without a copy of that.
        weights = torch.softmax(scores, -1)
        return torch.bmm(weights, values).view(heads, new, width)


def read_rows(
    causal: Any,
    rows: Sequence[Unread],
    caches: Sequence[Cache] | None = None,
    lower: LowerStates | None = None,
    wanted: Sequence[Sequence[int]] | None = None,
    together: bool = False,
) -> list[Tensor]:
    """Return the hidden states of each row's N wanted tokens, [N, D].

    All unread tokens are appended to the rows' caches, if there are any. Called within ``attention_by_row``. After a row that branches its
    cache holds all branches: nothing can be read after it. ``together`` computes similar rows with caches as one, for a GPU, which takes
    longer to start the kernels of a row than to compute them.
    """
    if sum(len(row.tokens) for row in rows) == 1:
        # Twice, as the product of a single vector is summed in another order than that of several.
        twice = None if caches is None else [*caches, list(caches[0])]
        return read_rows(causal, [*rows, *rows], twice, None, None if wanted is None else [*wanted, *wanted], together)[:1]
    reading, model = Reading(rows, caches, lower, wanted), causal.base_model
    if together and caches is not None:
        reading.fill(causal)
    positions = torch.tensor([reading.positions], device=causal.device)
    worth_threads = IN_FLOAT32 if causal.dtype == torch.float32 else TOKENS_WORTH_THREADS
    with one_thread_unless(len(reading.positions) >= worth_threads):
        if lower is None or lower.states is None:
            ids = torch.tensor([[token for row in reading.rows for token in row.tokens]], device=causal.device)
            states = model(input_ids=ids, position_ids=positions, use_cache=False, reading=reading).last_hidden_state[0]
        else:
            states, rotations = lower.states, model.rotary_emb(lower.states, positions)
            for layer in model.layers[lower.layer :]:
                states = layer(states, position_embeddings=rotations, reading=reading)
            states = model.norm(states)[0]
    return [states[places] for places in reading.wanted]


def record_lower(causal: Any, layer: int) -> None:
    """Let every pass with a ``LowerStates`` of this layer record its states there."""

    def record(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # Other callers may use the model without rows.
        reading: Reading | None = named.get("reading")
        if reading is not None and reading.lower is not None:
            reading.lower.states = given[0]

    causal.base_model.layers[layer].register_forward_pre_hook(record, with_kwargs=True)


@contextmanager
def one_thread_unless(worth_more: bool) -> Iterator[None]:
    """Compute with one thread of torch within the block, or with as many as before."""
    before = torch.get_num_threads()
    if worth_more or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def first_tokens(cache: Cache, tokens: int) -> Cache:
    """The cache of a row that has read only these first tokens."""
    return [(keys[:, :tokens], values[:, :tokens]) for keys, values in cache]


@contextmanager
def attention_by_row(causal: Any) -> Iterator[None]:
    """Give a model attention by row within the block, for ``read_rows``."""
    before = causal.config._attn_implementation
    if before == ROWS:
        yield
        return
    causal.set_attn_implementation(ROWS)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)
