"""Limit on the cost of judging: JUDGE_BUDGET_USD.

Dollars spent today plus requests under way, of all runs, must stay below it. A request is reserved at its expected cost before it is sent,
as its real cost is known only with its answer.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from babylon_rl.judge.judge_store import JudgeStore
from babylon_rl.llm.tokens import price

COMPLETION_TOKENS_PER_EPISODE = 110  # an explanation of two sentences, an id, a score and the JSON around them
_LIMIT = "JUDGE_BUDGET_USD is {usd:g}: "  # how the reason of a waiting hour begins; spent_until recognises it


class OverBudget(Exception):
    """A request would cost more than is left; the message is why its group waits."""


def expected_usd(model: str, tokens: int, episodes: int) -> float | None:
    """Expected dollars of a request; None where the price is unknown.

    ``tokens`` are those of the prompt, ``episodes`` the number of episodes in it.
    """
    return price(model, tokens, episodes * COMPLETION_TOKENS_PER_EPISODE)


def spent_until(reason: str, usd: float | None, asked_at: datetime) -> datetime | None:
    """The end of the UTC day whose budget was spent, by a pending hour's reason.

    The day is that of ``asked_at``. None for another reason, and for a limit other than ``usd``, the present one.
    """
    if usd is None or not reason.startswith(_LIMIT.format(usd=usd)):
        return None
    return asked_at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


class Budget:
    """One run's view of the budget; ``usd`` None is no limit.

    Requests under way, of all runs, count at their expected cost.
    """

    def __init__(self, usd: float | None, model: str, store: JudgeStore) -> None:
        self._usd = usd
        self._model = model
        self._store = store
        self._paid = 0.0
        self._blind = False

    @property
    def notes(self) -> list[str]:
        """Sentences on limits that the budget cannot enforce."""
        if not self._blind:
            return []
        return [f"JUDGE_BUDGET_USD cannot be enforced: the price of {self._model} is in no table, and its answers count as unknown."]

    def pay(self, usd: float | None) -> None:
        """Add the cost of an answer of this run.

        The run keeps its own sum because it may go on past midnight, when the day's sum starts at 0.
        """
        self._paid += usd or 0.0

    @asynccontextmanager
    async def reserved(self, sizes: Iterable[tuple[int, int]]) -> AsyncIterator[None]:
        """Reserve the expected cost of some requests, and return it at the end.

        Args:
            sizes: prompt tokens and episodes of each; read only where there is a limit.

        Raises:
            OverBudget: they do not fit.
        """
        expected = [] if self._usd is None else [expected_usd(self._model, *size) for size in sizes]
        if self._usd is None or not expected:
            yield
            return
        # requests without a known price pass, and are noted
        self._blind |= None in expected
        usd = sum(part for part in expected if part is not None)
        account = await self._store.reserve(usd, self._usd, self._paid)
        if not account.fits:
            raise OverBudget(
                _LIMIT.format(usd=self._usd) + f"${account.spent:.4f} are spent today (UTC) or by this run, ${account.under_way:.4f} "
                f"are under way, and this hour takes about ${usd:.4f}. Raise it, or wait for tomorrow."
            )
        try:
            yield
        finally:
            # answers that came are stored by now, and count at their real cost
            await self._store.give_back(usd)
