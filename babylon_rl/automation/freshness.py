"""Freshness policies: how late hours, scores and decisions may be."""

from datetime import timedelta

import dagster as dg

from babylon_rl.settings import HEURISTIC, Settings

SLACK = timedelta(hours=2)  # the hour itself, and the time to notice and read it
FAIL = timedelta(days=1)


def freshness(settings: Settings) -> dict[dg.AssetKey, dg.FreshnessPolicy]:
    """Policies of the assets made again as time passes, by the settings."""
    waits = SLACK + timedelta(minutes=settings.outcome_delay_minutes)
    judged = waits if settings.judge_model == HEURISTIC else waits + timedelta(hours=settings.judge_settle_hours)
    # Training and benchmark take their time after the interval; a second interval without a decision is a failure.
    interval = timedelta(hours=settings.training_interval_hours)
    windows = dict.fromkeys(("window_groups", "market_outcomes", "hindsight"), waits) | {"scored_groups": judged}
    policies = {name: dg.FreshnessPolicy.time_window(warn_window=warn, fail_window=warn + FAIL) for name, warn in windows.items()}
    policies["released_model"] = dg.FreshnessPolicy.time_window(warn_window=interval + FAIL, fail_window=2 * interval + FAIL)
    return {dg.AssetKey(name): policy for name, policy in policies.items()}
