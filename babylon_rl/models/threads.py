"""Threads of torch: as many as OMP_NUM_THREADS or the cores, sleeping while they wait.

OpenMP's threads spin by default, and on busy cores a spinning thread delays the one that it waits for: two parallel trainings then take
several times as long. The wait policy is read when torch is first imported, so every process of this package sets it at its start
(cli/caches.py); ``set_threads`` sets it for other programs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from babylon_rl.errors import require
from babylon_rl.heap import keep_freed_memory

WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE"}
Computed = TypeVar("Computed")


def usable_cores() -> int:
    """Number of threads: OMP_NUM_THREADS, else the available cores, at most 4."""
    configured = os.environ.get("OMP_NUM_THREADS", "").strip()
    if configured.isdecimal() and int(configured) > 0:
        return int(configured)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores))


def set_threads(threads: int | None = None) -> None:
    """Limit torch to ``threads`` threads (None: ``usable_cores``) and keep freed memory; call it before torch is imported."""
    keep_freed_memory()
    for name, value in WAIT_POLICY.items():
        os.environ.setdefault(name, value)
    require("torch")
    import torch

    torch.set_num_threads(threads or usable_cores())


@contextmanager
def one_thread_unless(worth_more: bool) -> Iterator[None]:
    """Compute with one thread of torch within the block, or with as many as before."""
    import torch

    before = torch.get_num_threads()
    if worth_more or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def computing_on(threads: int, compute: Callable[[], Computed]) -> Computed:
    """Compute in this thread with so many threads of torch; other threads keep their number."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return compute()
