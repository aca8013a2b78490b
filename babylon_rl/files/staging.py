"""Staging of a set of files: written, verified, then moved into place in order.

An interrupted set can be staged again: what has arrived with the right content is not sent twice.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from babylon_rl.files.durable import fsync, sha256
from babylon_rl.files.location import Location


class PublishedFile(msgspec.Struct, frozen=True):
    """One file of a set; ``name`` is relative to the set's directory, with slashes."""

    name: str
    bytes: int
    sha256: str


class Staging:
    """Temporary ``folder`` of a location, from which files move to their names below ``place``.

    Files of a location on this machine may be written into the folder itself; others are written to ``scratch`` and copied.
    """

    def __init__(self, location: Location, folder: str, place: str = "", scratch: Path | None = None) -> None:
        self._location, self._folder, self._place = location, folder, f"{place}/" if place else ""
        self._arrived = location.below(folder)
        self._scratch: Path | None = None
        if location.local is not None:
            self._work = Path(location.path(folder))
            self._work.mkdir(parents=True, exist_ok=True)
        elif scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            self._work = self._scratch = Path(tempfile.mkdtemp(dir=scratch))

    def new(self, name: str) -> Path:
        """Path of this machine at which to write a file of the set."""
        path = self._work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def described(self, name: str) -> PublishedFile:
        """Size and hash of a file that was written at ``new``."""
        path = self._work / name
        return PublishedFile(name, path.stat().st_size, sha256(path))

    def put(self, file: PublishedFile, source: Path | None = None) -> None:
        """Bring a file under its temporary name and verify it there.

        ``source`` None is a file written at ``new``.

        Raises:
            OSError: it arrived with other content than it was sent with.
        """
        written = self._work / file.name if source is None else source
        staged = f"{self._folder}/{file.name}"
        if str(written) == self._location.path(staged):
            fsync(written)
            return
        if file.name not in self._arrived or self._location.sha256(staged) != file.sha256:
            self._location.put(written, staged)
            if self._location.sha256(staged) != file.sha256:
                raise OSError(f"{file.name} arrived with other content than it was sent with")
        if source is None:
            written.unlink()  # its space is needed for the files that follow

    def place(self, names: Sequence[str]) -> None:
        """Move staged files into place, in order."""
        for name in names:
            self._location.move(f"{self._folder}/{name}", f"{self._place}{name}")
        self._location.flush_folders([f"{self._place}{name}" for name in names])

    def close(self) -> None:
        """Remove the scratch files of this machine."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def clear(self) -> None:
        """Remove the temporary folder and the scratch files."""
        self.close()
        self._location.clear(self._folder)
