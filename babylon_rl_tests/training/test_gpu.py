"""The GPU trainer over a stand-in of ART's local backend, with ART's own models and groups; what ART does on a GPU was not run here."""

import errno
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file

from babylon_rl.errors import TrainingError
from babylon_rl.models.checkpoints import ADAPTER_CONFIG, WEIGHTS
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, read_batch
from babylon_rl.store.connection import Connection
from babylon_rl.training.backends.gpu import VLLM_LOG, GpuTrainer
from babylon_rl.training.batches import Trained, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.training.remote_play import PLAYED_NOW

pytestmark = pytest.mark.slow  # torch is imported

ROOT = Path(__file__).parents[2]


def lora_of(weights: Path) -> int:
    return int(load_file(weights)["lora"])


class Backend:
    """As art.local.LocalBackend to its callers; a step's adapter says how many trajectories it was given and from what it continues."""

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)

    async def register(self, model: Any) -> None:
        (self._model_dir(model) / "checkpoints").mkdir(parents=True, exist_ok=True)

    async def _prepare_backend_for_training(self, model: Any, config: Any) -> tuple[str, str]:
        return "http://127.0.0.1:9/v1", "default"

    async def _get_step(self, model: Any) -> int:
        return max((int(path.name) for path in (self._model_dir(model) / "checkpoints").iterdir()), default=0)

    async def train(self, model: Any, groups: Any, *, learning_rate: float, allow_training_without_logprobs: bool = False) -> Any:
        before = await self._get_step(model)
        parent = self._model_dir(model) / "checkpoints" / f"{before:04}" / WEIGHTS
        given = sum(len(group.trajectories) for group in groups) + (lora_of(parent) if before else 0)
        made = self._model_dir(model) / "checkpoints" / f"{before + 1:04}"
        made.mkdir()
        save_file({"lora": torch.tensor([given])}, made / WEIGHTS)
        (made / ADAPTER_CONFIG).write_text("{}")
        assert allow_training_without_logprobs and learning_rate == 5e-6
        return SimpleNamespace(step=before + 1, metrics={"loss": 0.25, "entropy": 0.5}, checkpoint_path=str(made))

    async def close(self) -> None:
        """Nothing runs."""

    def _model_dir(self, model: Any) -> Path:
        return self.path / model.project / "models" / str(model.name)


def failing(error: Exception, at: str = "train", log: str = "") -> type[Backend]:
    """A backend that raises ``error`` in ``at``, and in close() as well."""

    class Fails(Backend):
        async def close(self) -> None:
            raise RuntimeError("Child process 'model-service' was killed by signal 9")

    async def fail(self: Backend, model: Any, *_: object, **__: object) -> None:
        if log:
            directory = self._model_dir(model) / "logs"
            directory.mkdir(parents=True)
            (directory / VLLM_LOG).write_text(log)
        raise error

    setattr(Fails, at, fail)  # whatever it is called, it raises
    return Fails


@pytest.fixture
def settings(settings: Settings, base_directory: Path) -> Settings:
    chosen = {
        "base_model": str(base_directory),
        "local_base_model": None,
        "iterations": 2,
        "epochs": 2,
        "lookback_hours": 24,
        "credit": "part",
    }
    return settings.model_copy(update=chosen)


@pytest.fixture
def batch(played: Connection, settings: Settings) -> Batch:
    """The played hours, frozen as where a GPU is."""
    chosen = settings.model_copy(update={"local_base_model": settings.base_model})
    frozen = freeze(played, chosen, PLAYED_NOW).batch
    played.execute("""UPDATE babylon_rl.batches SET "backend" = 'gpu'""")
    prepare_batch(played, frozen.batch_id, chosen, PLAYED_NOW)
    return frozen


def train(connection: Connection, batch: Batch, settings: Settings, backend: type[Backend]) -> Trained:
    return train_batch(connection, batch.batch_id, settings, PLAYED_NOW, GpuTrainer(settings, backend))


def test_an_iteration_leaves_an_adapter_and_the_next_continues_from_it(played, batch, settings) -> None:
    trained = train(played, batch, settings, Backend)
    assert [step.loss for step in trained.steps] == [0.25, 0.25] and trained.model.backend == "gpu"
    assert {WEIGHTS, ADAPTER_CONFIG} <= {path.name for path in trained.checkpoint.iterdir()}
    assert lora_of(trained.checkpoint / WEIGHTS) == 240  # twelve parts of ten episodes in each of two iterations
    assert not list(settings.home.rglob(".art"))


def deep(error: Exception) -> list[BaseException]:
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__) is not None:
        chain.append(before)
    return chain


@pytest.mark.parametrize(
    ("error", "at", "log", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the docs"), "train", "",
         "OutOfMemoryError.: CUDA out of memory. Tried to allocate 2 GiB. Lower WINDOWS_PER_ITERATION"),
        (RuntimeError("uv is required to install ART's managed vLLM runtime. Install uv or set ART_VLLM_RUNTIME_BIN"), "register", "",
         "RuntimeError.: uv is required.*docs/howto/serverless.md"),
        (TimeoutError("vLLM subprocess did not become ready within 1200s"), "_prepare_backend_for_training", "loading\nno room\n\n",
         "TimeoutError.: vLLM subprocess did not become ready within 1200s. The last line of its vllm-runtime.log: no room.*uv"),
        (AssertionError(), "train", "", "AssertionError.: no reason given"),
        (httpx.ReadTimeout("timed out"), "train", "", "ReadTimeout.: timed out"),
    ],
)  # fmt: skip
def test_what_fails_in_art_fails_the_batch_in_a_sentence(played, batch, settings, error, at, log, said) -> None:
    with pytest.raises(TrainingError, match=f"ART did not train iteration 1 of {batch.batch_id} .{said}") as failed:
        train(played, batch, settings, failing(error, at, log))
    assert error in deep(failed.value) and "\n" not in str(failed.value)
    ended = read_batch(played, batch.batch_id)
    assert ended is not None and (ended.state, ended.error) == ("failed", str(failed.value))
    assert not list(settings.home.rglob(".art"))


def test_what_is_not_arts_failure_keeps_its_meaning(played, batch, settings) -> None:
    with pytest.raises(TrainingError, match="could not be written: No space left on device.*make room"):
        train(played, batch, settings, failing(OSError(errno.ENOSPC, "No space left on device")))


def test_the_lock_for_a_gpu_satisfies_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra in ("train", "judge", "wandb", "remote", "gpu") for one in project["optional-dependencies"][extra]),
    ]
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements-gpu.lock").read_text(), re.M))
    for one in map(Requirement, asked):
        if one.name != project["name"]:
            assert locked[one.name] in one.specifier, f"{one} is asked for, and {locked[one.name]} is locked"
