"""Import of a version whose weights were trained elsewhere.

The weights continue a version that is registered and lies here: they have the same tensors as its adapter, whose configuration, base and
tokenizer they share. So nothing but numbers is taken from outside. The import is registered like a training without trajectories.
"""

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from babylon_rl.errors import CheckpointError, ReleaseRefused, UsageError
from babylon_rl.files.durable import publish_directory, sha256
from babylon_rl.models.checkpoint_store import upload_checkpoint
from babylon_rl.models.checkpoints import (
    ADAPTER_CONFIG,
    MANIFEST,
    WEIGHTS,
    batch_named_in,
    copy_tokenizer,
    load_manifest,
    publish,
    read_remote,
)
from babylon_rl.settings import Settings
from babylon_rl.store.batches import REGISTRY_LOCK
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.registry import Model, NewModel, read_models, register_import, reserved_by, version_order, version_taken
from babylon_rl.training.publishing import IMPORTING, parent_checkpoint

PREFIX = "upload-"
# A number is not finite when all bits of its exponent are set: type of its bits, and those of the exponent.
EXPONENTS = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


@dataclass(frozen=True, slots=True)
class ImportedWeights:
    """Weights at ``file`` for ``version``, a child of ``parent``, with ``facts`` to store."""

    file: Path
    sha256: str
    version: str
    parent: str
    facts: Mapping[str, Any]


def import_version(connection: Connection, settings: Settings, weights: ImportedWeights, now: datetime) -> Model:
    """Verify weights, publish them as a checkpoint and register the version.

    Raises:
        UsageError: the version is no version number above its parent, or the parent is not known.
        CheckpointError: the file is not what its checksum says, not safetensors, has other tensors than its parent, or holds NaN
            or infinity.
        ReleaseRefused: the version is taken, perhaps since the upload began.
        TrainingPaused: MODEL_STORAGE_URL does not take it now, or the parent cannot be fetched.
    """
    # First, so that damage in transit is reported as such.
    if sha256(weights.file) != weights.sha256.lower():
        raise CheckpointError("The file is not what its sha256 says: it was damaged on its way, or the checksum is of another file.")
    parent = _known_parent(connection, weights)
    source = parent_checkpoint(parent, settings)
    if read_remote(source) is not None:
        raise UsageError(f"The weights of {parent.version} are at a training service, so nothing here says what a child's have to be.")
    _check_tensors(weights.file, source / WEIGHTS, parent.version)
    checkpoints = settings.home / "checkpoints"
    batch_id = f"{PREFIX}{weights.version}"
    # Below checkpoints, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=checkpoints, prefix=IMPORTING) as directory:
        staging = Path(directory) / "checkpoint"
        staging.mkdir()
        shutil.copyfile(weights.file, staging / WEIGHTS)
        shutil.copyfile(source / ADAPTER_CONFIG, staging / ADAPTER_CONFIG)
        copy_tokenizer(source, staging)
        manifest = msgspec.structs.replace(
            load_manifest(source), version=weights.version, parent=parent.version, batch_id=batch_id, step=None, windows=(), metrics={},
            created_at=now.isoformat(timespec="milliseconds") + "Z", trainer={"backend": "upload", "facts": dict(weights.facts)}, files={},
            judge=None,
        )  # fmt: skip
        final, made = checkpoints / weights.version, Path(directory) / weights.version
        with own_transaction(connection):
            _take_place(connection, final)
        # Without the lock, as an upload may take minutes; before the row, so that a machine that reads it finds the files.
        publish(staging, made, manifest)
        again = "then send the weights again, under a higher version if that one is taken"
        url = settings.model_storage_url and upload_checkpoint(made, settings.model_storage_url, then=again)
        # Once more under the lock: the number may have been taken during the upload. A process that dies between rename and commit leaves a
        # directory without a row, which the next import of the version removes (`_take_place`).
        with own_transaction(connection):
            _take_place(connection, final)
            publish_directory(made, final)
            assert parent.backend is not None  # known of a version of ours
            new = NewModel(
                batch_id, 0, weights.version, parent.version, parent.base_model, parent.backend, str(final), url or str(final),
                sha256(final / MANIFEST), [], None, {"upload": dict(weights.facts)}, now, uploaded_url=url,
            )  # fmt: skip
            try:
                return register_import(connection, new)
            except psycopg.errors.UniqueViolation as conflict:  # by a producer that does not ask for the lock
                raise _taken(weights.version) from conflict


def _taken(version: str) -> ReleaseRefused:
    return ReleaseRefused(f"{version} is registered already; a version is never replaced.")


def _known_parent(connection: Connection, weights: ImportedWeights) -> Model:
    order = version_order(weights.version)
    if order is None or not weights.version.startswith("v"):
        raise UsageError(f"{weights.version!r} is no version: write vMAJOR.MINOR.PATCH, such as v1.0.1.")
    parent = next((model for model in read_models(connection) if model.version == weights.parent), None)
    if parent is None or parent.foreign:
        raise UsageError(f"The parent {weights.parent} is not known: `babylon-rl models` lists the versions that can be one.")
    if parent.status == "failed":
        raise UsageError(f"The parent {weights.parent} has failed.")
    # The next training continues from a version of the line that no lower number may follow.
    if order <= parent.order:
        raise UsageError(f"{weights.version} is not above its parent {parent.version}.")
    return parent


def _take_place(connection: Connection, final: Path) -> None:
    """Lock the registry, refuse a taken version, and clear what a crash left of it."""
    connection.take_lock(REGISTRY_LOCK)
    version = final.name
    if version_taken(connection, version):
        raise _taken(version)
    waiting = reserved_by(connection, version)
    if waiting is not None:
        raise ReleaseRefused(f"{version} will be what {waiting} trains; choose a higher version.")
    if not final.exists():
        return
    if not (batch_named_in(final) or "").startswith(PREFIX):
        raise ReleaseRefused(f"{final} is there already, and holds another checkpoint; choose a higher version.")
    # Of an import that died before its row was committed: no row points to it.
    shutil.rmtree(final)


def _check_tensors(file: Path, reference: Path, parent: str) -> None:
    """Raise CheckpointError unless a file is safetensors with the names and shapes of its parent's, and all its numbers are finite."""
    import numpy as np

    uploaded, expected = _tensors(file), _tensors(reference)
    if uploaded.keys() != expected.keys():
        other = sorted(uploaded.keys() ^ expected.keys())
        raise CheckpointError(f"The weights have other tensors than {parent}: {len(other)} differ, the first is {other[0]}.")
    for name, (kind, shape, _) in uploaded.items():
        if shape != expected[name][1]:
            raise CheckpointError(f"{name} has the shape {shape}, and in {parent} {expected[name][1]}.")
        if kind not in EXPONENTS:
            raise CheckpointError(f"{name} is of type {kind}; adapters are {', '.join(EXPONENTS)}.")
    # The bits are read, a tensor at a time: numpy has no BF16.
    for name, (kind, shape, place) in uploaded.items():
        bits, exponent = EXPONENTS[kind]
        numbers = np.fromfile(file, bits, math.prod(shape), offset=place)
        bad = int(np.count_nonzero((numbers & exponent) == exponent))
        if bad:
            raise CheckpointError(
                f"{name} has {bad:,} of {len(numbers):,} numbers that are NaN or infinite: the training that made it failed."
            )


def _tensors(file: Path) -> dict[str, tuple[str, list[int], int]]:
    """Type, shape and place in the file of each tensor, from the file's head, which its library has checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"), file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            head = json.loads(opened.read(length))
    except SafetensorError as unreadable:
        raise CheckpointError(f"Only safetensors are taken, and this file is none: {unreadable}.") from None
    # Offsets count from the end of the header, in front of which stands its length, in 8 bytes.
    head.pop("__metadata__", None)
    return {name: (facts["dtype"], facts["shape"], 8 + length + facts["data_offsets"][0]) for name, facts in head.items()}
