"""Checkpoints: Hugging Face adapter directories with a manifest of their files and base.

The base's tokenizer and chat template lie beside the adapter. A checkpoint is complete or absent: it is written under a temporary name,
synced and renamed. Weights are safetensors only; a directory with a pickle, a file that the manifest does not list, or a link is refused.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import CheckpointError
from babylon_rl.files.durable import kept_while_unchanged, publish_directory, sha256
from babylon_rl.models.base_model import TOKENIZER_PARTS, damage, may_run_code
from babylon_rl.types import BenchmarkReport

MANIFEST = "manifest.json"
WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CARD = "README.md"
REMOTE = "remote_checkpoint.json"  # in place of weights: where a training service keeps them
FREE_TEXT = "free text"  # the action grammar of unconstrained answers
UNKNOWN = "not recorded"  # the prompt of messages that no version wrote
FORMAT = 1
_OS_ERROR = re.compile(r"os error (\d+)")
# What transformers writes into a config from its own version or from how a model was loaded, not from what the model is.
_INCIDENTAL = {"transformers_version", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype", "use_cache"}


CARD_TEMPLATE = """---
base_model: {base}
library_name: peft
tags: [lora, reinforcement-learning, trading-agents]
---

# babylon-agent {version}

A LoRA adapter for trading agents, trained by babylon-rl. `manifest.json` holds the hashes of its files and of its base.

{facts}

## Benchmark

{benchmark}

## Training

{training}

## Metrics

{metrics}

## Trained on

{windows}
"""


class BaseIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """Base model that an adapter needs: its name, and hashes of what must be equal."""

    name: str
    config_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str


class RemoteCheckpoint(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Pointer to a step at a training service; agents call ``inference_name`` at ``inference_url``."""

    service: str
    model: str
    step: int
    artifact: str
    inference_name: str
    inference_url: str
    job_id: str | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Description of a checkpoint.

    ``files`` (path -> SHA-256) is filled in by ``publish``; ``created_at`` is ISO 8601, UTC. ``data_version`` is the hash of the episodes
    with their advantages, ``judge_version`` that of the rubric or formula. ``trainer`` has the backend, the seed and every hyperparameter.
    """

    version: str
    base: BaseIdentity
    created_at: str
    parent: str | None = None
    batch_id: str | None = None
    step: int | None = None
    prompt_version: str | None = None
    action_grammar: str | None = None
    judge: str | None = None
    judge_version: str | None = None
    data_version: str | None = None
    trajectories: int | None = None
    windows: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    trainer: dict[str, Any] = {}
    files: dict[str, str] = {}
    format: int = FORMAT


def base_identity(base_dir: Path, name: str) -> BaseIdentity:
    """Identity of a base model's directory. Raises CheckpointError: it is not a model directory."""
    reason = damage(base_dir)
    if reason is not None:
        raise CheckpointError(f"{base_dir} is no base model: {reason}.")
    return files_identity(base_dir, name)


@kept_while_unchanged
def files_identity(base_dir: Path, name: str) -> BaseIdentity:
    """Compute ``base_identity`` of a directory that need not hold weights: config and tokenizer are enough."""
    config = json.loads((base_dir / "config.json").read_bytes())
    tokenizer_config = json.loads((base_dir / "tokenizer_config.json").read_bytes())
    template = base_dir / "chat_template.jinja"
    # A base keeps its template in a file or in the tokenizer's config; the hash is of its text, so both give the same.
    text = template.read_text() if template.exists() else str(tokenizer_config.get("chat_template", ""))
    return BaseIdentity(
        name=name,
        config_sha256=_json_sha256({key: value for key, value in config.items() if key not in _INCIDENTAL}),
        tokenizer_sha256=_json_sha256(json.loads((base_dir / "tokenizer.json").read_bytes())),
        chat_template_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


@kept_while_unchanged
def weights_sha256(base_dir: Path) -> Mapping[str, str]:
    """SHA-256 of every file of a base's weights, by name."""
    return {path.name: sha256(path) for path in sorted(base_dir.glob("*.safetensors"))}


def model_card(manifest: Manifest, report: BenchmarkReport | None = None) -> str:
    """README of a checkpoint: front matter for the hub, then the same facts for readers. ``report`` is the benchmark's, made later."""
    windows, version = manifest.windows, manifest.judge_version
    facts = {
        "Base model": manifest.base.name,
        "Parent": manifest.parent or "none",
        "Batch": manifest.batch_id or "none",
        "Scores by": f"{manifest.judge or 'not recorded'}{f', version {version}' if version else ''}",
        "Prompt version": manifest.prompt_version or "not recorded",
        "Answers": manifest.action_grammar or "not recorded",
        "Windows": f"{len(windows)}, {windows[0]} to {windows[-1]}" if windows else "none",
        "Trajectories": "not recorded" if manifest.trajectories is None else str(manifest.trajectories),
        "Data": manifest.data_version or "not recorded",
        "Made": manifest.created_at,
    }
    metrics = {name: f"{value:.6g}" for name, value in sorted(manifest.metrics.items())}
    settings = sorted(manifest.trainer.get("settings", {}).items())
    given = {name: value for name, value in manifest.trainer.items() if name != "settings"} | dict(settings)
    return CARD_TEMPLATE.format(
        base=manifest.base.name,
        version=manifest.version,
        facts=_table(facts),
        benchmark=_benchmark(report) if report is not None else f"`babylon-rl models card {manifest.version}` has the result.",
        training=_table({name: str(value) for name, value in given.items()}) or "Not recorded.",
        metrics=_table(metrics) or "None recorded.",
        windows="\n".join(f"* {window}" for window in windows) or "No window recorded.",
    )


def _benchmark(report: BenchmarkReport) -> str:
    """The gate's decision, and P&L with 95 % intervals of the version against its reference."""
    own: dict[str, Any] = next((row for row in report.rows if row["model"] == report.version), {})
    facts = {"Decision": f"{report.decision}: {report.reason}", "Markets": f"{report.markets}, unseen in training"}
    for name, value, low, high in (
        ("P&L, $ an hour", "pnl", "low", "high"),
        (f"Above {report.reference or 'base'}, $ an hour", "improvement", "improvementLow", "improvementHigh"),
    ):
        if own.get(value) is not None and own.get(low) is not None:
            facts[name] = f"{own[value]:+.1f} ({own[low]:+.1f} to {own[high]:+.1f})"
    if own.get("ofCeiling") is not None:
        facts["Of the best play from the prompt"] = f"{own['ofCeiling']:.0%} ({own['ofCeilingLow']:.0%} to {own['ofCeilingHigh']:.0%})"
        facts["Expected without the luck of prices, $ an hour"] = f"{own['expected']:+.1f}"
    return _table(facts)


def publish(tmp_dir: Path, final_dir: Path, manifest: Manifest) -> None:
    """Publish a directory saved by peft as ``final_dir``; both must lie on one file system.

    Writes the model card and the manifest, names the base in the adapter's config (peft writes a path of this machine), syncs
    every file, renames.

    Raises:
        CheckpointError: a file is missing or not allowed, or ``final_dir`` is there already.
    """
    # Refuse an existing target and an incomplete source before anything is written.
    if final_dir.exists():
        raise CheckpointError(f"{final_dir} is there already: a published checkpoint is never replaced.")
    for name in _required(tmp_dir):
        if not (tmp_dir / name).is_file():
            raise CheckpointError(f"{tmp_dir} has no {name}: it is not an adapter that peft saved.")
    if read_remote(tmp_dir) is None:
        config = json.loads((tmp_dir / ADAPTER_CONFIG).read_bytes())
        config["base_model_name_or_path"] = manifest.base.name
        (tmp_dir / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (tmp_dir / CARD).write_text(model_card(manifest))
    # A copied checkpoint brings one along, which must not be in the list of the new one.
    (tmp_dir / MANIFEST).unlink(missing_ok=True)
    # The manifest is written last and lists every other file.
    files = {name: sha256(tmp_dir / name) for name in _files(tmp_dir)}
    write_document(tmp_dir, msgspec.structs.replace(manifest, files=files))
    publish_directory(tmp_dir, final_dir)


def write_document(directory: Path, document: Manifest | RemoteCheckpoint) -> None:
    content = msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"
    (directory / (MANIFEST if isinstance(document, Manifest) else REMOTE)).write_bytes(content)


@contextmanager
def saving_weights(directory: Path) -> Iterator[None]:
    """Convert a write failure of safetensors to the underlying OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from error


def copy_tokenizer(base_dir: Path, directory: Path) -> None:
    """Copy the base's tokenizer and chat template into a checkpoint, which serving must use."""
    for name in TOKENIZER_PARTS:
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, directory / name)


def read_remote(directory: Path) -> RemoteCheckpoint | None:
    """Read a checkpoint's pointer to a step at a service; None for an adapter. Raises CheckpointError: it cannot be read."""
    try:
        content = (directory / REMOTE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return msgspec.json.decode(content, type=RemoteCheckpoint)
    except msgspec.MsgspecError as invalid:
        raise CheckpointError(f"{directory / REMOTE} cannot be read: {invalid}.") from None


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest, without checking the files. Raises CheckpointError: there is none, or it cannot be read."""
    try:
        content = (directory / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{directory} is no checkpoint: it has no {MANIFEST}.") from None
    return decode_manifest(content, str(directory))


def manifest_in(directory: Path) -> Manifest | None:
    """Manifest of a directory in any state of its files; None if not readable."""
    try:
        return load_manifest(directory)
    except CheckpointError:
        return None


def batch_named_in(directory: Path) -> str | None:
    """Batch id in a directory's manifest; None without a readable one."""
    manifest = manifest_in(directory)
    return None if manifest is None else manifest.batch_id


def decode_manifest(content: bytes, directory: str) -> Manifest:
    """Decode the manifest of a checkpoint at a path or an address. Raises CheckpointError: it cannot be read."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as invalid:
        raise CheckpointError(f"{directory}/{MANIFEST} cannot be read: {invalid}.") from None
    if manifest.format != FORMAT:
        raise CheckpointError(f"{directory} has format {manifest.format}; this release reads {FORMAT}.")
    return manifest


def verify(directory: Path, base_dir: Path | None = None) -> Manifest:
    """Verify every file of a checkpoint against its manifest, and the base if given. Raises CheckpointError: one is not what it was."""
    manifest = load_manifest(directory)
    present = {name for name in _files(directory) if name != MANIFEST}
    missing = sorted({*_required(directory), *manifest.files} - present)
    if missing:
        raise CheckpointError(f"{directory} is incomplete: {', '.join(missing)} is missing.")
    extra = sorted(present - set(manifest.files))
    if extra:
        raise CheckpointError(f"{directory} holds {', '.join(extra)}, which its manifest does not list.")
    changed = sorted(name for name, digest in manifest.files.items() if sha256(directory / name) != digest)
    if changed:
        raise CheckpointError(f"{directory} is damaged: {', '.join(changed)} is not what was published.")
    if base_dir is not None:
        check_base(directory, manifest.base, base_identity(base_dir, manifest.base.name))
    return manifest


def recorded_names(recorded: str | None) -> list[str]:
    """Prompts or grammars in a manifest's "trader-v1 (80%), free text (20%)", without free text, which any grammar may hold."""
    names = [] if recorded is None else [name.split(" (")[0] for name in recorded.split(", ")]
    return [name for name in names if name not in (UNKNOWN, FREE_TEXT)]


def _required(directory: Path) -> tuple[str, ...]:
    return (REMOTE,) if (directory / REMOTE).is_file() else (WEIGHTS, ADAPTER_CONFIG)


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) if rows else ""


def check_base(directory: Path, trained: BaseIdentity, base: BaseIdentity) -> None:
    """Compare the base of a checkpoint with the given one. Raises CheckpointError when they differ."""
    parts = {"config": "config_sha256", "tokenizer": "tokenizer_sha256", "chat template": "chat_template_sha256"}
    other = [part for part, name in parts.items() if getattr(trained, name) != getattr(base, name)]
    if other:
        raise CheckpointError(f"{directory} was trained on {trained.name}; the base given has another {', '.join(other)}.")


def _files(directory: Path) -> list[str]:
    """List every file's relative path, sorted; refuse links and code."""
    names = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise CheckpointError(f"{directory} holds the link {name}: a checkpoint holds plain files.")
        if path.is_file():
            if may_run_code(path):
                raise CheckpointError(f"{directory} holds {name}, which can run code when it is loaded: only safetensors are allowed.")
            names.append(name)
    return names


def _json_sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
