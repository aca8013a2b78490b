"""Checks of a batch's checkpoint: what must not be released."""

import math

import dagster as dg

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon
from babylon_rl.store.registry import model_of_batch


@dg.asset_check(
    asset="trained_checkpoint", partitions_def=batches, description="The checkpoint's files are whole and match their checksums."
)
def checkpoint_whole(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    from pathlib import Path

    from babylon_rl.errors import CheckpointError
    from babylon_rl.models.checkpoints import verify

    with babylon.connection() as connection:
        model = model_of_batch(connection, context.partition_key)
    if model is None or model.checkpoint is None:
        return dg.AssetCheckResult(passed=False, description=f"{context.partition_key} has registered no checkpoint.")
    try:
        verify(Path(model.checkpoint))
    except CheckpointError as damaged:
        return dg.AssetCheckResult(passed=False, description=str(damaged))
    return dg.AssetCheckResult(passed=True, description=f"{model.version} is whole.")


@dg.asset_check(asset="trained_checkpoint", partitions_def=batches, description="The training's loss is a finite number.")
def loss_finite(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    from babylon_rl.store.training_steps import finished_steps

    with babylon.connection() as connection:
        steps = finished_steps(connection, context.partition_key)
    losses = {step.iteration: step.loss for step in steps.values()}
    bad = [iteration for iteration, loss in losses.items() if loss is None or not math.isfinite(loss)]
    return dg.AssetCheckResult(
        passed=bool(losses) and not bad,
        description=f"{len(losses) - len(bad)} of {len(losses)} iterations have a finite loss.",
        metadata={"iterations": len(losses), "without_finite_loss": bad},
    )


checks_of_batches = [checkpoint_whole, loss_finite]
