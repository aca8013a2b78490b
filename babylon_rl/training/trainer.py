"""What every trainer is: sequences with advantages in, a numbered checkpoint directory and metrics out.

One protocol for the trainers of this machine and for paid services: prepare (what would train, and for how much; nothing is posted),
train (one iteration), checkpoint (what a directory stands for) and endpoint (how agents call it). The directory of a local trainer
holds an adapter, that of a service a pointer to the step that lies there. An iteration is the unit of resumption: it is trained
whole or not at all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import psycopg

from babylon_rl.errors import NoTrainer
from babylon_rl.models.checkpoints import BaseIdentity, RemoteCheckpoint, read_remote
from babylon_rl.models.packaged import DRY, base_model_name
from babylon_rl.settings import Settings

STATE_PREFIX = "trainer_state"
DRY_BASE_MODEL = DRY
SERVERLESS = "serverless"
GPU = "gpu"


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
    score: float | None = None  # 0..1, for backends that compute the advantages themselves


@dataclass(frozen=True, slots=True)
class TrainIteration:
    """The sequences of one resumable step (1-based) of a batch, gone through ``passes`` times; ``seed`` fixes every draw of the trainer."""

    batch_id: str
    step: int
    sequences: Sequence[TrainSequence]
    seed: int
    steps: int = 1
    passes: int = 1

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

    ``sequences`` is how many sequences really trained; a run with 0 tokens or a loss that is not finite does not count. ``loss`` is None
    where nothing tells it: a service whose answer was lost.
    """

    metrics: dict[str, float]
    trainable_tokens: int
    loss: float | None
    sequences: int = 0


@dataclass(frozen=True, slots=True)
class RunContext:
    """The run that a trainer works for: the claim on its batch, the clock, and a sign of life.

    ``began_at`` is when the run began, less what finished iterations took before it: the time that a batch lies idle does not count.
    ``beat`` raises BatchConflict when the batch ended or was taken over.
    """

    connection: psycopg.Connection[Any]
    batch_id: str
    attempt: int
    began_at: datetime
    now: Callable[[], datetime]
    beat: Callable[[], None]


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What a backend would make of some sequences, known before anything is posted or paid.

    ``tokens`` counts the trainable tokens of one pass over each hour, None where the backend counts while it trains; ``sequences`` those
    that have some, and ``trajectories`` are the ids of theirs. ``untrained`` counts the sequences that it cannot train, by reason.
    ``cure`` says what to do when nothing trains. ``paid`` is True for a service that costs money, ``usd`` what an iteration costs by its
    hours, None without a known price. ``ignored`` names settings that the backend does not take.
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
        """Of all hours, in one pass."""
        return None if self.tokens is None else sum(self.tokens.values())

    def trains(self, window: str) -> bool:
        """False when an hour is known to hold no trainable token."""
        return self.tokens is None or self.tokens.get(window, 0) > 0

    def cost(self, iterations: Iterable[Sequence[str]]) -> float | None:
        """Dollars for iterations over these hours, None where nothing is paid or no price is known."""
        if self.usd is None:
            return None
        return sum(self.usd.get(window, 0.0) for windows in iterations for window in windows)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint directory stands for; ``storage_path`` is what agents call, ``remote`` None for an adapter on this machine."""

    directory: Path
    storage_path: str
    remote: RemoteCheckpoint | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How agents call a version: an OpenAI-compatible address and the model's name there; ``hint`` says what to start, if anything."""

    url: str
    model: str
    hint: str = ""


class Trainer(Protocol):
    """A training backend. ``name`` is what tables and pages call it; ``base_model`` is the line its versions belong to."""

    name: str
    base_model: str

    def base_identity(self) -> BaseIdentity:
        """What a checkpoint of this trainer must be served on: models.checkpoints.base_identity of the base's directory."""
        ...

    def tokenizer_dir(self) -> Path | None:
        """Where the base's tokenizer and chat template lie, which go with every checkpoint; None without a model."""
        ...

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Look at the sequences of a batch before its first iteration, and again before it goes on; nothing is posted, paid or written.

        Raises:
            ModelUnavailable: what the backend needs to know of the base is not there.
        """
        ...

    def train(
        self,
        iteration: TrainIteration,
        parent: Path | None,
        out: Path,
        on_step: Callable[[StepMetrics], None],
    ) -> IterationResult:
        """Train one iteration and write the checkpoint into ``out``, which exists and is empty; ``prepare`` was called before.

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
        ...

    def checkpoint(self, directory: Path) -> Checkpoint:
        """What a directory that ``train`` wrote stands for."""
        ...

    def endpoint(self, version: str, directory: Path) -> Endpoint:
        """How agents call the version that was published from ``directory``."""
        ...


class LocalTrainer:
    """What the trainers of this machine share: their checkpoint is a directory, served by `babylon-rl serve model`."""

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Nothing is paid, and tokens are counted while training."""
        return TrainPlan()

    def checkpoint(self, directory: Path) -> Checkpoint:
        """The directory itself."""
        return Checkpoint(directory, str(directory))

    def endpoint(self, version: str, directory: Path) -> Endpoint:
        """A server on this machine, where the default port is."""
        return Endpoint("http://localhost:8000/v1", version, f"start it with `babylon-rl serve model {version}`")


def endpoint_of(settings: Settings, version: str, directory: Path) -> Endpoint:
    """How agents call a registered version, by its checkpoint directory alone."""
    remote = read_remote(directory)
    if remote is not None:
        return Endpoint(remote.inference_url, remote.inference_name)
    return Endpoint(f"{settings.local_endpoint.rstrip('/')}/v1", version, f"start it with `babylon-rl serve model {version}`")


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
    if settings.wandb_key:
        if find_spec("art") is None:
            raise NoTrainer(
                "WANDB_API_KEY is set, which chooses serverless training, and openpipe-art is not installed. Install the extra `remote` "
                "(make setup), or unset WANDB_API_KEY and set TRAIN_RL_LOCAL=true to train on this machine."
            )
        return TrainingLine(SERVERLESS, settings.base_model)
    if not settings.train_rl_local:
        raise NoTrainer(
            "No trainer is chosen: there is no WANDB_API_KEY and TRAIN_RL_LOCAL is false. Set TRAIN_RL_LOCAL=true to train on this machine."
        )
    if settings.local_base_model == DRY_BASE_MODEL:
        return TrainingLine("dry", DRY_BASE_MODEL)
    if settings.local_base_model is None and gpu_is_here():
        return TrainingLine(GPU, settings.base_model)
    return TrainingLine("cpu", settings.local_base_model or base_model_name(settings))


def gpu_is_here() -> bool:
    """True with a driver of an NVIDIA GPU and the packages of requirements-gpu.lock; loads neither."""
    return Path("/proc/driver/nvidia/version").exists() and find_spec("unsloth") is not None


def choose_trainer(settings: Settings) -> Trainer:
    """The trainer of the settings' line: WANDB_API_KEY first, else TRAIN_RL_LOCAL (LOCAL_BASE_MODEL=dry: the dry one; a GPU; the CPU).

    Raises:
        NoTrainer: as ``training_line``.
    """
    line = training_line(settings)
    if line.backend == SERVERLESS:
        from babylon_rl.training.remote.serverless import ServerlessTrainer

        return ServerlessTrainer(settings)
    if line.backend == GPU:
        from babylon_rl.training.remote.gpu import GpuTrainer

        return GpuTrainer(settings)
    if line.backend == "dry":
        from babylon_rl.training.dry import DryTrainer

        return DryTrainer()
    from babylon_rl.training.cpu import CpuTrainer  # loads torch

    return CpuTrainer(settings)
