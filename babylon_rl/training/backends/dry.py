"""Dry trainer: writes a tiny valid adapter and deterministic metrics, without torch or training.

With it everything around training (freezing, resuming, publishing, registering, pages) can be tried in milliseconds. LOCAL_BASE_MODEL=dry
selects it; its versions form their own line, so that none is mistaken for a real policy.
"""

import hashlib
import json
import struct
from pathlib import Path

from babylon_rl.errors import NothingToTrain
from babylon_rl.models.checkpoints import BaseIdentity
from babylon_rl.training.backends.protocol import DRY_BASE_MODEL, IterationResult, OnStep, StepMetrics, Trainer, TrainIteration

_TENSOR = "base_model.model.lm_head.lora_A.weight"


class DryTrainer(Trainer):
    """Trainer that writes a trainer's files and learns nothing; its loss falls, for plots."""

    name = "dry"

    def __init__(self, base_model: str = DRY_BASE_MODEL, optimizer_steps: int = 2) -> None:
        self.base_model = base_model
        self.optimizer_steps = optimizer_steps

    def base_identity(self) -> BaseIdentity:
        """Identity with zero hashes, which no model has: a dry checkpoint cannot be served."""
        return BaseIdentity(self.base_model, *("0" * 64,) * 3)

    def tokenizer_dir(self) -> Path | None:
        return None

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        """Write an adapter whose bytes are derived from parent, seed and sequences. Raises NothingToTrain: there is no sequence."""
        tokens = sum(len(sequence.response.split()) for sequence in iteration.sequences)
        if not tokens:
            raise NothingToTrain(f"Iteration {iteration.step} of {iteration.batch_id} has no trainable token.")
        loss = 1.0 / (1 + iteration.step)
        for step in range(1, self.optimizer_steps + 1):
            on_step(StepMetrics(iteration.step, step, self.optimizer_steps, loss, tokens * step // self.optimizer_steps))
        _write_adapter(out, self.base_model, _digest(iteration, parent))
        return IterationResult({}, tokens, loss, iteration.calls)


def _digest(iteration: TrainIteration, parent: Path | None) -> bytes:
    digest = hashlib.sha256(f"{iteration.batch_id}/{iteration.step}/{iteration.seed}".encode())
    if parent is not None:
        digest.update((parent / "adapter_model.safetensors").read_bytes())
    for sequence in iteration.sequences:
        digest.update(f"{sequence.call_id}:{sequence.advantage:.9f}".encode())
    return digest.digest()


def _write_adapter(out: Path, base_model: str, values: bytes) -> None:
    # A LoRA matrix of shape (1, 16): finite float16 numbers made from the digest, in the safetensors layout.
    halves = struct.pack("<16e", *(byte / 4096 for byte in values[:16]))
    header = json.dumps({_TENSOR: {"dtype": "F16", "shape": [1, 16], "data_offsets": [0, len(halves)]}}).encode()
    # Padded with spaces, as safetensors does it, so that the tensor begins at a multiple of 8.
    header += b" " * (-len(header) % 8)
    (out / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + halves)
    config = {"peft_type": "LORA", "base_model_name_or_path": base_model, "r": 1, "lora_alpha": 1, "target_modules": ["lm_head"]}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
