"""Rows of one adapter, continued side by side, one token each at a time.

New rows may join between two tokens: their prompts are read in a batch of their own, then their caches are put under the others.
"""

from collections.abc import Sequence
from typing import Any

from babylon_rl.models.kv_cache import KVCache
from babylon_rl.models.sampling import Row, choose


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
