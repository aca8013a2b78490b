"""Upload of checkpoints to MODEL_STORAGE_URL (any fsspec location): <url>/<version>/, complete once its manifest exists.

Nothing is ever replaced or deleted there except temporary files; models/checkpoint_store.py reads it back.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from babylon_rl.errors import TrainingPaused, UsageError
from babylon_rl.files.file_sets import INCOMING, FileSet
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.models.checkpoints import MANIFEST, load_manifest
from babylon_rl.settings import StorageSettings

WAITS = "a batch waits for that in `uploading`, and `babylon-rl train` goes on with what is missing"


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
