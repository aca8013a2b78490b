"""Packing of sequences behind one copy of their common prefix.

Agents of one tick see the same markets and news, so their prompts differ only at the end. A pack is one row: the common prefix once, then
each sequence's tail. A tail attends to the prefix and to itself alone and keeps its own positions. The log-probabilities equal those of
separate rows; the prefix is computed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from babylon_rl.models.scoring import EncodedSequence

if TYPE_CHECKING:
    from torch import Tensor

SHORTEST_PREFIX = 32


@dataclass(frozen=True)
class Pack:
    """One packed row: ``prefix_ids`` [P], and for each member its index in the batch and its tail."""

    members: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Number of tokens in the row."""
        return len(self.prefix_ids) + sum(map(len, self.tails))

    def position(self, member: int, index: int) -> int:
        """Position in the row of token ``index`` of a member's full sequence."""
        if index < len(self.prefix_ids):
            return index
        return len(self.prefix_ids) + sum(len(tail) for tail in self.tails[:member]) + index - len(self.prefix_ids)


def needed_ids(sequence: EncodedSequence) -> tuple[int, ...]:
    """Tokens that must be computed: all before the last token that had alternatives."""
    last = max((t for t, trains in enumerate(sequence.trainable_t) if trains), default=0)
    return (*sequence.prompt_ids, *sequence.response_ids[:last])


def pack(sequences: Sequence[EncodedSequence], *, most_tokens: int = 2048) -> list[Pack]:
    """Pack sequences with a common prefix of at least ``SHORTEST_PREFIX`` tokens into rows of at most ``most_tokens``.

    The result does not depend on the order of the sequences beyond the indexes it names.
    """
    ordered = sorted((needed_ids(one), index) for index, one in enumerate(sequences))
    return [_as_pack(run) for run in _runs(ordered, most_tokens)]


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _runs(ordered: Sequence[tuple[tuple[int, ...], int]], most_tokens: int) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    run: list[tuple[tuple[int, ...], int]] = []
    prefix: tuple[int, ...] = ()
    for ids, index in ordered:
        shared = ids[: shared_length(prefix, ids)] if run else ids
        size = len(shared) + sum(len(member) - len(shared) for member, _ in run) + len(ids) - len(shared)
        # less than half in common (another tick, or only a system prompt): the row's wider attention would cost more than it saves
        if run and (len(shared) < max(SHORTEST_PREFIX, len(ids) // 2) or size > most_tokens):
            yield run
            run, shared = [], ids
        run.append((ids, index))
        prefix = shared
    if run:
        yield run


def _as_pack(run: Sequence[tuple[tuple[int, ...], int]]) -> Pack:
    # sorted, so that what the first and the last share all share
    first, last = run[0][0], run[-1][0]
    prefix = first[: shared_length(first, last)] if len(run) > 1 else ()
    return Pack(tuple(index for _, index in run), prefix, tuple(ids[len(prefix) :] for ids, _ in run))


def row_tensors(one: Pack, dtype: object) -> "tuple[Tensor, Tensor, Tensor | None]":
    """Tensors of a row: ids [1, L], positions [1, L], additive attention mask [1, 1, L, L].

    The mask is None for a plain causal row.
    """
    import torch

    prefix = len(one.prefix_ids)
    ids = [*one.prefix_ids, *[token for tail in one.tails for token in tail]]
    positions = [*range(prefix), *[prefix + offset for tail in one.tails for offset in range(len(tail))]]
    if len(one.tails) == 1:
        return torch.tensor([ids]), torch.tensor([positions]), None
    # A token sees earlier tokens of the prefix (segment 0) and of its own tail.
    segment = torch.tensor([0] * prefix + [member + 1 for member, tail in enumerate(one.tails) for _ in tail])
    order = torch.arange(len(ids))
    visible = (order[None] <= order[:, None]) & ((segment[None] == 0) | (segment[None] == segment[:, None]))
    mask = torch.zeros(len(ids), len(ids), dtype=dtype).masked_fill(~visible, float("-inf"))
    return torch.tensor([ids]), torch.tensor([positions]), mask[None, None]
