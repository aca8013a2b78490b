"""Asset ``released_model``: the gate's decision on a checkpoint, and the rollout that follows from it."""

from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import OWNERS, admin_link, batch_of, batches, column_schema, counts, described
from babylon_rl.assets.resources import Babylon, tag_run, tagging_end
from babylon_rl.models.server_process import Serving
from babylon_rl.store.registry import model_of_batch
from babylon_rl.traces import traced_step

COLUMNS = column_schema(
    version=("text", "The version that was decided on"),
    decision=("text", "Whether the evidence lets it in front of the agents"),
    reason=("text", "The numbers behind the decision"),
    release=("text", "The rollout that follows from it"),
)


@dg.asset(
    partitions_def=batches,
    deps=["benchmark_report"],
    group_name="serving",
    owners=OWNERS,
    kinds={"python", "postgres"},
    code_version="2",
    metadata=COLUMNS,
    description=described(
        "Records whether a version may be put in front of the agents, from its benchmark report. One that passed becomes a "
        "candidate; with AUTO_PROMOTE it is confirmed in fresh markets, and its rollout starts.",
        "the log of its run says why; the deployed version stays. Overdue: no version was decided on lately, and `babylon-rl "
        "ready` says what is missing for a training.",
    ),
)
@traced_step
def released_model(
    context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon], models: dg.ResourceParam[Serving]
) -> dg.MaterializeResult[Any]:
    from babylon_rl.evaluation.benchmark import record_release
    from babylon_rl.serving.promotion import promote

    with babylon.connection() as connection, tagging_end(context):
        batch_id = batch_of(context)
        # Committed before what may take long: of a confirmation that is interrupted the decision stays, and finish_evidence asks again.
        decided = record_release(connection, batch_id, babylon.now())
        tag_run(context, version=decided.version)
        released = promote(
            connection,
            decided.version,
            decided.decision,
            babylon.settings,
            context.log.info,
            clock=babylon.now,
            serving=models,
            on_progress=babylon.on_progress,
        )
        model = model_of_batch(connection, batch_id)
    context.log.info(released)
    version = f"{decided.version} {decided.decision}"
    metadata = counts(1, version=decided.version, decision=decided.decision, reason=decided.reason, release=released) | admin_link(
        babylon.settings
    )
    tracking = (model.tracking_url if model is not None else None) or ""
    if tracking.startswith("http"):
        metadata["weights_and_biases"] = dg.MetadataValue.url(tracking)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(version))
