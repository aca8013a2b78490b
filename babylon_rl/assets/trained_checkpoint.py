"""Asset ``trained_checkpoint``: a batch trained, published under its version, and registered."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import admin_link, asset, batch_of, batches, counts, embedded, linked_windows, table
from babylon_rl.assets.resources import Babylon, sole_run, tag_run
from babylon_rl.reporting.plots import Picture, curve_panels, line_plot
from babylon_rl.store.batches import Batch, judging_of, read_batch_episodes
from babylon_rl.store.connection import own_transaction
from babylon_rl.store.registry import note_tracking, note_tracking_refusal, read_models
from babylon_rl.training.backends.protocol import StepMetrics
from babylon_rl.training.batches import Trained, required_batch, train_batch
from babylon_rl.training.conversion import preflight_lines
from babylon_rl.training.curves import overlaid, training_curves
from babylon_rl.training.tracking import Tracker, WandbResult, batch_costs, iteration_numbers, record_artifact, refusal

POOL = "trainer"
# What is measured of the policy in an iteration, by the heads of a table that is narrow enough for a page.
POLICY = {
    "entropy": "entropy", "kl": "KL", "klParent": "parent KL", "topActionShare": "top act", "turnedShare": "turned", "ratio": "ratio",
    "servedKl": "served KL", "gradientNorm": "gradient", "stepBack": "step back",
}  # fmt: skip
SMOOTHED_STEPS = 10


@asset(
    partitions_def=batches,
    deps=["training_batch"],
    group_name="training",
    kinds={"python", "pytorch"},
    code_version="1",
    pool=POOL,
    table="babylon_rl.model_lineage",
    columns={
        "version": ("text", "The version, global over all lines"),
        "baseModel": ("text", "The line"),
        "parentVersion": ("text", "The version it continues from"),
        "checkpointPath": ("text", "The adapter directory: safetensors, adapter_config.json, model card"),
        "windows": ("text[]", "The hours it was trained on"),
        "metrics": ("jsonb", "What the trainer measured"),
    },
    says="Trains a batch in resumable iterations, publishes the checkpoint atomically and registers its version in one transaction.",
    when_red="`babylon-rl batches show BATCH` has the reason; the next run goes on after the last finished iteration, by itself. A "
    "loss that is not finite wants a lower LEARNING_RATE.",
)
def trained_checkpoint(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    batch_id = batch_of(context)
    with babylon.connection() as connection, sole_run(context, connection, batch_id):
        # Made before the training, which it must not fail: it starts its process with the first iteration that it sends.
        tracker = Tracker(required_batch(connection, batch_id), babylon.settings)

        def on_step(step: StepMetrics) -> None:
            tracker.step(step)
            babylon.on_progress(f"training, iteration {step.iteration}", step.step, step.steps)
            done = f"iteration {step.iteration}, optimizer step {step.step} of {step.steps}"
            context.log.info(f"{done}: loss {step.loss:.4f}, {step.trainable_tokens} tokens")

        def on_preflight(batch: Batch) -> None:
            for line in _preflight(batch):
                context.log.info(line)

        try:
            trained = train_batch(connection, batch_id, babylon.settings, babylon.now(), on_step=on_step, on_preflight=on_preflight)
        except BaseException:
            # A training that fails closes its tracker, so that no half run stays open there.
            if words := tracker.abandon().words:
                context.log.info(words)
            raise
        # The version is registered by now; the rest only reports it.
        sent = _finish(connection, tracker, trained, babylon)
        artifact = _artifact(connection, trained, babylon)
        line = [model for model in read_models(connection) if model.version in (trained.model.version, trained.model.parent_version)]
        curves = training_curves(connection, line)
    for words in filter(None, (sent.words, artifact)):
        context.log.info(words)
    tag_run(context, version=trained.model.version)
    version = trained.model.manifest_sha or trained.model.version
    metadata = _metadata(trained, curves, sent) | admin_link(babylon.settings)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(version))


def _preflight(batch: Batch) -> list[str]:
    return [] if batch.preflight is None else preflight_lines(batch.preflight, batch.parent_version or batch.base_model)


def _finish(connection: Any, tracker: Tracker, trained: Trained, babylon: Babylon) -> WandbResult:
    """Log the training to its tracker, and store the link with the version."""
    model, batch_id = trained.model, trained.batch.batch_id
    judging = judging_of(connection, batch_id)
    numbers = iteration_numbers(trained.steps, read_batch_episodes(connection, batch_id), trained.batch, judging)
    summary = {"version": model.version, "parent": model.parent_version, "avgReward": model.avg_reward, "trainingLoss": trained.batch.loss}
    sent = tracker.finish(trained.steps, numbers, {**summary, **batch_costs(trained.steps, judging)}, model.tracking_url)
    if sent.link is not None and sent.link != model.tracking_url:
        with own_transaction(connection):
            note_tracking(connection, batch_id, sent.link, babylon.now())
    elif sent.link is None and refusal(babylon.settings) is None:
        with own_transaction(connection):
            note_tracking_refusal(connection, batch_id, sent.words)
    return sent


def _artifact(connection: Any, trained: Trained, babylon: Babylon) -> str:
    """Log the checkpoint as an artifact where trainings are tracked online; in words."""
    if babylon.settings.wandb_mode != "online" or refusal(babylon.settings) is not None:
        return ""
    sent = record_artifact(connection, trained.model, babylon.settings, babylon.now())
    if sent.link is None:
        return f"{sent.words} `babylon-rl models upload {trained.model.version}` tries again." if sent.words else ""
    return f"The checkpoint is the artifact {sent.artifact}."


def _metadata(trained: Trained, curves: Mapping[str, Sequence[Mapping[str, Any]]], sent: WandbResult) -> dict[str, Any]:
    """Facts and plots; ``curves`` are the optimizer steps of the version and of its parent."""
    model = trained.model
    metadata = counts(
        1,
        version=model.version,
        parent=model.parent_version or "the base",
        loss=trained.batch.loss,
        avg_reward=model.avg_reward,
        trainable_tokens=sum(step.trainable_tokens or 0 for step in trained.steps),
    )
    metadata |= embedded(_pictures(trained, curves))
    measured = {step.iteration: step.metrics or {} for step in trained.steps}
    metadata["iterations"] = table([
        {"iteration": step.iteration, "loss": step.loss, "tokens": step.trainable_tokens, "sequences": step.sequences,
         "hours": len(step.windows), "seconds": measured[step.iteration].get("seconds")}
        for step in trained.steps
    ])  # fmt: skip
    if any(measured.values()):
        policy = [{"no.": number} | {title: of[name] for name, title in POLICY.items() if name in of} for number, of in measured.items()]
        metadata["policy"] = table(policy)
    preflight = _preflight(trained.batch)
    if preflight:
        metadata["preflight"] = dg.MetadataValue.md("\n".join(f"* {line.strip()}" for line in preflight))
    places: dict[str, Any] = {
        "base_model": model.base_model,
        "backend": model.backend,
        "model_id": model.model_id,
        "checkpoint": dg.MetadataValue.path(trained.checkpoint),
        "storage_path": model.storage_path,
        "uploaded_to": model.uploaded_url,
        "weights_and_biases": _link(sent),
        "upstream_windows": linked_windows(model.windows),
    }
    return metadata | {name: value for name, value in places.items() if value is not None}


def _pictures(trained: Trained, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Picture]:
    """Curves of loss, and of all that was measured by optimizer step beside the parent's."""
    model, pictures = trained.model, list[Picture]()
    steps = curves.get(model.version)
    losses = [row["loss"] for row in steps or [{"loss": step.loss} for step in trained.steps] if row["loss"] is not None]
    if losses:
        x_label, shown = "step" if steps else "iteration", {"loss": losses}
        if len(losses) > SMOOTHED_STEPS:
            smoothed = [fmean(losses[max(0, last - SMOOTHED_STEPS) : last]) for last in range(1, len(losses) + 1)]
            shown[f"mean of {SMOOTHED_STEPS} {x_label}s"] = smoothed
        pictures.append(line_plot(f"Loss of {model.version}", "loss", shown, x_label=x_label))
    if steps:
        over = f", over that of {model.parent_version}" if len(curves) > 1 else ""
        pictures.append(curve_panels(f"Training of {model.version}{over}, by optimizer step", overlaid(curves)))
    return pictures


def _link(sent: WandbResult) -> dg.MetadataValue[Any] | str | None:
    if sent.link is None:
        return sent.words or None
    return dg.MetadataValue.url(sent.link) if sent.link.startswith("http") else dg.MetadataValue.path(sent.link)
