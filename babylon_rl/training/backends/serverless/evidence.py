"""Evidence of training by a job: sequences and loss, from events or checkpoint.

ART's train() returns or raises independently of the outcome. A job counts when the model's step advanced, unless its events report zero
sequences or a loss that is not finite. Events are folded as a set; their order does not matter.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

LOSSES = ("loss", "policy_loss", "loss/train")
SEQUENCES = ("num_sequences", "num_gradient_steps", "data/step_num_gradient_steps")
TOKENS = ("num_trainable_tokens", "train_tokens", "data/step_trainer_tokens", "data/step_trainable_assistant_tokens")
NAMES = {"grad_norm": "gradientNorm", "kl_div": "kl", "kl_policy_ref": "kl", "entropy": "entropy", "learning_rate": "learningRate"}


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job: training_started, gradient_step, training_ended or training_failed."""

    id: str
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GradientStep:
    """One gradient step of a job."""

    loss: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Progress of a job according to its events so far.

    ``seen`` counts the events. ``announced`` is None where a service does not count sequences.
    """

    seen: int = 0
    announced: int | None = None
    steps: tuple[GradientStep, ...] = ()
    ended: bool = False
    failure: str | None = None
    tokens: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def sequences(self) -> int | None:
        """Number of trained sequences.

        0 without a gradient step, whatever was announced; None where the service shows neither.
        """
        if self.steps:
            return max(self.announced or 0, len(self.steps))
        return None if self.announced is None else 0

    @property
    def loss(self) -> float | None:
        """Mean loss; NaN when one loss is not finite, None without a step."""
        losses = [step.loss for step in self.steps]
        return None if not losses else fmean(losses) if all(math.isfinite(loss) for loss in losses) else math.nan

    def all_seen(self, before: "JobProgress") -> bool:
        """Check that the event list of an ended job is complete.

        Some services show events late, and not every one has a gradient step for each sequence. A job that counts its sequences and shows
        no step at all is not judged by one more look.
        """
        if self.announced is not None and len(self.steps) >= self.announced:
            return self.ended
        return self.ended and self.seen == before.seen and self.sequences != 0


def read_events(events: Iterable[Event]) -> JobProgress:
    """Fold the events of a job; duplicates count once."""
    by_id = {event.id: event for event in events}
    announced: int | None = None
    steps: list[GradientStep] = []
    failure: str | None = None
    ended, tokens = False, 0
    for event in by_id.values():
        if event.type == "training_started":
            count = _number(event.data, SEQUENCES)
            announced = None if count is None else int(count)
        elif event.type == "gradient_step":
            loss = _number(event.data, LOSSES)
            tokens += int(_number(event.data, TOKENS) or 0)
            steps.append(GradientStep(math.nan if loss is None else loss, _named(event.data)))
        elif event.type == "training_ended":
            ended = True
        elif event.type == "training_failed":
            failure = str(event.data.get("error_message") or "the service gave no reason")[:500]
    return JobProgress(len(by_id), announced, tuple(steps), ended, failure, tokens, _means(steps))


def of_checkpoint(metrics: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Return (sequences, loss) from a checkpoint's own metrics, None where they are missing.

    At Weights & Biases these are only the values that a client logged; a client that died logged none.
    """
    sequences = _number(metrics, SEQUENCES + TOKENS)
    return None if sequences is None else int(sequences), _number(metrics, LOSSES)


def _named(data: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for name, value in data.items():
        if name not in (*LOSSES, *TOKENS) and isinstance(value, int | float) and math.isfinite(value):
            metrics[NAMES.get(name, name)] = float(value)
    return metrics


def _means(steps: list[GradientStep]) -> dict[str, float]:
    names = sorted({name for step in steps for name in step.metrics})
    return {name: fmean(step.metrics[name] for step in steps if name in step.metrics) for name in names}


def _number(data: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = data.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
