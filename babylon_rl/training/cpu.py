"""CPU trainer: LoRA on a small real model, with group-relative loss (loss.py) and shared prompts (packing.py).

Pre-flight counts trainable tokens with the tokenizer alone (cpu_items.py). The result is deterministic for a seed on one machine, whatever
the number of threads. Training stops before publication when the loss is not finite, or the policy leaves the bounds of cpu_bounds.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from babylon_rl.errors import NothingToTrain
from babylon_rl.models.checkpoints import BaseIdentity, base_identity, saving_weights
from babylon_rl.models.packaged import base_model_dir, base_model_name
from babylon_rl.models.quiet import quiet_loading
from babylon_rl.models.threads import set_threads, usable_cores
from babylon_rl.settings import Settings
from babylon_rl.training.cpu_items import make_items, plan_items
from babylon_rl.training.cpu_policy import PackedPolicy, load_policy
from babylon_rl.training.cpu_steps import IterationRun
from babylon_rl.training.remote.tokens import BaseTokens
from babylon_rl.training.trainer import (
    IterationResult,
    LocalTrainer,
    RunContext,
    StepMetrics,
    TrainIteration,
    TrainPlan,
    TrainSequence,
)


class CpuTrainer(LocalTrainer):
    """Trainer on this machine's processor; ``threads`` None takes ``usable_cores``."""

    name = "cpu"

    def __init__(self, settings: Settings, threads: int | None = None) -> None:
        self.base_model = settings.local_base_model or base_model_name(settings)
        self._settings = settings
        self._base_dir = base_model_dir(settings)
        self._threads = threads

    def base_identity(self) -> BaseIdentity:
        """Identity of the base model."""
        return base_identity(self._base_dir, self.base_model)

    def tokenizer_dir(self) -> Path | None:
        """Directory of the base model."""
        return self._base_dir

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        """Implement Trainer.prepare."""
        return plan_items(BaseTokens(self._settings, str(self._base_dir)).tokenizer, sequences)

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: Callable[[StepMetrics], None]) -> IterationResult:
        """Implement Trainer.train.

        Raises:
            Diverged: the loss is not finite, the policy is too far from its base, or it collapsed into one action.
            NothingToTrain: no sequence has a token with alternatives.
            CheckpointError: the parent does not fit the base.
        """
        # One thread per row (cpu_policy.py): results do not depend on the number of threads.
        set_threads(1)
        import torch

        torch.manual_seed(iteration.seed)
        tokenizer, model = load_policy(self._base_dir, parent)
        items, left_out = make_items(tokenizer, iteration.sequences)
        if not items:
            raise NothingToTrain(f"No sequence of iteration {iteration.step} can be trained: {dict(left_out)}.")
        # The optimizer state of the iteration before lies with the parent.
        run = IterationRun(PackedPolicy(model, self._threads or usable_cores()), items, iteration, self._settings)
        run.restore(parent)
        result = run.train(on_step)
        with quiet_loading(), saving_weights(out):
            model.save_pretrained(str(out))
            run.save(out)
        (out / "README.md").unlink(missing_ok=True)  # the model card is written on publication
        metrics = result.metrics | {f"leftOut_{reason}": float(count) for reason, count in left_out.items()}
        return IterationResult(metrics, result.trainable_tokens, result.loss, len(items))
