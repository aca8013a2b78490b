"""Cache of prompts with their keys and values, for later prompts with the same beginning.

An agent's prompts begin with its instructions, those of a market with its first lines. Kept prompts are sorted by adapter and
tokens, so that the one with which a new prompt has most in common is one of its two neighbours.
"""

from bisect import bisect, insort
from threading import Lock

from babylon_rl.models.row_attention import Cache, first_tokens, shared_length

LONGEST_KEPT = 512  # tokens: with a grammar's tree after them they are read by plain products, whose bits no beginning moves
KEPT_BYTES = 192 * 2**20  # with the packaged base 8,700 tokens, 62 prompts of 140: a gate asks two models in 24 markets

_Key = tuple[str, tuple[int, ...]]  # adapter, prompt


class PromptCache:
    """The newest prompts of all adapters, ``most`` bytes together; several threads may share it."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most = most
        self._lock = Lock()
        self._ordered: list[_Key] = []
        self._caches: dict[_Key, Cache] = {}  # the newest comes last
        self._bytes = 0

    def begin(self, adapter: str | None, prompt: tuple[int, ...]) -> tuple[int, Cache]:
        """Return length and cache of the longest known beginning; it is shorter than the prompt."""
        key = (adapter or "", prompt)
        with self._lock:
            place = bisect(self._ordered, key)
            near = [one for one in self._ordered[max(0, place - 1) : place + 1] if one[0] == key[0]]
            known, best = max(((shared_length(one[1], prompt), one) for one in near), default=(0, key))
            if not known:
                return 0, []
            cache = self._caches[best]
        known = min(known, len(prompt) - 1)
        return known, first_tokens(cache, known)

    def keep(self, adapter: str | None, prompt: tuple[int, ...], cache: Cache) -> None:
        """Keep a prompt of at most ``LONGEST_KEPT`` tokens; ``cache`` may go on after it."""
        key = (adapter or "", prompt)
        if len(prompt) > LONGEST_KEPT:
            return
        with self._lock:
            if key in self._caches:
                # Asked again: the newest. A prompt that it began from needs no such turn, as this one carries the beginning on.
                self._caches[key] = self._caches.pop(key)
                return
            # Copied, so that what was read beyond the prompt is not kept with it.
            own = [(keys.clone(), values.clone()) for keys, values in first_tokens(cache, len(prompt))]
            insort(self._ordered, key)
            self._caches[key] = own
            self._bytes += _size(own)
            while self._bytes > self._most:
                oldest = next(iter(self._caches))
                self._bytes -= _size(self._caches.pop(oldest))
                del self._ordered[bisect(self._ordered, oldest) - 1]


def _size(cache: Cache) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in cache)
