"""Training on this machine's GPU with openpipe-art's local backend, behind the protocol of trainers.

Nothing is paid and nothing outlives this process, so an iteration is trained as by the CPU trainer: from its parent's adapter, in its own
directory, completely or not at all. It needs a separate environment (requirements-gpu.lock), with other versions of torch and
transformers. ART starts its own vLLM server before training, and installs it with uv at first use.
"""

import asyncio
import errno
import math
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from babylon_rl.errors import BabylonError, CheckpointError, NothingToTrain, NoTrainer, TrainingError, first_line
from babylon_rl.models.checkpoints import ADAPTER_CONFIG, WEIGHTS
from babylon_rl.reporting.numbers import shortened
from babylon_rl.settings import Settings
from babylon_rl.training.backends.openpipe_art import LOSSES, ArtTrainer, art_groups, count_groups, installed, load_art, sent_groups
from babylon_rl.training.backends.protocol import (
    GPU,
    IterationResult,
    OnStep,
    RunContext,
    StepMetrics,
    TrainIteration,
    TrainPlan,
    TrainSequence,
)

HEARTBEAT_EVERY_S = 10.0
SCRATCH = ".art"  # below the iteration's directory, gone before it is published
VLLM_LOG = "vllm-runtime.log"
MOST_SAID = 300
# What ART, torch and vLLM's client raise, from a lost child process to too little memory; none of it is cured by the next run.
ART_FAILURES = (
    RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, ImportError, EOFError, OSError,
    SubprocessError,
)  # fmt: skip
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class GpuTrainer(ArtTrainer):
    """Trainer for BASE_MODEL on this machine's GPU; sequences without log-probabilities use a ratio of 1.

    ``backend_class`` None is ART's LocalBackend. Raises NoTrainer: the packages for a GPU are not installed, or do not load.
    """

    name = GPU

    def __init__(self, settings: Settings, backend_class: Any = None) -> None:
        super().__init__(settings)
        self._backend_class = backend_class or _local_backend()

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        self._run = run
        counted = count_groups(sent_groups(sequences, self._base), self._base, True)
        return replace(counted, cure="No sequence of it can be trained on a GPU.")

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        """Train an iteration. Raises TrainingError when ART failed, in whatever way."""
        assert self._run is not None, "prepare() comes before train()"
        groups = sent_groups(iteration.sequences, self._base)
        counted = count_groups(groups, self._base, True)
        tokens = counted.trainable_tokens or 0
        if not tokens:
            raise NothingToTrain(f"Iteration {iteration.step} of {iteration.batch_id} has no trainable token: {dict(counted.untrained)}.")
        # ART writes into a scratch directory below the iteration's; only the adapter's two files are copied out.
        scratch = out / SCRATCH
        try:
            sent = art_groups(groups, iteration.batch_id, iteration.step, True)
            with _in_words(f"iteration {iteration.step} of {iteration.batch_id}", scratch):
                result = asyncio.run(self._trained(self._run, sent, parent, scratch))
            loss = next((float(result.metrics[name]) for name in LOSSES if name in result.metrics), math.nan)
            for name in (WEIGHTS, ADAPTER_CONFIG):
                if result.checkpoint_path is None or not (Path(result.checkpoint_path) / name).is_file():
                    raise TrainingError(f"ART left no {name} after iteration {iteration.step} of {iteration.batch_id}.")
                shutil.copyfile(Path(result.checkpoint_path) / name, out / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        metrics = {name: float(value) for name, value in result.metrics.items() if isinstance(value, int | float)}
        on_step(StepMetrics(iteration.step, 1, 1, loss, tokens, metrics))
        return IterationResult(metrics, tokens, loss, counted.sequences or 0)

    async def _trained(self, run: RunContext, groups: Sequence[Any], parent: Path | None, scratch: Path) -> Any:
        art = load_art()
        accepts = installed(self._backend_class.train, art.TrainableModel.__init__)
        model = art.TrainableModel(
            **accepts.model_arguments(self._settings.art_model_name), project=self._settings.wandb_project, base_model=self.base_model,
            base_path=str(scratch),
        )  # fmt: skip
        if parent is not None:
            if not (parent / WEIGHTS).is_file():
                raise CheckpointError(f"The parent in {parent} is no adapter of this machine: it cannot be continued from on a GPU here.")
            # ART resumes from the newest step that it finds, so the parent's adapter is placed there.
            step = scratch / self._settings.wandb_project / "models" / self._settings.art_model_name / "checkpoints" / "0001"
            step.mkdir(parents=True)
            for name in (WEIGHTS, ADAPTER_CONFIG):
                shutil.copyfile(parent / name, step / name)
        backend = self._backend_class(path=str(scratch))
        arguments = accepts.train_arguments(self._settings, without_logprobs=True)
        try:
            await with_signs_of_life(model.register(backend), run.beat)
            before = await model.get_step()
            training = backend.train(model, list(groups), **arguments)
            result = await with_signs_of_life(training, run.beat)
            if await model.get_step() <= before:
                raise TrainingError(f"ART's step stayed at {before}: nothing was trained.")
            return result
        finally:
            with suppress(*ART_FAILURES):  # what came before says more; its processes end with this one
                await backend.close()


@contextmanager
def _in_words(iteration: str, scratch: Path) -> Iterator[None]:
    """Convert ART's failures to TrainingError; errors of this package and of the disk pass unchanged."""
    import httpx

    try:
        yield
    except BabylonError:
        raise
    except (*ART_FAILURES, httpx.HTTPError) as failed:
        if isinstance(failed, OSError) and failed.errno in OF_THE_DISK:
            raise
        reason = shortened(first_line(failed, "no reason given"), MOST_SAID).rstrip(".")
        cure = _cure(reason)
        raise TrainingError(f"ART did not train {iteration} ({type(failed).__name__}): {reason}.{_last_words(scratch)}{cure}") from failed


def _cure(reason: str) -> str:
    if "out of memory" in reason.lower():
        return " Lower WINDOWS_PER_ITERATION, or choose a smaller BASE_MODEL."
    if "vllm" in reason.lower():
        return " ART trains only beside a vLLM server of its own, which it installs with uv at the first use (docs/howto/serverless.md)."
    return ""


def _last_words(scratch: Path) -> str:
    """Last line of vLLM's log, read before the scratch directory is removed."""
    for log in scratch.rglob(VLLM_LOG):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return f" The last line of its {VLLM_LOG}: {shortened(lines[-1], MOST_SAID)}."
    return ""


async def with_signs_of_life(training: Coroutine[Any, Any, Any], beat: Callable[[], None], every_s: float = HEARTBEAT_EVERY_S) -> Any:
    """Await ``training`` and call ``beat`` meanwhile, which cancels it by raising."""
    task = asyncio.ensure_future(training)
    try:
        # ART calls nothing back while it trains: only this tells that the batch was cancelled or taken over meanwhile.
        while not (await asyncio.wait({task}, timeout=every_s))[0]:
            beat()
        return task.result()
    finally:
        task.cancel()


def _local_backend() -> Any:
    why = "they are not installed here"
    if find_spec("unsloth") is not None:
        try:
            load_art()
            from art.local import LocalBackend

            return LocalBackend
        except (ImportError, OSError, RuntimeError) as failed:
            why = f"they do not load here ({failed})"
    raise NoTrainer(
        f"Training on a GPU needs the packages of requirements-gpu.lock in an environment of their own (docs/howto/serverless.md): {why}. "
        "Install them, or set LOCAL_BASE_MODEL to train on the CPU."
    )
