"""What judging some hours would cost, without asking anybody: the requests of the first orders, less those that the cache answers."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.judge.budget import COMPLETION_TOKENS_PER_EPISODE
from babylon_rl.judge.pricing import price
from babylon_rl.judge.request import plan_requests
from babylon_rl.judge.scoring_plan import HOURS_PLANNED_AT_ONCE, Hour, plan_hours
from babylon_rl.settings import Settings
from babylon_rl.store.judge_answers import find_answers
from babylon_rl.store.judge_secret import read_secret
from babylon_rl.store.trajectories import Connection


@dataclass(frozen=True)
class HourCost:
    """One hour: requests that would be made and ``cached`` ones that would not, tokens of the former; ``usd`` None is unknown.

    Completion tokens and dollars are estimates; prompt tokens are counted as the judge counts, where its tokenizer is known.
    """

    window: str
    episodes: int
    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None

    def document(self) -> dict[str, Any]:
        """The shape of ``score --dry-run --json``."""
        return {
            "window": self.window, "agents": self.episodes, "requests": self.requests, "cached": self.cached,
            "promptTokens": self.prompt_tokens, "completionTokens": self.completion_tokens, "usd": self.usd,
        }  # fmt: skip


def estimate_hours(connection: Connection, windows: Sequence[str], settings: Settings, *, force: bool = False) -> list[HourCost]:
    """What ``score_windows`` would ask of JUDGE_MODEL about some complete hours; hours that need nothing are absent. Writes nothing."""
    secret = read_secret(connection) or secrets.token_bytes(32)
    found = []
    for start in range(0, len(windows), HOURS_PLANNED_AT_ONCE):
        some = windows[start : start + HOURS_PLANNED_AT_ONCE]
        plan = plan_hours(connection, some, settings, secret, force=force, write=False)
        found += [_cost(connection, hour, settings, secret) for hour in plan.hours.values()]
    return found


def total_of(hours: Iterable[HourCost]) -> HourCost:
    """The sum of some hours; dollars are unknown where those of one are."""
    each = list(hours)
    usd = [hour.usd for hour in each]
    return HourCost(
        "", sum(h.episodes for h in each), sum(h.requests for h in each), sum(h.cached for h in each),
        sum(h.prompt_tokens for h in each), sum(h.completion_tokens for h in each),
        None if None in usd else sum(part for part in usd if part is not None),
    )  # fmt: skip


def _cost(connection: Connection, hour: Hour, settings: Settings, secret: bytes) -> HourCost:
    group = hour.group
    requests = [
        request
        for shown in group.judged
        for order in range(settings.judge_orders)
        for request in plan_requests(shown, settings.judge_model, order, secret, settings)
    ]
    held = find_answers(connection, [request.key for request in requests])
    missing = [request for request in requests if request.key not in held or held[request.key].faults]
    tokens = sum(request.tokens for request in missing)
    answered = sum(len(request.ids) for request in missing) * COMPLETION_TOKENS_PER_EPISODE
    usd = price(settings.judge_model, tokens, answered) if missing else 0.0
    return HourCost(group.window, len(group.episodes), len(missing), len(requests) - len(missing), tokens, answered, usd)
