"""Destination of an export: a directory or fsspec URL, where all files appear at the end.

The manifest identifies an export's own files: those that no export wrote are never replaced without ``force``, and never deleted. It is
written last, so a complete one guarantees every file that it lists.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from io import BufferedWriter
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from babylon_rl.errors import ExportError, UsageError
from babylon_rl.files.file_sets import PublishedFile, Staging
from babylon_rl.files.location import Location, describing_failures, shown_address

MANIFEST = "_export.json"  # readers of Parquet directories pass over names with an underscore
STAGING = ".export-partial"
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


class ExportManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """List of an export's files. It is ``incomplete`` while files are being replaced; then it lists the old and the new ones."""

    babylon_rl_export: Literal[1] = 1
    state: Literal["complete", "incomplete"]
    about: dict[str, Any] = {}
    files: list[PublishedFile] = []

    def hashes(self) -> dict[str, set[str]]:
        by_name: dict[str, set[str]] = {}
        for file in self.files:
            by_name.setdefault(file.name, set()).add(file.sha256)
        return by_name


@contextmanager
def destination(target: str, work: Path, *, force: bool = False) -> Iterator["Destination"]:
    """Open the place of an export; leaving the block without ``commit`` changes nothing there.

    Behind a URL, staged files of an interrupted export stay, and the next one sends only what is missing. ``work`` is a local directory for
    temporary files; ``force`` accepts a place with other files, and replaces those in the way.
    """
    location = Location(target)
    with ExitStack() as stack:
        if (local := location.local) is not None:
            # Removed again while they are empty: a refused export leaves no directories behind.
            stack.callback(_remove_empty, [path for path in (local, *local.parents) if not path.exists()])
            local.mkdir(parents=True, exist_ok=True)
        held = _held(location, force)
        if local is not None:
            stack.enter_context(_alone_in(location, local / STAGING))
            known = {} if force else held.hashes()
            if changed := [name for name, hashes in known.items() if location.exists(name) and location.sha256(name) not in hashes]:
                raise UsageError(
                    f"{location.shown}/{changed[0]} was changed since it was exported: move it away, or give --force to replace it."
                )
        staging = Staging(location, STAGING, scratch=work)
        stack.callback(staging.close)
        place = Destination(location, staging, held, force)
        stack.callback(place.close)
        yield place


class Destination:
    """Place of an export, within a ``with`` block of ``destination``; files that are still open at its end are closed."""

    def __init__(self, location: Location, staging: Staging, held: ExportManifest, force: bool) -> None:
        self._location, self._staging, self._held, self._force = location, staging, held, force
        self._known = held.hashes()
        self._files: list[PublishedFile] = []
        self._staged: list[str] = []
        self._writing: dict[str, BufferedWriter] = {}

    def new(self, name: str) -> BufferedWriter:
        """Begin the file ``name``. Raises UsageError for a foreign file there."""
        if not self._force and name not in self._known and self._location.exists(name):
            raise UsageError(f"{self._location.shown}/{name} is in the way and no export wrote it: move it away, or give --force.")
        self._writing[name] = self._staging.new(name).open("wb")
        return self._writing[name]

    def finished(self, name: str) -> None:
        """Close and stage a complete file, unless a URL holds it already."""
        self._writing.pop(name).close()
        file = self._staging.described(name)
        known = self._location.local is None and self._known.get(name) == {file.sha256}
        if known and self._location.size(name) == file.bytes:
            self._staging.new(name).unlink()
        else:
            self._staging.put(file)
            self._staged.append(name)
        self._files.append(file)

    def commit(self, about: Mapping[str, Any]) -> list[str]:
        """Move the set into place, remove old files of earlier exports, and return the paths."""
        # Killed from here on, the next export finds both lists and knows every file of either as its own.
        self._write_manifest(ExportManifest(state="incomplete", files=[*self._held.files, *self._files]))
        self._staging.place(self._staged)
        for name in sorted(self._known.keys() - {file.name for file in self._files}):
            # One that was changed since stays; behind a URL contents are not read back.
            there = self._location.exists(name) if self._location.local is None else self._location.sha256(name) in self._known[name]
            if there:
                self._location.remove(name)
        self._write_manifest(ExportManifest(state="complete", about=dict(about), files=self._files))
        self._staging.clear()
        return [f"{self._location.shown}/{name}" for name in [*(file.name for file in self._files), MANIFEST]]

    def _write_manifest(self, manifest: ExportManifest) -> None:
        self._staging.new(MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        self._staging.put(self._staging.described(MANIFEST))
        self._staging.place([MANIFEST])

    def close(self) -> None:
        for file in self._writing.values():
            with suppress(OSError):  # a full disk: of a failed export nothing stays
                file.close()


def _held(location: Location, force: bool) -> ExportManifest:
    """Manifest of the export that is there. Raises UsageError: the files there are others."""
    names = location.names() - {STAGING}
    content = location.read(MANIFEST) if MANIFEST in names else None
    manifest = None if content is None else read_manifest(content)
    if manifest is None and names and not force:
        kind = "directory" if location.local is not None else "place"
        raise UsageError(
            f"{location.shown} holds files that no export wrote: choose an empty {kind}, or give --force to write beside them."
        )
    return manifest or ExportManifest(state="complete")


@contextmanager
def _alone_in(location: Location, staging: Path) -> Iterator[None]:
    """Lock the staging directory, emptied of a killed export, and remove it at the end; a URL has no lock."""
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UsageError(f"Another export is being written into {staging.parent}: wait for it, or choose another place.") from None
    try:
        for entry in staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        yield
    finally:
        location.clear(STAGING)
        os.close(lock)


def _remove_empty(directories: Iterable[Path]) -> None:
    with suppress(OSError):  # the export is in it, or another process has put something into it
        for directory in directories:
            directory.rmdir()


def describing(target: str) -> AbstractContextManager[None]:
    """Convert failures at a destination to an ExportError with advice."""

    def describe(reason: str, number: int | None) -> ExportError:
        advice = _ADVICE.get(number or 0, "Run the same command again once that is mended.")
        return ExportError(f"{shown_address(target)} cannot be written: {reason}. {advice}")

    return describing_failures(target, describe)


def read_manifest(content: bytes) -> ExportManifest | None:
    """Decode the manifest of an export, or return None for any other content."""
    try:
        manifest = msgspec.json.decode(content, type=ExportManifest)
    except msgspec.DecodeError:
        return None
    paths = [PurePosixPath(file.name) for file in manifest.files]
    return manifest if all(path.name and not path.is_absolute() and ".." not in path.parts for path in paths) else None
