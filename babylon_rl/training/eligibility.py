"""Which episodes may train: the rules in order, and their counts.

A rule that bars a row from training is a reason in ``BarReason`` and, at the same place, its condition in ``RULES``. Counting and freezing
execute these rules (store/freezing.py), so both always agree, and no reason can be missing from a count.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from babylon_rl.settings import HEURISTIC, JudgeSettings, Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import FreezableEpisode, FreezeBounds, count_episodes, count_unread
from babylon_rl.store.trajectories import newest_window_with_rows
from babylon_rl.windows import HOUR, newest_complete, next_window, window_of, window_range, window_start

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
    """Reason, and its SQL condition on table ``episode`` of store/freezing.py."""

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


def freeze_bounds(
    connection: Connection,
    settings: Settings,
    now: datetime,
    windows: tuple[str, str] | None = None,
    settled: bool = False,
) -> FreezeBounds:
    """Hours considered by freezing: ``windows`` (from, to), else LOOKBACK_HOURS.

    The look-back ends with the newest complete hour with rows.

    ``settled`` asks for hours that an LLM judge may judge by automation (JUDGE_SETTLE_HOURS after their end).
    """
    complete, judged = last_hours(settings, now, settled)
    if windows is not None:
        list(window_range(*windows))  # refuses malformed and backward ranges
        first, end = windows
    else:
        # Counted back from the data, not from the clock: recordings of long ago are looked at as well.
        newest = newest_window_with_rows(connection, complete) or complete
        end = next_window(newest)
        first = window_of(window_start(end) - settings.lookback_hours * HOUR)
    return FreezeBounds(first, end, complete, judged, settings.min_agents_per_window)


def last_hours(settings: JudgeSettings, now: datetime, settled: bool) -> tuple[str, str]:
    """The newest complete hour, and the newest that may be judged (``settled``: by automation)."""
    # The heuristic costs nothing and follows late rows at once, so its hours need not settle.
    wait = timedelta(hours=settings.judge_settle_hours) if settled and settings.judge_model != HEURISTIC else timedelta(0)
    return newest_complete(now), newest_complete(now, wait)


def count_freezable(
    connection: Connection,
    settings: Settings,
    now: datetime,
    *,
    windows: tuple[str, str] | None = None,
    settled: bool = False,
) -> Freezable:
    """Count freezable trajectories by window, and the other new ones by reason."""
    return count_eligible(connection, freeze_bounds(connection, settings, now, windows, settled))


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Format reasons with their counts: ``204 synthetic, 22 in short episodes``."""
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items())
