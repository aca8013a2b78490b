"""Trainers: their protocol, the choice of one by the settings, the address of its versions, and the tokenizer of its base.

Sequences with advantages go in, a numbered checkpoint directory and metrics come out, of the trainers of this machine and of paid services
alike: on the CPU (cpu/), on a GPU (gpu.py), at a service (serverless/), and a dry one for trials (dry.py). ``prepare`` plans and prices a
training without posting anything; ``train`` runs one iteration, which is trained completely or not at all. A local trainer's directory
holds an adapter, a service's a pointer to its step.

Token ids of another base would silently train another text, so recorded ids must decode to the recorded answer. Otherwise the sequence is
treated as recorded without log-probabilities; none are invented.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from babylon_rl.chats import log_probability
from babylon_rl.errors import ModelUnavailable, NoTrainer, first_line, require
from babylon_rl.models.base_model import DRY, NAME, base_model_dir, base_model_name, quiet_loading
from babylon_rl.models.checkpoints import BaseIdentity, files_identity, read_remote
from babylon_rl.models.encoding import control_ids, encode_prompt, encode_text
from babylon_rl.services import SERVICES, WANDB, Service
from babylon_rl.settings import Settings
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
        ...

    def tokenizer_dir(self) -> Path | None:
        """Directory of the tokenizer that every checkpoint contains; None without a model."""
        ...

    def could_train(self, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Plan the training of sequences without scores, before a judge is paid for them."""
        ...

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Inspect a batch's sequences before training and before each resume; post, pay and write nothing.

        Raises:
            ModelUnavailable: what the backend needs to know of the base is not there.
        """
        ...

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
        ...


class LocalTrainer:
    """Base of the trainers of this machine: a checkpoint is a directory, served from here."""

    service: Service | None = None

    def could_train(self, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Return an empty plan: nothing is paid here."""
        return TrainPlan()

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Return an empty plan: nothing is paid, and tokens are counted while training."""
        return TrainPlan()


# Gigabytes that a training writes, by backend: its checkpoints, and what they are made of.
TRAINING_GB = {CPU: 1.0, "dry": 0.1, SERVERLESS: 1.0, GPU: 60.0}


@dataclass(frozen=True, slots=True)
class ModelAddress:
    """Address of a version: OpenAI-compatible URL, model name there, and key.

    ``hint`` tells what to start first, if anything; ``refusal`` is a sentence on why it cannot be asked.
    """

    url: str
    model: str
    hint: str = ""
    key: str = field(default="", repr=False)
    refusal: str = ""


def address_of(settings: Settings, version: str, directory: Path) -> ModelAddress:
    """Address of a registered version, from its checkpoint directory alone.

    Raises:
        CheckpointError: the pointer to a service cannot be read.
    """
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
    """Determine the backend and the line of a training under ``settings``; loads no trainer.

    Raises:
        NoTrainer: no backend is chosen, or the chosen one is not available; the message says what to set.
    """
    chosen = _chosen(settings)
    if chosen is None:
        raise NoTrainer(
            "No trainer is chosen: there is no WANDB_API_KEY and TRAIN_RL_LOCAL is false. Set TRAIN_RL_LOCAL=true (or TRAINER) to train "
            "on this machine."
        )
    if chosen == SERVERLESS:
        _require_service(settings)
        return TrainerChoice(SERVERLESS, settings.base_model, WANDB)
    # Order of choice on this machine: dry runs, a GPU, the CPU.
    if chosen == "dry" or (chosen == "local" and settings.local_base_model == DRY_BASE_MODEL):
        return TrainerChoice("dry", DRY_BASE_MODEL)
    # LOCAL_BASE_MODEL names a base for the CPU trainer: with it, `local` means the CPU even where a GPU is.
    if chosen == GPU or (chosen == "local" and settings.local_base_model is None and gpu_is_here()):
        return TrainerChoice(GPU, settings.base_model)
    if settings.local_base_model == DRY_BASE_MODEL:
        raise NoTrainer("TRAINER is cpu and LOCAL_BASE_MODEL is dry, which trains nothing. Set TRAINER=dry, or unset LOCAL_BASE_MODEL.")
    return TrainerChoice(CPU, settings.local_base_model or base_model_name(settings))


def _chosen(settings: Settings) -> str | None:
    return settings.trainer or (SERVERLESS if settings.wandb_key else "local" if settings.train_rl_local else None)


def settings_for(backend: str, settings: Settings) -> Settings:
    """Settings for a training whose backend was chosen before, perhaps on another machine.

    ``local`` means that backend then, whether or not a GPU is here.
    """
    if backend in (CPU, GPU) and _chosen(settings) == "local" and settings.local_base_model is None:
        return settings.model_copy(update={"trainer": backend})
    return settings


def _require_service(settings: Settings) -> None:
    chosen_by = "TRAINER is serverless" if settings.trainer else "WANDB_API_KEY is set, which chooses serverless training"
    if not settings.wandb_key:
        raise NoTrainer(f"{chosen_by}, and WANDB_API_KEY is not set. Set it, or TRAINER=local to train on this machine.")
    if find_spec("art") is None:
        raise NoTrainer(
            f"{chosen_by}, and openpipe-art is not installed. Install the extra `remote` (make setup), or set TRAINER=local to train on "
            "this machine."
        )


def gpu_is_here() -> bool:
    """True with an NVIDIA driver and the packages of requirements-gpu.lock; loads neither."""
    return Path("/proc/driver/nvidia/version").exists() and find_spec("unsloth") is not None


def choose_trainer(settings: Settings) -> Trainer:
    """Create the trainer of the settings: TRAINER first, then WANDB_API_KEY, then TRAIN_RL_LOCAL (dry, GPU or CPU).

    Raises:
        NoTrainer: as ``trainer_choice``.
    """
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


NONE_RECORDED = "recorded without logprobs"
NO_IDS = "recorded with logprobs but without token ids"
OTHER_BASE = "recorded with the token ids of another base model"
NOT_FINITE = "recorded with logprobs that are no numbers"
WITH_REASONING = "recorded with the token ids of its reasoning too"
_FILES = ["config.json", "tokenizer*.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt"]

TokenLogprobs = tuple[tuple[int, float], ...]


class BaseTokens:
    """Tokenizer of ``base_model``: a directory, the packaged model's name, or a hub id.

    Of a hub model only the small files are downloaded.
    """

    def __init__(self, settings: Settings, base_model: str) -> None:
        self.name = base_model
        self._settings = settings
        self._loaded: Any = None

    @property
    def directory(self) -> Path:
        """Directory of the tokenizer. Raises ModelUnavailable when the hub does not provide it."""
        if Path(self.name).expanduser().is_dir():
            return Path(self.name).expanduser()
        if self.name == NAME:
            # By that name the packaged model is meant, whatever LOCAL_BASE_MODEL names.
            return base_model_dir(self._settings.model_copy(update={"local_base_model": None}))
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.name, allow_patterns=_FILES))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as failed:
            raise ModelUnavailable(
                f"The tokenizer of BASE_MODEL={self.name} is not here and the hub does not give it ({type(failed).__name__}); recorded "
                "token ids cannot be checked without it. Set BASE_MODEL to a directory with its tokenizer files, or mend the connection."
            ) from None

    @property
    def tokenizer(self) -> Any:
        """Tokenizer, loaded once."""
        if self._loaded is None:
            directory = self.directory
            from transformers import AutoTokenizer

            with quiet_loading():
                try:
                    self._loaded = AutoTokenizer.from_pretrained(directory)
                except (OSError, ValueError) as failed:
                    raise ModelUnavailable(f"{directory} holds no tokenizer that can be loaded: {first_line(failed)}") from None
        return self._loaded

    def identity(self) -> BaseIdentity:
        """The base's identity, from its config and tokenizer."""
        return files_identity(self.directory, self.name)

    def recorded(self, sequence: TrainSequence) -> TokenLogprobs | str:
        """Return a sequence's (token id, log-probability) pairs, or the reason why it has none."""
        if not sequence.logprobs:
            return NONE_RECORDED
        # All or nothing: with one token left out the rest would train as another text.
        pairs = [(token.get("tokenId"), token.get("logprob")) for token in sequence.logprobs]
        tokens: list[tuple[int, float]] = []
        for token_id, logprob in pairs:
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                return NO_IDS
            value = log_probability(logprob)
            if value is None:
                return NOT_FINITE
            tokens.append((token_id, value))
        ids = [token_id for token_id, _ in tokens]
        # Ids of another vocabulary are out of range, or decode to another text.
        if min(ids) < 0 or max(ids) >= len(self.tokenizer):
            return OTHER_BASE
        text, said = self._text(ids), sequence.response.strip()
        if text == said:
            return tuple(tokens)
        # Servers that take the reasoning out of an answer report its tokens with the others.
        return WITH_REASONING if said and text.endswith(said) else OTHER_BASE

    def answer_tokens(self, sequence: TrainSequence) -> int:
        """Count the tokens of an answer."""
        return len(encode_text(self.tokenizer, sequence.response))

    def prompt_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Count the tokens of a prompt under the chat template."""
        return len(encode_prompt(self.tokenizer, messages))

    def _text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens; only at its end are special tokens none."""
        control = control_ids(self.tokenizer)
        said = list(ids)
        while said and said[-1] in control:
            said.pop()
        return str(self.tokenizer.decode(said, clean_up_tokenization_spaces=False)).strip()
