"""The job `score` with Celery's executor, which sends steps to workers where the launcher of the project sends runs."""

from contextlib import nullcontext

import dagster as dg
from dagster_celery import celery_executor

from babylon_rl import definitions
from babylon_rl.assets import resources

# The heartbeat of a run is one process's, and ends with its first step; here steps are processes.
setattr(resources, "heartbeats", lambda database, run_id: nullcontext())  # noqa: B010
JOB = "score_by_executor"
defs = dg.Definitions(
    assets=definitions.defs.assets,
    asset_checks=definitions.defs.asset_checks,
    jobs=[dg.define_asset_job(JOB, selection=dg.AssetSelection.assets("scored_groups"), executor_def=celery_executor)],
    resources=definitions.defs.resources,
)
