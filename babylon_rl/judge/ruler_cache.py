"""Where answers that were paid for are kept, as the ruler sees it; one kind that forgets with the process, for measurements and tests."""

from collections.abc import Sequence
from typing import Protocol

from babylon_rl.judge.calls import Reply
from babylon_rl.store.judge_answers import StoredAnswer


class Asker(Protocol):
    """Who can be asked: JudgeCaller, as far as the ruler needs it."""

    async def ask(self, messages: Sequence[dict[str, str]], schema: dict[str, object]) -> Reply:
        """Raises JudgeUnavailable or JudgeRefused."""
        ...


class AnswerCache(Protocol):
    """Answers by the key of their request."""

    async def find(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        """Those that were answered."""
        ...

    async def add(self, answer: StoredAnswer) -> None:
        """Keep an answer; it is safe when this returns."""
        ...

    async def spent(self) -> float:
        """Dollars of the day so far, of all runs."""
        ...


class MemoryCache:
    """A cache that lives as long as the object."""

    def __init__(self) -> None:
        self._held: dict[str, StoredAnswer] = {}

    async def find(self, keys: Sequence[str]) -> dict[str, StoredAnswer]:
        """Those that were answered."""
        return {key: self._held[key] for key in keys if key in self._held}

    async def add(self, answer: StoredAnswer) -> None:
        """Keep an answer."""
        self._held[answer.key] = answer

    async def spent(self) -> float:
        """Dollars of all answers of a known price."""
        return sum(answer.usd or 0.0 for answer in self._held.values())
