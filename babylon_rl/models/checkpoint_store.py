"""Checkpoints here and at MODEL_STORAGE_URL: uploaded, and fetched where they are missing.

Callers name a version and get a directory below BABYLON_RL_HOME. Without MODEL_STORAGE_URL nothing but paths is looked at. There (at any
fsspec location) a version is <url>/<version>/, complete once its manifest exists; nothing is ever replaced or deleted except temporary
files.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from babylon_rl.errors import CheckpointError, ModelUnavailable, TrainingPaused, UsageError
from babylon_rl.files.durable import sha256
from babylon_rl.files.file_sets import INCOMING, FileSet
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.models.checkpoints import MANIFEST, Manifest, decode_manifest, load_manifest
from babylon_rl.settings import Settings, StorageSettings
from babylon_rl.store.registry import Model, version_order

WAITS = "a batch waits for that in `uploading`, and `babylon-rl train` goes on with what is missing"


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
    # Only versions are ever uploaded: a name of another form is at no storage.
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


def check_storage(settings: StorageSettings, batch_id: str) -> None:
    """Write and remove a small file at the storage location, before a training is paid.

    Raises:
        TrainingPaused: it cannot be written (no answer, a wrong key, no such place); the message says what was tried.
    """
    url = settings.model_storage_url
    if url is None:
        return

    def refused(reason: str, number: int | None) -> TrainingPaused:
        return TrainingPaused(
            f"MODEL_STORAGE_URL {shown_url(url)} cannot be written to: {reason}. Nothing was trained. If it stays so, "
            "correct the address or the credentials of that place, or unset MODEL_STORAGE_URL to keep checkpoints here."
        )

    # Among the temporary files, where an upload would write first: what is left of it by a crash is no checkpoint.
    probe = f"{INCOMING}/{batch_id}.probe"
    with tempfile.NamedTemporaryFile() as file:  # a full disk here is none of the storage's failures
        file.write(b"babylon-rl can write here\n")
        file.flush()
        try:
            with describing_failures(url, refused):
                location = Location(url)
                location.put(Path(file.name), probe)
                location.remove(probe)
        except UsageError as unknown:
            raise TrainingPaused(f"MODEL_STORAGE_URL cannot be used: {unknown}") from unknown


def upload_checkpoint(directory: Path, url: str, heartbeat: Callable[[], None] = lambda: None, *, then: str = WAITS) -> str:
    """Upload the missing files of a published checkpoint; return the URL of its directory.

    Args:
        heartbeat: called between files; raises where the upload must stop.
        then: what follows once the place takes it, as the end of a sentence.

    Raises:
        TrainingPaused: the place does not take it now, and what is up stays for the next try; or another checkpoint of that version
            is there.
        UsageError: as Location.
    """
    manifest = load_manifest(directory)
    version = manifest.version

    def paused(reason: str, number: int | None) -> TrainingPaused:
        return TrainingPaused(
            f"{version} could not be uploaded to {shown_url(url)}: {reason}. See that this place takes files from here; {then}."
        )

    with describing_failures(url, paused):
        ours = FileSet(Location(url), version, MANIFEST).publish(directory, manifest.files, heartbeat)
    if not ours:
        raise TrainingPaused(  # and not failed: what was trained, and perhaps paid, is kept
            f"{shown_url(url)}/{version} holds another checkpoint of that version, and nothing there is replaced. Choose another "
            f"MODEL_STORAGE_URL, or move that directory away; {then}."
        )
    plain = not set("@?#") & set(url)  # else it may hold a secret, and rows hold none
    return f"{url.rstrip('/') if plain else shown_url(url)}/{version}"
