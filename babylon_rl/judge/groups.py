"""Group scores: an hour's usable episodes relative to one another; the result of a scoring.

Ranks start at 1 (best) and equal scores share the better one; an advantage is (score - mean) / population standard
deviation. A group without spread carries no signal: its advantages are 0.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from babylon_rl.types import NO_SPREAD, EpisodeScore, GroupScores, Judgement

_SAME = 9  # decimals in which two scores must agree to be equal: sums of floats differ in the last bits


def without_agents(group: GroupScores, dropped: Collection[str]) -> GroupScores:
    """Return the group without some agents; ranks and advantages are recomputed among the rest."""
    remaining = {score.agent_id: (score.score, score.reasoning) for score in group.scores if score.agent_id not in dropped}
    if len(remaining) == group.group_size or not remaining:
        return group
    rest = group_scores(group.window, group.judge, group.judge_version, remaining, group.input_version)
    # the judge's own numbers stay; only the comparison within the group changes
    before = {score.agent_id: score for score in group.scores}
    scores = tuple(replace(before[score.agent_id], rank=score.rank, advantage=score.advantage) for score in rest.scores)
    return replace(rest, scores=scores, disagreement=group.disagreement, judgement=group.judgement)


def scores_document(group: GroupScores) -> dict[str, Any]:
    """Return the JSON document of ``babylon-rl scores``."""
    return {
        "window": group.window,
        "judge": group.judge,
        "judgeVersion": group.judge_version,
        "groupSize": group.group_size,
        "mean": group.mean,
        "spread": group.spread,
        "disagreement": group.disagreement,
        **_judgement_document(group.judgement),
        "scores": [
            {
                "agentId": score.agent_id,
                "score": score.score,
                "rank": score.rank,
                "advantage": score.advantage,
                "disagreement": score.disagreement,
                "reasoning": score.reasoning,
                **({"flags": list(score.flags)} if score.flags else {}),
                **({} if score.gain is None else {"gain": score.gain}),
            }
            for score in group.scores
        ],
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


def group_scores(window: str, judge: str, judge_version: str, scores: Mapping[str, tuple[float, str]], input_version: str) -> GroupScores:
    """Rank ``scores`` (agent id -> score 0..1, reasoning) and compute advantages.

    Raises:
        ValueError: the group is empty.
    """
    if not scores:
        raise ValueError(f"The group of {window} is empty.")
    values = [score for score, _ in scores.values()]
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    # equal up to rounding counts as equal, or noise in the last bits would decide ranks
    rounded = [round(value, _SAME) for value in values]
    ranked = []
    for agent_id, (score, reasoning) in scores.items():
        rank = 1 + sum(other > round(score, _SAME) for other in rounded)
        # a spread this small is rounding: divided by it, noise would look like merit
        advantage = (score - mean) / spread if spread >= NO_SPREAD else 0.0
        ranked.append(EpisodeScore(agent_id, score, rank, advantage, 0.0, reasoning))
    ranked.sort(key=lambda entry: (entry.rank, entry.agent_id))
    return GroupScores(window, judge, judge_version, tuple(ranked), mean, spread, 0.0, input_version)


@dataclass(frozen=True)
class AnswerCounts:
    """Answers of one hour: new ones of this call, and those from the cache."""

    asked: int
    cached: int


class ScoringResult(dict[str, GroupScores]):
    """Scored groups by window, in order; a mapping.

    ``pending`` (window -> reason) wait for another run, ``quarantined`` are set aside until another try is requested; neither is in the
    mapping. The scores of hours in ``by_other_rules`` stand although a rule has changed. ``asked`` has the hours that a language model
    judged in this call. ``notes`` are sentences on the whole.
    """

    def __init__(self, groups: Iterable[tuple[str, GroupScores]] = ()) -> None:
        super().__init__(groups)
        self.pending: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        self.asked: dict[str, AnswerCounts] = {}
        self.by_other_rules: list[str] = []
        self.notes: list[str] = []

    def in_order(self) -> "ScoringResult":
        """The same result with all windows in order."""
        ordered = ScoringResult(sorted(self.items()))
        ordered.pending, ordered.quarantined = dict(sorted(self.pending.items())), dict(sorted(self.quarantined.items()))
        ordered.asked, ordered.notes = dict(sorted(self.asked.items())), self.notes
        ordered.by_other_rules = sorted(self.by_other_rules)
        return ordered
