"""What may still be spent: dollars of the day so far, and of the requests that are under way, against JUDGE_BUDGET_USD."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from babylon_rl.judge.pricing import price
from babylon_rl.judge.request import JudgeRequest

COMPLETION_TOKENS_PER_EPISODE = 110  # an explanation of two sentences, an id, a score and the JSON around them


class OverBudget(Exception):
    """A request would cost more than is left; what it says is the reason for which its group waits."""


def expected_usd(model: str, tokens: int, episodes: int) -> float | None:
    """Dollars that a request of some tokens about some episodes will come to; None where the price is unknown."""
    return price(model, tokens, episodes * COMPLETION_TOKENS_PER_EPISODE)


class Budget:
    """The budget of one run; ``usd`` None is none. Requests under way are counted at what they are expected to cost."""

    def __init__(self, usd: float | None, model: str, spent: Callable[[], Awaitable[float]]) -> None:
        self._usd = usd
        self._model = model
        self._spent = spent
        self._under_way = 0.0
        self._paid = 0.0
        self._blind = False

    @property
    def notes(self) -> list[str]:
        """What the budget could not do, in a sentence."""
        if not self._blind:
            return []
        return [f"JUDGE_BUDGET_USD cannot be enforced: the price of {self._model} is in no table, and its answers count as unknown."]

    @contextmanager
    def _counted(self, usd: float) -> Iterator[None]:
        self._under_way += usd
        try:
            yield
        finally:
            self._under_way -= usd

    def pay(self, usd: float | None) -> None:
        """Count an answer of this run, which may go on past midnight."""
        self._paid += usd or 0.0

    async def reserve(self, requests: Sequence[JudgeRequest]) -> AbstractContextManager[None]:
        """Make room for some requests, as a context manager that gives it back at its end.

        Raises:
            OverBudget: they do not fit.
        """
        if self._usd is None or not requests:
            return self._counted(0.0)
        expected = [expected_usd(self._model, request.tokens, len(request.ids)) for request in requests]
        self._blind |= None in expected
        usd = sum(part for part in expected if part is not None)
        spent = max(await self._spent(), self._paid)
        if spent + self._under_way + usd > self._usd:
            raise OverBudget(
                f"JUDGE_BUDGET_USD is {self._usd:g}: ${spent:.4f} are spent today (UTC) or by this run, ${self._under_way:.4f} are "
                f"under way, and this hour takes about ${usd:.4f}. Raise it, or wait for tomorrow."
            )
        return self._counted(usd)
