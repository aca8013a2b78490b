"""Retention of checkpoints: of each line the newest and the best, deployed ones and those in use.

A version is marked as pruned before its files are deleted. A crash between the two leaves files that the next training deletes, never a
version whose files are missing without a mark. Rows are never deleted; rows and files of other producers and uploads are not touched.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from babylon_rl.files.durable import Removal
from babylon_rl.models.checkpoint_store import GOING, other_of_batch, set_aside
from babylon_rl.models.checkpoints import batch_named_in
from babylon_rl.settings import ServingSettings, Settings
from babylon_rl.store.batches import LIVE_STATES, lock_registry, read_batch, read_batches
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.registry import Model, mark_pruned, model_of_batch, read_models
from babylon_rl.store.releases import versions_needed

IMPORTING = ".upload-"
IMPORT_ENDED = timedelta(days=1)  # an import takes minutes: what is older was left by a process that was killed


def prunable(models: Sequence[Model], kept: int, in_use: frozenset[str] = frozenset()) -> list[Model]:
    """Versions of this pipeline whose files may be deleted, highest first.

    Args:
        kept: how many of the newest of each line stay.
        in_use: versions that stay whatever else holds, such as parents of live batches.
    """
    candidates: list[Model] = []
    ours = [model for model in models if not model.foreign]
    for base in dict.fromkeys(model.base_model for model in ours):
        line = [model for model in ours if model.base_model == base]
        # A failed version takes no place among the newest, and is not kept for its score either.
        usable = [model for model in line if model.status != "failed"]
        newest = usable[:kept]
        scored = [model for model in usable if model.benchmark_score is not None]
        best = max(scored, key=lambda model: model.benchmark_score or 0.0, default=None)
        candidates += [
            model
            for model in line
            if model not in newest and model is not best and model.status != "deployed" and model.version not in in_use
        ]
    return [model for model in candidates if model.pruned_at is None]


@dataclass(frozen=True)
class Pruned:
    """Versions whose checkpoints were given up, with the files removed."""

    versions: Sequence[str]
    removal: Removal


def prune(connection: Connection, settings: Settings, checkpoints: Path, now: datetime, *, dry_run: bool = False) -> Pruned:
    """Delete checkpoints that need not stay, finish interrupted deletions, and return the pruned versions.

    A path that cannot be removed is named in the removal and tried again by the next call. ``dry_run`` changes nothing.
    """
    # Marked under the registry lock, so that no parent of a new batch is pruned.
    with own_transaction(connection):
        lock_registry(connection)
        models = read_models(connection)
        in_use = versions_in_use(connection, settings)
        going = prunable(models, settings.checkpoints_kept, in_use)
        # Only what lies on this machine is marked. Where it is marked already, each machine deletes its own copy (`begun`, below).
        going = [model for model in going if model.checkpoint is not None and _own_directory(model, checkpoints)]
        if not dry_run:
            mark_pruned(connection, [model.training_batch or "" for model in going], now)
    # A version that was restored and is played again is no deletion that was broken off.
    begun = [model for model in models if model.pruned_at is not None and model.status != "deployed" and model.version not in in_use]
    removal = Removal(dry_run)
    for model in [*going, *begun]:
        if _own_directory(model, checkpoints):
            _put_away(checkpoints / model.version, removal)
    for directory in _unregistered(connection, checkpoints):
        _put_away(directory, removal)
    for model in models:
        if model not in (*going, *begun):
            _set_aside_unregistered(model, checkpoints, removal)
    for abandoned in (*checkpoints.glob(f"{GOING}*"), *_killed_imports(checkpoints, now)):
        removal.tree(abandoned)
    return Pruned([model.version for model in going], removal)


def versions_in_use(connection: Connection, settings: ServingSettings) -> frozenset[str]:
    """Versions whose files must stay: pinned, routed or waiting, and parents of live batches."""
    used = {batch.parent_version for batch in read_batches(connection, LIVE_STATES)} | {settings.rl_model_version}
    return frozenset(version for version in used | versions_needed(connection) if version is not None)


def batches_on_record(connection: Connection, settings: ServingSettings) -> set[str]:
    """Batches whose records stay whole: of versions deployed or in use, and their ancestors."""
    models = read_models(connection)
    by_version = {model.version: model for model in models}
    ahead = [*versions_in_use(connection, settings), *(model.version for model in models if model.status == "deployed")]
    kept: set[str] = set()
    while ahead:
        model = by_version.pop(ahead.pop(), None)
        if model is not None:
            kept |= {model.training_batch} if model.training_batch else set()
            ahead += [model.parent_version] if model.parent_version else []
    return kept


def _put_away(directory: Path, removal: Removal) -> None:
    if removal.dry_run:
        removal.tree(directory)
        return
    going = directory.with_name(f"{GOING}{directory.name}")
    removal.tree(going)
    try:
        directory.rename(going)  # at once no checkpoint any more
    except OSError as refusal:
        removal.refuse(directory, refusal)
        return
    removal.tree(going)


def _set_aside_unregistered(model: Model, checkpoints: Path, removal: Removal) -> None:
    """Set aside a version's directory that holds another checkpoint of the registered batch."""
    directory = checkpoints / model.version
    # Only where the registered one is at a storage: what is here could be that one, with a damaged manifest.
    if model.manifest_sha is None or model.uploaded_url is None or not other_of_batch(directory, model.training_batch, model.manifest_sha):
        return
    if removal.dry_run:
        removal.tree(directory)
        return
    try:
        set_aside(directory, model.training_batch, model.manifest_sha)
    except OSError as refusal:
        removal.refuse(directory, refusal)


def _unregistered(connection: Connection, checkpoints: Path) -> list[Path]:
    """Checkpoints of ended batches that were never registered, or registered under another number."""
    unregistered = []
    for directory in checkpoints.glob("v*"):
        owner = None if directory.is_symlink() else batch_named_in(directory)
        batch = None if owner is None else read_batch(connection, owner)
        # A live batch may have published and not registered yet; a directory of no batch of this database is not ours to remove.
        if batch is None or batch.live:
            continue
        model = model_of_batch(connection, batch.batch_id)  # read after its batch had ended: another process may just have registered it
        if model is None or model.version != directory.name:
            unregistered.append(directory)
    connection.commit()
    return unregistered


def _killed_imports(checkpoints: Path, now: datetime) -> list[Path]:
    killed = []
    for directory in checkpoints.glob(f"{IMPORTING}*"):
        with suppress(FileNotFoundError):  # an import that ended just now
            written = datetime.fromtimestamp(directory.stat().st_mtime, UTC).replace(tzinfo=None)
            if now - written > IMPORT_ENDED:
                killed.append(directory)
    return killed


def _own_directory(model: Model, checkpoints: Path) -> bool:
    """True when the manifest of the version's directory below ours names the same batch.

    Nothing else is ever deleted. The row's own path may be another machine's.
    """
    directory = checkpoints / model.version
    if directory.is_symlink() or not directory.is_dir():
        return False
    return batch_named_in(directory) == model.training_batch
