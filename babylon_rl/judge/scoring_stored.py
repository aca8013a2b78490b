"""Conversion between a group's scores and their database rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from babylon_rl.judge.groups import EpisodeScore, GroupScores, Judgement
from babylon_rl.store.scores import StoredGroup, StoredScore

_ONLY_OURS = ("shown_version",)  # a column of its own


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
