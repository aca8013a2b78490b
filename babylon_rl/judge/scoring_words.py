"""Conversion of a judged group to scores with reasons, and facts on the judgement.

A score is the mean over the orders; the reasons of all orders are kept.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from babylon_rl.judge.endpoints import server_of
from babylon_rl.judge.groups import GroupScores, Judgement, group_scores
from babylon_rl.judge.prompt.injection import Flag
from babylon_rl.judge.ruler import Judged, storable
from babylon_rl.judge.scoring_plan import judge_version
from babylon_rl.settings import Settings

_MEAN_DECIMALS = 9  # the mean of the same scores in another order differs in the last bits
MOST_EXCERPT = 200


def judged_scores(outcome: Judged, settings: Settings, input_version: str) -> GroupScores:
    """Scores of a judged group, not stored."""
    group, orders, agreed = outcome.group, outcome.orders, outcome.agreement
    gained = {} if outcome.gain is None else outcome.gain.by_agent
    scores = {agent: (round(score, _MEAN_DECIMALS), _reasoning(outcome, agent)) for agent, score in agreed.scores.items()}
    whole = group_scores(group.window, settings.judge_model, judge_version(settings), scores, input_version)
    shown = {episode.agent_id: episode for episode in group.episodes}
    entries = tuple(
        replace(
            entry,
            disagreement=agreed.by_agent[entry.agent_id],
            order_scores=tuple(order.verdicts[entry.agent_id].score for order in orders),
            places=tuple(order.places[entry.agent_id] for order in orders),
            shown_tokens=shown[entry.agent_id].tokens,
            flags=tuple(flag_words(flag) for flag in shown[entry.agent_id].flags),
            gain=gained.get(entry.agent_id),
        )
        for entry in whole.scores
    )
    judgement = _judgement(outcome, server_of(settings, settings.judge_model))
    return replace(whole, scores=entries, disagreement=agreed.disagreement, judgement=judgement)


def flag_words(flag: Flag) -> str:
    """One line on a flag: kind, place and excerpt."""
    return storable(f"{flag.kind} in {flag.where}: {flag.excerpt[:MOST_EXCERPT]}")


def _reasoning(outcome: Judged, agent: str) -> str:
    """The judge's explanations of an episode, one per order unless all are equal."""
    verdicts = [order.verdicts[agent] for order in outcome.orders]
    if len({verdict.explanation for verdict in verdicts}) == 1:
        return storable(verdicts[0].explanation)
    return storable("\n".join(f"Order {number} ({verdict.score:.2f}): {verdict.explanation}" for number, verdict in enumerate(verdicts, 1)))


def _judgement(outcome: Judged, server: str) -> Judgement:
    """Facts on a judgement: number of orders, tokens, dollars, what was shown."""
    # The same answers in another order of arrival are the same judgement.
    answers = sorted(outcome.answers, key=lambda answer: (answer.order, answer.part, answer.attempt))
    usd = [answer.usd for answer in answers]
    return Judgement(
        orders=len(outcome.orders),
        tau=outcome.agreement.tau,
        requests=len(answers),
        prompt_tokens=_sum(answer.prompt_tokens for answer in answers),
        completion_tokens=_sum(answer.completion_tokens for answer in answers),
        usd=None if None in usd else math.fsum(part for part in usd if part is not None),
        seconds=math.fsum(answer.latency_seconds for answer in answers),
        shown_version=outcome.group.input_version,
        server=server,
        steps=outcome.group.steps,
        shortened=outcome.group.shortened,
        decisions_shortened=outcome.group.decisions_shortened,
        context_flags=tuple(flag_words(flag) for flag in outcome.group.context_flags),
        masked=None if outcome.gain is None else outcome.gain.beyond_noise,
        noise=None if outcome.gain is None else outcome.gain.noise,
        masked_version="" if outcome.group.masked is None else outcome.group.masked.input_version,
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    values = list(counts)
    return None if None in values else sum(count for count in values if count is not None)
