"""Memory of a process: freed memory kept or given back, imports excluded from garbage collection.

Only glibc can be configured; other C libraries keep their defaults. A process keeps one heap for all threads either way: each further one
would have free memory of its own.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8


@contextmanager
def kept_whole() -> Iterator[None]:
    """Collect no garbage in the block, and never the objects made there.

    Imports stay: a search for garbage in them takes a tenth of a start's time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def keep_freed_memory() -> None:
    """Keep freed memory, for a process that computes.

    The results of an operation are megabytes; where they come from the system each time, it clears every page anew, a tenth of the time.
    """
    _set({_ARENA_MAX: 1, _TOP_PAD: 64 * 2**20, _TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 32 * 2**20})


def return_freed_memory() -> None:
    """Give freed memory back from now on, for a process that stays after large work."""
    _set({_ARENA_MAX: 1, _TOP_PAD: 128 * 2**10, _TRIM_THRESHOLD: 128 * 2**10, _MMAP_THRESHOLD: 128 * 2**10})
    _call("malloc_trim", 0)


def _set(options: dict[int, int]) -> None:
    for option, value in options.items():
        _call("mallopt", option, value)


def _call(name: str, *arguments: int) -> None:
    import ctypes  # not for every command, each of which begins with this file

    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:  # glibc's alone
        function(*arguments)
