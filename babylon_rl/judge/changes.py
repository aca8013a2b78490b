"""Hours that are not what JUDGE_MODEL was asked about any more: their scores become stale, and a quarantine ends. Nobody is asked here.

A late official answer changes no episode, so what is compared is the version of all that the request is made of (sources.py).
"""

from collections.abc import Sequence

from babylon_rl.episodes.reading import read_windows
from babylon_rl.judge.scoring import release_quarantined
from babylon_rl.judge.sources import sources_versions
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store import scores
from babylon_rl.store.judge_secret import read_secret
from babylon_rl.store.judge_sources import forget_sources, read_sources
from babylon_rl.store.judge_waiting import read_quarantined
from babylon_rl.store.trajectories import Connection
from babylon_rl.store.window_groups import reading_chunks


def outdated_sources(connection: Connection, windows: Sequence[str], settings: Settings) -> dict[str, str]:
    """Those of ``windows`` whose scores by JUDGE_MODEL rest on something else than there is now, and the version that they rest on.

    Whether a judge would be shown something else only scoring them tells. Hours of which a training has consumed an episode are left out.
    """
    if settings.judge_model == HEURISTIC or (secret := read_secret(connection)) is None:
        return {}
    found: dict[str, str] = {}
    for some in reading_chunks(connection, windows):
        before = read_sources(connection, some)
        groups = scores.read(connection, sorted(before.keys() - scores.consumed_windows(connection, some)))
        judged = {
            window: {score.agent_id for score in group.scores} for window, group in groups.items() if group.judge == settings.judge_model
        }
        if judged:
            readings = read_windows(connection, list(judged), settings)
            now = sources_versions(connection, readings, judged, settings, secret)
            found |= {window: before[window] for window in judged if before[window] != now[window]}
    return found


def note_changes(connection: Connection, windows: Sequence[str], settings: Settings) -> None:
    """Mark outdated scores of some hours stale, and take hours out of quarantine about which something else would be asked now."""
    if settings.judge_model == HEURISTIC or (secret := read_secret(connection)) is None:
        return
    forget_sources(connection, outdated_sources(connection, windows, settings))
    aside = [window for window, entry in read_quarantined(connection, windows).items() if entry.judge == settings.judge_model]
    if aside:
        from babylon_rl.judge.scoring_plan import HOURS_PLANNED_AT_ONCE, plan_hours  # what builds requests takes a while to import

        for start in range(0, len(aside), HOURS_PLANNED_AT_ONCE):
            some = aside[start : start + HOURS_PLANNED_AT_ONCE]
            release_quarantined(connection, plan_hours(connection, some, settings, secret, write=False).released)
