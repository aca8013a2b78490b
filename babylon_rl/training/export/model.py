"""Export of a version for other servers: the adapter, or merged with its base.

The directory appears completely or not at all, and only after it was loaded again and its distributions were compared with the
checkpoint's. Its model card has the benchmark's result; the manifest lists all files, so that copies can be verified.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from babylon_rl.errors import CheckpointError, ExportError, ModelUnavailable, UsageError, first_line, require
from babylon_rl.files.durable import copy_tree, publish_directory, sha256
from babylon_rl.models.base_model import base_model_dir, quiet_loading
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import CARD, MANIFEST, Manifest, model_card, read_remote, saving_weights, verify, write_document
from babylon_rl.models.encoding import encode_prompt
from babylon_rl.settings import Settings
from babylon_rl.store.registry import Model
from babylon_rl.training.backends.protocol import DRY_BASE_MODEL
from babylon_rl.types import BenchmarkReport

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = [{"role": "user", "content": "OPENLIE fell 3% on bad news. Buy, sell or hold?"}]
ANSWER_TOKENS = 8  # of the checkpoint's own answer, along which the two are compared
MOST_KL = {False: 1e-6, True: 0.005}  # nats a token, by whether merged: merging rounds the sum to the base's own precision


def export_version(
    model: Model, target: Path, settings: Settings, report: BenchmarkReport | None = None, *, merged: bool = False
) -> tuple[list[str], float]:
    """Export a version into the new or empty directory ``target``; ``merged`` writes a full model. The model card has the ``report``.

    Returns the files, and the mean KL from the checkpoint, in nats a token.

    Raises:
        UsageError: the version cannot be exported (another producer's, a dry run's, a service's), or the directory holds files.
        CheckpointError: the checkpoint is gone, damaged, or was trained on another base than the settings name.
        ModelUnavailable: the base is not here.
        ExportError: it could not be written, or what was written does not say what the checkpoint says.
    """
    directory = _exportable(model, settings)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty: choose a new directory; nothing was written.")
    base_dir = base_model_dir(settings)
    try:
        manifest = verify(directory, base_dir)
    except CheckpointError as unusable:
        raise CheckpointError(
            f"{model.version} cannot be exported: {unusable} Its base is {model.base_model}: see LOCAL_BASE_MODEL."
        ) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            return _exported(manifest, directory, base_dir, staging, target, report, merged)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ExportError(
            f"{model.version} cannot be written to {target}: {error.strerror or error}. Nothing of it is left there; make room, or choose "
            "another directory."
        ) from error


def _exportable(model: Model, settings: Settings) -> Path:
    version = model.version
    if model.foreign:
        raise UsageError(f"{version} was made by another producer, and its files are not known here; it is called as {model.storage_path}.")
    if DRY_BASE_MODEL in (model.base_model, settings.local_base_model):
        raise UsageError(f"{version} cannot be exported with LOCAL_BASE_MODEL=dry or out of a dry run: such checkpoints hold no model.")
    directory = checkpoint_of(model, settings)
    # Files of a pruned version may still exist at the upload URL.
    again = f" It was uploaded to {model.uploaded_url}: copy that directory to {directory}." if model.uploaded_url else ""
    if model.pruned_at is not None and not directory.is_dir():
        raise CheckpointError(f"{version} was pruned on {model.pruned_at:%Y-%m-%d}: its files are gone.{again}")
    if not directory.is_dir():
        raise CheckpointError(f"{version} cannot be exported: {directory} is not there.{again}")
    remote = read_remote(directory)
    if remote is not None:
        raise UsageError(
            f"The weights of {version} are not on this machine: they are {remote.artifact} at {remote.service}, called as "
            f"{remote.inference_name} at {remote.inference_url}. Download them with `wandb artifact get {remote.artifact}`."
        )
    return directory


def _exported(
    manifest: Manifest, directory: Path, base_dir: Path, staging: Path, target: Path, report: BenchmarkReport | None, merged: bool
) -> tuple[list[str], float]:
    card = model_card(manifest, report)
    if merged:
        _merge(directory, base_dir, staging)
        card = card.replace("library_name: peft", "library_name: transformers")
        card = card.replace("A LoRA adapter for trading agents", "A model for trading agents, its LoRA adapter merged")
    else:
        copy_tree(directory, staging)
        verify(staging, base_dir)
        (staging / MANIFEST).unlink()  # written anew with the card's hash
    (staging / CARD).write_text(card)
    hashes = {path.relative_to(staging).as_posix(): sha256(path) for path in sorted(staging.rglob("*")) if path.is_file()}
    write_document(staging, msgspec.structs.replace(manifest, files=hashes))
    kl = _difference(base_dir, directory, staging, merged)
    if not kl <= MOST_KL[merged]:
        raise ExportError(
            f"{manifest.version} was written and loaded again, and is {kl:.3g} nats a token away from the checkpoint (at most "
            f"{MOST_KL[merged]:g} is rounding). Nothing was exported; try {'the adapter (without --merged)' if merged else 'again'}."
        )
    if target.exists():
        target.rmdir()  # empty, as was checked
    publish_directory(staging, target)
    return sorted([*hashes, MANIFEST]), kl


def _merge(directory: Path, base_dir: Path, staging: Path) -> None:
    """Merge base and adapter into one model in the base's precision, with its tokenizer."""
    require("torch", "transformers", "peft")
    import torch
    from transformers import AutoConfig, AutoTokenizer

    with quiet_loading(), saving_weights(staging):
        # Merged in 32 bits and rounded once at the end, to what the base is stored in.
        dtype = AutoConfig.from_pretrained(base_dir, trust_remote_code=False).dtype or torch.float32
        whole = _loaded(base_dir, directory).merge_and_unload()
        whole.to(dtype).save_pretrained(str(staging))
        AutoTokenizer.from_pretrained(base_dir, trust_remote_code=False).save_pretrained(str(staging))


def _difference(base_dir: Path, directory: Path, written: Path, merged: bool) -> float:
    """Mean KL divergence from the checkpoint on a greedy answer, in nats a token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(written if merged else base_dir, trust_remote_code=False)
        ids = list(encode_prompt(AutoTokenizer.from_pretrained(base_dir, trust_remote_code=False), PROMPT))
        if tuple(ids) != encode_prompt(tokenizer, PROMPT):
            raise ExportError(f"The tokenizer in {written} does not read a prompt as the base's does; nothing was exported.")
        # Greedily, where the version is used, and not on the prompt alone.
        checkpoint = _loaded(base_dir, directory)
        for _ in range(ANSWER_TOKENS):
            ids.append(int(_logprobs(checkpoint, ids)[-1].argmax()))
        trained = _logprobs(checkpoint, ids)
        del checkpoint  # or two models would be in memory
        again: Any = (
            AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32, trust_remote_code=False).eval()
            if merged
            else _loaded(base_dir, written)
        )
    exported = _logprobs(again, ids)
    return float((trained.exp() * (trained - exported)).sum(-1).mean().clamp(min=0))


def _loaded(base_dir: Path, adapter: Path) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    try:
        base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, trust_remote_code=False)
        return PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False).eval()
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelUnavailable(f"{adapter} cannot be loaded on {base_dir}: {first_line(error)}") from error


def _logprobs(model: Any, ids: list[int]) -> "Tensor":
    """[T, V] log-probabilities."""
    import torch

    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits.log_softmax(-1)


def find_version(models: list[Model], version: str) -> Model:
    """Find a registered version by name. Raises UsageError that lists the registered ones."""
    registered = next((model for model in models if version in (model.version, model.model_id)), None)
    if registered is None:
        versions = ", ".join(model.version for model in models[:10]) or "none yet"
        raise UsageError(f"There is no registered version {version!r}; there are: {versions}.")
    return registered
