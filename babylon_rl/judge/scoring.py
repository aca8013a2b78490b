"""Scoring of hours: each ready window's group is judged and written in one transaction.

The judge is a language model (model_scoring.py), or where none is set the heuristic, and neither ever replaces the other. An hour keeps its
scores if its group has not changed since it was judged, or if a training has consumed one of its episodes, unless forced.

The heuristic is a formula: 0.5 * clip((pnl + 1000) / 2000, 0, 1) + 0.3 * win rate + 0.2 * min(1, steps / 20), with the window's P&L in
dollars and a win rate of 0.5 when nothing was won or lost. Everywhere it appears it is labelled as the heuristic.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from datetime import datetime

from msgspec.structs import replace as changed

from babylon_rl.episodes.reading import read_windows
from babylon_rl.episodes.summary import group_version
from babylon_rl.judge.groups import ScoringResult, group_scores
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store import scores as store
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import lock_windows, quarantined, reading_chunks
from babylon_rl.types import Episode, GroupScores, WindowReading
from babylon_rl.windows import is_complete

_LOG = logging.getLogger(__name__)

HOURS_PER_RUN = 24  # of a judge that takes its time, and is paid
_HEURISTIC_VERSION = "1"
_FORMULA = {"formula": "0.5*clip((pnl+1000)/2000, 0, 1) + 0.3*winRate + 0.2*min(1, actions/20)", "pnl": "window P&L in dollars"}
_NEITHER = 0.5  # win rate where nothing was won or lost
_ENOUGH_ACTIONS = 20  # more of them earn nothing


def heuristic_score(pnl_usd: float, actions: int, wins: int, losses: int) -> float:
    """Compute the heuristic's score, 0..1."""
    decided = wins + losses
    win_rate = wins / decided if decided else _NEITHER
    return 0.5 * min(1.0, max(0.0, (pnl_usd + 1000) / 2000)) + 0.3 * win_rate + 0.2 * min(1.0, actions / _ENOUGH_ACTIONS)


def judge_episode(episode: Episode) -> tuple[float, str]:
    """Score one episode by the heuristic, with the numbers used as reasoning."""
    score = heuristic_score(episode.window_pnl, episode.steps, episode.wins, episode.losses)
    reasoning = (
        f"Heuristic (a formula, no judge model): window P&L ${episode.window_pnl:.2f}, "
        f"{episode.wins} wins, {episode.losses} losses, {episode.steps} actions: {score:.4f}."
    )
    return score, reasoning


def unscored_hours(connection: Connection, windows: Iterable[str]) -> set[str]:
    """Return those of ``windows`` without current scores, less the quarantined ones."""
    asked = list(windows)
    return store.unscored_windows(connection, asked) - quarantined(connection, asked)


def score_windows(
    connection: Connection,
    windows: Iterable[str],
    settings: Settings,
    now: datetime,
    *,
    force: bool = False,
    on_progress: Progress = no_progress,
    on_beat: Callable[[], None] = lambda: None,
) -> ScoringResult:
    """Score the groups of some hours and store them.

    Written are our tables, the trajectories' judge columns and reward_judgments.

    Hours that are not complete or not ready have no group and are absent from the result. Groups without spread are scored and reported
    (``has_spread`` is False). ``force`` judges unchanged, consumed and quarantined hours again; requests that the cache answers
    are not sent. Hours that it could not judge are in the result's ``pending`` and ``quarantined``.
    ``on_beat`` is called about every half minute and may use ``connection``; an error that it raises ends the scoring.

    Where a language model judges, ``connection`` is committed on the way, so that every paid answer is stored whatever happens next.

    Raises:
        JudgeRefused: the judge answers no request (credentials, the model's name).
        UsageError: one of ``windows`` is not a window id.
    """
    complete = [window for window in sorted(set(windows)) if is_complete(window, now)]
    if settings.judge_model != HEURISTIC:
        from babylon_rl.judge.model_scoring import score_with_model  # slow import

        scored = score_with_model(connection, complete, settings, now, force=force, on_progress=on_progress, on_beat=on_beat)
    else:
        # one transaction a chunk: nothing is waited for here, while a model's answers would keep these hours locked for minutes
        scored = ScoringResult()
        for some in reading_chunks(connection, complete):
            on_beat()
            with connection.transaction():
                lock_windows(connection, some)
                scored.update(_score(connection, read_windows(connection, some, settings), now, force))
    judged = sum(group.changed for group in scored.values())
    counts = {"judged": judged, "waiting": len(scored.pending), "quarantined": len(scored.quarantined)}
    waits = "".join(f", {len(scored.pending)} wait: {reason}" for reason in list(scored.pending.values())[:1])
    _LOG.info("%d hours are judged%s", judged, waits, extra=counts)
    return scored


def _score(connection: Connection, readings: dict[str, WindowReading], now: datetime, force: bool) -> dict[str, GroupScores]:
    """Score some hours with the heuristic, under their locks."""
    stored = store.read(connection, list(readings))
    consumed = store.consumed_windows(connection, list(stored))
    scores: dict[str, GroupScores] = {}
    fresh: list[store.NewScores] = []
    for window, reading in readings.items():
        # scores stay if nothing changed or a training has used them; else a ready hour is judged anew
        before, version = stored.get(window), group_version(reading)
        own = HEURISTIC, _HEURISTIC_VERSION, version
        same = before is not None and (before.judge, before.judge_version, before.input_version) == own
        if before is not None and not force and (window in consumed or same):
            scores[window] = before
        elif reading.ready:
            by_agent = {episode.agent_id: judge_episode(episode) for episode in reading.usable_episodes}
            judged = group_scores(window, HEURISTIC, _HEURISTIC_VERSION, by_agent, version)
            scores[window] = changed(judged, changed=True)
            trajectories = {episode.agent_id: episode.trajectory_ids for episode in reading.usable_episodes}
            shown = hashlib.sha256("\n".join(score.reasoning for score in judged.scores).encode()).hexdigest()
            fresh.append(store.NewScores(judged, trajectories, {"rubric": _FORMULA, "shown": shown}))
    # scores of hours that are not ready any more
    store.delete(connection, [window for window in stored if window not in scores])
    if fresh:
        store.release(connection, [new.group.window for new in fresh])
        store.replace(connection, fresh, now, force=force)
    return scores


def stored_scores(connection: Connection, windows: Iterable[str]) -> dict[str, GroupScores]:
    """Stored scores by window; windows without scores are absent."""
    if not store.have_scores(connection):
        return {}
    return store.read(connection, sorted(set(windows)))
