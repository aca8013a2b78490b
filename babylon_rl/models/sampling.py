"""Sampling of tokens: a request's state in its grammar, and draws by inverse CDF.

Every request has its own generator.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from babylon_rl.models.grammar import Trie
from babylon_rl.models.scoring import legal_logprobs

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
