"""A directory for what a session of tests makes and drops hundreds of times: in memory, where the machine has room there.

Copies of a database are some 25 MB in 400 files each; on a virtual disk making and dropping one has taken a second, in memory 50 ms.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_MEMORY = Path("/dev/shm")
_ROOM = 4 * 2**30
_NAME = "babylon-rl-tests-"


@contextmanager
def quick_directory(otherwise: Path) -> Iterator[Path]:
    """A new directory that is gone afterwards: in memory, or in ``otherwise`` where that is too small (containers have 64 MB)."""
    parent = otherwise
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM:
        parent = _MEMORY
        _remove_those_of_the_dead()
    with tempfile.TemporaryDirectory(prefix=f"{_NAME}{os.getpid()}-", dir=parent, ignore_cleanup_errors=True) as made:
        yield Path(made)


def _remove_those_of_the_dead() -> None:
    """What sessions left that were killed: memory is not cleaned as temporary directories are."""
    for left in _MEMORY.glob(f"{_NAME}*-*"):
        pid = left.name.removeprefix(_NAME).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
