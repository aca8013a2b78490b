"""What every trainer is: sequences with advantages in, a numbered adapter directory and metrics out.

A trainer knows no database, no batch state and no version numbers; training/runs.py decides what it trains, from where it
continues and what becomes of the directory it writes. An iteration is the unit of resumption: it is trained whole or not at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from babylon_rl.errors import NoTrainer
from babylon_rl.models.checkpoints import BaseIdentity
from babylon_rl.models.packaged import DRY, base_model_name
from babylon_rl.settings import Settings

STATE_PREFIX = "trainer_state"
DRY_BASE_MODEL = DRY


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One LLM call exactly as the policy was served it, with what its episode earned.

    ``messages`` is what the policy saw ([{"role", "content"}], the chat template of the base is applied by the trainer) and
    ``response`` what it answered. ``advantage`` is the episode's: (score - group mean) / population standard deviation.
    ``weight`` is 1 / (the episode's sequences in this iteration), for backends that average over a sequence's tokens; a trainer
    that knows the tokens averages over the episode's, so that an episode weighs the same whatever its length. ``logprobs`` are the
    serving policy's ([{"token", "logprob", "tokenId"}]) or None, which means a ratio of 1.
    """

    messages: Sequence[dict[str, Any]]
    response: str
    response_format: dict[str, Any] | None
    logprobs: Sequence[dict[str, Any]] | None
    advantage: float
    weight: float
    window: str
    agent_id: str
    trajectory_id: str
    call_id: str
    model_version: str | None = None
    scripted: bool = False


@dataclass(frozen=True, slots=True)
class TrainIteration:
    """The sequences of one resumable step (1-based) of a batch; ``seed`` fixes the order and every draw of the trainer."""

    batch_id: str
    step: int
    sequences: Sequence[TrainSequence]
    seed: int
    steps: int = 1

    @property
    def windows(self) -> list[str]:
        """The windows that this iteration trains on, newest first."""
        return sorted({sequence.window for sequence in self.sequences}, reverse=True)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What a trainer says while it works: one optimizer step ``step`` of ``steps`` within iteration ``iteration``.

    ``metrics`` holds what the backend knows (kl, entropy, clipFraction, gradientNorm, tokensPerSecond, actionShare...).
    """

    iteration: int
    step: int
    steps: int
    loss: float
    trainable_tokens: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IterationResult:
    """What one iteration came to: means over its optimizer steps, and the tokens that carried a gradient.

    ``sequences`` is how many sequences really trained; a run with 0 tokens or a loss that is not finite does not count.
    """

    metrics: dict[str, float]
    trainable_tokens: int
    loss: float
    sequences: int = 0


class Trainer(Protocol):
    """A training backend. ``name`` is what tables and pages call it; ``base_model`` is the line its versions belong to."""

    name: str
    base_model: str

    def base_identity(self) -> BaseIdentity:
        """What a checkpoint of this trainer must be served on: models.checkpoints.base_identity of the base's directory."""
        ...

    def train(
        self,
        iteration: TrainIteration,
        parent: Path | None,
        out: Path,
        on_step: Callable[[StepMetrics], None],
    ) -> IterationResult:
        """Train one iteration and write the adapter (safetensors, adapter_config.json) into ``out``, which exists and is empty.

        ``parent`` is the adapter directory to continue from (the parent version, or the iteration before), None for the bare
        base. Optimizer state may be kept in files named ``trainer_state*`` in ``out``; the next iteration finds them in its
        ``parent``, and they are not published. ``on_step`` is called after every optimizer step and may raise (cancelled).

        Raises:
            Diverged: the loss or the policy left its bounds.
            NothingToTrain: no sequence has a trainable token under this backend.
            CheckpointError: ``parent`` is damaged or belongs to another base.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrainingLine:
    """A backend and the base model whose versions continue from each other."""

    backend: str
    base_model: str


def training_line(settings: Settings) -> TrainingLine:
    """The line that a training under ``settings`` would continue.

    Raises:
        NoTrainer: no backend is chosen, or the chosen one is not available; the message says what to set.
    """
    if settings.wandb_api_key is not None and settings.wandb_api_key.get_secret_value():
        raise NoTrainer(
            "WANDB_API_KEY is set, which chooses serverless training, and that is not available yet in this version. "
            "Unset WANDB_API_KEY and set TRAIN_RL_LOCAL=true to train on this machine."
        )
    if not settings.train_rl_local:
        raise NoTrainer(
            "No trainer is chosen: there is no WANDB_API_KEY and TRAIN_RL_LOCAL is false. Set TRAIN_RL_LOCAL=true to train on this machine."
        )
    if settings.local_base_model == DRY_BASE_MODEL:
        return TrainingLine("dry", DRY_BASE_MODEL)
    return TrainingLine("cpu", settings.local_base_model or base_model_name(settings))


def choose_trainer(settings: Settings) -> Trainer:
    """The trainer of the settings' line: WANDB_API_KEY first, else TRAIN_RL_LOCAL (LOCAL_BASE_MODEL=dry: the dry one).

    Raises:
        NoTrainer: as ``training_line``.
    """
    line = training_line(settings)
    if line.backend == "dry":
        from babylon_rl.training.dry import DryTrainer

        return DryTrainer()
    from babylon_rl.training.cpu import CpuTrainer  # loads torch

    return CpuTrainer(settings)
