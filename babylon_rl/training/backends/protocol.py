"""Trainer protocol: sequences with advantages in, a numbered checkpoint directory and metrics out.

One protocol for the trainers of this machine and for paid services. ``prepare`` plans and prices a training without posting anything;
``train`` runs one iteration. A local trainer's directory holds an adapter, a service's a pointer to
its step. An iteration is the unit of resumption: it is trained completely or not at all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from babylon_rl.models.base_model import DRY
from babylon_rl.models.checkpoints import BaseIdentity
from babylon_rl.services import WANDB, Service
from babylon_rl.store.connection import Connection
from babylon_rl.types import ServedSequence

STATE_PREFIX = "trainer_state"
DRY_BASE_MODEL = DRY
SERVERLESS = WANDB.backend
GPU = "gpu"
CPU = "cpu"


class TrainSequence(ServedSequence, frozen=True, kw_only=True):
    """LLM call as served, with its episode's advantage.

    ``messages`` is the prompt (the trainer applies the chat template of the base) and ``response`` the answer. ``advantage`` is the
    episode's: (score - group mean) / population standard deviation. ``weight`` is 1 / (the episode's sequences in this iteration), for
    backends that average over a sequence's tokens. A trainer that knows the tokens averages over the episode's, so that an episode weighs
    the same whatever its length. ``logprobs`` are the serving policy's ([{"token", "logprob", "tokenId"}]) or None, which means a ratio
    of 1. ``score`` (0..1) is for backends that compute the advantages themselves.
    """

    window: str
    agent_id: str
    advantage: float
    weight: float
    score: float | None = None


@dataclass(frozen=True, slots=True)
class TrainIteration:
    """One resumable step (1-based) of a batch, with its sequences.

    They are trained ``passes`` times; ``seed`` fixes every random draw of the trainer.
    """

    batch_id: str
    step: int
    sequences: Sequence[TrainSequence]
    seed: int
    steps: int = 1
    passes: int = 1

    @property
    def windows(self) -> list[str]:
        """Windows of this iteration, newest first."""
        return sorted({sequence.window for sequence in self.sequences}, reverse=True)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Metrics of one optimizer step: ``step`` of ``steps`` within iteration ``iteration``.

    ``metrics`` holds what the backend knows (kl, entropy, clipFraction, ratio, gradientNorm, tokensPerSecond...).
    """

    iteration: int
    step: int
    steps: int
    loss: float
    trainable_tokens: int
    metrics: dict[str, float] = field(default_factory=dict)


OnStep = Callable[[StepMetrics], None]


@dataclass(frozen=True, slots=True)
class IterationResult:
    """Result of one iteration: means over its optimizer steps, and the number of trained tokens.

    ``sequences`` is how many sequences really trained; a run with 0 tokens or a loss that is not finite does not count. ``loss`` is None
    where nothing tells it: a service whose answer was lost.
    """

    metrics: dict[str, float]
    trainable_tokens: int
    loss: float | None
    sequences: int = 0


@dataclass(frozen=True, slots=True)
class RunContext:
    """Context of a trainer's run: claim on the batch, clock and heartbeat.

    ``began_at`` is when the run began, less what finished iterations took before it: the time that a batch lies idle does not count.
    ``beat`` raises BatchConflict when the batch ended or was taken over.
    """

    connection: Connection
    batch_id: str
    attempt: int
    began_at: datetime
    now: Callable[[], datetime]
    beat: Callable[[], None]


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """Plan of a training, known before anything is posted or paid.

    ``tokens`` counts the trainable tokens of one pass over each hour, None where the backend counts while it trains. ``sequences`` and
    ``trajectories`` are those with trainable tokens. ``untrained`` counts the other sequences by reason. ``cure`` tells the user what to
    do when nothing trains. ``paid`` is True for a service that costs money; ``usd`` is the price of one pass by hour, None without a known
    price. ``ignored`` names settings that the backend does not take.
    """

    tokens: Mapping[str, int] | None = None
    sequences: int | None = None
    untrained: Mapping[str, int] = field(default_factory=dict)
    cure: str = ""
    paid: bool = False
    usd: Mapping[str, float] | None = None
    ignored: Sequence[str] = ()
    trajectories: frozenset[str] | None = None

    @property
    def trainable_tokens(self) -> int | None:
        """Trainable tokens of all hours in one pass."""
        return None if self.tokens is None else sum(self.tokens.values())

    def trains(self, window: str) -> bool:
        """False when an hour is known to have no trainable token."""
        return self.tokens is None or self.tokens.get(window, 0) > 0

    def cost(self, iterations: Iterable[Sequence[str]]) -> float | None:
        """Price in dollars of iterations over these hours; None without a known price."""
        if self.usd is None:
            return None
        return sum(self.usd.get(window, 0.0) for windows in iterations for window in windows)


class Trainer(Protocol):
    """A training backend.

    ``name`` is its name in tables and pages; ``base_model`` is the line of its versions. ``service`` is the paid service that keeps the
    weights, None on this machine.
    """

    name: str
    base_model: str
    service: Service | None

    def base_identity(self) -> BaseIdentity:
        """Identity of the base that a checkpoint needs (models.checkpoints.base_identity of its directory)."""

    def tokenizer_dir(self) -> Path | None:
        """Directory of the tokenizer that every checkpoint contains; None without a model."""

    def could_train(self, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Plan the training of sequences without scores, before a judge is paid for them."""

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Inspect a batch's sequences before training and before each resume; post, pay and write nothing.

        Raises:
            ModelUnavailable: what the backend needs to know of the base is not there.
        """

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        """Train one iteration and write its checkpoint into the empty directory ``out``, after ``prepare``.

        That is an adapter (safetensors, adapter_config.json), or a service's pointer (models.checkpoints.write_remote).
        ``parent`` is the directory to continue from (the parent version, or the iteration before), None for the bare
        base. Optimizer state may be kept in files named ``trainer_state*`` in ``out``; the next iteration finds them in its
        ``parent``, and they are not published. ``on_step`` is called after every optimizer step and may raise (cancelled).

        Raises:
            Diverged: the loss or the policy left its bounds.
            NothingToTrain: no sequence has a trainable token under this backend.
            CheckpointError: ``parent`` is damaged or belongs to another base.
            TrainingPaused: a service does not answer; the batch goes on with its next run.
        """


class LocalTrainer:
    """Base of the trainers of this machine: a checkpoint is a directory, served from here."""

    service: Service | None = None

    def could_train(self, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Return an empty plan: nothing is paid here."""
        return TrainPlan()

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Return an empty plan: nothing is paid, and tokens are counted while training."""
        return TrainPlan()
