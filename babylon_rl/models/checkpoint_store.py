"""Checkpoints here and at MODEL_STORAGE_URL: uploaded, and fetched where they are missing.

The base that they need is uploaded here, too, and fetched by base_model.py.

Callers name a version and get a directory below BABYLON_RL_HOME. Without MODEL_STORAGE_URL nothing but paths is looked at. There (at any
fsspec location) a version is <url>/<version>/, complete once its manifest exists; nothing of it is ever replaced or deleted.

Two machines may train one batch, and the first to upload is registered. What the other one has under the number is no version: it is
renamed, and the registered one is fetched.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from babylon_rl.errors import CheckpointError, DatabaseError, ModelError, ModelUnavailable, TrainingPaused, UsageError
from babylon_rl.files.durable import sha256
from babylon_rl.files.file_sets import INCOMING, FileSet, arriving
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.models.base_model import BaseManifest, base_set, is_base_file, stored_base
from babylon_rl.models.checkpoints import MANIFEST, Manifest, base_identity, batch_named_in, decode_manifest, load_manifest, weights_sha256
from babylon_rl.settings import Settings, StorageSettings
from babylon_rl.store.database import open_database
from babylon_rl.store.registry import Model, read_models, version_order

GOING = ".pruned-"  # prefix of a directory that is no checkpoint any more; the next cleanup deletes it
# A client of a server may name anything: only a plain name is looked for on the disk.
_PLAIN_NAME = re.compile(r"\w[\w.+-]{0,199}", re.ASCII)
WAITS = "a batch waits for that in `uploading`, and `babylon-rl train` goes on with what is missing"


def checkpoint_of(model: Model, settings: Settings) -> Path:
    """Directory of a registered version's checkpoint; without MODEL_STORAGE_URL it may be missing.

    Raises:
        CheckpointError: it is neither here nor there, or another checkpoint has its place.
        ModelUnavailable: it cannot be fetched now.
    """
    recorded = Path(model.checkpoint or model.storage_path)
    if settings.model_storage_url is None or model.foreign:
        # The row of a state directory that was moved, or restored elsewhere, names the old place.
        own = settings.home / "checkpoints" / model.version
        moved = not recorded.is_dir() and model.manifest_sha is not None and _has_manifest(own, model.manifest_sha)
        return own if moved else recorded
    directory = registered_checkpoint(model.version, recorded, model.manifest_sha, settings)
    if directory is None:
        raise CheckpointError(absence(model.version, settings))
    return directory


def registered_checkpoint(version: str, recorded: Path, manifest_sha: str | None, settings: Settings) -> Path | None:
    """Directory of a version: ``recorded`` if that is here, else as ``checkpoint_named``.

    With MODEL_STORAGE_URL its manifest must have the hash ``manifest_sha``: a number is given again after a batch was cancelled. Another
    checkpoint of the same batch is replaced by the one there, if that has the hash.

    Raises:
        CheckpointError: another checkpoint has its place, or what is at MODEL_STORAGE_URL is damaged.
        ModelUnavailable: it cannot be fetched now.
    """
    directory = recorded if recorded.is_dir() else checkpoint_named(version, settings)
    if directory is None or manifest_sha is None or settings.model_storage_url is None:
        return directory
    if not _has_manifest(directory, manifest_sha):
        stored = _stored(version, settings)
        if stored is not None and stored[1] == manifest_sha:
            directory = _fetched(version, settings, stored) or directory
    if not _has_manifest(directory, manifest_sha):
        raise CheckpointError(
            f"{directory} holds another checkpoint than the one registered as {version}. Move it away, see that "
            f"{shown_url(settings.model_storage_url)} is the storage of this database, then try again."
        )
    return directory


def checkpoint_named(version: str, settings: Settings) -> Path | None:
    """Directory of a version below BABYLON_RL_HOME, fetched if missing; None when it is in neither place.

    Raises:
        CheckpointError: what is at MODEL_STORAGE_URL is damaged.
        ModelUnavailable: it cannot be fetched now.
    """
    directory = settings.home / "checkpoints" / version
    return directory if directory.is_dir() else _fetched(version, settings)


def checkpoint_to_serve(version: str, settings: Settings) -> Path | None:
    """Directory of a version, for a caller without its row.

    Of a version that is here DATABASE_URL says which checkpoint is registered, as for ``registered_checkpoint``. Where it does not, that
    of the same batch at MODEL_STORAGE_URL is taken; where that does not answer either, the one that is here.

    Raises:
        CheckpointError: as ``registered_checkpoint``.
        ModelUnavailable: it cannot be fetched now.
    """
    if _PLAIN_NAME.fullmatch(version) is None:
        return None
    directory = settings.home / "checkpoints" / version
    if settings.model_storage_url is None or version_order(version) is None or not directory.is_dir():
        return checkpoint_named(version, settings)
    manifest_sha = _registered_sha(version, settings)
    if manifest_sha is not None:
        return registered_checkpoint(version, directory, manifest_sha, settings)
    try:
        stored = _stored(version, settings)
    except (ModelError, UsageError):
        return directory  # a server starts while the storage is down
    return directory if stored is None else _fetched(version, settings, stored)


def _registered_sha(version: str, settings: Settings) -> str | None:
    """Hash of a version's manifest in the registry of DATABASE_URL, None where that does not say."""
    # An embedded database is not started for this: it is of this machine alone, as are its checkpoints.
    if settings.database_url is None:
        return None
    try:
        with open_database(settings, prepare=False) as database, database.connect(autocommit=True) as connection:
            models = read_models(connection)
    except DatabaseError:
        return None  # a server starts while the database is down
    return next((model.manifest_sha for model in models if model.version == version and model.manifest_sha is not None), None)


def other_of_batch(directory: Path, batch_id: str | None, manifest_sha: str) -> bool:
    """True if a directory holds a checkpoint of this batch whose manifest has another hash."""
    # A link is a person's, and never renamed.
    named = batch_id is not None and not directory.is_symlink() and batch_named_in(directory) == batch_id
    return named and not _has_manifest(directory, manifest_sha)


def set_aside(directory: Path, batch_id: str | None, manifest_sha: str) -> None:
    """Rename the directory of a version if it is ``other_of_batch``. Raises OSError."""
    if not other_of_batch(directory, batch_id, manifest_sha):
        return
    # Once more under the lock: another process may have put the registered one here meanwhile.
    with arriving(directory):
        if other_of_batch(directory, batch_id, manifest_sha):
            # A new name: what could not be deleted yet may have the plain one. Renaming replaces an empty directory.
            directory.rename(tempfile.mkdtemp(prefix=f"{GOING}{directory.name}-", dir=directory.parent))


def _has_manifest(directory: Path, manifest_sha: str) -> bool:
    try:
        return sha256(directory / MANIFEST) == manifest_sha
    except (FileNotFoundError, NotADirectoryError):
        return False


def _fetched(version: str, settings: Settings, stored: tuple[Manifest, str] | None = None) -> Path | None:
    """Fetch a version unless it is here; another checkpoint of the batch of ``stored`` makes room for it.

    A process that dies between the two leaves none here, and the next one fetches it.
    """
    directory = settings.home / "checkpoints" / version
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
        if stored is not None:
            manifest, manifest_sha = stored
            set_aside(directory, manifest.batch_id, manifest_sha)
        files = FileSet(Location(settings.model_storage_url), version, MANIFEST)
        there = files.fetch(directory, lambda content: decode_manifest(content, shown).files)
    return directory if there else None


def absence(version: str, settings: Settings) -> str:
    """Sentence that names the places where a version was not found."""
    folder, url = settings.home / "checkpoints", settings.model_storage_url
    if url is None:
        return f"There is no checkpoint {version} in {folder}."
    return (
        f"There is no checkpoint {version} in {folder}, and none at {shown_url(url)}. If another machine has it, run `babylon-rl models "
        f"upload {version}` there."
    )


def stored_manifest(version: str, settings: StorageSettings) -> Manifest | None:
    """Manifest of a version at MODEL_STORAGE_URL, None without either. Raises CheckpointError, ModelUnavailable: it cannot be read."""
    stored = _stored(version, settings)
    return None if stored is None else stored[0]


def _stored(version: str, settings: StorageSettings) -> tuple[Manifest, str] | None:
    """The same, with the hash of its file."""
    url = settings.model_storage_url
    if url is None:
        return None
    shown = f"{shown_url(url)}/{version}"
    with describing_failures(url, lambda reason, number: ModelUnavailable(f"{shown} cannot be read: {reason}.")):
        content = FileSet(Location(url), version, MANIFEST).manifest()
    return None if content is None else (decode_manifest(content, shown), hashlib.sha256(content).hexdigest())


def check_storage(settings: StorageSettings, batch_id: str) -> None:
    """Write and remove a small file at the storage location, before a training is paid. Raises TrainingPaused: it cannot be written."""
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
    """Upload the missing files of a published checkpoint; return the URL of their directory.

    ``heartbeat`` is called between files, and raises where the upload must stop. ``then`` ends the sentence of a refusal.

    Raises:
        TrainingPaused: the place does not take it now (what is up stays for the next try), or holds another checkpoint of that version.
    """
    manifest = load_manifest(directory)
    version = manifest.version

    def paused(reason: str, number: int | None) -> TrainingPaused:
        return TrainingPaused(
            f"{version} could not be uploaded to {shown_url(url)}: {reason}. See that this place takes files from here; {then}."
        )

    with describing_failures(url, paused):
        folder = FileSet(Location(url), version, MANIFEST).publish(directory, manifest.files, heartbeat)
    if folder is None:
        raise TrainingPaused(  # and not failed: what was trained, and perhaps paid, is kept
            f"{shown_url(url)}/{version} holds another checkpoint of that version, and nothing there is replaced. Choose another "
            f"MODEL_STORAGE_URL, or move that directory away; {then}."
        )
    plain = not set("@?#") & set(url)  # else it may hold a secret, and rows hold none
    return f"{url.rstrip('/') if plain else shown_url(url)}/{folder}"


def upload_base(directory: Path, settings: Settings, heartbeat: Callable[[], None] = lambda: None) -> None:
    """Upload the CPU line's base to MODEL_STORAGE_URL, for machines that have neither its directory nor its package.

    Raises:
        TrainingPaused: the place does not take it now, or holds another base of that name.
    """
    url, files = settings.model_storage_url, base_set(settings)
    if url is None or files is None:
        return

    def paused(reason: str, number: int | None = None) -> TrainingPaused:
        return TrainingPaused(
            f"The base {directory} could not be uploaded to {shown_url(url)}: {reason}. See that it takes files from here."
        )

    others = {path.name: sha256(path) for path in directory.iterdir() if path.suffix != ".safetensors" and is_base_file(path.name)}
    ours = BaseManifest({**weights_sha256(directory), **others}, msgspec.to_builtins(base_identity(directory, "")))
    # The directory may be a person's, and is not written to.
    with describing_failures(url, paused), tempfile.NamedTemporaryFile() as manifest:
        manifest.write(msgspec.json.encode(ours, order="sorted"))
        manifest.flush()
        published = files.publish(directory, ours.files, heartbeat, manifest=Path(manifest.name))
    # The packaged model is the same everywhere.
    if published or settings.local_base_model is None:
        return
    try:
        stored = stored_base(settings)
    except ModelUnavailable as away:
        raise paused(str(away).rstrip(".")) from away
    # The files themselves may differ: configs name the version of the library that wrote them.
    if stored is not None and (stored.weights(), stored.identity) != (ours.weights(), ours.identity):
        raise TrainingPaused(
            f"{shown_url(url)} holds another base for LOCAL_BASE_MODEL={settings.local_base_model}, and nothing there is replaced. Choose "
            "another MODEL_STORAGE_URL; or cancel the batch and give the directory another name, which begins another line."
        )
