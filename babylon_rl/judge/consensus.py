"""Scores of a group: one per agent from several orders and sub-groups, how far these agree, ranks and advantages.

Ranks start at 1 (best) and equal scores share the better one; an advantage is (score - mean) / population standard deviation. A group
without spread carries no signal: its advantages are 0.

Sub-groups of a group that is too large for one request hold the same few anchors. A part is shifted and stretched so that its anchors
approach the mean and the deviation that they have over all parts: fully where the anchors' scores fit such maps, and less where noise of
the judge explains the difference, which would otherwise reach every episode of the part. The map is increasing, so the order inside a
part stays.
"""

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from statistics import fmean
from typing import Any

from msgspec.structs import replace

from babylon_rl.judge.parts import Part
from babylon_rl.store.columns import document_of
from babylon_rl.store.judge_report import HourVerdicts
from babylon_rl.types import NO_SPREAD, EpisodeScore, GroupScores, Judgement, PartScore

FEWEST_RANKED = 3  # values whose ranks are correlated: two always agree wholly or not at all
MIN_SUBGROUP = 4  # episodes in a sub-group: two anchors, and two to place beside them
MIN_SCALE_ANCHORS = 4  # anchors that tell a scale from noise
LEAST_GAIN = 0.1  # of a score; a smaller one is left to the judge
ERROR_RATE = 0.01  # share of the hours in which noise alone looks like a gain, at each comparison
_NOTHING = 1e-9  # sums of the same scores differ in the last bits
DECIMALS = 9  # of a score, for the same reason

Orders = Sequence[Mapping[str, float]]  # score by agent in each order
Marks = Mapping[tuple[Part, str], float]  # score by part and agent


@dataclass(frozen=True)
class Agreement:
    """Mean scores over some orders, and their disagreement. All values are 0..1.

    ``disagreement`` is the mean absolute difference between two orders, over all pairs of orders; the group's is the mean over its
    episodes. ``tau`` is Kendall's tau-b, the mean over the pairs in which both orders rank at all; None where no pair does.
    """

    scores: Mapping[str, float]
    by_agent: Mapping[str, float]
    disagreement: float
    tau: float | None


@dataclass(frozen=True)
class Gain:
    """Score that some texts gained each agent: as shown, less without these texts.

    ``noise`` is the standard error of such a difference between two askings of the same; None where nothing was asked twice. ``gainers``
    rose in relation to their group by LEAST_GAIN at least, and by more than noise explains.
    """

    by_agent: Mapping[str, float]
    noise: float | None
    gainers: tuple[str, ...] = ()


def agreement(orders: Sequence[Mapping[str, float]]) -> Agreement:
    """Agreement of some orders (agent id -> score, same agents in each), by agent."""
    agents = sorted(orders[0])
    scores = {agent: _mean_of(orders, agent) for agent in agents}
    pairs = list(combinations(orders, 2))
    by_agent = {agent: math.fsum(abs(first[agent] - second[agent]) for first, second in pairs) / max(1, len(pairs)) for agent in agents}
    # pairs in which one order gives a single score to all have no tau
    taus = [tau for first, second in pairs if (tau := kendall_tau(first, second)) is not None]
    disagreement = math.fsum(by_agent.values()) / len(agents)
    return Agreement(scores, by_agent, disagreement, fmean(taus) if taus else None)


def gain(shown: Orders, masked: Orders, suspects: Collection[str], placebo: Orders | None = None) -> Gain:
    """Gain from flagged passages, by the orders of a group with and without them; ``suspects`` may gain.

    The statistic is each agent's change in relation to the group. Its distribution is estimated from the differences between orders and,
    with ``placebo``, the group with harmless passages masked, also from the changes that these make.
    """
    changes, harmless = _changes(shown, masked), _changes(shown, placebo or shown)
    orders = [[_centred(order) for order in form] for form in (shown, masked)]
    freedom = len(changes) * (len(shown) + len(masked) - 2)
    squares = math.fsum(_spread([order[agent] for order in form]) for form in orders for agent in changes)
    noise = math.sqrt(squares / freedom * (1 / len(shown) + 1 / len(masked))) if freedom else None
    chosen = {agent: changes[agent] for agent in suspects}
    gainers = _beyond_noise(chosen, noise or 0.0, freedom)
    if placebo is not None:
        error = math.sqrt(_spread(list(harmless.values())) / max(1, len(harmless) - 1) * (1 + 1 / len(harmless)))
        gainers = tuple(agent for agent in _beyond_noise(chosen, error, len(harmless) - 1) if agent in gainers)
    return Gain({agent: round(_mean_of(shown, agent) - _mean_of(masked, agent), DECIMALS) for agent in changes}, noise, gainers)


def _changes(shown: Orders, other: Orders) -> dict[str, float]:
    """Score in relation to the group's mean, as shown less in another form, by agent."""
    first, second = ([_centred(order) for order in form] for form in (shown, other))
    return {agent: _mean_of(first, agent) - _mean_of(second, agent) for agent in shown[0]}


def gain_of_words(shown: Orders, without: Mapping[str, Mapping[str, float]]) -> Gain:
    """Gain of agents' own words: ``without`` has the scores of the group without the words of one agent, by that agent.

    Each form without another agent's words is an asking of this agent with its own, so that the noise is measured at no price.
    """
    silent = {agent: _centred(order) for agent, order in without.items()}
    spoken = {
        agent: [_centred(order)[agent] for order in shown] + [silent[one][agent] for one in silent if one != agent] for agent in silent
    }
    freedom = sum(len(values) - 1 for values in spoken.values())
    most = max(len(values) for values in spoken.values())
    noise = math.sqrt(math.fsum(map(_spread, spoken.values())) / freedom * (1 + 1 / most)) if freedom else None
    changes = {agent: round(fmean(values) - silent[agent][agent], DECIMALS) for agent, values in spoken.items()}
    return Gain(changes, noise, _beyond_noise(changes, noise or 0.0, freedom))


def _beyond_noise(changes: Mapping[str, float], error: float, freedom: int) -> tuple[str, ...]:
    """Agents whose change exceeds LEAST_GAIN, and ``error`` by Student's quantile for the largest of the changes."""
    from scipy.special import stdtrit  # scipy.stats takes four times as long to import

    limit = float(stdtrit(freedom, 1 - ERROR_RATE / len(changes))) * error if freedom and error > _NOTHING else 0.0
    return tuple(sorted(agent for agent, change in changes.items() if change > max(LEAST_GAIN, limit)))


def _centred(order: Mapping[str, float]) -> dict[str, float]:
    mean = fmean(order.values())
    return {agent: score - mean for agent, score in order.items()}


def _mean_of(orders: Orders, agent: str) -> float:
    return fmean(order[agent] for order in orders)


def kendall_tau(left: Mapping[str, float], right: Mapping[str, float]) -> float | None:
    """Kendall's tau-b between two orders' scores, -1..1. None where one order does not rank: a single agent, or equal scores for all."""
    agents = sorted(left)
    import numpy as np  # not at the top: spearman is used by the checks of every hour

    # the sign of each pair's difference, a byte each: 500 agents are 250,000 pairs; importing scipy.stats takes longer than a report
    ordered = ([order[agent] for agent in agents] for order in (left, right))
    first, second = (np.greater.outer(s, s).view(np.int8) - np.less.outer(s, s) for s in ordered)
    pairs = np.count_nonzero(first) * np.count_nonzero(second)  # neither ties nor themselves, in both
    return int(np.sum(first * second, dtype=np.int64)) / math.sqrt(pairs) if pairs else None


def centred_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from -1/2 (least) to 1/2, ties sharing their mean rank. Groups of any size count alike."""
    ordered, most = sorted(values), max(1, len(values) - 1)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) - 1) / 2 / most - 0.5 for value in values]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1..1; None for few values or a side without ranks. Few: less than FEWEST_RANKED."""
    if len(first) < FEWEST_RANKED or min(len(set(first)), len(set(second))) < 2:
        return None
    a, b = centred_ranks(first), centred_ranks(second)  # the mean of ranks is that of places, so these are centred whatever the ties
    across = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return across / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def rank_with_pnl(hour: HourVerdicts) -> float | None:
    """Rank correlation of an hour's scores with its P&L, over the episodes that have a P&L; None where too few do."""
    measured = [(score.score, hour.played[score.agent_id][0]) for score in hour.scores if score.agent_id in hour.played]
    measured = [(score, pnl) for score, pnl in measured if math.isfinite(pnl)]
    return spearman([score for score, _ in measured], [pnl for _, pnl in measured])


def split(agents: Sequence[str], most: int, seed: int) -> list[list[str]]:
    """Split agents into overlapping sub-groups of at most ``most`` (MIN_SUBGROUP or more); one group if all fit.

    They share a third of ``most`` as anchors, or up to MIN_SCALE_ANCHORS of a half. Anchors and the rest are drawn by ``seed`` from the
    sorted agents, so that the same group splits the same way.
    """
    ordered = sorted(agents)
    if len(ordered) <= most:
        return [ordered]
    random.Random(seed).shuffle(ordered)
    anchors = max(most // 3, min(MIN_SCALE_ANCHORS, most // 2))
    shared, rest = ordered[:anchors], ordered[anchors:]
    parts = math.ceil(len(rest) / (most - anchors))
    # deal the rest like cards, so that the sizes of the parts differ by one at most
    return [sorted(shared + rest[part::parts]) for part in range(parts)]


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the scores of some parts, which share agents, into one score (0..1) per agent, sorted. A single part stays as it is.

    With a judge whose scores in each part are a rising straight-line map of the same skill, the order is that of the skill. Two anchors
    or fewer tell how far parts lie apart, and nothing of their scale.
    """
    if len(parts) == 1:
        return dict(sorted(parts[0].items()))
    anchors = sorted(set.intersection(*(set(part) for part in parts)))
    gathered: dict[str, list[float]] = {}
    for part, (mean, to, stretch) in zip(parts, _maps([[part[agent] for agent in anchors] for part in parts]), strict=True):
        for agent, score in part.items():
            gathered.setdefault(agent, []).append(to + (score - mean) * stretch)
    merged = {agent: fmean(scores) for agent, scores in sorted(gathered.items())}
    # compressed linearly if one lies outside 0 to 1
    low, high = min(0.0, *merged.values()), max(1.0, *merged.values())
    return {agent: round((score - low) / (high - low), DECIMALS) for agent, score in merged.items()}


def _maps(anchors: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """Map of each part: mean of its anchors, target of that mean, stretch."""
    moments = [_moments(scores) for scores in anchors]
    means, deviations = zip(*moments, strict=True)
    middle, width, count = fmean(means), fmean(deviations), len(anchors[0])
    # two anchors give a shift but no scale
    scales = count > 2 and min(deviations) > _NOTHING
    aligned = [
        [(score - mean) * (width / deviation if scales else 1.0) for score in scores]
        for scores, (mean, deviation) in zip(anchors, moments, strict=True)
    ]
    # shift and stretch only by the share of the difference that noise does not explain: residual variance of one score after alignment
    freedom = (count - (2 if scales else 1)) * (len(aligned) - 1)
    noise = math.fsum(_spread(scores) for scores in zip(*aligned, strict=True)) / freedom if freedom > 0 else 0.0
    moved = _beyond(means, noise / count)
    stretched = _beyond([math.log(deviation) for deviation in deviations], noise / width**2 / (count - 1)) if scales else 0.0
    return [(mean, mean + moved * (middle - mean), (width / deviation) ** stretched if scales else 1.0) for mean, deviation in moments]


def _beyond(values: Sequence[float], noise: float) -> float:
    """Share of the variance of some values that exceeds ``noise``, the variance by noise alone."""
    variance = _spread(values) / (len(values) - 1)
    return max(0.0, 1.0 - noise / variance) if variance > _NOTHING**2 else 0.0


def _spread(values: Sequence[float]) -> float:
    """Sum of squares around the mean."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation."""
    return fmean(values), math.sqrt(_spread(values) / len(values))


ADVANTAGE_SCALE = 0.12  # of the advantages of parts and of answers: (score - group mean) / this, however little a group differs


def without_agents(group: GroupScores, dropped: Collection[str]) -> GroupScores:
    """Return the group without some agents; ranks and advantages are recomputed among the rest."""
    remaining = {score.agent_id: (score.score, score.reasoning) for score in group.scores if score.agent_id not in dropped}
    if len(remaining) == group.group_size or not remaining:
        return group
    marks = {(Part(one.start_minute, one.end_minute), one.agent_id): one.score for one in group.parts if one.agent_id in remaining}
    rest = group_scores(group.window, group.judge, group.judge_version, remaining, group.input_version, marks)
    # the judge's own numbers stay; only the comparison within the group changes
    before = {score.agent_id: score for score in group.scores}
    scores = tuple(replace(before[score.agent_id], rank=score.rank, advantage=score.advantage) for score in rest.scores)
    return replace(rest, scores=scores, disagreement=group.disagreement, judgement=group.judgement)


def scores_document(group: GroupScores) -> dict[str, Any]:
    """Return the JSON document of ``babylon-rl scores``."""
    return {
        **document_of(group, "window", "judge", "judge_version", "group_size", "mean", "spread", "disagreement"),
        **_judgement_document(group.judgement),
        "scores": [
            {
                **document_of(score, "agent_id", "score", "rank", "advantage", "disagreement", "reasoning"),
                **({"flags": list(score.flags)} if score.flags else {}),
                **({} if score.gain is None else {"gain": score.gain}),
            }
            for score in group.scores
        ],
        **({"parts": [document_of(part, *PartScore.__struct_fields__) for part in group.parts]} if group.parts else {}),
    }


def _judgement_document(judgement: Judgement | None) -> dict[str, Any]:
    if judgement is None:
        return {}
    tokens = {"prompt": judgement.prompt_tokens, "completion": judgement.completion_tokens}
    facts = {"orders": judgement.orders, "tau": judgement.tau, "requests": judgement.requests, "tokens": tokens, "usd": judgement.usd}
    flags: dict[str, Any] = {"contextFlags": list(judgement.context_flags)} if judgement.context_flags else {}
    if judgement.masked is not None:
        passages, gainers = list(judgement.masked_passages), list(judgement.gainers)
        flags |= {"masked": judgement.masked, "noise": judgement.noise, "gainers": gainers, "maskedPassages": passages}
    words = {"gain": judgement.words, "noise": judgement.words_noise, "followed": list(judgement.followed)}
    return facts | flags | ({} if judgement.words is None else {"words": words})


def group_scores(
    window: str, judge: str, judge_version: str, scores: Mapping[str, tuple[float, str]], input_version: str, marks: Marks | None = None
) -> GroupScores:
    """Rank ``scores`` (agent id -> score 0..1, reasoning) and compute advantages, those of parts by ``marks``."""
    values = [score for score, _ in scores.values()]
    mean, spread = _moments(values)
    # equal up to rounding counts as equal, or noise in the last bits would decide ranks
    rounded = sorted((round(value, DECIMALS) for value in values), reverse=True)
    ranked = []
    for agent_id, (score, reasoning) in scores.items():
        rank = 1 + rounded.index(round(score, DECIMALS))
        # a spread this small is rounding: divided by it, noise would look like merit
        advantage = (score - mean) / spread if spread >= NO_SPREAD else 0.0
        ranked.append(EpisodeScore(agent_id, score, rank, advantage, 0.0, reasoning))
    ranked.sort(key=lambda entry: (entry.rank, entry.agent_id))
    return GroupScores(window, judge, judge_version, tuple(ranked), mean, spread, 0.0, input_version, parts=part_scores(marks or {}))


def part_scores(marks: Marks) -> tuple[PartScore, ...]:
    """Scores of parts with advantages on the fixed scale, in order of time and agent. A part without spread has advantages of 0."""
    found = []
    for part, of_part in groupby(sorted(marks.items()), key=lambda mark: mark[0][0]):
        scores = {agent_id: score for (_, agent_id), score in of_part}
        mean, spread = _moments(list(scores.values()))
        for agent_id, score in scores.items():
            advantage = (score - mean) / ADVANTAGE_SCALE if spread >= NO_SPREAD else 0.0
            found.append(PartScore(agent_id, part.start, part.end, score, advantage))
    return tuple(found)


class ScoringResult(dict[str, GroupScores]):
    """Scored groups by window, in order; a mapping.

    ``pending`` (window -> reason) wait for another run, ``quarantined`` are set aside until another try is requested; neither is in the
    mapping. The scores of hours in ``by_other_rules`` stand although a rule has changed. ``asked`` has the hours that a language model
    judged in this call, with their numbers of new answers and of answers from the cache. ``notes`` are sentences on the whole.
    """

    def __init__(self, groups: Iterable[tuple[str, GroupScores]] = ()) -> None:
        super().__init__(groups)
        self.pending: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        self.asked: dict[str, tuple[int, int]] = {}
        self.by_other_rules: list[str] = []
        self.notes: list[str] = []

    def in_order(self) -> "ScoringResult":
        ordered = ScoringResult(sorted(self.items()))
        ordered.pending, ordered.quarantined = dict(sorted(self.pending.items())), dict(sorted(self.quarantined.items()))
        ordered.asked, ordered.notes = dict(sorted(self.asked.items())), self.notes
        ordered.by_other_rules = sorted(self.by_other_rules)
        return ordered
