"""Reading of hours for an export, one at a time, each in one consistent snapshot.

Omitted data is counted with its reason. Each text is checked for leaks here, whether or not the asset graph has done so; hidden answers
and recorded gameKnowledge are used for this check only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import psycopg

from babylon_rl.chats import is_cut
from babylon_rl.episodes.reading import by_rows, group_version, read_window, trajectories_with_texts
from babylon_rl.errors import UsageError
from babylon_rl.judge.hindsight import hour_secrets
from babylon_rl.judge.leakage import LeakContext, find_leaks
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.market.outcomes import WindowOutcomes, read_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows
from babylon_rl.store.windows import quarantined
from babylon_rl.training.conversion import CUT, EMPTY, LEAK
from babylon_rl.training.export.records import Record, episode_records, is_storable
from babylon_rl.types import Episode, EpisodeScore, GroupScores, ServedSequence, WindowReading
from babylon_rl.versions import seeded_share
from babylon_rl.windows import is_complete, window_range

SHORT = "in an episode with too few steps"
QUARANTINED = "in a quarantined hour"
UNSCORED = "without a score"
FLAT = "in a group without spread"
UNSTORABLE = "not valid Unicode"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True)
class Splits:
    """Shares of windows, 0..1: ``train`` and ``validation``; the rest is test.

    Raises UsageError: a share is outside 0..1, or both together exceed 1.
    """

    train: float = 0.9
    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in (("--split", self.train), ("--validation", self.validation)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share:g}: write a share of the windows between 0 and 1, such as 0.9.")
        if self.train + self.validation > 1 + 1e-9:
            raise UsageError(f"--split {self.train:g} and --validation {self.validation:g} are more than all windows: lower one of them.")

    def of(self, window: str) -> str:
        share = seeded_share(self.seed, "split", window)
        if share < self.train:
            return TRAIN
        return VALIDATION if share < self.train + self.validation else TEST


@dataclass(frozen=True)
class Selection:
    """Selection of episodes; without any flag the usable ones of hours that are not quarantined.

    ``everything`` adds those with too few steps and quarantined hours. ``only_scored`` leaves out episodes without a score,
    ``only_trainable`` also groups without spread, empty and cut responses: what does not train. Raises UsageError: flags that contradict
    each other.
    """

    everything: bool = False
    only_scored: bool = False
    only_trainable: bool = False

    def __post_init__(self) -> None:
        if self.everything and (self.only_scored or self.only_trainable):
            raise UsageError("--all takes what has no score, too: give it, or --only-scored or --only-trainable, not both.")


@dataclass(frozen=True)
class ExportHour:
    """Window of an export; ``episodes`` are selected, by agent id, without sequences.

    Records are read on demand, some trajectories at a time. ``left_out`` (calls by reason) and ``served`` (records by agent id) are
    complete once all records have been read. ``stale`` is True when the hour's rows have changed since its scores were given.
    ``synthetic`` counts trajectories that recorded no prompt and so give no record.
    """

    connection: Connection
    settings: Settings
    selection: Selection
    split: str
    reading: WindowReading
    episodes: tuple[Episode, ...]
    scores: GroupScores | None
    outcomes: WindowOutcomes
    stale: bool
    synthetic: int
    left_out: Counter[str]
    served: Counter[str] = field(default_factory=Counter)

    @property
    def window(self) -> str:
        return self.reading.window

    def score_of(self, agent_id: str) -> EpisodeScore | None:
        return next((entry for entry in self.scores.scores if entry.agent_id == agent_id), None) if self.scores is not None else None

    def records(self, *, scored: bool | None = None) -> Iterator[Record]:
        """Read the hour's records by agent id, once only: of episodes with (True) or without (False) a score, or of all (None)."""
        selected = [episode for episode in self.episodes if scored is None or (self.score_of(episode.agent_id) is not None) == scored]
        for some in by_rows(selected):
            ids = [trajectory_id for episode in some for trajectory_id in episode.trajectory_ids]
            texts = trajectories_with_texts(self.connection, ids, self.settings)
            secrets = hour_secrets(self.connection, self.outcomes, ids)
            for episode in some:
                # Popped, so that a text is let go once it is exported.
                calls = [call for trajectory_id in episode.trajectory_ids for call in texts.pop(trajectory_id).sequences]
                served = _served(calls, secrets, self.selection, self.left_out)
                self.served[episode.agent_id] += len(served)
                yield from episode_records(episode, served, self.scores, self.score_of(episode.agent_id), self.split)


def complete_windows(connection: Connection, first: str | None, end: str | None, now: datetime) -> tuple[list[str], list[str]]:
    """Windows with rows from ``first`` to before ``end``: complete ones, others. Raises UsageError: a malformed id, a backward range."""
    first, end = FIRST_POSSIBLE if first is None else first, LAST_POSSIBLE if end is None else end
    next(window_range(first, end), None)
    windows = windows_with_rows(connection, first, end)
    complete = [window for window in windows if is_complete(window, now)]
    return complete, [window for window in windows if not is_complete(window, now)]


def read_hours(
    connection: Connection, windows: Sequence[str], settings: Settings, splits: Splits, selection: Selection
) -> Iterator[ExportHour]:
    """Read hours one after another, with part of an hour's texts in memory.

    ``connection`` must not be inside a transaction: each hour is read in one of its own, in which rows, scores and outcomes are those of
    one moment, and which lasts until the next hour is asked for.
    """
    level = connection.isolation_level
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        for window in windows:
            with connection.transaction():
                yield _read_hour(connection, window, settings, splits.of(window), selection)
    finally:
        if not connection.closed:
            connection.isolation_level = level


def _read_hour(connection: Connection, window: str, settings: Settings, split: str, selection: Selection) -> ExportHour:
    reading = read_window(connection, window, settings, texts=False)
    group = stored_scores(connection, [window]).get(window)
    in_quarantine = window in quarantined(connection, [window])
    scored = {entry.agent_id for entry in group.scores} if group is not None else set()
    episodes, left_out = list[Episode](), Counter[str]()
    for episode in reading.episodes:
        reason = _reason(episode, group, episode.agent_id in scored, in_quarantine, selection)
        if reason is None:
            episodes.append(episode)
        elif episode.trainable_sequences:  # those left out are counted by these
            left_out[reason] += episode.trainable_sequences
    return ExportHour(
        connection=connection,
        settings=settings,
        selection=selection,
        split=split,
        reading=reading,
        episodes=tuple(episodes),
        scores=group,
        outcomes=read_outcomes(connection, window, settings),
        stale=group is not None and group.input_version != group_version(reading),
        synthetic=0 if settings.train_synthetic else sum(episode.message_sources["synthetic"] for episode in episodes),
        left_out=left_out,
    )


def _reason(episode: Episode, group: GroupScores | None, scored: bool, set_aside: bool, selection: Selection) -> str | None:
    """Reason why an episode is left out, or None."""
    if selection.everything:
        return None
    if set_aside:
        return QUARANTINED
    if not episode.usable:
        return SHORT
    if not scored and (selection.only_scored or selection.only_trainable):
        return UNSCORED
    if selection.only_trainable and group is not None and not group.has_spread:
        return FLAT
    return None


def _served(
    calls: Sequence[ServedSequence], secrets: Mapping[str, LeakContext], selection: Selection, left_out: Counter[str]
) -> list[ServedSequence]:
    exported = []
    for call in calls:
        if not is_storable(call):
            left_out[UNSTORABLE] += 1
        elif find_leaks(call.messages, call.response, secrets[call.trajectory_id]):
            left_out[LEAK] += 1
        elif selection.only_trainable and not call.response.strip():
            left_out[EMPTY] += 1
        elif selection.only_trainable and is_cut(call.finish_reason):
            left_out[CUT] += 1
        else:
            exported.append(call)
    return exported
