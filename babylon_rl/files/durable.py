"""Hashes, files and directories that survive a crash or a full disk, and their removal."""

import errno
import fcntl
import fnmatch
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_while_unchanged(read: Callable[[Path, *Ts], T]) -> Callable[[Path, *Ts], T]:
    """Cache the result of ``read`` for a directory until a file in it has another name, inode, size or time."""

    @lru_cache(maxsize=8)
    def known(files: tuple[tuple[str | int, ...], ...], directory: Path, *others: *Ts) -> T:
        return read(directory, *others)

    @wraps(read)
    def current(directory: Path, *others: *Ts) -> T:
        return known(_files_in(directory), directory, *others)

    return current


def _files_in(directory: Path) -> tuple[tuple[str | int, ...], ...]:
    """Name, inode, size and times of every file; empty without a directory."""
    try:
        stats = sorted((path.name, path.stat()) for path in directory.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple((name, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for name, of in stats)


def fsync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, raw: bytes | Iterable[bytes], *, private: bool = False) -> None:
    """Write a file completely or not at all; ``private``: for its owner alone. Raises OSError: it cannot be written."""
    with new_file(path, private=private) as part, part.open("wb") as file:
        file.writelines([raw] if isinstance(raw, bytes) else raw)


@contextmanager
def new_file(path: Path, *, private: bool) -> Iterator[Path]:
    """A temporary file to be written in the block, at whose end it gets its name; ``private``: for its owner alone."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        # With its rights before anything is in it.
        part.touch(mode=0o600 if private else 0o666)
        yield part
        # Renamed before its content is on the disk, it could be empty after a power failure.
        fsync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def publish_directory(staged: Path, final: Path) -> None:
    """Move a finished directory to ``final`` on the same file system, flushed, readable by others, in one step.

    An empty directory in its place is replaced. Raises OSError: it cannot be flushed, or the place is taken; ``staged`` stays.
    """
    # Sync files, then folders, then rename: a crash leaves the whole directory or none.
    for path in sorted(staged.rglob("*"), key=lambda path: path.is_dir()):
        if path.is_file():
            path.chmod(0o644)
        fsync(path)
    staged.chmod(0o755)
    fsync(staged)
    final.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(final)
    fsync(final.parent)


def copy_tree(source: Path, target: Path, leave_out: Sequence[str] = ()) -> None:
    """Copy a directory's files into a new ``target``; ``leave_out`` are patterns of names.

    Raises:
        FileNotFoundError: ``source`` is no directory.
        OSError: as it is, and not in a list of many (shutil.Error), so that a full disk is known by its number.
    """
    if not source.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        if path.is_file() and not any(fnmatch.fnmatch(path.name, pattern) for pattern in leave_out):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the kernel releases it when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(slots=True)
class Removal:
    """Number and bytes of files removed (dry run: to remove), and refused paths in words."""

    dry_run: bool = False
    files: int = 0
    bytes: int = 0
    refused: list[str] = field(default_factory=list)

    def file(self, path: Path) -> None:
        """Remove one file; one that is gone meanwhile counts for nothing."""
        try:
            size = path.lstat().st_size
            if not self.dry_run:
                path.unlink()
        except FileNotFoundError:
            return
        except OSError as refusal:
            self.refuse(path, refusal)
            return
        self.files += 1
        self.bytes += size

    def directory(self, path: Path) -> None:
        """Remove one directory if it is empty; a full one stays."""
        try:
            if not self.dry_run and not any(path.iterdir()):
                path.rmdir()
        except FileNotFoundError:
            return
        except OSError as refusal:
            self.refuse(path, refusal)

    def tree(self, directory: Path) -> None:
        """Remove a directory with its content; links are removed, not their targets."""
        for path in _deepest_first(directory):
            if path.is_dir() and not path.is_symlink():
                self.directory(path)
            else:
                self.file(path)

    def unused(self, directory: Path, before: float) -> None:
        """Remove files below ``directory`` neither read nor written since ``before`` (Unix seconds), then empty directories."""
        for path in _deepest_first(directory):
            try:
                facts = path.lstat()
            except FileNotFoundError:
                continue
            # The time at which a directory was read is no sign of use: every listing sets it, this one included.
            if path == directory or max(facts.st_atime if stat.S_ISREG(facts.st_mode) else 0, facts.st_mtime) >= before:
                continue
            if stat.S_ISDIR(facts.st_mode):
                self.directory(path)
            elif stat.S_ISREG(facts.st_mode):  # sockets and pipes belong to processes
                self.file(path)

    def refuse(self, path: Path, refusal: OSError) -> None:
        self.refused.append(f"{path} cannot be removed: {refusal.strerror or refusal}.")


def _deepest_first(directory: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(directory, topdown=False):
        # os.walk lists links to directories as folders, and does not go into them.
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in [*files, *links])
        yield Path(folder)
