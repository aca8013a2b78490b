"""Choice of a trainer by the settings, and the address of its versions.

The trainers implement protocol.py: on the CPU (cpu/), on a GPU (gpu.py), at a service (serverless/), and a dry one for trials (dry.py).
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from babylon_rl.errors import NoTrainer, require
from babylon_rl.models.base_model import base_model_name
from babylon_rl.models.checkpoints import read_remote
from babylon_rl.services import SERVICES, WANDB, Service
from babylon_rl.settings import Settings
from babylon_rl.training.backends.protocol import CPU, DRY_BASE_MODEL, GPU, SERVERLESS, Trainer

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
