"""Upload of checkpoints to MODEL_STORAGE_URL (any fsspec location): <url>/<version>/, complete once its manifest exists.

Files go up under a temporary prefix, are read back and compared, then moved into place, the manifest last. An interrupted upload continues
with the missing files. Nothing is ever replaced or deleted there except this module's own temporary files.
"""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from babylon_rl.errors import TrainingError, TrainingPaused, UsageError
from babylon_rl.files.durable import sha256
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.files.staging import PublishedFile, Staging
from babylon_rl.models.checkpoints import MANIFEST, load_manifest
from babylon_rl.settings import StorageSettings

INCOMING = ".incoming"


def check_storage(settings: StorageSettings, batch_id: str) -> None:
    """Write and remove a small file at the storage location, before a training is paid.

    Raises:
        TrainingError: it cannot be written (a wrong key, no such place); the message says what was tried.
    """
    url = settings.model_storage_url
    if url is None:
        return

    def refused(reason: str, number: int | None) -> TrainingError:
        return TrainingError(
            f"MODEL_STORAGE_URL {shown_url(url)} cannot be written to: {reason}. Nothing was trained. "
            "Correct the address or the credentials of that place, or unset MODEL_STORAGE_URL to keep checkpoints here."
        )

    probe = f"{INCOMING}/{batch_id}.probe"
    try:
        with describing_failures(url, refused), tempfile.NamedTemporaryFile() as file:
            file.write(b"babylon-rl can write here\n")
            file.flush()
            location = Location(url)
            location.put(Path(file.name), probe)
            location.remove(probe)
    except UsageError as unknown:
        raise TrainingError(f"MODEL_STORAGE_URL cannot be used: {unknown}") from unknown


def upload_checkpoint(directory: Path, url: str, heartbeat: Callable[[], None] = lambda: None) -> str:
    """Upload the missing files of a published checkpoint; return the URL of its directory.

    Args:
        heartbeat: called between files; raises where the upload must stop.

    Raises:
        TrainingPaused: the place does not take it now, and what is up stays for the next try; or another checkpoint of that version
            is there.
        UsageError: as Location.
    """
    manifest = load_manifest(directory)
    hashes = {**manifest.files, MANIFEST: sha256(directory / MANIFEST)}
    files = [PublishedFile(name, (directory / name).stat().st_size, digest) for name, digest in hashes.items()]
    with _pausing(url, manifest.version):
        _upload(Location(url), url, directory, manifest.version, files, heartbeat)
    plain = not set("@?#") & set(url)  # else it may hold a secret, and rows hold none
    return f"{url.rstrip('/') if plain else shown_url(url)}/{manifest.version}"


def _pausing(url: str, version: str) -> AbstractContextManager[None]:
    def paused(reason: str, number: int | None) -> TrainingPaused:
        return TrainingPaused(
            f"{version} is trained and could not be uploaded to {shown_url(url)}: {reason}. Its batch stays in "
            "`uploading`; when that place takes it again, run `babylon-rl train`, which uploads what is missing."
        )

    return describing_failures(url, paused)


def _upload(location: Location, url: str, directory: Path, version: str, files: list[PublishedFile], heartbeat: Callable[[], None]) -> None:
    """Upload ``files``, of which the manifest is the last."""
    # The manifest marks a complete upload: equal means done, different means another checkpoint.
    manifest = files[-1]
    stored = location.sha256(f"{version}/{MANIFEST}")
    if stored is not None and stored != manifest.sha256:
        raise TrainingPaused(  # and not failed: what was trained, and perhaps paid, is kept
            f"{shown_url(url)}/{version} holds another checkpoint of that version, and nothing there is replaced. Choose another "
            "MODEL_STORAGE_URL, or move that directory away, then try again; a batch waits for that in `uploading`."
        )
    if stored is not None:
        return
    staging = Staging(location, f"{INCOMING}/{version}-{manifest.sha256[:12]}", version)
    # Files already in place with the right hash are not sent again.
    missing = [file for file in files if location.sha256(f"{version}/{file.name}") != file.sha256]
    for file in missing:
        heartbeat()
        staging.put(file, directory / file.name)
    staging.place([file.name for file in missing])
    staging.clear()
