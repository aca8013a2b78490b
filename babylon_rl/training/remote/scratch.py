"""Directories for what openpipe-art writes while it works: below BABYLON_RL_HOME/tmp, each locked by the process that made it.

A process that is killed leaves its directory behind; the lock goes with the process, and whoever makes the next one removes it.
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
    """An empty directory ``path``, the caller's until ``close``. Use as a context manager, or close it."""

    def __init__(self, home: Path) -> None:
        root = home / "tmp"
        root.mkdir(parents=True, exist_ok=True)
        gate = os.open(root / _GATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            for left in root.glob(f"{PREFIX}*"):
                _remove_if_nobodys(left)
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            os.close(gate)

    def close(self) -> None:
        """Remove the directory with all that is in it."""
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
