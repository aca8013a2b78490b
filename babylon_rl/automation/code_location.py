"""The definitions that Dagster loads: assets, automation and the resource, wired in one place."""

import dagster as dg

from babylon_rl.assets.ab_test_report import ab_test_report
from babylon_rl.assets.answer_groups import answer_groups
from babylon_rl.assets.benchmark_report import benchmark_report, models_here, released_model
from babylon_rl.assets.hindsight import hindsight
from babylon_rl.assets.judge_report import checks_of_judge, judge_report
from babylon_rl.assets.leaderboard import leaderboard
from babylon_rl.assets.market_outcomes import market_outcomes
from babylon_rl.assets.scored_groups import scored_groups
from babylon_rl.assets.sources import sources
from babylon_rl.assets.trained_checkpoint import trained_checkpoint
from babylon_rl.assets.training_batch import training_batch
from babylon_rl.assets.window_groups import window_groups
from babylon_rl.automation.checks_batches import checks_of_batches
from babylon_rl.automation.checks_hours import checks_of_hours
from babylon_rl.automation.conditions import conditions, freshness
from babylon_rl.automation.jobs import jobs
from babylon_rl.automation.schedules import schedules
from babylon_rl.automation.sensors import sensors
from babylon_rl.settings import load_settings


def code_location(resource: dg.ResourceDefinition, models: dg.ResourceDefinition = models_here) -> dg.Definitions:
    """All definitions with the resources of the environment, or a caller's own (launch.py)."""
    settings = load_settings()
    when, fresh = conditions(settings), freshness(settings)
    expected_in_time = [
        asset.map_asset_specs(
            lambda spec: spec.replace_attributes(automation_condition=when.get(spec.key), freshness_policy=fresh[spec.key])
        )
        for asset in (window_groups, market_outcomes, hindsight, answer_groups, scored_groups, released_model)
    ]
    moved_by_sensors = [training_batch, trained_checkpoint, benchmark_report, leaderboard]
    moved_by_the_clock = [judge_report, ab_test_report]
    return dg.Definitions(
        assets=[sources, *expected_in_time, *moved_by_sensors, *moved_by_the_clock],
        asset_checks=[*checks_of_hours, *checks_of_judge, *checks_of_batches],
        jobs=jobs,
        sensors=sensors,
        schedules=schedules,
        resources={"babylon": resource, "models": models},
        # One run is one process; assets that need more start it themselves, and docs/howto/several-machines.md tells how to spread runs.
        executor=dg.in_process_executor,
    )
