"""Protocol of trainers, the choice of one by the settings, and the address of its versions.

Sequences with advantages go in, a numbered checkpoint directory and metrics come out, of the trainers of this machine and of paid services
alike: of this package, on the CPU or a GPU (cpu/), of openpipe-art on a GPU (gpu.py), at a service (serverless/), and a dry one for
trials (dry.py). ``prepare`` plans and prices a training without posting anything; ``train`` runs one iteration, which is trained
completely or not at all. A local trainer's directory holds an adapter, a service's a pointer to its step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from babylon_rl.errors import NoTrainer, require
from babylon_rl.models.base_model import DRY, base_model_name
from babylon_rl.models.checkpoints import BaseIdentity, read_remote
from babylon_rl.services import SERVICES, WANDB, Service
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.types import ServedSequence

STATE_PREFIX = "trainer_state"
DRY_BASE_MODEL = DRY
SERVERLESS = WANDB.backend
GPU = "gpu"
CPU = "cpu"
ANSWER_BACKENDS = (CPU, DRY_BASE_MODEL)  # that train answer groups


class TrainSequence(ServedSequence, frozen=True, kw_only=True):
    """LLM call as served, with its advantage.

    ``messages`` is the prompt (the trainer applies the chat template of the base) and ``response`` the answer. ``advantage`` is that of
    its agent in the part of the hour that begins at minute ``part``: (score - mean of the part) / ADVANTAGE_SCALE; where ``part`` is None,
    its episode's: (score - group mean) / population standard deviation. A trainer that knows the tokens averages over the episode's, so
    that an episode weighs the same whatever its length. ``logprobs`` are the serving policy's ([{"token", "logprob", "tokenId"}]) or None,
    which means a ratio of 1. ``score`` (0..1), of the part or the episode, is for backends that compute the advantages themselves.

    ``group`` names the answer group of an answer that was replayed, not recorded: its ``score`` is of its tick, and its advantage and
    weight follow from the probabilities of the policy in training (cpu/answers.py).
    """

    window: str
    agent_id: str
    advantage: float
    score: float | None = None
    part: int | None = None
    group: str = ""


def recorded_calls(sequences: Iterable[TrainSequence]) -> Iterator[TrainSequence]:
    """Yield one sequence for each call that was played: itself, or the first of its answer group, whose answers follow each other."""
    group = ""
    for sequence in sequences:
        if not sequence.group or sequence.group != group:
            yield sequence
        group = sequence.group


@dataclass(frozen=True, slots=True)
class TrainIteration:
    """One resumable step (1-based) of a batch, with its sequences.

    ``seed`` fixes every random draw of the trainer. ``generation`` is that of the version in training: 1 from the base, 2 from a version of
    generation 1. ``origin`` is the directory of the version that the batch continues from. Measurements of the CPU trainer alone ask for
    more than one of its ``passes`` over the sequences.
    """

    batch_id: str
    step: int
    sequences: Sequence[TrainSequence]
    seed: int
    steps: int = 1
    passes: int = 1
    generation: int = 1
    origin: Path | None = None

    @property
    def windows(self) -> list[str]:
        return sorted({sequence.window for sequence in self.sequences}, reverse=True)

    @property
    def calls(self) -> int:
        """Number of recorded calls that train, each answer group counted as one."""
        return sum(1 for _ in recorded_calls(self.sequences))


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Metrics of one optimizer step: ``step`` of ``steps`` within iteration ``iteration``.

    ``trainable_tokens`` counts those of the iteration so far. ``metrics`` holds what the backend knows (kl, entropy, clipFraction, ratio,
    gradientNorm, learningRate, tokensPerSecond...).
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

    ``sequences`` is how many recorded calls really trained; a run with 0 tokens or a loss that is not finite does not count. ``loss`` is
    None where nothing tells it: a service whose answer was lost.
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
        return None if self.tokens is None else sum(self.tokens.values())

    def trains(self, window: str) -> bool:
        """False when an hour is known to have no trainable token."""
        return self.tokens is None or self.tokens.get(window, 0) > 0

    def cost(self, iterations: Iterable[Sequence[str]]) -> float | None:
        """Price in dollars of iterations over these hours; None without a known price."""
        if self.usd is None:
            return None
        return sum(self.usd.get(window, 0.0) for windows in iterations for window in windows)


class Trainer(ABC):
    """A training backend; the defaults are those of one on this machine, which costs nothing and counts tokens while it trains.

    ``name`` is its name in tables and pages; ``base_model`` is the line of its versions. ``service`` is the paid service that keeps the
    weights, None on this machine.
    """

    name: str
    base_model: str
    service: Service | None = None

    @abstractmethod
    def base_identity(self) -> BaseIdentity:
        """Identity of the base that a checkpoint needs (models.checkpoints.base_identity of its directory)."""

    @abstractmethod
    def tokenizer_dir(self) -> Path | None:
        """Directory of the tokenizer that every checkpoint contains; None without a model."""

    def hyperparameters(self, generation: int) -> dict[str, Any]:
        """Values of a generation that the backend trains with beside the settings, or in place of an unset one (``learning_rate``)."""
        return {}

    def could_train(self, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Plan the training of sequences without scores, before a judge is paid for them; asked of a paid service alone."""
        return TrainPlan()

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Inspect a batch's sequences before training and before each resume; post, pay and write nothing.

        Raises ModelUnavailable: what the backend needs to know of the base is not there.
        """
        return TrainPlan()

    @abstractmethod
    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        """Train one iteration and write its checkpoint into the empty directory ``out``, after ``prepare``.

        That is an adapter (safetensors, adapter_config.json), or a service's pointer (models.checkpoints.write_document). ``parent`` is the
        directory to continue from (the parent version, or the iteration before), None for the bare base. Optimizer state may be kept in
        files named ``trainer_state*`` in ``out``; the next iteration finds them in its ``parent``, and they are not published. ``on_step``
        is called after every optimizer step and may raise (cancelled).

        Raises:
            Diverged: the loss or the policy left its bounds.
            NothingToTrain: no sequence has a trainable token under this backend.
            CheckpointError: ``parent`` is damaged or belongs to another base.
            TrainingPaused: a service does not answer; the batch goes on with its next run.
        """


# Gigabytes that a training writes, by backend: its checkpoints, and what they are made of.
TRAINING_GB = {CPU: 1.0, "dry": 0.1, SERVERLESS: 1.0, GPU: 60.0}


@dataclass(frozen=True, slots=True)
class ModelAddress:
    """OpenAI-compatible address of a version; ``hint`` tells what to start first, if anything, ``refusal`` why it cannot be asked."""

    url: str
    model: str
    hint: str = ""
    key: str = field(default="", repr=False)
    refusal: str = ""


def address_of(settings: Settings, version: str, directory: Path) -> ModelAddress:
    """Address of a version, from its checkpoint directory alone. Raises CheckpointError: the pointer to a service cannot be read."""
    remote = read_remote(directory)
    if remote is not None:
        # The service by the pointer's address, so that no key goes to a host that only the checkpoint names.
        services = {one.refusal(remote.inference_url, settings): one for one in SERVICES.values()}
        service = services.get(None)
        if service is None:
            return ModelAddress(remote.inference_url, remote.inference_name, refusal=" ".join(filter(None, services)))
        key = service.key(settings)
        refusal = "" if key else f"there is no {service.key_variable} to ask {remote.inference_name} with."
        return ModelAddress(remote.inference_url, remote.inference_name, key=key, refusal=refusal)
    from babylon_rl.llm.transports import with_version  # 0.1 s, which most commands do not need

    return ModelAddress(with_version(settings.local_endpoint), version, f"start it with `babylon-rl serve model {version}`")


@dataclass(frozen=True, slots=True)
class TrainerChoice:
    """A backend, the base model of its line, and the service that keeps its weights, if any."""

    backend: str
    base_model: str
    service: Service | None = None


def trainer_choice(settings: Settings) -> TrainerChoice:
    """Determine backend and line of a training; loads no trainer.

    Raises NoTrainer: no backend is chosen, or the chosen one is not available; the message says what to set.
    """
    chosen = chosen_trainer(settings)
    if chosen is None:
        raise NoTrainer(
            "No trainer is chosen: there is no WANDB_API_KEY and TRAIN_RL_LOCAL is false. Set TRAIN_RL_LOCAL=true (or TRAINER) to train "
            "on this machine."
        )
    if chosen == SERVERLESS:
        chosen_by = "TRAINER is serverless" if settings.trainer else "WANDB_API_KEY is set, which chooses serverless training"
        if not settings.wandb_key:
            raise NoTrainer(f"{chosen_by}, and WANDB_API_KEY is not set. Set it, or TRAINER=local to train on this machine.")
        if find_spec("art") is None:
            raise NoTrainer(
                f"{chosen_by}, and openpipe-art is not installed. Install the extra `remote` (make setup), or set TRAINER=local to train "
                "on this machine."
            )
        return TrainerChoice(SERVERLESS, settings.base_model, WANDB)
    if chosen == "dry" or (chosen == "local" and settings.local_base_model == DRY_BASE_MODEL):
        return TrainerChoice("dry", DRY_BASE_MODEL)
    # LOCAL_BASE_MODEL names a base for this package's trainer: with it, `local` means that one even where ART is installed.
    if chosen == GPU or (chosen == "local" and settings.local_base_model is None and gpu_is_here()):
        return TrainerChoice(GPU, settings.base_model)
    if settings.local_base_model == DRY_BASE_MODEL:
        raise NoTrainer("TRAINER is cpu and LOCAL_BASE_MODEL is dry, which trains nothing. Set TRAINER=dry, or unset LOCAL_BASE_MODEL.")
    return TrainerChoice(CPU, settings.local_base_model or base_model_name(settings))


def chosen_trainer(settings: Settings) -> str | None:
    return settings.trainer or (SERVERLESS if settings.wandb_key else "local" if settings.train_rl_local else None)


def settings_for(backend: str, settings: Settings) -> Settings:
    """Settings for a training whose backend was chosen before, perhaps on another machine.

    ``local`` means that backend then. Where it does so anyway it stays, so that the trainer of this package takes a GPU that is here,
    wherever the batch was frozen.
    """
    moved = backend in (CPU, GPU) and chosen_trainer(settings) == "local" and settings.local_base_model is None
    if moved and trainer_choice(settings).backend != backend:
        return settings.model_copy(update={"trainer": backend})
    return settings


def gpu_is_here() -> bool:
    """True with an NVIDIA driver and the packages of requirements-gpu.lock; loads neither."""
    return Path("/proc/driver/nvidia/version").exists() and find_spec("unsloth") is not None


def choose_trainer(settings: Settings) -> Trainer:
    """Create the trainer of the settings: TRAINER first, then WANDB_API_KEY, then TRAIN_RL_LOCAL. Raises as ``trainer_choice``."""
    choice = trainer_choice(settings)
    # Imported here, because these modules load large packages.
    if choice.backend == SERVERLESS:
        from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer

        return ServerlessTrainer(settings)
    if choice.backend == GPU:
        from babylon_rl.training.backends.gpu import GpuTrainer

        return GpuTrainer(settings)
    if choice.backend == DRY_BASE_MODEL:
        from babylon_rl.training.backends.dry import DryTrainer

        return DryTrainer()
    require("torch", "transformers", "peft", "safetensors")
    from babylon_rl.training.backends.cpu.trainer import CpuTrainer  # loads torch

    return CpuTrainer(settings)
