"""When an hour is made again, composed once and named.

All of them look at any hour, old ones included, ask for an hour once per change (one that failed waits for the next change), and
forget a wish only by asking: a change that arrives while the hour is being made is made again after it. An hour that a person makes
by hand after a change is therefore asked for once more, which changes nothing.
"""

from datetime import timedelta
from typing import Any

import dagster as dg

from babylon_rl.settings import HEURISTIC, Settings

C = dg.AutomationCondition
Condition = dg.AutomationCondition[Any]


def _wished() -> Condition:
    changed = C.any_deps_match(C.data_version_changed()).with_label("input changed")
    # What was observed before the conditions were first evaluated shows no change; later hours all begin with one.
    # (An input that is about to be made counts as missing here: it will show as a change once it is there.)
    caught_up = (C.initial_evaluation() & C.missing() & ~C.any_deps_match(C.missing())).with_label("inputs there earlier, not made")
    return (changed | caught_up).since(C.newly_requested()).with_label("changed since last asked for")


def _possible() -> Condition:
    return (~C.any_deps_missing() & ~C.any_deps_in_progress() & ~C.in_progress()).with_label("inputs there, nothing running")


def on_change() -> Condition:
    """Make an hour when an input of it changes in content, late rows included."""
    return (_wished() & _possible()).with_label("hour changed")


def once_settled(settle_hours: float) -> Condition:
    """Make an hour once, ``settle_hours`` after its end; what changes later is judged again when a batch wants it."""
    settled = ~C.in_latest_time_window(timedelta(hours=settle_hours)) if settle_hours > 0 else None
    wished = (_wished() & C.missing()).with_label("not judged yet")
    return (wished & _possible() if settled is None else wished & settled & _possible()).with_label(f"hour settled for {settle_hours:g} h")


def on_scores_due(settings: Settings) -> Condition:
    """The heuristic costs nothing and follows every change; a judge that is paid waits for the hour to settle."""
    return on_change() if settings.judge_model == HEURISTIC else once_settled(settings.judge_settle_hours)


def on_evidence() -> Condition:
    """Rank again when a benchmark report changes that the leaderboard has not seen; the run of a batch makes it by itself."""
    changed = C.any_deps_match(C.data_version_changed()).since(C.newly_updated() | C.newly_requested()).with_label("report not ranked yet")
    return (changed & ~C.any_deps_in_progress() & ~C.in_progress()).with_label("evidence changed")


def conditions(settings: Settings) -> dict[dg.AssetKey, Condition]:
    """The condition of every hourly asset and of the leaderboard; assets that are absent here are moved by sensors alone."""
    return {
        dg.AssetKey("window_groups"): on_change(),
        dg.AssetKey("market_outcomes"): on_change(),
        dg.AssetKey("hindsight"): on_change(),
        dg.AssetKey("scored_groups"): on_scores_due(settings),
        dg.AssetKey("leaderboard"): on_evidence(),
    }
