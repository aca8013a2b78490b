"""Source ``raw_trajectories``: the game's trajectories by hour; never written."""

import dagster as dg

from babylon_rl.assets.metadata import HOURS_GROUP, column_schema
from babylon_rl.assets.observed import observe
from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.assets.sources import owned, report_changes

COLUMNS = column_schema(
    trajectoryId=("text", "Unique id of the row"),
    agentId=("text", "The agent"),
    windowId=("varchar(50)", "The hour, where the producer wrote it"),
    startTime=("timestamp(3)", "UTC; gives the hour where windowId does not"),
    stepsJson=("text", "The steps: state, prompts and answers, action, reward"),
    finalPnL=("double precision", "Lifetime P&L in dollars at the end"),
    usedInTraining=("boolean", "Set when a batch that held the row has produced a checkpoint"),
)


@dg.observable_source_asset(
    name="raw_trajectories",
    partitions_def=hours,
    group_name=HOURS_GROUP,
    tags={"dagster/kind/postgres": "", "dagster/kind/source": ""},
    metadata={**COLUMNS, "table": "public.trajectories"},
    description="Rows of `trajectories`, by the hour they belong to. An hour's version is its rows, their newest change and their "
    "logged calls.",
)
def _raw_trajectories(context: dg.OpExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.DataVersionsByPartition:
    return report_changes(context, observe(context.instance, babylon, full=True, with_market=False).events)


raw_trajectories = owned(_raw_trajectories)
