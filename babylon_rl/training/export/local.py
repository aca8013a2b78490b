"""Local directory as a destination: files are staged inside it and moved into place when all are complete.

Files that no export wrote are never replaced without ``force``, and never deleted.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from babylon_rl.errors import UsageError
from babylon_rl.models.files import fsync, sha256
from babylon_rl.training.export.files import MANIFEST, Manifest, PublishedFile, published, read_manifest

STAGING = ".export-partial"


class LocalDestination:
    """A local directory; ``force`` accepts one with other files, and replaces those in the way."""

    def __init__(self, directory: Path, *, force: bool = False) -> None:
        self.shown = str(directory)
        self._directory = directory
        self._staging = directory / STAGING
        self._force = force
        self._held = Manifest(state="complete")
        self._known: dict[str, set[str]] = {}
        self._files: list[PublishedFile] = []
        self._made: list[Path] = []
        self._lock = -1

    def __enter__(self) -> Self:
        self._made = [path for path in (self._directory, *self._directory.parents) if not path.exists()]
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            self._take()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()

    def plan(self, names: Iterable[str]) -> None:
        """Do nothing: staged files are recognised by their directory."""

    def new(self, name: str) -> Path:
        """Return a path in the staging directory."""
        if not self._force and name not in self._known and os.path.lexists(self._directory / name):
            raise UsageError(f"{self._directory / name} is in the way and no export wrote it: move it away, or give --force.")
        path = self._staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finished(self, name: str) -> None:
        """Sync the file and record its hash."""
        fsync(self._staging / name)
        self._files.append(published(name, self._staging / name))

    def commit(self, about: Mapping[str, Any]) -> list[str]:
        """Move every file into its place; the manifest is marked incomplete until all are moved."""
        self._write_manifest(Manifest(state="incomplete", files=[*self._held.files, *self._files]))
        for file in self._files:
            path = self._directory / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._staging / file.name, path)
        self._remove_old()
        for folder in {(self._directory / file.name).parent for file in self._files}:
            fsync(folder)
        self._write_manifest(Manifest(state="complete", about=dict(about), files=self._files))
        self._made = []
        return [str(self._directory / name) for name in [*(file.name for file in self._files), MANIFEST]]

    def _take(self) -> None:
        # Only an empty directory or an earlier export is accepted without `force`.
        names = {entry.name for entry in self._directory.iterdir()} - {STAGING}
        manifest = read_manifest((self._directory / MANIFEST).read_bytes()) if MANIFEST in names else None
        if manifest is None and names and not self._force:
            raise UsageError(
                f"{self._directory} holds files that no export wrote: choose an empty directory, or give --force to write beside them."
            )
        self._held = manifest or self._held
        self._known = self._held.hashes()
        # The staging directory is the lock: one export at a time.
        self._staging.mkdir(exist_ok=True)
        self._lock = os.open(self._staging, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise UsageError(f"Another export is being written into {self._directory}: wait for it, or choose another place.") from None
        self._clear_staging()
        # Files changed since the last export are not replaced silently.
        changed = [] if self._force else [name for name in self._known if self._is_there(name) and not self._is_ours(name)]
        if changed:
            raise UsageError(
                f"{self._directory / changed[0]} was changed since it was exported: move it away, or give --force to replace it."
            )

    def _is_there(self, name: str) -> bool:
        return os.path.lexists(self._directory / name)

    def _is_ours(self, name: str) -> bool:
        path = self._directory / name
        return path.is_file() and sha256(path) in self._known.get(name, ())

    def _remove_old(self) -> None:
        """Remove unchanged files of an earlier export that this one did not write, and folders left empty."""
        kept = {file.name for file in self._files}
        for name in sorted(self._known.keys() - kept):
            if self._is_ours(name):
                (self._directory / name).unlink()
                _remove_empty((self._directory / name).parent, self._directory)

    def _write_manifest(self, manifest: Manifest) -> None:
        staged = self._staging / MANIFEST
        staged.write_bytes(manifest.encoded())
        fsync(staged)
        os.replace(staged, self._directory / MANIFEST)
        fsync(self._directory)

    def _clear_staging(self) -> None:
        for entry in self._staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _leave(self) -> None:
        if self._lock >= 0:
            self._clear_staging()
            self._staging.rmdir()
            os.close(self._lock)
            self._lock = -1
        for path in self._made:
            try:
                path.rmdir()
            except OSError:
                break  # another process has put something into it


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
