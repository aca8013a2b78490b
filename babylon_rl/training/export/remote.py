"""fsspec URL as a destination: each file is written locally, uploaded as a whole, and removed locally.

The manifest goes up last. A file already uploaded with the same content is not sent again: one of an earlier export, or of an interrupted
export, which a journal in the state directory records.
"""

import hashlib
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from babylon_rl.errors import UsageError
from babylon_rl.training.export.files import MANIFEST, Manifest, PublishedFile, published, read_manifest

_JOURNAL = msgspec.json.Decoder(PublishedFile)


def shown_url(url: str) -> str:
    """URL for display: without user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class RemoteDestination:
    """A directory behind an fsspec URL; ``work`` is a local directory for temporary files and the journal.

    Raises:
        UsageError: no file system has that scheme, or the package that knows it is not installed.
    """

    def __init__(self, url: str, work: Path, *, force: bool = False) -> None:
        self.shown = shown_url(url).rstrip("/")
        self._fs, root = file_system(url, self.shown)
        self._root = root.rstrip("/")
        self._work = work
        self._force = force
        self._journal = work / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.jsonl"
        self._scratch = Path()
        self._held = Manifest(state="complete")
        self._known: set[str] = set()
        self._up: dict[str, PublishedFile] = {}
        self._planned: dict[str, None] = {}
        self._unsaid = False
        self._files: list[PublishedFile] = []

    def __enter__(self) -> Self:
        self._fs.invalidate_cache()
        manifest = read_manifest(self._fs.cat_file(self._at(MANIFEST))) if self._fs.exists(self._at(MANIFEST)) else None
        if manifest is None and not self._force and self._holds_anything():
            raise UsageError(f"{self.shown} holds files that no export wrote: choose an empty place, or give --force to write beside them.")
        self._held = manifest or self._held
        self._known = set(self._held.hashes())
        self._work.mkdir(parents=True, exist_ok=True)
        # A complete manifest replaces the journal; an incomplete one is continued from it.
        if self._held.state == "complete":
            self._journal.unlink(missing_ok=True)
            self._up = {file.name: file for file in self._held.files}
        elif self._journal.exists():
            self._up = {file.name: file for file in _journaled(self._journal.read_bytes())}
        self._scratch = Path(tempfile.mkdtemp(dir=self._work))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self._scratch)

    def plan(self, names: Iterable[str]) -> None:
        """Record names for the manifest before their files go up.

        The next export then recognises the files after an interruption.
        """
        for name in names:
            self._unsaid |= name not in self._planned
            self._planned[name] = None

    def new(self, name: str) -> Path:
        """Return a path in a local scratch directory."""
        if not self._force and name not in self._known and self._fs.exists(self._at(name)):
            raise UsageError(f"{self.shown}/{name} is in the way and no export wrote it: move it away, or give --force.")
        self.plan([name])
        # The remote manifest names a file before it is uploaded.
        if self._unsaid:
            planned = [PublishedFile(name, 0, "") for name in self._planned]
            self._put_manifest(Manifest(state="incomplete", files=[*self._held.files, *planned]))
            self._unsaid = False
        path = self._scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finished(self, name: str) -> None:
        """Upload the file, unless it is up already, and remove the local copy."""
        path = self._scratch / name
        file = published(name, path)
        if self._up.get(name) != file or not self._is_up(file):
            self._fs.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
            self._fs.put_file(str(path), self._at(name))
        path.unlink()
        self._files.append(file)
        with self._journal.open("ab") as journal:
            journal.write(msgspec.json.encode(file) + b"\n")

    def commit(self, about: Mapping[str, Any]) -> list[str]:
        """Remove old files of earlier exports, then write the complete manifest."""
        kept = {file.name for file in self._files}
        old = [name for name in self._known if name not in kept]
        for name in old:
            if self._fs.exists(self._at(name)):
                self._fs.rm_file(self._at(name))
        self._put_manifest(Manifest(state="complete", about=dict(about), files=self._files))
        self._journal.unlink(missing_ok=True)
        return [f"{self.shown}/{name}" for name in [*(file.name for file in self._files), MANIFEST]]

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _holds_anything(self) -> bool:
        try:
            return any(entry.rstrip("/") != self._root for entry in self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            return False

    def _is_up(self, file: PublishedFile) -> bool:
        try:
            return bool(self._fs.info(self._at(file.name))["size"] == file.bytes)
        except FileNotFoundError:
            return False

    def _put_manifest(self, manifest: Manifest) -> None:
        self._fs.makedirs(self._root, exist_ok=True)
        self._fs.pipe_file(self._at(MANIFEST), manifest.encoded())


def _journaled(content: bytes) -> list[PublishedFile]:
    """Decode the journal's entries; a truncated last line is ignored."""
    entries = []
    for line in content.splitlines():
        try:
            entries.append(_JOURNAL.decode(line))
        except msgspec.DecodeError:
            break
    return entries


def file_system(url: str, shown: str) -> tuple[Any, str]:
    """Open the fsspec file system of a URL; return it with the path. Raises UsageError.

    ``shown`` is the URL in error messages.
    """
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as missing:
        raise UsageError(
            f"{shown} needs a package that is not installed here: {str(missing).rstrip('.')}. Install it into this environment with pip."
        ) from None
    except ValueError:
        raise UsageError(f"{shown} cannot be opened: no file system of that kind is known; file, s3, gs, abfs and sftp are some.") from None
    return fs, str(root)
