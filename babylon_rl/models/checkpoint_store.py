"""Checkpoints of this machine, fetched from MODEL_STORAGE_URL where they are missing.

Callers name a version and get a directory below BABYLON_RL_HOME. Without MODEL_STORAGE_URL nothing but paths is looked at.
"""

from pathlib import Path

from babylon_rl.errors import CheckpointError, ModelUnavailable
from babylon_rl.files.durable import sha256
from babylon_rl.files.file_sets import FileSet
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.models.checkpoints import MANIFEST, Manifest, decode_manifest
from babylon_rl.settings import Settings, StorageSettings
from babylon_rl.store.registry import Model, version_order


def checkpoint_of(model: Model, settings: Settings) -> Path:
    """Directory of a registered version's checkpoint; without MODEL_STORAGE_URL it may be missing.

    Raises:
        CheckpointError: it is neither here nor at MODEL_STORAGE_URL, or another checkpoint has its place.
        ModelUnavailable: it cannot be fetched now.
    """
    recorded = Path(model.checkpoint or model.storage_path)
    if settings.model_storage_url is None or model.foreign:
        return recorded
    directory = registered_checkpoint(model.version, recorded, model.manifest_sha, settings)
    if directory is None:
        raise CheckpointError(absence(model.version, settings))
    return directory


def registered_checkpoint(version: str, recorded: Path, manifest_sha: str | None, settings: Settings) -> Path | None:
    """Directory of a version: ``recorded`` if that is here, else as ``checkpoint_named``.

    With MODEL_STORAGE_URL its manifest must have the hash ``manifest_sha``: a number is given again after a batch was cancelled.

    Raises:
        CheckpointError: another checkpoint has its place, or what is at MODEL_STORAGE_URL is damaged.
        ModelUnavailable: it cannot be fetched now.
    """
    directory = recorded if recorded.is_dir() else checkpoint_named(version, settings)
    if directory is None or manifest_sha is None or settings.model_storage_url is None:
        return directory
    manifest = directory / MANIFEST
    if not manifest.is_file() or sha256(manifest) != manifest_sha:
        raise CheckpointError(
            f"{directory} holds another checkpoint than the one registered as {version}. Move it away, see that "
            f"{shown_url(settings.model_storage_url)} is the storage of this database, then try again."
        )
    return directory


def checkpoint_named(version: str, settings: Settings) -> Path | None:
    """Directory of a version below BABYLON_RL_HOME, fetched if missing.

    None when it is in neither place.

    Raises:
        CheckpointError: what is at MODEL_STORAGE_URL is damaged.
        ModelUnavailable: it cannot be fetched now.
    """
    directory = settings.home / "checkpoints" / version
    if directory.is_dir():
        return directory
    if settings.model_storage_url is None or version_order(version) is None:
        return None
    shown = f"{shown_url(settings.model_storage_url)}/{version}"

    def failed(reason: str, number: int | None) -> ModelUnavailable:
        return ModelUnavailable(
            f"{version} cannot be fetched from {shown} to {directory}: {reason}. Nothing half fetched is left here; see that the storage "
            "answers and that BABYLON_RL_HOME has room, then run it again."
        )

    with describing_failures(settings.model_storage_url, failed):
        stored = FileSet(Location(settings.model_storage_url), version, MANIFEST)
        there = stored.fetch(directory, lambda content: decode_manifest(content, shown).files)
    return directory if there else None


def absence(version: str, settings: Settings) -> str:
    """Sentence that says where a version was looked for in vain."""
    folder, url = settings.home / "checkpoints", settings.model_storage_url
    if url is None:
        return f"There is no checkpoint {version} in {folder}."
    return (
        f"There is no checkpoint {version} in {folder}, and none at {shown_url(url)}. If another machine has it, run `babylon-rl models "
        f"upload {version}` there."
    )


def stored_manifest(version: str, settings: StorageSettings) -> Manifest | None:
    """Manifest of the checkpoint that MODEL_STORAGE_URL holds of a version, None without either.

    Raises:
        CheckpointError: it cannot be read.
        ModelUnavailable: the storage does not answer.
    """
    url = settings.model_storage_url
    if url is None:
        return None
    shown = f"{shown_url(url)}/{version}"
    with describing_failures(url, lambda reason, number: ModelUnavailable(f"{shown} cannot be read: {reason}.")):
        content = FileSet(Location(url), version, MANIFEST).manifest()
    return None if content is None else decode_manifest(content, shown)
