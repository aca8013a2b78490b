"""Threads of torch: as many as OMP_NUM_THREADS or the cores."""

import os

from babylon_rl.errors import require
from babylon_rl.heap import keep_freed_memory


def usable_cores() -> int:
    """Number of threads: OMP_NUM_THREADS, else the available cores, at most 4."""
    configured = os.environ.get("OMP_NUM_THREADS", "").strip()
    if configured.isdecimal() and int(configured) > 0:
        return int(configured)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores))


def set_threads(threads: int | None = None) -> None:
    """Limit torch to ``threads`` threads (None: ``usable_cores``) and keep freed memory."""
    keep_freed_memory()
    require("torch")
    import torch

    torch.set_num_threads(threads or usable_cores())
