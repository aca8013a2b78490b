"""Freed memory is kept for the next result, or given back to the system; what is imported is kept without a look for garbage.

Of freed memory glibc is told; other C libraries do as they do. A process keeps one heap for all threads either way: each further one
would have free memory of its own.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8


@contextmanager
def kept_whole() -> Iterator[None]:
    """Collect no garbage in the block, nor ever in what it made.

    What is imported stays: looking for garbage in it takes a tenth of a start's time.
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
    """Keep what is freed, for a process that computes.

    The results of an operation are megabytes; where they come from the system each time, it clears every page anew, a tenth of the time.
    """
    _set({_ARENA_MAX: 1, _TOP_PAD: 64 * 2**20, _TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 32 * 2**20})


def return_freed_memory() -> None:
    """Give back what is freed, now and from now on, for a process that stays after large work."""
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
