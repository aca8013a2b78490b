"""Cost of judging: an estimate beforehand, and JUDGE_BUDGET_USD.

The estimate asks no judge and leaves out requests that the cache answers. Its lower end is the first orders of every group, its upper end
all the orders that disagreement can cause, with as many further tries as this judge's answers have needed so far. Of the budget, dollars
spent today plus requests under way must stay below it.
"""

import math
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from babylon_rl.judge.judge_store import JudgeStore
from babylon_rl.judge.plan import HOURS_PLANNED_AT_ONCE, PlannedHour, plan_hours
from babylon_rl.judge.prompt.request import JudgeRequest, order_rounds, plan_requests
from babylon_rl.llm.tokens import known_sum, price
from babylon_rl.settings import JudgeSettings, Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import read_secret
from babylon_rl.store.judge_requests import count_answers, find_answers

COMPLETION_TOKENS_PER_EPISODE = 110  # an explanation of two sentences, an id, a score and the JSON around them
LIKELY_UNUSABLE, ANSWERS_TO_GO_BY = 0.05, 20  # prior for a judge without answers: its share, and its weight in answers
_LIMIT = "JUDGE_BUDGET_USD is {usd:g}: "


@dataclass(frozen=True)
class HourCost:
    """Cost of one hour: requests to make, ``cached`` ones, tokens; ``usd`` None is unknown.

    ``most_requests`` and ``most_usd`` are the upper end, all else is of the lower one.
    Completion tokens and dollars are estimates; prompt tokens are counted as the judge counts, where its tokenizer is known.
    """

    window: str
    episodes: int
    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    most_requests: int
    most_usd: float | None

    def document(self) -> dict[str, Any]:
        """JSON document of ``score --dry-run --json``."""
        return {
            "window": self.window, "agents": self.episodes, "requests": self.requests, "cached": self.cached,
            "promptTokens": self.prompt_tokens, "completionTokens": self.completion_tokens, "usd": self.usd,
            "requestsMost": self.most_requests, "usdMost": self.most_usd,
        }  # fmt: skip


def estimate_hours(connection: Connection, windows: Sequence[str], settings: Settings, *, force: bool = False) -> list[HourCost]:
    """Estimate the cost of ``score_windows`` for some complete hours; writes nothing.

    Hours that need no request are absent.
    """
    secret = read_secret(connection) or secrets.token_bytes(32)
    tries = _likely_tries(connection, settings)
    costs = []
    for start in range(0, len(windows), HOURS_PLANNED_AT_ONCE):
        some = windows[start : start + HOURS_PLANNED_AT_ONCE]
        plan = plan_hours(connection, some, settings, secret, force=force, write=False)
        costs += [_cost(connection, hour, settings, secret, tries) for hour in plan.hours.values()]
    return costs


def total_of(hours: Iterable[HourCost]) -> HourCost:
    """Sum over some hours; dollars are unknown if those of one hour are."""
    each = list(hours)
    return HourCost(
        "", sum(h.episodes for h in each), sum(h.requests for h in each), sum(h.cached for h in each),
        sum(h.prompt_tokens for h in each), sum(h.completion_tokens for h in each), known_sum(h.usd for h in each),
        sum(h.most_requests for h in each), known_sum(h.most_usd for h in each),
    )  # fmt: skip


def _cost(connection: Connection, hour: PlannedHour, settings: JudgeSettings, secret: bytes, tries: float) -> HourCost:
    group, first = hour.group, settings.judge_orders
    requests = [
        request
        for shown in group.judged
        for order in chain.from_iterable(order_rounds(settings))
        for request in plan_requests(shown, settings.judge_model, order, secret, settings)
    ]
    stored = find_answers(connection, [request.key for request in requests])
    # a stored answer with faults leads to a further try
    missing = [request for request in requests if request.key not in stored or stored[request.key].faults]
    least = [request for request in missing if request.order < first]
    cached = sum(request.order < first for request in requests) - len(least)
    tokens, answered = _tokens(least)
    return HourCost(
        group.window, len(group.episodes), len(least), cached, tokens, answered, _usd(least, settings),
        math.ceil(tries * len(missing)), _usd(missing, settings, tries),
    )  # fmt: skip


def _tokens(requests: Sequence[JudgeRequest]) -> tuple[int, int]:
    """Prompt tokens of some requests, and expected tokens of the answers."""
    return sum(request.tokens for request in requests), sum(len(request.ids) for request in requests) * COMPLETION_TOKENS_PER_EPISODE


def _usd(requests: Sequence[JudgeRequest], settings: JudgeSettings, tries: float = 1.0) -> float | None:
    usd = price(settings.judge_model, *_tokens(requests)) if requests else 0.0
    return None if usd is None else tries * usd


def _likely_tries(connection: Connection, settings: JudgeSettings) -> float:
    """Expected answers per request, from this judge's share of unusable answers.

    Without answers so far, the share is 5 %.
    """
    answers, unusable = count_answers(connection, settings.judge_model)
    share = (unusable + LIKELY_UNUSABLE * ANSWERS_TO_GO_BY) / (answers + ANSWERS_TO_GO_BY)
    return min(float(settings.judge_tries), 1 / (1 - share))


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
            await self._store.give_back(usd)
