"""Scoring hours: judge each ready window's group as a whole and write the result everywhere it belongs, in one transaction.

The judge here is the heuristic. An hour whose group is as it was judged keeps its scores untouched, and so does one that a
training has consumed an episode of, unless forced.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace as changed
from datetime import datetime

from babylon_rl.episodes.reading import read_windows
from babylon_rl.episodes.summary import group_version
from babylon_rl.episodes.types import WindowReading
from babylon_rl.errors import SettingsError
from babylon_rl.judge import heuristic
from babylon_rl.judge.groups import EpisodeScore, GroupScores, group_scores
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store import scores as store
from babylon_rl.store.trajectories import Connection
from babylon_rl.store.window_groups import lock_windows, reading_chunks
from babylon_rl.windows import is_complete


def score_window(connection: Connection, window: str, settings: Settings, now: datetime, *, force: bool = False) -> GroupScores | None:
    """Score one hour; None when it has no group (not complete, or too few usable episodes). As ``score_windows``."""
    return score_windows(connection, [window], settings, now, force=force).get(window)


def score_windows(
    connection: Connection, windows: Iterable[str], settings: Settings, now: datetime, *, force: bool = False
) -> dict[str, GroupScores]:
    """Score the groups of some hours and persist them: our tables, the trajectories' judge columns, reward_judgments.

    Hours that are not complete or not ready have no group and are absent from the result. Groups without spread are scored and reported
    (``has_spread`` is False). ``force`` judges again what is unchanged or was consumed by a training.

    Raises:
        SettingsError: JUDGE_MODEL names anything but the heuristic.
        UsageError: one of ``windows`` is not a window id.
    """
    if settings.judge_model != HEURISTIC:
        raise SettingsError(
            f"JUDGE_MODEL is {settings.judge_model!r}: the judge by a language model is not available; set JUDGE_MODEL={HEURISTIC}."
        )
    found: dict[str, GroupScores] = {}
    for some in reading_chunks(connection, (window for window in windows if is_complete(window, now))):
        with connection.transaction():
            lock_windows(connection, some)
            found |= _score(connection, read_windows(connection, some, settings), now, force)
    return found


def _score(connection: Connection, readings: dict[str, WindowReading], now: datetime, force: bool) -> dict[str, GroupScores]:
    held = {window: _loaded(group) for window, group in store.read(connection, list(readings)).items()}
    consumed = store.consumed_windows(connection, list(held))
    found: dict[str, GroupScores] = {}
    fresh: list[store.StoredGroup] = []
    for window, reading in readings.items():
        before = held.get(window)
        if before is not None and not force and (window in consumed or _is_of(before, reading)):
            found[window] = before
        elif reading.ready:
            judged = judge_heuristically(reading)
            found[window] = changed(judged, changed=True)
            fresh.append(_stored(judged, reading))
    store.delete(connection, [window for window in held if window not in found])
    if fresh:
        store.replace(connection, fresh, now, force=force)
    return found


def _is_of(before: GroupScores, reading: WindowReading) -> bool:
    judge = (before.judge, before.judge_version)
    return before.input_version == group_version(reading) and judge == (heuristic.NAME, heuristic.VERSION)


def judge_heuristically(reading: WindowReading) -> GroupScores:
    """The heuristic's scores of a ready window, unwritten."""
    scores = {episode.agent_id: heuristic.judge_episode(episode) for episode in reading.usable_episodes}
    return group_scores(reading.window, heuristic.NAME, heuristic.VERSION, scores, group_version(reading))


def stored_scores(connection: Connection, windows: Iterable[str]) -> dict[str, GroupScores]:
    """The scores that our tables hold for some windows; windows without any are absent."""
    if not store.have_scores(connection):
        return {}
    return {window: _loaded(group) for window, group in store.read(connection, sorted(set(windows))).items()}


def _loaded(group: store.StoredGroup) -> GroupScores:
    entries = tuple(EpisodeScore(s.agent_id, s.score, s.rank, s.advantage, s.disagreement, s.reasoning) for s in group.scores)
    return GroupScores(
        group.window, group.judge, group.judge_version, entries, group.mean, group.spread, group.disagreement, group.input_version
    )


def _stored(judged: GroupScores, reading: WindowReading) -> store.StoredGroup:
    trajectories = {episode.agent_id: list(episode.trajectory_ids) for episode in reading.usable_episodes}
    shown = hashlib.sha256("\n".join(score.reasoning for score in judged.scores).encode()).hexdigest()
    return store.StoredGroup(
        window=judged.window,
        judge=judged.judge,
        judge_version=judged.judge_version,
        group_size=judged.group_size,
        mean=judged.mean,
        spread=judged.spread,
        disagreement=judged.disagreement,
        input_version=judged.input_version,
        data_version=judged.data_version,
        scores=[
            store.StoredScore(s.agent_id, s.score, s.rank, s.advantage, s.disagreement, s.reasoning, trajectories[s.agent_id])
            for s in judged.scores
        ],
        criteria={"rubric": heuristic.RUBRIC, "shown": shown},
    )
