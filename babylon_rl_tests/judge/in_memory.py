"""Groups judged without a database: a store of answers in memory."""

from collections.abc import AsyncIterable, Sequence
from datetime import datetime

from babylon_rl.judge.client import JudgeClient
from babylon_rl.judge.group_judge import GroupJudge, run_pool
from babylon_rl.judge.group_outcomes import GroupOutcome
from babylon_rl.judge.prompt.request import RenderedGroup
from babylon_rl.settings import Settings
from babylon_rl.store.judge_requests import Reservation, StoredAnswer


class MemoryCache:
    """What a group judge needs of JudgeStore, kept as long as the object lives."""

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

    def check(self) -> None:
        """Nothing that is kept here fails."""

    async def reserve(self, usd: float, most: float, paid: float) -> Reservation:
        """Reserve dollars where they fit beside stored answers and requests under way."""
        account = Reservation(max(self.spent, paid), self._under_way, max(self.spent, paid) + self._under_way + usd <= most)
        self._under_way += usd if account.fits else 0.0
        return account

    async def give_back(self, usd: float) -> None:
        """Return reserved dollars."""
        self._under_way -= usd

    def clock(self) -> datetime:
        """The time of every answer."""
        return datetime(2026, 1, 1)


async def judge_groups(
    groups: Sequence[RenderedGroup], caller: JudgeClient, secret: bytes, settings: Settings, cache: MemoryCache
) -> dict[str, GroupOutcome]:
    """Judge groups with JUDGE_MODEL, without a database; outcomes by window, in the order given.

    Raises:
        JudgeRefused: the judge answers no request.
    """
    ruler = GroupJudge(caller, secret, settings, cache)
    outcomes: dict[str, GroupOutcome] = {}

    async def judge(group: RenderedGroup) -> None:
        outcomes[group.window] = await ruler.judge(group)

    async def given() -> AsyncIterable[RenderedGroup]:
        for group in groups:
            yield group

    await run_pool(given(), judge, settings.judge_concurrency)
    return {group.window: outcomes[group.window] for group in groups}
