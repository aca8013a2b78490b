"""Outcomes of judging a group: orders merged of requests, and the scores, marks and facts that are stored of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from statistics import fmean
from typing import Any

from msgspec.structs import replace

from babylon_rl.judge.answers import EpisodeVerdict, read_answer
from babylon_rl.judge.client import server_of
from babylon_rl.judge.consensus import DECIMALS, Agreement, Gain, agreement, group_scores, merge
from babylon_rl.judge.parts import Part
from babylon_rl.judge.prompt.forms import MaskedGroup
from babylon_rl.judge.prompt.injection import Flag
from babylon_rl.judge.prompt.request import JudgeRequest, RenderedGroup
from babylon_rl.judge.prompt.templates import judge_version
from babylon_rl.llm.tokens import known_sum
from babylon_rl.settings import JudgeSettings
from babylon_rl.store.columns import storable
from babylon_rl.store.judge_requests import StoredAnswer
from babylon_rl.types import GroupScores, Judgement

MAX_EXCERPT = 200
MAX_PASSAGE = 500  # characters of a line that was masked


@dataclass(frozen=True)
class Order:
    """One order of a group: verdict and place of every agent, from 0 (first) to 1 (last), the mean over its parts."""

    verdicts: Mapping[str, EpisodeVerdict]
    places: Mapping[str, float]


@dataclass(frozen=True)
class ScoredGroup:
    """Outcome with scores: orders, and the answers, ``asked`` of them new.

    ``gain`` is that of the group's flagged sentences, None where it has none; where an agent gained by them, the orders are those of
    ``masked``. ``words`` is the gain of agents' own words, None but in the hours of the sample.
    """

    group: RenderedGroup
    orders: Sequence[Order]
    answers: Sequence[StoredAnswer]
    asked: int
    gain: Gain | None = None
    masked: MaskedGroup | None = None
    words: Gain | None = None

    @property
    def agreement(self) -> Agreement:
        return agreement(scores_by_order(self.orders))


@dataclass(frozen=True)
class UnscorableGroup:
    """A group to quarantine, after a refusal or only unusable answers; ``transcript`` holds the tries, shortened."""

    group: RenderedGroup
    reason: str
    transcript: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PendingGroup:
    """A group that was not judged now, for a reason that may pass."""

    group: RenderedGroup
    reason: str


GroupOutcome = ScoredGroup | UnscorableGroup | PendingGroup
RequestVerdicts = tuple[JudgeRequest, Mapping[str, EpisodeVerdict]]  # a request, and its verdicts by agent id


def scores_by_order(orders: Sequence[Order]) -> list[dict[str, float]]:
    return [{agent: verdict.score for agent, verdict in order.verdicts.items()} for order in orders]


def merged_order(parts: Sequence[RequestVerdicts]) -> Order:
    """Merge the requests of one order into one verdict and place per agent."""
    scores = merge([{agent: verdict.score for agent, verdict in part.items()} for _, part in parts])
    explanations: dict[str, str] = {}
    places: dict[str, list[float]] = {}
    marks: dict[str, list[tuple[float, ...]]] = {}
    for request, part in parts:
        for place, agent in enumerate(request.ids.values()):
            # an anchor stands in several requests: its place is their mean, and its explanation that of the first
            places.setdefault(agent, []).append(place / max(1, len(request.ids) - 1))
            explanations.setdefault(agent, part[agent].explanation)
            marks.setdefault(agent, []).append(part[agent].marks)
    verdicts = {agent: EpisodeVerdict(score, explanations[agent], _moved(marks[agent], score)) for agent, score in scores.items()}
    return Order(verdicts, {agent: sum(own) / len(own) for agent, own in places.items()})


def _moved(marks: Sequence[tuple[float, ...]], score: float) -> tuple[float, ...]:
    """Mean of an agent's marks over the requests that show it, moved so that their mean is its merged score; within 0 to 1."""
    if len(marks[0]) == 0:
        return ()
    means = [fmean(own) for own in zip(*marks, strict=True)]
    change = score - fmean(means)
    return tuple(round(min(1.0, max(0.0, mark + change)), DECIMALS) for mark in means)


def read_verdicts(text: str, request: JudgeRequest) -> dict[str, EpisodeVerdict]:
    """Read the verdicts of an answer by agent id, with the marks of the parts in which each acted; raises as ``read_answer``."""
    found = read_answer(text, list(request.ids), len(request.group.parts))
    verdicts = {}
    # an id stands for the episode at its place
    for (identity, agent), episode in zip(request.ids.items(), request.shown, strict=True):
        marks = tuple(found[identity].marks[own.place] for own in episode.acted)
        verdicts[agent] = replace_fields(found[identity], score=fmean(marks) if marks else found[identity].score, marks=marks)
    return verdicts


def _marks(outcome: ScoredGroup) -> dict[tuple[Part, str], float]:
    """Mark of each part and agent, the mean over the orders; empty where the hour was judged as a whole."""
    marks = {}
    for episode in outcome.group.episodes:
        orders = [order.verdicts[episode.agent_id].marks for order in outcome.orders]
        for own, given in zip(episode.acted, zip(*orders, strict=True), strict=True):
            marks[outcome.group.parts[own.place], episode.agent_id] = round(fmean(given), DECIMALS)
    return marks


def judged_scores(outcome: ScoredGroup, settings: JudgeSettings, input_version: str) -> GroupScores:
    """Scores of a judged group, not stored."""
    group, orders, agreed = outcome.group, outcome.orders, outcome.agreement
    gains = {} if outcome.gain is None else outcome.gain.by_agent
    scores = {agent: (round(score, DECIMALS), _reasoning(outcome, agent)) for agent, score in agreed.scores.items()}
    whole = group_scores(group.window, settings.judge_model, judge_version(settings), scores, input_version, _marks(outcome))
    episodes = {episode.agent_id: episode for episode in group.episodes}
    entries = tuple(
        replace(
            entry,
            disagreement=agreed.by_agent[entry.agent_id],
            order_scores=tuple(order.verdicts[entry.agent_id].score for order in orders),
            places=tuple(order.places[entry.agent_id] for order in orders),
            shown_tokens=episodes[entry.agent_id].tokens,
            flags=tuple(flag_words(flag) for flag in episodes[entry.agent_id].flags),
            gain=gains.get(entry.agent_id),
        )
        for entry in whole.scores
    )
    judgement = _judgement(outcome, agreed.tau, server_of(settings, settings.judge_model))
    return replace(whole, scores=entries, disagreement=agreed.disagreement, judgement=judgement)


def flag_words(flag: Flag) -> str:
    return storable(f"{flag.kind} in {flag.where}: {flag.excerpt[:MAX_EXCERPT]}")


def _reasoning(outcome: ScoredGroup, agent: str) -> str:
    """The judge's explanations of an episode, one per order unless all are equal."""
    verdicts = [order.verdicts[agent] for order in outcome.orders]
    if len({verdict.explanation for verdict in verdicts}) == 1:
        return storable(verdicts[0].explanation)
    return storable("\n".join(f"Order {number} ({verdict.score:.2f}): {verdict.explanation}" for number, verdict in enumerate(verdicts, 1)))


def _judgement(outcome: ScoredGroup, tau: float | None, server: str) -> Judgement:
    # The same answers in another order of arrival are the same judgement.
    answers = sorted(outcome.answers, key=lambda answer: (answer.order, answer.part, answer.attempt))
    usd, gained, masked, words = [answer.usd for answer in answers], outcome.gain, outcome.masked, outcome.words
    return Judgement(
        orders=len(outcome.orders),
        tau=tau,
        requests=len(answers),
        prompt_tokens=known_sum(answer.prompt_tokens for answer in answers),
        completion_tokens=known_sum(answer.completion_tokens for answer in answers),
        usd=None if None in usd else math.fsum(part for part in usd if part is not None),
        seconds=math.fsum(answer.latency_seconds for answer in answers),
        shown_version=outcome.group.input_version,
        server=server,
        steps=outcome.group.steps,
        shortened=outcome.group.shortened,
        decisions_shortened=outcome.group.decisions_shortened,
        context_flags=tuple(flag_words(flag) for flag in outcome.group.context_flags),
        masked=None if gained is None else bool(gained.gainers),
        noise=None if gained is None else gained.noise,
        masked_version="" if masked is None else masked.group.input_version,
        masked_passages=() if masked is None else tuple(storable(line[:MAX_PASSAGE]) for line in masked.passages),
        gainers=() if gained is None else gained.gainers,
        words=None if words is None else dict(words.by_agent),
        words_noise=None if words is None else words.noise,
        followed=() if words is None else words.gainers,
    )
