"""Asset ``released_model``: the gate's decision on a checkpoint."""

from typing import Any

import dagster as dg

from babylon_rl.assets.metadata import BATCHES_GROUP, OWNERS, column_schema, counts
from babylon_rl.assets.partitions import batch_of, batches
from babylon_rl.assets.resources import Babylon

COLUMNS = column_schema(
    version=("text", "The version that was decided on"),
    decision=("text", "Whether the evidence lets it in front of the agents"),
    reason=("text", "The numbers behind the decision"),
)


@dg.asset(
    partitions_def=batches,
    deps=["benchmark_report"],
    group_name=BATCHES_GROUP,
    owners=OWNERS,
    kinds={"python", "postgres"},
    code_version="1",
    metadata=COLUMNS,
    description="Records whether a version may be put in front of the agents, from its benchmark report; nothing is deployed by it.",
)
def released_model(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    from babylon_rl.evaluation.benchmark import record_release

    with babylon.connection() as connection:
        release = record_release(connection, batch_of(context), babylon.settings, babylon.now())
    version = f"{release.version} {release.decision}"
    metadata = counts(1, version=release.version, decision=release.decision, reason=release.reason)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(version))
