"""Scoring of hours: each ready window's group is judged and written in one transaction.

The judge is a language model (group_judge.py), or where none is set the heuristic, whose answer is immediate; neither ever stands in for
the other. One plan (plan.py) decides for both which hours are judged.

The heuristic is a formula (``heuristic_score``). Where parts of an hour are judged, it is applied to each of them, and an agent that acted
in a part has the whole 0.2: agents take about one action in a part, so that this term would not tell them apart. Everywhere it appears it
is labelled as the heuristic.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from msgspec.structs import replace as changed

from babylon_rl.judge.consensus import ScoringResult, group_scores
from babylon_rl.judge.parts import Part, hour_parts, part_results
from babylon_rl.judge.plan import PlannedHour, plan_hours, rules_version
from babylon_rl.judge.prompt.templates import HEURISTIC_BY_PART, judge_version
from babylon_rl.progress import Progress, no_progress
from babylon_rl.settings import HEURISTIC, JudgeSettings, Settings
from babylon_rl.store import scores as store
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import chunks, quarantined
from babylon_rl.types import Episode, GroupScores, HourEpisodes
from babylon_rl.windows import is_complete

_LOG = logging.getLogger(__name__)

HOURS_PER_RUN = 24  # of a slow, paid judge
_FORMULA = {"formula": "0.5*clip((pnl+1000)/2000, 0, 1) + 0.3*winRate + 0.2*min(1, actions/20)", "pnl": "window P&L in dollars"}
_PART_FORMULA = {"formula": "mean over parts of 0.5*clip((pnl+1000)/2000, 0, 1) + 0.3*winRate + 0.2", "pnl": "P&L of the part in dollars"}
_NEITHER = 0.5  # win rate where nothing was won or lost
_ENOUGH_ACTIONS = 20  # more of them earn nothing


def heuristic_score(pnl_usd: float, actions: int, wins: int, losses: int) -> float:
    """Compute the heuristic's score, 0..1."""
    decided = wins + losses
    win_rate = wins / decided if decided else _NEITHER
    return 0.5 * min(1.0, max(0.0, (pnl_usd + 1000) / 2000)) + 0.3 * win_rate + 0.2 * min(1.0, actions / _ENOUGH_ACTIONS)


def heuristic_part_score(pnl_usd: float, wins: int, losses: int) -> float:
    """Compute the heuristic's score of a part, 0..1: an agent that acts in it has acted enough."""
    return heuristic_score(pnl_usd, _ENOUGH_ACTIONS, wins, losses)


def judge_by_part(hour: HourEpisodes, version: str) -> GroupScores:
    """Score a group by the heuristic: each agent in each part in which it acted, and the hour by the mean of these."""
    parts = hour_parts(hour.usable_episodes)
    scores, marks = {}, dict[tuple[Part, str], float]()
    for episode in hour.usable_episodes:
        own = {(part, episode.agent_id): heuristic_part_score(*result) for part, result in part_results(episode, parts).items()}
        score = math.fsum(own.values()) / len(own)
        marks |= own
        scores[episode.agent_id] = score, _reasoning(f", mean of {len(own)} part{'' if len(own) == 1 else 's'} of the hour", episode, score)
    return group_scores(hour.window, HEURISTIC, HEURISTIC_BY_PART, scores, version, marks)


def judge_episode(episode: Episode) -> tuple[float, str]:
    """Score one episode by the heuristic, with the numbers used as reasoning."""
    score = heuristic_score(episode.window_pnl, episode.steps, episode.wins, episode.losses)
    return score, _reasoning("", episode, score)


def _reasoning(of: str, episode: Episode, score: float) -> str:
    return (
        f"Heuristic (a formula, no judge model){of}: window P&L ${episode.window_pnl:.2f}, "
        f"{episode.wins} wins, {episode.losses} losses, {episode.steps} actions: {score:.4f}."
    )


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
    stale: bool = False,
    on_progress: Progress = no_progress,
    on_beat: Callable[[], None] = lambda: None,
) -> ScoringResult:
    """Score the groups of some hours and store them: in our tables, the trajectories' judge columns and reward_judgments.

    Hours that are not complete or not ready have no group and are absent from the result. Groups without spread are scored and reported
    (``has_spread`` is False). ``stale`` judges again where a rule, a setting or the judge has changed since, ``force`` unchanged, consumed
    and quarantined hours too; requests that the cache answers are not sent. Hours that it could not judge are in the result's ``pending``
    and ``quarantined``. ``on_beat`` is called about every half minute and may use ``connection``; an error that it raises ends the scoring.

    Where a language model judges, ``connection`` is committed on the way, so that every paid answer is stored whatever happens next.

    Raises:
        JudgeRefused: the judge answers no request (credentials, the model's name); finished hours are written.
        UsageError: one of ``windows`` is not a window id.
    """
    complete = [window for window in sorted(set(windows)) if is_complete(window, now)]
    if settings.judge_model != HEURISTIC:
        from babylon_rl.judge.group_judge import score_with_model  # slow import

        scored = score_with_model(connection, complete, settings, now, force=force, stale=stale, on_progress=on_progress, on_beat=on_beat)
    else:
        # one transaction a chunk: nothing is waited for here, while a model's answers would keep these hours locked for minutes
        scored = ScoringResult()
        for some in chunks(complete):
            on_beat()
            with connection.transaction():
                plan = plan_hours(connection, some, settings, force=force, stale=stale)
                scored.update(plan.unchanged)
                scored.by_other_rules += plan.by_other_rules
                scored.update(_write(connection, plan.hours, settings, now, force))
    scored = scored.in_order()
    judged = sum(group.changed for group in scored.values())
    counts = {"judged": judged, "waiting": len(scored.pending), "quarantined": len(scored.quarantined)}
    waits = "".join(f", {len(scored.pending)} wait: {reason}" for reason in list(scored.pending.values())[:1])
    _LOG.info("%d hours are judged%s", judged, waits, extra=counts)
    return scored


def _write(
    connection: Connection, hours: Mapping[str, PlannedHour], settings: Settings, now: datetime, force: bool
) -> dict[str, GroupScores]:
    """Score planned hours with the heuristic and store the scores, under the hours' locks."""
    judged = {window: _judged(planned.hour, planned.version, settings) for window, planned in hours.items()}
    if judged:
        fresh, formula = [], _PART_FORMULA if settings.by_part else _FORMULA
        for window, group in judged.items():
            shown = hashlib.sha256("\n".join(score.reasoning for score in group.scores).encode()).hexdigest()
            fresh.append(store.NewScores(group, hours[window].trajectories, {"rubric": formula, "shown": shown}))
        store.release(connection, list(judged))
        store.replace(connection, fresh, now, force=force)
        store.keep_made_from(connection, {window: planned.sources for window, planned in hours.items()}, rules_version(settings))
    return {window: changed(group, changed=True) for window, group in judged.items()}


def _judged(hour: HourEpisodes, version: str, settings: JudgeSettings) -> GroupScores:
    if settings.by_part:
        return judge_by_part(hour, version)
    scores = {episode.agent_id: judge_episode(episode) for episode in hour.usable_episodes}
    return group_scores(hour.window, HEURISTIC, judge_version(settings), scores, version)


def stored_scores(connection: Connection, windows: Iterable[str]) -> dict[str, GroupScores]:
    """Stored scores by window; windows without scores are absent."""
    if not store.have_scores(connection):
        return {}
    return store.read(connection, sorted(set(windows)))
