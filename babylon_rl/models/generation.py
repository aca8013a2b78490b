"""Generation of text for rows of one adapter side by side, one token at a time.

Every row has a grammar's state and a random generator of its own; tokens are drawn by the inverse of their distribution function.
New rows may join between two tokens: their prompts are read in a pass of their own. What is left of a small grammar is read together with
the prompt, as a tree: such an answer needs no further pass.
"""

import math
import random
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from babylon_rl.models.grammar import Trie
from babylon_rl.models.prompt_cache import LONGEST_KEPT, PromptCache
from babylon_rl.models.row_attention import SHARED_PREFIX_MINIMUM, Cache, Unread, read_rows, shared_length
from babylon_rl.models.scoring import legal_logprobs

Top = Sequence[tuple[int, float]]


@dataclass(eq=False)
class Row:
    """State of a request; ``pending`` are the tokens that the model has not read yet.

    ``stopped`` says of the tokens so far whether the text holds a stop string. ``top`` is the number of likeliest tokens that are kept
    with each token, in ``tops``, as (token, log-probability).
    """

    prompt: tuple[int, ...]
    node: Trie | None
    temperature: float
    rng: random.Random
    max_tokens: int
    ends: frozenset[int]
    adapter: str | None = None
    stopped: Callable[[Sequence[int]], bool] | None = None
    top: int = 0
    stop: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    pending: list[int] = field(init=False)
    done: bool = False

    def __post_init__(self) -> None:
        self.pending = list(self.prompt)

    def take(self, token: int, logprob: float, top: Top = ()) -> None:
        """Append a chosen token, and every token that it forces."""
        self.pending = []
        self._append(token, logprob, top)
        self.follow_forced()

    def follow_forced(self) -> None:
        """Append tokens while there is one legal continuation."""
        while not self.done and self.node is not None and len(self.node.children) == 1:
            token = next(iter(self.node.children))
            self._append(token, 0.0, [(token, 0.0)])

    def _append(self, token: int, logprob: float, top: Top) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.tops.append(top[: self.top])
        self.pending.append(token)
        if self.node is not None:
            self.node = self.node.children[token]
        self.done = token in self.ends or len(self.tokens) >= self.max_tokens or (self.stopped is not None and self.stopped(self.tokens))


def choose(rows: Sequence[Row], hidden_bd: Tensor, head_vd: Tensor) -> None:
    """Draw each row's next token from the softmax over its legal tokens."""
    # Rows under a grammar are computed together, over their legal tokens only.
    bound = [n for n, row in enumerate(rows) if row.node is not None]
    if bound:
        legal_n = [node.legal for row in rows if (node := row.node) is not None]
        values = legal_logprobs(hidden_bd[bound], head_vd, legal_n).tolist()
        for n, legal, logprobs in zip(bound, legal_n, values, strict=True):
            picked = _pick(rows[n], logprobs[: len(legal)])
            likeliest = sorted(zip(legal, logprobs[: len(legal)], strict=True), key=lambda one: -one[1]) if rows[n].top else ()
            rows[n].take(legal[picked], logprobs[picked], likeliest)
    # Free rows use the whole vocabulary: the head is read once for all.
    free = [n for n, row in enumerate(rows) if row.node is None]
    if free:
        logprobs_nv = torch.log_softmax((hidden_bd[free] @ head_vd.T).float(), dim=-1)
        tokens_n = _picked_open([rows[n] for n in free], logprobs_nv)
        values = logprobs_nv.gather(1, tokens_n[:, None])[:, 0].tolist()
        for n, token, value, logprobs_v in zip(free, tokens_n.tolist(), values, logprobs_nv, strict=True):
            found = logprobs_v.topk(min(rows[n].top, len(logprobs_v))) if rows[n].top else None
            rows[n].take(token, value, list(zip(found.indices.tolist(), found.values.tolist(), strict=True)) if found else ())


def _pick(row: Row, logprobs: Sequence[float]) -> int:
    if row.temperature == 0:
        return max(range(len(logprobs)), key=logprobs.__getitem__)
    top = max(logprobs)
    # Relative to the likeliest: at a low temperature the exponent of the value itself would leave the range of a float.
    weights = [math.exp((value - top) / row.temperature) for value in logprobs]
    picked = bisect(list(accumulate(weights)), row.rng.random() * sum(weights))
    # Rounding may leave the number at the very end.
    return picked if picked < len(weights) else max(range(len(weights)), key=weights.__getitem__)


def _picked_open(rows: Sequence[Row], logprobs_nv: Tensor) -> Tensor:
    """[N] tokens of the whole vocabulary, for all rows at once."""
    tokens_n = logprobs_nv.argmax(-1)
    drawing = [n for n, row in enumerate(rows) if row.temperature]
    if drawing:
        temperatures, drawn = (
            torch.tensor(values, dtype=torch.double, device=logprobs_nv.device)[:, None]
            for values in ([rows[n].temperature for n in drawing], [rows[n].rng.random() for n in drawing])
        )
        cumulative = torch.softmax(logprobs_nv[drawing].double() / temperatures, dim=-1).cumsum(-1)
        places = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)[:, 0]
        tokens_n[drawing] = places.clamp(max=logprobs_nv.shape[1] - 1)
    return tokens_n


AHEAD_TOKENS = 48


def ahead(node: Trie | None, last: int) -> tuple[Unread, dict[Trie, int]] | None:
    """The answers that a grammar allows after the token of index ``last``, as a tree of tokens.

    With it, by node of the trie, the index of the token before that choice, among the unread tokens of prompt and tree. None for free text,
    and where the tree is larger than AHEAD_TOKENS.
    """
    if node is None:
        return None
    tokens, before, places = list[int](), list[int](), {node: last}
    todo = [node]
    while todo:
        choice = todo.pop()
        for branch in choice.children.items():
            forced, end = _forced(*branch)
            if not end.children:  # no choice is left
                continue
            if len(tokens) + len(forced) > AHEAD_TOKENS:
                return None
            start = last + 1 + len(tokens)
            before += [places[choice], *range(start, start + len(forced) - 1)]
            tokens += forced
            places[end] = last + len(tokens)
            todo.append(end)
    return Unread(tokens, before), places


def _forced(token: int, node: Trie) -> tuple[list[int], Trie]:
    """A token with those that it forces, and the node after them."""
    tokens = [token]
    while len(node.children) == 1:
        ((token, node),) = node.children.items()
        tokens.append(token)
    return tokens, node


class Generation:
    """A running batch; call it under the adapter of its rows. ``together`` as ``read_rows``."""

    def __init__(self, causal: Any, adapter: str | None, kept: PromptCache, together: bool = False) -> None:
        self.adapter, self._kept = adapter, kept
        self._read = partial(read_rows, causal, together=together)
        self._head = causal.get_output_embeddings().weight
        self._caches: list[Cache] = []
        self.rows: list[Row] = []

    def unfinished(self) -> bool:
        return any(not row.done for row in self.rows)

    def admit(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and draw their first tokens; a row whose grammar is read with its prompt gets its whole answer."""
        if not rows:
            return
        # Equal requests are read once, and what all have in common, too.
        asked = [(tuple(row.pending), row.node) for row in rows]
        distinct = list(dict.fromkeys(asked))
        begun = self._begin([prompt for prompt, _ in distinct])
        trees = [ahead(node, len(prompt) - known - 1) for (prompt, node), (known, _) in zip(distinct, begun, strict=True)]
        prompts = [Unread.text(prompt[known:]) for (prompt, _), (known, _) in zip(distinct, begun, strict=True)]
        unread = [prompt if tree is None else prompt.then(tree[0]) for prompt, tree in zip(prompts, trees, strict=True)]
        caches = [list(cache) for _, cache in begun]
        ends = [len(prompt.tokens) - 1 for prompt in prompts]
        wanted = [[end] if tree is None else list(tree[1].values()) for end, tree in zip(ends, trees, strict=True)]
        found = self._read(unread, caches, wanted=wanted)
        hidden = [dict(zip(tokens, states, strict=True)) for tokens, states in zip(wanted, found, strict=True)]
        for (prompt, _), cache in zip(distinct, caches, strict=True):
            self._kept.keep(self.adapter, prompt, cache)
        which = dict(zip(distinct, range(len(distinct)), strict=True))
        drawing = [(row, which[key], ends[which[key]]) for row, key in zip(rows, asked, strict=True)]
        while drawing:
            choose([row for row, _, _ in drawing], torch.stack([hidden[n][token] for _, n, token in drawing]), self._head)
            drawing = [
                (row, n, tree[1][row.node])
                for row, n, _ in drawing
                if not row.done and (tree := trees[n]) is not None and row.node is not None
            ]
        for row, key in zip(rows, asked, strict=True):
            if not row.done:
                self.rows.append(row)
                self._caches.append(list(caches[which[key]]))

    def _begin(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, Cache]]:
        """For each prompt, length and cache of the beginning that need not be read again.

        It is that of a kept prompt, or what all prompts have in common, which is read here; always shorter than the prompt.
        """
        begun = [self._kept.begin(self.adapter, prompt) for prompt in prompts]
        begun = [(known, cache) if known >= _worth(prompt) else (0, []) for prompt, (known, cache) in zip(prompts, begun, strict=True)]
        shared = min(shared_length(*prompts), min(map(len, prompts)) - 1)
        # A kept prompt that agrees with one of them for fewer tokens agrees as far with all.
        known, prefix = begun[0]
        if len(prompts) > 1 and shared - known >= _worth(max(prompts, key=len)):
            self._read([Unread.text(prompts[0][known:shared])], [prefix], wanted=[[]])
            begun = [(shared, prefix)] * len(prompts)
        return begun

    def step(self) -> None:
        """Draw the next token of every row that is not finished; those that are leave."""
        going = [n for n, row in enumerate(self.rows) if not row.done]
        self.rows, self._caches = [self.rows[n] for n in going], [self._caches[n] for n in going]
        if self.rows:
            # Pending is the token that was drawn and those that the grammar forced after it: all are read in one pass.
            pending = [Unread.text(row.pending) for row in self.rows]
            hidden = self._read(pending, self._caches, wanted=[[len(text.tokens) - 1] for text in pending])
            choose(self.rows, torch.cat(hidden), self._head)


def _worth(prompt: Sequence[int]) -> int:
    """Fewest tokens of a known beginning that save time.

    Of a long prompt half: its attention is fused, which takes longer where a part was known.
    """
    return SHARED_PREFIX_MINIMUM if len(prompt) <= LONGEST_KEPT else len(prompt) // 2
