"""Curves of a training: its numbers by optimizer step, for tables, frames and plots."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from babylon_rl.store.batches import Batch, read_batch, read_batch_episodes
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import Model
from babylon_rl.store.write_ahead import TrainingStep, read_steps
from babylon_rl.training.tracking import iteration_numbers


class Curve(NamedTuple):
    """A number of an optimizer step: its title in plots and, shorter, in tables, digits there, and what it is."""

    title: str
    short: str
    digits: int
    meaning: str


CURVES = {
    "loss": Curve("loss", "loss", 4, "training loss"),
    "rewardMean": Curve("mean score", "reward", 3, "mean score of the episodes in the iteration's hours, 0 to 1"),
    "rewardSpread": Curve("spread of scores in a group", "spread", 3, "mean over these hours of their population standard deviation"),
    "kl": Curve("KL from the base, nats a choice", "KL", 4, "KL(policy || base) in nats a choice; missing with KL_PENALTY=0"),
    "klParent": Curve(
        "KL from the parent, nats a choice", "parent KL", 4, "KL(policy || parent) in nats a choice; missing in the first generation"
    ),
    "servedKl": Curve(
        "KL from the serving policy, nats a token", "served KL", 4,
        "estimate (k3) of KL(serving policy || policy), nats a token; missing where nothing was recorded",
    ),
    "ratio": Curve(
        "ratio to the serving policy", "ratio", 3,
        "mean probability of the recorded tokens over the one that they were served with, before clipping",
    ),
    "clippedRatio": Curve(
        "the same, as the loss clips it", "clipped", 3,
        "the same with each token's ratio clipped, as in the loss: a few large ones do not make it",
    ),
    "entropy": Curve("entropy, nats a choice", "entropy", 3, "mean entropy, nats a choice"),
    "clipFraction": Curve(
        "share of tokens clipped", "clip share", 3, "share of tokens whose ratio is clipped, or that are not pushed down further"
    ),
    "gradientNorm": Curve("gradient norm", "grad norm", 3, "norm of the gradient before clipping"),
    "learningRate": Curve("learning rate", "rate", 6, "learning rate of the step"),
}  # fmt: skip


def optimizer_steps(connection: Connection, batch: Batch) -> list[dict[str, Any]]:
    """Return a row per optimizer step of a batch, in order.

    Each has the batch, version, iteration, ``step`` (from 1, over all iterations), the names of CURVES and ``trainableTokens`` (of the
    iteration so far). Rewards are those of the iteration's hours. None where the trainer does not measure a number; an iteration that was
    begun several times counts once.
    """
    # Of several starts the last one that took a step.
    taken: dict[int, TrainingStep] = {one.iteration: one for one in read_steps(connection, batch.batch_id) if one.optimizer_steps}
    numbers = iteration_numbers(list(taken.values()), read_batch_episodes(connection, batch.batch_id), batch, {})
    rows: list[dict[str, Any]] = []
    for iteration, start in sorted(taken.items()):
        for measured in start.optimizer_steps:
            known: dict[str, Any] = {**numbers[iteration], **measured}
            about = {"batchId": batch.batch_id, "version": batch.version, "iteration": iteration, "step": len(rows) + 1}
            rows.append(about | {name: known.get(name) for name in (*CURVES, "trainableTokens")})
    return rows


def overlaid(trainings: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, list[float | None]]]:
    """Return the curves of several trainings, by version, as panels: values by version, by title.

    ``trainings`` are the rows of `optimizer_steps`. A panel has the versions that measured its number; there is none where nobody did.
    """
    panels: dict[str, dict[str, list[float | None]]] = {}
    for name, curve in CURVES.items():
        curves = {version: [row[name] for row in rows] for version, rows in trainings.items()}
        measured = {version: values for version, values in curves.items() if any(value is not None for value in values)}
        if measured:
            panels[curve.title] = measured
    return panels


def training_curves(connection: Connection, models: Iterable[Model]) -> dict[str, list[dict[str, Any]]]:
    """Return the optimizer steps of the trainings of ``models``, by version, without those that have none on record."""
    curves = {}
    for model in models:
        batch = None if model.training_batch is None else read_batch(connection, model.training_batch)
        if batch is not None and (rows := optimizer_steps(connection, batch)):
            curves[model.version] = rows
    return curves
