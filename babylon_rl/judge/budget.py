"""What may still be spent: dollars of the day so far, and of the requests that are under way, against JUDGE_BUDGET_USD."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from babylon_rl.judge.request import JudgeRequest
from babylon_rl.llm.pricing import price
from babylon_rl.store.judge_budget import Account

COMPLETION_TOKENS_PER_EPISODE = 110  # an explanation of two sentences, an id, a score and the JSON around them


class OverBudget(Exception):
    """A request would cost more than is left; what it says is the reason for which its group waits."""


class Purse(Protocol):
    """What all who ask a judge share."""

    async def reserve(self, usd: float, most: float, paid: float) -> Account:
        """Reserve dollars where they fit; see store/judge_budget.py."""
        ...

    async def give_back(self, usd: float) -> None:
        """Give dollars back that were reserved."""
        ...


def expected_usd(model: str, tokens: int, episodes: int) -> float | None:
    """Dollars that a request of some tokens about some episodes will come to; None where the price is unknown."""
    return price(model, tokens, episodes * COMPLETION_TOKENS_PER_EPISODE)


class Budget:
    """The budget as one run keeps it; ``usd`` None is none. Requests under way, of all runs, count at what they are expected to cost."""

    def __init__(self, usd: float | None, model: str, purse: Purse) -> None:
        self._usd = usd
        self._model = model
        self._purse = purse
        self._paid = 0.0
        self._blind = False

    @property
    def notes(self) -> list[str]:
        """What the budget could not do, in a sentence."""
        if not self._blind:
            return []
        return [f"JUDGE_BUDGET_USD cannot be enforced: the price of {self._model} is in no table, and its answers count as unknown."]

    def pay(self, usd: float | None) -> None:
        """Count an answer of this run, which may go on past midnight."""
        self._paid += usd or 0.0

    @asynccontextmanager
    async def reserved(self, requests: Sequence[JudgeRequest]) -> AsyncIterator[None]:
        """Make room for some requests, and give it back at the end.

        Raises:
            OverBudget: they do not fit.
        """
        if self._usd is None or not requests:
            yield
            return
        expected = [expected_usd(self._model, request.tokens, len(request.ids)) for request in requests]
        self._blind |= None in expected
        usd = sum(part for part in expected if part is not None)
        account = await self._purse.reserve(usd, self._usd, self._paid)
        if not account.fits:
            raise OverBudget(
                f"JUDGE_BUDGET_USD is {self._usd:g}: ${account.spent:.4f} are spent today (UTC) or by this run, ${account.under_way:.4f} "
                f"are under way, and this hour takes about ${usd:.4f}. Raise it, or wait for tomorrow."
            )
        try:
            yield
        finally:
            await self._purse.give_back(usd)
