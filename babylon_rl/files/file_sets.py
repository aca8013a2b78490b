"""Sets of files at a URL, each below its own name, complete once its manifest exists.

The files lie in a folder named by the manifest's hash, so that two sets of one name share no file, however slowly one of them is
published. Publishing stages files under a temporary prefix, reads them back, compares, and moves them into that folder; a copy of the
manifest beside the folder comes last and is never replaced, so that one of them is the set. An interrupted publishing continues with the
missing files. Fetching downloads a set beside its place on this machine and renames it once every file has the hash of the manifest: one
process downloads, others wait for it, and a part of a set is never seen.
"""

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from babylon_rl.files.durable import exclusive, fsync, publish_directory, sha256
from babylon_rl.files.location import Location, is_failure


class PublishedFile(msgspec.Struct, frozen=True):
    """One file of a set; ``name`` is relative to the set's directory, with slashes."""

    name: str
    bytes: int
    sha256: str


class Staging:
    """Temporary ``folder`` of a location, from which files move to their names below ``place``. Elsewhere ``scratch`` holds them."""

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
        path = self._work / name
        return PublishedFile(name, path.stat().st_size, sha256(path))

    def put(self, file: PublishedFile, source: Path | None = None) -> None:
        """Bring a file, of ``source`` or written at ``new``, under its temporary name. Raises OSError: it arrived with other content."""
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
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def clear(self) -> None:
        self.close()
        self._location.clear(self._folder)


T = TypeVar("T")
INCOMING = ".incoming"
ATTEMPTS = 4
LONGEST_S = 60.0  # no further attempt begins later
_LONGEST_WAIT_S = 8.0
# No later attempt cures these: nothing there, no right to it, no room here.
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


def content_folder(name: str, manifest_sha: str) -> str:
    """Folder of the files of the set ``name`` whose manifest has this hash."""
    return f"{name}/{manifest_sha[:12]}"


def arriving(final: Path) -> AbstractContextManager[None]:
    """Lock a fetched set's directory. The process that replaces or removes a set holds it."""
    return exclusive(final.parent / f".{final.name}.lock")


class FileSet:
    """The set of files at ``<location>/<name>``; a copy of its file ``manifest`` is published last.

    Failures are those of ``Location``; on the way here, passing ones are tried ATTEMPTS times.
    """

    def __init__(self, location: Location, name: str, manifest: str) -> None:
        self._location, self._name, self._manifest = location, name, manifest

    def manifest(self) -> bytes | None:
        """Content of the manifest, None while the set is not complete."""
        return _retried(lambda: self._location.read(f"{self._name}/{self._manifest}"))

    def publish(
        self, directory: Path, hashes: Mapping[str, str], heartbeat: Callable[[], None] = lambda: None, *, manifest: Path | None = None
    ) -> str | None:
        """Publish the missing files of ``directory``; return their folder, None when another set has this name.

        Args:
            hashes: SHA-256 of every file by its name, the manifest excepted.
            heartbeat: called between files and before they are moved into place; raises where it must stop.
            manifest: a file with the manifest, where that is not in the directory.
        """
        # The manifest last: files are sent and moved into place in this order.
        sources = {name: directory / name for name in hashes} | {self._manifest: manifest or directory / self._manifest}
        names = {**hashes, self._manifest: sha256(sources[self._manifest])}
        manifest_sha, marker = names[self._manifest], f"{self._name}/{self._manifest}"
        folder = content_folder(self._name, manifest_sha)
        # Equal manifests mean that all of it is there.
        stored = self._location.sha256(marker)
        if stored is None:
            files = [PublishedFile(name, sources[name].stat().st_size, digest) for name, digest in names.items()]
            # The same set has the same folder: a publishing that was interrupted goes on with what has arrived.
            staging = Staging(self._location, f"{INCOMING}/{self._name}-{manifest_sha[:12]}", folder)
            # Files already in place with the right hash are not sent again.
            missing = [file for file in files if self._location.sha256(f"{folder}/{file.name}") != file.sha256]
            for file in missing:
                heartbeat()
                staging.put(file, sources[file.name])
            # Again, as the files may have taken long: a newer run may have published meanwhile. One that does so from here on finds none
            # of its files replaced either, and of the two manifests one takes the place.
            heartbeat()
            if self._location.sha256(marker) is None:
                staging.place([file.name for file in missing])
                self._location.place_new(f"{folder}/{self._manifest}", marker)
            staging.clear()
            stored = self._location.sha256(marker)
        if stored == manifest_sha:
            return self._folder(manifest_sha)
        self._location.clear(folder)
        return None

    def fetch(self, final: Path, hashes_of: Callable[[bytes], Mapping[str, str]]) -> bool:
        """Download the set as the directory ``final`` unless that is there; False when there is no complete set.

        ``hashes_of`` reads a manifest: SHA-256 of every other file by its name. Raises OSError: a file is missing, or not its manifest's.
        """
        if final.is_dir():
            return True
        final.parent.mkdir(parents=True, exist_ok=True)
        with arriving(final):
            # Another process may have fetched it while this one waited for the lock.
            if final.is_dir():
                return True
            partial = f".{final.name}.fetching-"
            for abandoned in final.parent.glob(f"{partial}*"):  # of a process that was killed; the lock is ours
                shutil.rmtree(abandoned, ignore_errors=True)
            manifest = self.manifest()
            if manifest is None:
                return False
            hashes = hashes_of(manifest)
            # A manifest may come from anywhere, and must not write over other files of this machine.
            for name in hashes:
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise OSError(f"its manifest names {name}, which is outside of it")
            folder = _retried(lambda: self._folder(hashlib.sha256(manifest).hexdigest()))
            with tempfile.TemporaryDirectory(prefix=partial, dir=final.parent, ignore_cleanup_errors=True) as temporary:
                staged = Path(temporary)
                for name, digest in hashes.items():
                    self._download(f"{folder}/{name}", name, digest, staged)
                (staged / self._manifest).write_bytes(manifest)
                publish_directory(staged, final)
        return True

    def _folder(self, manifest_sha: str) -> str:
        """Folder of the published files; those of earlier releases lie beside the manifest."""
        folder = content_folder(self._name, manifest_sha)
        return self._name if self._location.size(f"{folder}/{self._manifest}") is None else folder

    def _download(self, path: str, name: str, digest: str, staged: Path) -> None:
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)

        def attempt() -> None:
            try:
                self._location.get(path, target)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, f"{name} is missing there, although the manifest names it") from None
            if sha256(target) != digest:
                raise OSError(f"{name} is not the file that its manifest describes (another SHA-256, {ATTEMPTS} times)")

        _retried(attempt)


def _retried(work: Callable[[], T]) -> T:
    """Repeat ``work`` after passing failures: a busy server, a cut connection, a damaged transfer."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

    wait = wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S)
    stop = stop_after_attempt(ATTEMPTS) | stop_after_delay(LONGEST_S)
    return Retrying(stop=stop, wait=wait, retry=retry_if_exception(_may_pass), reraise=True)(work)


def _may_pass(error: BaseException) -> bool:
    lasting = isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "errno", None) in _LASTING
    return is_failure(error) and not lasting
