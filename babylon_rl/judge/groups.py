"""Group scores: an hour's usable episodes relative to one another; their rows; the result of a scoring.

Ranks start at 1 (best) and equal scores share the better one; an advantage is (score - mean) / population standard
deviation. A group without spread carries no signal: its advantages are 0.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from babylon_rl.store.scores import StoredGroup, StoredScore
from babylon_rl.versions import content_version

NO_SPREAD = 1e-6
_SAME = 9  # decimals in which two scores must agree to be equal: sums of floats differ in the last bits
_ONLY_OURS = ("shown_version",)  # a column of its own


@dataclass(frozen=True)
class EpisodeScore:
    """Score of one episode: ``score`` 0..1, ``rank`` from 1, ``disagreement`` between orders (0: heuristic).

    Of a language model: the score in each order, the ``places`` there (0 first, 1 last), the number of tokens shown, and the flagged
    passages that address a judge. ``gain`` is the effect of the group's flagged passages on the episode (its score as shown less that
    with them masked), None where nothing was masked.
    """

    agent_id: str
    score: float
    rank: int
    advantage: float
    disagreement: float
    reasoning: str
    order_scores: tuple[float, ...] = ()
    places: tuple[float, ...] = ()
    shown_tokens: int = 0
    flags: tuple[str, ...] = ()
    gain: float | None = None


@dataclass(frozen=True)
class Judgement:
    """How a language model reached the scores of a group, all tries included.

    ``tau`` is Kendall's, the mean over pairs of orders (None where none ranks); tokens and ``usd`` are None where one of them is unknown,
    ``seconds`` the sum over the answers. ``shown_version`` is the hash of what was shown, ``server`` the address that answered in the
    place of the model's provider; empty: that did itself; None: not known, as of judgements from before it was noted. ``steps`` are those
    of the episodes, ``shortened`` those of them that were not shown in full, ``decisions_shortened`` the trades among these; None as there.

    ``context_flags`` are passages in news, questions and the market's names that address a judge. ``masked`` says whether the scores are
    those with flagged passages masked, None where there were none to mask; ``noise`` is the difference between two orders that decided it.
    ``masked_version`` is the hash of what was shown then.
    """

    orders: int
    tau: float | None
    requests: int
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    seconds: float
    shown_version: str
    server: str | None = None
    steps: int | None = None
    shortened: int | None = None
    decisions_shortened: int | None = None
    context_flags: tuple[str, ...] = ()
    masked: bool | None = None
    noise: float | None = None
    masked_version: str = ""


@dataclass(frozen=True)
class GroupScores:
    """Scores of one window's group, ordered by rank, then agent id.

    ``judgement`` is set only where a language model judged.

    ``spread`` is the population standard deviation of the scores, ``input_version`` the hash of what was judged, and
    ``changed`` says whether this call wrote them.
    """

    window: str
    judge: str
    judge_version: str
    scores: tuple[EpisodeScore, ...]
    mean: float
    spread: float
    disagreement: float
    input_version: str
    changed: bool = False
    judgement: Judgement | None = None

    @property
    def group_size(self) -> int:
        """Number of episodes in the group."""
        return len(self.scores)

    @property
    def has_spread(self) -> bool:
        """False when all scores are equal: there is no training signal."""
        return self.spread >= NO_SPREAD

    @property
    def data_version(self) -> str:
        """Hash of the judgement; the same inputs judged the same way give the same hash."""
        rows = [[score.agent_id, score.score, score.advantage, score.reasoning] for score in self.scores]
        return content_version([self.window, self.judge, self.judge_version, self.input_version, rows])

    def without(self, dropped: Collection[str]) -> "GroupScores":
        """The group without some agents; ranks and advantages are recomputed among the rest."""
        remaining = {score.agent_id: (score.score, score.reasoning) for score in self.scores if score.agent_id not in dropped}
        if len(remaining) == self.group_size or not remaining:
            return self
        rest = group_scores(self.window, self.judge, self.judge_version, remaining, self.input_version)
        # the judge's own numbers stay; only the comparison within the group changes
        before = {score.agent_id: score for score in self.scores}
        scores = tuple(replace(before[score.agent_id], rank=score.rank, advantage=score.advantage) for score in rest.scores)
        return replace(rest, scores=scores, disagreement=self.disagreement, judgement=self.judgement)

    def document(self) -> dict[str, Any]:
        """JSON document of ``babylon-rl scores``."""
        return {
            "window": self.window,
            "judge": self.judge,
            "judgeVersion": self.judge_version,
            "groupSize": self.group_size,
            "mean": self.mean,
            "spread": self.spread,
            "disagreement": self.disagreement,
            **_judgement_document(self.judgement),
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
                for score in self.scores
            ],
        }


def _judgement_document(judgement: Judgement | None) -> dict[str, Any]:
    if judgement is None:
        return {}
    tokens = {"prompt": judgement.prompt_tokens, "completion": judgement.completion_tokens}
    facts = {"orders": judgement.orders, "tau": judgement.tau, "requests": judgement.requests, "tokens": tokens, "usd": judgement.usd}
    flags = {"contextFlags": list(judgement.context_flags)} if judgement.context_flags else {}
    return facts | flags | ({} if judgement.masked is None else {"masked": judgement.masked, "noise": judgement.noise})


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
        advantage = (score - mean) / spread if spread >= NO_SPREAD else 0.0
        ranked.append(EpisodeScore(agent_id, score, rank, advantage, 0.0, reasoning))
    ranked.sort(key=lambda entry: (entry.rank, entry.agent_id))
    return GroupScores(window, judge, judge_version, tuple(ranked), mean, spread, 0.0, input_version)


def loaded(group: StoredGroup) -> GroupScores:
    """Scores of a stored group."""
    entries = tuple(
        EpisodeScore(
            s.agent_id, s.score, s.rank, s.advantage, s.disagreement, s.reasoning,
            tuple(s.order_scores), tuple(s.places), s.shown_tokens, tuple(s.flags), s.gain,
        )
        for s in group.scores
    )  # fmt: skip
    # JSON has no tuples
    facts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in group.judgement.items()}
    judgement = Judgement(**facts, shown_version=group.shown_version) if facts else None
    return GroupScores(
        group.window, group.judge, group.judge_version, entries, group.mean, group.spread, group.disagreement, group.input_version,
        judgement=judgement,
    )  # fmt: skip


def stored(judged: GroupScores, trajectories: Mapping[str, Sequence[str]], criteria: Mapping[str, Any]) -> StoredGroup:
    """Rows of a group's scores.

    ``trajectories`` are those of each agent, ``criteria`` the rubric and the hash of what was shown.
    """
    judgement = judged.judgement
    facts = {} if judgement is None else {name: value for name, value in msgspec.to_builtins(judgement).items() if name not in _ONLY_OURS}
    return StoredGroup(
        window=judged.window,
        judge=judged.judge,
        judge_version=judged.judge_version,
        group_size=judged.group_size,
        mean=judged.mean,
        spread=judged.spread,
        disagreement=judged.disagreement,
        input_version=judged.input_version,
        data_version=judged.data_version,
        shown_version="" if judgement is None else judgement.shown_version,
        judgement=facts,
        scores=[
            StoredScore(
                s.agent_id, s.score, s.rank, s.advantage, s.disagreement, s.reasoning,
                list(s.order_scores), list(s.places), s.shown_tokens, list(s.flags), s.gain,
                list(trajectories[s.agent_id]),
            )
            for s in judged.scores
        ],
        criteria=dict(criteria),
    )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Answers of one hour in this call: asked for, and from the cache."""

    asked: int
    cached: int


class Scored(dict[str, GroupScores]):
    """Scored groups by window, in order; a mapping.

    ``pending`` (window -> reason) wait for another run, ``quarantined`` are set aside until another try is requested; neither is in the
    mapping. ``asked`` has the hours that a language model judged in this call. ``notes`` are sentences on the whole.
    """

    def __init__(self, groups: Iterable[tuple[str, GroupScores]] = ()) -> None:
        super().__init__(groups)
        self.pending: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        self.asked: dict[str, Asked] = {}
        self.notes: list[str] = []

    def in_order(self) -> "Scored":
        """The same result with all windows in order."""
        ordered = Scored(sorted(self.items()))
        ordered.pending, ordered.quarantined = dict(sorted(self.pending.items())), dict(sorted(self.quarantined.items()))
        ordered.asked, ordered.notes = dict(sorted(self.asked.items())), self.notes
        return ordered
