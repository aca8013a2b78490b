"""Asset ``released_model``: the gate's decision on a checkpoint, and the rollout that follows from it."""

from typing import Any

import dagster as dg

from babylon_rl.assets.metadata import BATCHES_GROUP, OWNERS, column_schema, counts
from babylon_rl.assets.partitions import batch_of, batches
from babylon_rl.assets.resources import Babylon

COLUMNS = column_schema(
    version=("text", "The version that was decided on"),
    decision=("text", "Whether the evidence lets it in front of the agents"),
    reason=("text", "The numbers behind the decision"),
    release=("text", "The rollout that follows from it"),
)


@dg.asset(
    partitions_def=batches,
    deps=["benchmark_report"],
    group_name=BATCHES_GROUP,
    owners=OWNERS,
    kinds={"python", "postgres"},
    code_version="2",
    metadata=COLUMNS,
    description="Records whether a version may be put in front of the agents, from its benchmark report. One that passed becomes a "
    "candidate; with AUTO_PROMOTE it is confirmed in fresh markets, and its rollout starts.",
)
def released_model(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    from babylon_rl.evaluation.benchmark import record_release
    from babylon_rl.serving.promotion import promote

    with babylon.connection() as connection:
        decided = record_release(connection, batch_of(context), babylon.settings, babylon.now())
        released = promote(
            connection,
            decided.version,
            decided.decision,
            babylon.settings,
            context.log.info,
            clock=babylon.now,
            on_progress=babylon.on_progress,
        )
    context.log.info(released)
    version = f"{decided.version} {decided.decision}"
    metadata = counts(1, version=decided.version, decision=decided.decision, reason=decided.reason, release=released)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(version))
