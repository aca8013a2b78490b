"""Interface of the store of paid answers, and one in memory for measurements and tests."""

from collections.abc import Sequence
from typing import Protocol

from babylon_rl.judge.budget import Purse
from babylon_rl.judge.calls import Reply
from babylon_rl.store.judge_requests import Reservation, StoredAnswer


class Asker(Protocol):
    """Part of JudgeCaller that the ruler needs."""

    async def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, object]) -> Reply:
        """Ask once, with retries.

        Raises:
            JudgeUnavailable: later may be better.
            JudgeRefused: a retry does not help.
        """
        ...


class AnswerCache(Purse, Protocol):
    """Stored answers by the key of their request, and the shared budget."""

    async def find(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        """Stored answers to some requests, by key."""
        ...

    async def add(self, answer: StoredAnswer) -> None:
        """Store an answer; it is safe when this returns."""
        ...


class MemoryCache:
    """Cache that lives as long as the object."""

    def __init__(self) -> None:
        self._held: dict[str, StoredAnswer] = {}
        self._under_way = 0.0

    @property
    def spent(self) -> float:
        """Dollars of all answers with a known price."""
        return sum(answer.usd or 0.0 for answer in self._held.values())

    async def find(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        """Stored answers to some requests, by key."""
        return {key: self._held[key] for key in keys if key in self._held}

    async def add(self, answer: StoredAnswer) -> None:
        """Store an answer."""
        self._held[answer.key] = answer

    async def reserve(self, usd: float, most: float, paid: float) -> Reservation:
        """Reserve dollars where they fit beside stored answers and requests under way."""
        account = Reservation(max(self.spent, paid), self._under_way, max(self.spent, paid) + self._under_way + usd <= most)
        self._under_way += usd if account.fits else 0.0
        return account

    async def give_back(self, usd: float) -> None:
        """Return reserved dollars."""
        self._under_way -= usd
