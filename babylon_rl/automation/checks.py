"""Asset checks: what a person should look at although nothing failed, and what must not be released."""

import math
from collections.abc import Sequence
from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import batches, hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.judge.groups import NO_SPREAD
from babylon_rl.store.hour_report import group_spreads, hour_counts
from babylon_rl.store.registry import model_of_batch

MOST_MALFORMED = 0.2
MALFORMED = ("malformed_json", "malformed_shape")


def _verdict(context: dg.AssetCheckExecutionContext, check: str, bad: Sequence[str], description: str, **shown: Any) -> dg.AssetCheckResult:
    """A warning when there are bad hours. In a range every hour gets a verdict of its own too: Dagster plans one for each and takes one."""
    if len(context.partition_keys) > 1:
        asset = next(spec.asset_key for spec in context.check_specs if spec.name == check)
        for window in context.partition_keys:
            of_hour = dg.AssetCheckEvaluation(asset, check, window not in bad, severity=dg.AssetCheckSeverity.WARN, partition=window)
            context.op_execution_context.log_event(of_hour)  # type: ignore[arg-type] # taken, as yet undeclared
    return dg.AssetCheckResult(passed=not bad, severity=dg.AssetCheckSeverity.WARN, description=description, metadata=shown)


@dg.asset_check(asset="window_groups", partitions_def=hours, description="At most a fifth of the rows are malformed.")
def few_rows_malformed(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    with babylon.connection() as connection:
        found = hour_counts(connection, context.partition_keys)
    shares = {c.window: sum(c.rejected.get(reason, 0) for reason in MALFORMED) / c.rows for c in found if c.rows}
    bad = {window: round(share, 4) for window, share in shares.items() if share > MOST_MALFORMED}
    said = f"Above {MOST_MALFORMED:.0%} in {len(bad)} of {len(shares)} hours."
    return _verdict(context, "few_rows_malformed", list(bad), said, malformed_share=bad, hours=len(shares))


@dg.asset_check(
    asset="window_groups", partitions_def=hours, description="Ready hours hold messages that can train, not only synthetic ones."
)
def messages_recorded(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    with babylon.connection() as connection:
        ready = [c for c in hour_counts(connection, context.partition_keys) if c.ready]
    silent = [c.window for c in ready if not c.trainable_sequences]
    said = f"{len(silent)} of {len(ready)} ready hours hold nothing to train: record prompts, or set TRAIN_SYNTHETIC=true."
    return _verdict(context, "messages_recorded", silent, said, hours_without=silent, ready=len(ready))


@dg.asset_check(asset="scored_groups", partitions_def=hours, description="The judge tells episodes apart: groups have a spread of scores.")
def scores_differ(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    with babylon.connection() as connection:
        spreads = group_spreads(connection, context.partition_keys)
    flat = [window for window, spread in spreads.items() if spread < NO_SPREAD]
    said = f"{len(flat)} of {len(spreads)} groups have no spread and will not be trained."
    return _verdict(context, "scores_differ", flat, said, without_spread=flat, groups=len(spreads))


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


asset_checks = [few_rows_malformed, messages_recorded, scores_differ, checkpoint_whole, loss_finite]
