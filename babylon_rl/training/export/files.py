"""Common parts of export destinations, and the manifest that identifies an export's own files.

A destination receives files one by one and publishes them as a set. The manifest is written last, so a complete one guarantees every file
that it lists.
"""

import errno
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import msgspec

from babylon_rl.errors import BabylonError, ExportError
from babylon_rl.models.files import sha256

MANIFEST = "_export.json"  # readers of Parquet directories pass over names with an underscore
_ADVICE = {
    errno.ENOSPC: "Make room there, then run the same command again.",
    errno.EDQUOT: "Make room there, then run the same command again.",
    errno.EFBIG: "Files there may not be that large: choose another place, or a shorter range.",
    errno.EACCES: "Choose a directory that you may write into.",
    errno.EPERM: "Choose a directory that you may write into.",
    errno.EROFS: "Choose a directory that can be written.",
    errno.EEXIST: "Something else is in the place of a directory: choose another.",
    errno.ENOTDIR: "Something else is in the place of a directory: choose another.",
    errno.EISDIR: "Something else is in the place of a file: choose another directory.",
}
# What drivers of remote file systems raise beside OSError: they have no base class in common. Looked up where they are loaded.
_DRIVER_ERRORS = {
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}


class PublishedFile(msgspec.Struct, frozen=True):
    """One written file; ``name`` is relative to the export's directory, with slashes."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """List of an export's files.

    It is ``incomplete`` while files are being replaced; then it lists the old and the new ones.
    """

    babylon_rl_export: Literal[1] = 1
    state: Literal["complete", "incomplete"]
    about: dict[str, Any] = {}
    files: list[PublishedFile] = []

    def hashes(self) -> dict[str, set[str]]:
        """Known content hashes of each file, by name."""
        by_name: dict[str, set[str]] = {}
        for file in self.files:
            by_name.setdefault(file.name, set()).add(file.sha256)
        return by_name

    def encoded(self) -> bytes:
        """Encode the manifest's file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class Destination(Protocol):
    """A place that an export is written to, within a ``with`` block; leaving the block without ``commit`` changes nothing there
    (a remote place may keep files that were uploaded, which the next export replaces).
    """

    shown: str

    def plan(self, names: Iterable[str]) -> None:
        """Announce file names where they are known; other files may follow."""
        ...

    def new(self, name: str) -> Path:
        """Return a local path for the file ``name``. Raises UsageError when a foreign file is in its place."""
        ...

    def finished(self, name: str) -> None:
        """Mark the file as complete."""
        ...

    def commit(self, about: Mapping[str, Any]) -> list[str]:
        """Publish the set with its manifest, remove old files of earlier exports, and return the paths."""
        ...


def read_manifest(content: bytes) -> Manifest | None:
    """Decode the manifest of an export, or return None for any other content."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError:
        return None
    return manifest if all(_is_inside(file.name) for file in manifest.files) else None


def published(name: str, path: Path) -> PublishedFile:
    """Build the manifest entry of a file written at ``path``."""
    return PublishedFile(name, path.stat().st_size, sha256(path))


@contextmanager
def telling(where: str, secrets: Mapping[str, str] | None = None) -> Iterator[None]:
    """Convert failures at a destination to an ExportError; ``secrets`` maps secret texts to their replacements.

    Raises:
        ExportError: the system or the driver of a remote file system failed.
    """
    try:
        yield
    except BabylonError:
        raise
    except _failures() as failed:
        reason = getattr(failed, "strerror", None) or (str(failed).splitlines() or [type(failed).__name__])[0]
        file = getattr(failed, "filename", None)
        reason = f"{reason} ({file})" if file and str(file) != where else reason
        for secret, shown in (secrets or {}).items():
            reason = reason.replace(secret, shown)
        advice = _ADVICE.get(getattr(failed, "errno", None) or 0, "Run the same command again once that is mended.")
        raise ExportError(f"{where} cannot be written: {reason.strip().rstrip('.')}. {advice}") from None


def _failures() -> tuple[type[Exception], ...]:
    """Exception types of the system and of loaded drivers.

    Evaluated only after a failure, because drivers are loaded late.
    """
    loaded = [getattr(sys.modules[module], name) for module, names in _DRIVER_ERRORS.items() if module in sys.modules for name in names]
    return (OSError, NotImplementedError, *loaded)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts
