"""Did a job train? What its events, or its checkpoint, say of sequences and loss.

Neither an exception nor a normal return of ART's train() says so: a job counts when its step advanced, sequences were trained and
the loss is finite. Events are read as a set, in whatever order they come.
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
    """One step that a job has taken."""

    loss: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """What a job's events say so far. ``sequences`` is 0 while no gradient step has been taken, whatever was announced."""

    announced: int | None = None
    steps: tuple[GradientStep, ...] = ()
    ended: bool = False
    failure: str | None = None
    tokens: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        """How many sequences were trained."""
        return max(self.announced or 0, len(self.steps)) if self.steps else 0

    @property
    def loss(self) -> float:
        """The mean loss, NaN without a step or when one is not finite."""
        losses = [step.loss for step in self.steps]
        return fmean(losses) if losses and all(math.isfinite(loss) for loss in losses) else math.nan

    @property
    def complete(self) -> bool:
        """False while the list lacks something that an ended job must have: some services show events late."""
        return self.ended and self.announced is not None and len(self.steps) >= self.announced


def read_events(events: Iterable[Event]) -> JobProgress:
    """Fold a job's events; one that comes twice counts once."""
    by_id = {event.id: event for event in events}
    announced: int | None = None
    steps: list[GradientStep] = []
    failure: str | None = None
    ended, tokens = False, 0
    for event in by_id.values():
        if event.type == "training_started":
            announced = int(_number(event.data, ("num_sequences",)) or 0)
        elif event.type == "gradient_step":
            loss = _number(event.data, LOSSES)
            tokens += int(_number(event.data, TOKENS) or 0)
            steps.append(GradientStep(math.nan if loss is None else loss, _named(event.data)))
        elif event.type == "training_ended":
            ended = True
        elif event.type == "training_failed":
            failure = str(event.data.get("error_message") or "the service gave no reason")[:500]
    return JobProgress(announced, tuple(steps), ended, failure, tokens, _means(steps))


def of_checkpoint(metrics: Mapping[str, Any]) -> tuple[int, float]:
    """(sequences, loss) as a checkpoint's own metrics tell them; (0, NaN) where they are silent."""
    loss = _number(metrics, LOSSES)
    sequences = _number(metrics, SEQUENCES) or _number(metrics, TOKENS) or 0
    return int(sequences), math.nan if loss is None else loss


def _named(data: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in data.items():
        if name not in (*LOSSES, *TOKENS) and isinstance(value, int | float) and math.isfinite(value):
            found[NAMES.get(name, name)] = float(value)
    return found


def _means(steps: list[GradientStep]) -> dict[str, float]:
    names = sorted({name for step in steps for name in step.metrics})
    return {name: fmean(step.metrics[name] for step in steps if name in step.metrics) for name in names}


def _number(data: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = data.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
