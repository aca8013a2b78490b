"""A batch's checkpoint: trained, published under its version, and registered."""

from statistics import fmean
from typing import Any

import dagster as dg

from babylon_rl.assets.metadata import BATCHES_GROUP, OWNERS, column_schema, counts, linked_windows, table
from babylon_rl.assets.partitions import batches
from babylon_rl.assets.plots import line_plot
from babylon_rl.assets.resources import Babylon
from babylon_rl.assets.training_batch import UPSTREAM
from babylon_rl.training.batches import Trained, train_batch
from babylon_rl.training.trainer import StepMetrics

POOL = "trainer"
MEASURED = ("entropy", "kl", "topActionShare", "gradientNorm", "seconds")
SMOOTHED_STEPS = 10
COLUMNS = column_schema(
    version=("text", "The version, global over all lines"),
    baseModel=("text", "The line"),
    parentVersion=("text", "The version it continues from"),
    checkpointPath=("text", "The adapter directory: safetensors, adapter_config.json, model card"),
    windows=("text[]", "The hours it was trained on"),
    metrics=("jsonb", "What the trainer measured"),
)


@dg.asset(
    partitions_def=batches,
    deps=["training_batch"],
    group_name=BATCHES_GROUP,
    owners=OWNERS,
    kinds={"python", "pytorch"},
    code_version="1",
    pool=POOL,
    metadata={**COLUMNS, "table": "babylon_rl.model_lineage"},
    description="Trains a batch in resumable iterations, publishes the checkpoint atomically and registers its version in one transaction.",
)
def trained_checkpoint(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    seen: list[StepMetrics] = []

    def on_step(step: StepMetrics) -> None:
        seen.append(step)
        babylon.on_progress(f"training, iteration {step.iteration}", step.step, step.steps)
        context.log.info(
            f"iteration {step.iteration}, step {step.step} of {step.steps}: loss {step.loss:.4f}, {step.trainable_tokens} tokens"
        )

    with babylon.connection() as connection:
        trained = train_batch(connection, context.partition_key, babylon.settings, babylon.now(), on_step=on_step)
    version = trained.model.manifest_sha or trained.model.version
    return dg.MaterializeResult(metadata=_metadata(trained, seen), data_version=dg.DataVersion(version))


def _metadata(trained: Trained, seen: list[StepMetrics]) -> dict[str, Any]:
    model = trained.model
    metadata = counts(
        1,
        version=model.version,
        model_id=model.model_id,
        base_model=model.base_model,
        backend=model.backend,
        parent=model.parent_version or "the base",
        checkpoint=dg.MetadataValue.path(trained.checkpoint),
        loss=trained.batch.loss,
        trainable_tokens=sum(step.trainable_tokens or 0 for step in trained.steps),
        upstream_windows=linked_windows(model.windows, UPSTREAM),
    )
    # Where a finished run is only completed by another, the optimizer's steps are gone; its iterations are on record.
    losses = [step.loss for step in seen] or [step.loss for step in trained.steps if step.loss is not None]
    if losses:
        curves = {"loss": losses}
        if len(losses) > SMOOTHED_STEPS:
            curves[f"mean of {SMOOTHED_STEPS} steps"] = _smoothed(losses)
        metadata["loss_curve"] = line_plot(f"Loss of {model.version}", "loss", curves, x_label="step" if seen else "iteration")
    entropies = [step.metrics["entropy"] for step in seen if "entropy" in step.metrics]
    if entropies:
        # Falling towards 0 means that the policy collapses into one answer.
        metadata["entropy_curve"] = line_plot(f"Entropy of {model.version}", "nats a choice", {"entropy": entropies})
    metadata["iterations"] = table([_row(step) for step in trained.steps])
    return metadata


def _row(step: Any) -> dict[str, Any]:
    return {
        "iteration": step.iteration, "loss": step.loss, "trainable tokens": step.trainable_tokens,
        "sequences": step.sequences, "windows": len(step.windows),
    } | {name: step.metrics[name] for name in MEASURED if name in (step.metrics or {})}  # fmt: skip


def _smoothed(numbers: list[float]) -> list[float]:
    """The mean of every number and those before it, SMOOTHED_STEPS at most."""
    return [fmean(numbers[max(0, last - SMOOTHED_STEPS) : last]) for last in range(1, len(numbers) + 1)]
