"""Detection of hours whose judge request would differ from the one that was sent.

Their scores become stale, and a quarantine ends. No judge is asked here. A late official answer changes no episode, so the compared
value is the version of all sources of a request (sources.py).
"""

from collections.abc import Sequence

from babylon_rl.episodes.reading import read_windows
from babylon_rl.judge.scoring import release_quarantined
from babylon_rl.judge.sources import sources_versions
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store import scores
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import read_secret
from babylon_rl.store.scores import forget_sources, read_quarantined, read_sources
from babylon_rl.store.windows import reading_chunks


def outdated_sources(connection: Connection, windows: Sequence[str], settings: Settings) -> dict[str, str]:
    """Hours of ``windows`` whose sources have changed since JUDGE_MODEL scored them, with the old version.

    Only rendering the prompt can tell whether it changed too; that is left to scoring. Hours of which a training has consumed an
    episode are left out.
    """
    if settings.judge_model == HEURISTIC or (secret := read_secret(connection)) is None:
        return {}
    outdated: dict[str, str] = {}
    for some in reading_chunks(connection, windows):
        before = read_sources(connection, some)
        # scores that a training has consumed never become stale
        groups = scores.read(connection, sorted(before.keys() - scores.consumed_windows(connection, some)))
        judged = {
            window: {score.agent_id for score in group.scores} for window, group in groups.items() if group.judge == settings.judge_model
        }
        if judged:
            readings = read_windows(connection, list(judged), settings)
            # compare for the agents that were judged, not for those there now
            now = sources_versions(connection, readings, judged, settings, secret)
            outdated |= {window: before[window] for window in judged if before[window] != now[window]}
    return outdated


def note_changes(connection: Connection, windows: Sequence[str], settings: Settings) -> None:
    """Mark outdated scores stale, and release quarantined hours whose request has changed."""
    if settings.judge_model == HEURISTIC or (secret := read_secret(connection)) is None:
        return
    forget_sources(connection, outdated_sources(connection, windows, settings))
    # a quarantine by another judge is not this judge's to end
    aside = [window for window, entry in read_quarantined(connection, windows).items() if entry.judge == settings.judge_model]
    if aside:
        from babylon_rl.judge.scoring_plan import HOURS_PLANNED_AT_ONCE, plan_hours  # slow import

        for start in range(0, len(aside), HOURS_PLANNED_AT_ONCE):
            some = aside[start : start + HOURS_PLANNED_AT_ONCE]
            release_quarantined(connection, plan_hours(connection, some, settings, secret, write=False).released)
