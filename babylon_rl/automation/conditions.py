"""Conditions under which assets are made again, and how late they may be.

All conditions of hours cover every hour, old ones included, and request an hour once per change, and one that failed once an hour.
A pending request is cleared only when it is issued: a change that arrives during a run is handled by another run after it. So an hour that
a person materializes by hand after a change is requested once more, which changes nothing.
"""

from datetime import timedelta
from typing import Any

import dagster as dg

from babylon_rl.assets.sources import OUTCOME_DELAY
from babylon_rl.automation.jobs import HOURLY
from babylon_rl.settings import HEURISTIC, Settings

C = dg.AutomationCondition
Condition = dg.AutomationCondition[Any]
SLACK = timedelta(hours=2)  # the hour itself, and the time to notice and read it
FAIL = timedelta(days=1)
FAILED_AGAIN = "17 * * * *"  # apart from the schedules of every hour


def _wished() -> Condition:
    changed = C.any_deps_match(C.data_version_changed()).with_label("input changed")
    # What was observed before the conditions were first evaluated shows no change; later hours all begin with one.
    # (An input that is about to be made counts as missing here: it will show as a change once it is there.)
    caught_up = (C.initial_evaluation() & C.missing() & ~C.any_deps_match(C.missing())).with_label("inputs there earlier, not made")
    # What failed has its input's change behind it, and nobody would ask for it again. Looked up at that minute only.
    failed = (C.cron_tick_passed(FAILED_AGAIN) & C.execution_failed()).with_label("failed, tried every hour")
    # Of all hours that were made: in ranges, as one backfill.
    rules = (C.code_version_changed() & ~C.missing()).with_label("rule or setting changed")
    return (changed | rules | caught_up | failed).since(C.newly_requested()).with_label("changed since last asked for")


def _possible() -> Condition:
    return (~C.any_deps_missing() & ~C.any_deps_in_progress() & ~C.in_progress()).with_label("inputs there, nothing running")


def on_change() -> Condition:
    """Materialize an hour when the content of an input changes, late rows included, and every hour when a rule or a setting does."""
    return (_wished() & _possible()).with_label("hour changed")


def once_settled(settle_hours: float) -> Condition:
    """Materialize an hour once, ``settle_hours`` after its end.

    Batches judge later changes of the data, and a person decides on those of a rule.
    """
    wished = (_wished() & C.missing()).with_label("not judged yet")
    if settle_hours > 0:
        wished &= ~C.in_latest_time_window(timedelta(hours=settle_hours))
    return (wished & _possible()).with_label(f"hour settled for {settle_hours:g} h")


def on_scores_due(settings: Settings) -> Condition:
    return on_change() if settings.judge_model == HEURISTIC else once_settled(settings.judge_settle_hours)


def after_hours() -> Condition:
    """Check again after hours of the asset were made. A check with a condition of its own is no part of the runs that make them."""
    return (C.any_deps_match(C.newly_updated()).since(C.newly_requested()) & ~C.in_progress()).with_label("hours made since last checked")


def conditions(settings: Settings) -> dict[dg.AssetKey, Condition]:
    """The condition of every hourly asset; sensors alone start the others."""
    return {dg.AssetKey(name): on_scores_due(settings) if name == "scored_groups" else on_change() for name in HOURLY}


def freshness(settings: Settings) -> dict[dg.AssetKey, dg.FreshnessPolicy]:
    waits = SLACK + OUTCOME_DELAY
    judged = waits if settings.judge_model == HEURISTIC else waits + timedelta(hours=settings.judge_settle_hours)
    # Training and benchmark take their time after the interval; a second interval without a decision is a failure.
    interval = timedelta(hours=settings.training_interval_hours)
    windows = dict.fromkeys(HOURLY, waits) | {"scored_groups": judged}
    policies = {name: dg.FreshnessPolicy.time_window(warn_window=warn, fail_window=warn + FAIL) for name, warn in windows.items()}
    policies["released_model"] = dg.FreshnessPolicy.time_window(warn_window=interval + FAIL, fail_window=2 * interval + FAIL)
    return {dg.AssetKey(name): policy for name, policy in policies.items()}
