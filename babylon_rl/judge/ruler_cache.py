"""Where answers that were paid for are kept, as the ruler sees it; one kind that forgets with the process, for measurements and tests."""

from collections.abc import Sequence
from typing import Protocol

from babylon_rl.judge.budget import Purse
from babylon_rl.judge.calls import Reply
from babylon_rl.store.judge_answers import StoredAnswer
from babylon_rl.store.judge_budget import Account


class Asker(Protocol):
    """Who can be asked: JudgeCaller, as far as the ruler needs it."""

    async def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, object]) -> Reply:
        """Raises JudgeUnavailable or JudgeRefused."""
        ...


class AnswerCache(Purse, Protocol):
    """Answers by the key of their request, and what may still be spent on more."""

    async def find(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        """Those that were answered."""
        ...

    async def add(self, answer: StoredAnswer) -> None:
        """Keep an answer; it is safe when this returns."""
        ...


class MemoryCache:
    """A cache that lives as long as the object."""

    def __init__(self) -> None:
        self._held: dict[str, StoredAnswer] = {}
        self._under_way = 0.0

    @property
    def spent(self) -> float:
        """Dollars of all answers of a known price."""
        return sum(answer.usd or 0.0 for answer in self._held.values())

    async def find(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        """Those that were answered."""
        return {key: self._held[key] for key in keys if key in self._held}

    async def add(self, answer: StoredAnswer) -> None:
        """Keep an answer."""
        self._held[answer.key] = answer

    async def reserve(self, usd: float, most: float, paid: float) -> Account:
        """Reserve dollars where they fit beside all that was answered and is under way."""
        found = Account(max(self.spent, paid), self._under_way, max(self.spent, paid) + self._under_way + usd <= most)
        self._under_way += usd if found.fits else 0.0
        return found

    async def give_back(self, usd: float) -> None:
        """Give dollars back that were reserved."""
        self._under_way -= usd
