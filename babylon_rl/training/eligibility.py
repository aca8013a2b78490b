"""Eligibility of episodes for training: the rules in order, and counts by reason.

The first file to change for a rule that bars a row from training: a reason in ``BarReason`` and, at the same place, its rule. What counting
and freezing execute is made of these rules (store/freezing.py), so both always agree, and no reason can be missing from a count.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import FreezableEpisode, FreezeBounds, count_episodes, count_unread

BarReason = Literal[
    "late_after_training",
    "in a live batch",
    "left out by dropout",
    "used as baseline alone",
    "in short episodes",
    "synthetic",
    "leak",
    "without a call that trains",
    "late_after_judging",
    "in thin hours",
    "in quarantined hours",
    "in groups without spread",
    "changed since the hour was read",
    "in hours not settled",
    "in hours not read yet",
]
UNREAD: BarReason = "in hours not read yet"  # rows without an episode: counted apart, by the hour


class EligibilityRule(NamedTuple):
    """Reason, and its SQL condition on an episode.

    The condition is on table ``episode`` of store/freezing.py.
    """

    reason: BarReason
    condition: str


# Only the first reason that holds is counted, so the order matters: reasons that time or a person can cure come last.
RULES = (
    EligibilityRule("late_after_training", '"used"'),
    EligibilityRule("in a live batch", '"held"'),
    EligibilityRule("left out by dropout", """"left" = 'dropout'"""),
    EligibilityRule("used as baseline alone", """"left" = 'baseline'"""),
    EligibilityRule("in short episodes", 'NOT "usable"'),
    EligibilityRule("synthetic", '"trainableSequences" = 0 AND "syntheticRows" > 0'),
    EligibilityRule("leak", '"trainableSequences" > 0 AND "trainableSequences" <= "leakedCalls"'),
    EligibilityRule("without a call that trains", '"trainableSequences" = 0 OR "left" IS NOT NULL'),
    EligibilityRule("late_after_judging", '"unjudged"'),
    EligibilityRule("in thin hours", '"usableInHour" < %(min_agents)s'),
    EligibilityRule("in quarantined hours", '"quarantined"'),
    EligibilityRule("in groups without spread", '"flat"'),
    EligibilityRule("changed since the hour was read", '"gone"'),
    EligibilityRule("in hours not settled", 'NOT "settled"'),
)


@dataclass(frozen=True, slots=True)
class Freezable:
    """Counts of trajectories and episodes that a batch could take now.

    ``windows`` counts freezable trajectories by window, ``not_trainable`` the other new ones by reason.
    """

    trajectories: int
    episodes: int
    windows: Mapping[str, int]
    not_trainable: Mapping[str, int]


def count_eligible(connection: Connection, bounds: FreezeBounds) -> Freezable:
    """Count freezable trajectories by window, and the other new ones by reason."""
    return with_unread(connection, bounds, count_in_read_hours(connection, bounds))


def with_unread(connection: Connection, bounds: FreezeBounds, counted: Freezable) -> Freezable:
    """Add the rows of hours that were not read yet to counts of those that were."""
    return replace(counted, not_trainable=_most_first(counted.not_trainable, count_unread(connection, bounds)))


def count_in_read_hours(connection: Connection, bounds: FreezeBounds) -> Freezable:
    """Count as ``count_eligible``, in the hours that were read."""
    windows: dict[str, int] = {}
    reasons = Counter[str]()
    episodes = 0
    for window, reason, number, trajectories in count_episodes(connection, bounds, RULES):
        if reason is None:
            windows[window] = trajectories
            episodes += number
        else:
            reasons[reason] += trajectories
    return Freezable(sum(windows.values()), episodes, windows, _most_first(reasons, 0))


def freezable_of(episodes: Sequence[FreezableEpisode], reasons: Mapping[str, int], unread: int = 0) -> Freezable:
    """Return the counts of episodes already read by ``look_at_newest``."""
    windows = Counter[str]()
    for episode in episodes:
        windows[episode.window] += episode.trajectories
    return Freezable(windows.total(), len(episodes), dict(sorted(windows.items())), _most_first(reasons, unread))


def _most_first(reasons: Mapping[str, int], unread: int) -> dict[str, int]:
    counts = dict(reasons)
    if unread:
        counts[UNREAD] = unread
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
