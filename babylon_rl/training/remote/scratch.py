"""Scratch directories for openpipe-art below BABYLON_RL_HOME/tmp, each locked by its process.

A killed process leaves its directory behind but loses the lock; the next process that makes a directory removes it.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

PREFIX = "art-"
_GATE = ".art.lock"  # held while directories are made and removed, so that none goes between its making and its locking


class Scratch:
    """Empty directory ``path``, owned by the caller until ``close``; also a context manager."""

    def __init__(self, home: Path) -> None:
        root = home / "tmp"
        root.mkdir(parents=True, exist_ok=True)
        gate = os.open(root / _GATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            # Remove directories of processes that died; a live one still holds its lock.
            for left in root.glob(f"{PREFIX}*"):
                _remove_if_nobodys(left)
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            os.close(gate)

    def close(self) -> None:
        """Remove the directory and its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove_if_nobodys(directory: Path) -> None:
    try:
        lock = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return  # it was closed just now
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)
