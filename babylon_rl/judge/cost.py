"""Cost of judging, estimated beforehand; the limit on it is in judge_store.py.

The estimate asks no judge and leaves out requests that the cache answers. Its lower end is the first orders of every group, its upper end
all the orders that disagreement can cause, with as many further tries as this judge's answers have needed so far.
"""

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain, product
from typing import Any

from babylon_rl.judge.plan import HOURS_PLANNED_AT_ONCE, PlannedHour, plan_hours
from babylon_rl.judge.prompt.forms import looked_at, masked_form, without_words
from babylon_rl.judge.prompt.request import JudgeRequest, RenderedGroup, order_rounds, plan_requests
from babylon_rl.llm.tokens import known_sum, price
from babylon_rl.settings import JudgeSettings, Settings
from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import read_secret
from babylon_rl.store.judge_requests import count_answers, find_answers

LIKELY_UNUSABLE, ANSWERS_TO_GO_BY = 0.05, 20  # prior for a judge without answers: its share, and its weight in answers


@dataclass(frozen=True)
class HourCost:
    """Cost of one hour: requests to make, ``cached`` ones, tokens; ``usd`` None is unknown.

    ``requests_most`` and ``usd_most`` are the upper end, all else is of the lower one.
    Completion tokens and dollars are estimates; prompt tokens are counted as the judge counts, where its tokenizer is known.
    """

    window: str
    agents: int
    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    requests_most: int
    usd_most: float | None


def estimate_hours(
    connection: Connection, windows: Sequence[str], settings: Settings, *, force: bool = False, stale: bool = False
) -> list[HourCost]:
    """Estimate the cost of ``score_windows`` for some complete hours; writes nothing. Hours that need no request are absent."""
    # without a stored secret there are no stored answers, and ids made with any other are as long
    secret = read_secret(connection) or secrets.token_bytes(32)
    answers, unusable = count_answers(connection, settings.judge_model)
    share = (unusable + LIKELY_UNUSABLE * ANSWERS_TO_GO_BY) / (answers + ANSWERS_TO_GO_BY)
    # mean number of answers up to the first usable one, where each is usable with the same chance
    tries = min(float(settings.judge_tries), 1 / (1 - share))
    looks = answers >= settings.judge_look_after
    costs = []
    for some in in_parts(windows, HOURS_PLANNED_AT_ONCE):
        plan = plan_hours(connection, some, settings, secret, force=force, stale=stale, write=False)
        costs += [_cost(connection, hour, settings, secret, tries, looks) for hour in plan.hours.values()]
    return costs


def total_of(hours: Iterable[HourCost]) -> HourCost:
    """Sum over some hours; dollars are unknown if those of one hour are."""
    each = list(hours)
    sums: dict[str, Any] = {field.name: known_sum(getattr(hour, field.name) for hour in each) for field in fields(HourCost)[1:]}
    return HourCost("", **sums)


def _cost(connection: Connection, hour: PlannedHour, settings: JudgeSettings, secret: bytes, tries: float, looked: bool) -> HourCost:
    group, first = hour.group, settings.judge_orders
    form = masked_form(group)
    forms = [group] if form is None else [group, form.group]
    looks = [(without_words(group, agent), 0) for agent in (looked_at(group, secret, settings.judge_look_every) if looked else ())]

    def planned(plans: Iterable[tuple[RenderedGroup, int]]) -> list[JudgeRequest]:
        return [request for shown, order in plans for request in plan_requests(shown, settings.judge_model, order, secret, settings)]

    # the first orders are asked for in any case: the lower end
    fewest = planned([*product(forms, range(first)), *looks])
    # what disagreement between the orders, and a gain of flagged sentences, can cause: the upper end
    more = chain.from_iterable(order_rounds(settings))
    most = planned([*product(forms, more), *looks, *([] if form is None else product([form.placebo], range(first)))])
    stored = find_answers(connection, [request.key for request in most])
    # a stored answer with faults leads to a further try
    least, missing = ([one for one in some if one.key not in stored or stored[one.key].faults] for some in (fewest, most))
    cached = len(fewest) - len(least)
    tokens, answered = _tokens(least)
    return HourCost(
        group.window, len(group.episodes), len(least), cached, tokens, answered, _usd(least, settings),
        math.ceil(tries * len(missing)), _usd(missing, settings, tries),
    )  # fmt: skip


def _tokens(requests: Sequence[JudgeRequest]) -> tuple[int, int]:
    """Prompt tokens of some requests, and expected tokens of the answers."""
    return sum(request.tokens for request in requests), sum(request.answer_tokens for request in requests)


def _usd(requests: Sequence[JudgeRequest], settings: JudgeSettings, tries: float = 1.0) -> float | None:
    usd = price(settings.judge_model, *_tokens(requests)) if requests else 0.0
    return None if usd is None else tries * usd
