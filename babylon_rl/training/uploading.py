"""Upload of checkpoints to MODEL_STORAGE_URL (any fsspec location): <url>/<version>/, complete once its manifest exists.

Files go up under a temporary prefix, are read back and compared, then moved into place, the manifest last. An interrupted upload continues
with the missing files. Nothing is ever replaced or deleted there except this module's own temporary files.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from babylon_rl.errors import TrainingError, TrainingPaused, UsageError
from babylon_rl.models.checkpoints import MANIFEST, load_manifest
from babylon_rl.models.files import sha256
from babylon_rl.settings import Settings
from babylon_rl.training.export.remote import file_system, shown_url

INCOMING = ".incoming"
_BLOCK = 4 * 1024 * 1024
# What the libraries behind the common places raise that is no OSError; they are loaded only where such a place is used.
_OTHERS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("aiohttp", "ClientError"),
)


class Storage:
    """Location of a storage URL. Raises UsageError for an unknown scheme or a missing package."""

    def __init__(self, url: str) -> None:
        self.shown = shown_url(url).rstrip("/")
        self.fs, root = file_system(url, self.shown)
        self.root = root.rstrip("/")
        self.fs.invalidate_cache()

    def at(self, *parts: str) -> str:
        """Join a path below the root."""
        return "/".join((self.root, *parts))

    def sha256(self, path: str) -> str | None:
        """Hash of the stored file, read back, or None."""
        digest = hashlib.sha256()
        try:
            with self.fs.open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except FileNotFoundError:
            return None
        return digest.hexdigest()


def check_storage(settings: Settings, batch_id: str) -> None:
    """Write and remove a small file at the storage location, before a training is paid.

    Raises:
        TrainingError: it cannot be written (a wrong key, no such place); the message says what was tried.
    """
    if settings.model_storage_url is None:
        return
    shown = shown_url(settings.model_storage_url)
    try:
        storage = Storage(settings.model_storage_url)
        probe = storage.at(INCOMING, f"{batch_id}.probe")
        with _failures() as failed:
            storage.fs.makedirs(storage.at(INCOMING), exist_ok=True)
            storage.fs.pipe_file(probe, b"babylon-rl can write here\n")
            storage.fs.rm_file(probe)
    except UsageError as unknown:
        raise TrainingError(f"MODEL_STORAGE_URL cannot be used: {unknown}") from unknown
    if failed:
        raise TrainingError(
            f"MODEL_STORAGE_URL {shown} cannot be written to: {_said(failed[0], settings.model_storage_url)}. Nothing was trained. "
            "Correct the address or the credentials of that place, or unset MODEL_STORAGE_URL to keep checkpoints here."
        )


def upload_checkpoint(directory: Path, url: str, beat: Callable[[], None] = lambda: None) -> str:
    """Upload the missing files of a published checkpoint; return the URL of its directory.

    Args:
        beat: called between files; raises where the upload must stop.

    Raises:
        TrainingPaused: the place does not take it now, and what is up stays for the next try; or another checkpoint of that version
            is there.
        UsageError: as Storage.
    """
    manifest = load_manifest(directory)
    storage = Storage(url)
    with _failures() as failed:
        _upload(storage, directory, manifest.version, {**manifest.files, MANIFEST: sha256(directory / MANIFEST)}, beat)
    if failed:
        raise TrainingPaused(
            f"{manifest.version} is trained and could not be uploaded to {storage.shown}: {_said(failed[0], url)}. Its batch stays in "
            "`uploading`; when that place takes it again, run `babylon-rl train`, which uploads what is missing."
        )
    plain = not set("@?#") & set(url)  # else it may hold a secret, and rows hold none
    return f"{url.rstrip('/') if plain else storage.shown}/{manifest.version}"


def _upload(storage: Storage, directory: Path, version: str, files: dict[str, str], beat: Callable[[], None]) -> None:
    """Upload ``files`` (hashes by name, the manifest last)."""
    # The manifest marks a complete upload: equal means done, different means another checkpoint.
    held = storage.sha256(storage.at(version, MANIFEST))
    if held is not None and held != files[MANIFEST]:
        raise TrainingPaused(  # and not failed: what was trained, and perhaps paid, is kept
            f"{storage.shown}/{version} holds another checkpoint of that version, and nothing there is replaced. Choose another "
            "MODEL_STORAGE_URL, or move that directory away, then try again; a batch waits for that in `uploading`."
        )
    if held is not None:
        return
    incoming = storage.at(INCOMING, f"{version}-{files[MANIFEST][:12]}")
    # Files already in place with the right hash are not sent again.
    missing = [name for name, digest in files.items() if storage.sha256(storage.at(version, name)) != digest]
    for name in missing:
        beat()
        _put(storage, directory / name, f"{incoming}/{name}", files[name])
    # Moved into place in order, so that the manifest appears last.
    for name in missing:
        place = storage.at(version, name)
        storage.fs.makedirs(place.rpartition("/")[0], exist_ok=True)
        storage.fs.mv(f"{incoming}/{name}", place)
    if storage.fs.exists(incoming):
        storage.fs.rm(incoming, recursive=True)


def _put(storage: Storage, source: Path, place: str, digest: str) -> None:
    if storage.sha256(place) == digest:
        return  # an earlier try had brought it up
    storage.fs.makedirs(place.rpartition("/")[0], exist_ok=True)
    storage.fs.put_file(str(source), place)
    if storage.sha256(place) != digest:
        raise OSError(f"{source.name} arrived with other content than it was sent with")


@contextmanager
def _failures() -> Iterator[list[Any]]:
    """Collect storage errors in the yielded list instead of raising them."""
    failed: list[Any] = []
    try:
        yield failed
    except OSError as error:
        failed.append(error)
    except _library_errors() as error:
        failed.append(error)


def _library_errors() -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in _OTHERS if module in sys.modules)


def _said(error: Exception, url: str) -> str:
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    parts = urlsplit(url)
    for secret in filter(None, (parts.netloc.rpartition("@")[0], parts.password, parts.query)):  # some libraries repeat the address
        text = text.replace(secret, "(a secret)")
    return text.splitlines()[0][:300].rstrip(".")
