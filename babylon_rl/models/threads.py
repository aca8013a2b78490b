"""How torch uses the processor: as many threads as this process may use cores, which sleep while they wait.

OpenMP's threads spin by default, and on busy cores a spinning thread holds up the one that it waits for. The policy is read when the
library is loaded, so it is set before torch is imported.
"""

import os

WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE"}


def usable_cores() -> int:
    """Cores that this process may run on, at most 4: a small model gains nothing from more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores))


def set_threads(threads: int | None = None) -> None:
    """Let torch compute with ``threads`` threads (None: ``usable_cores``); call it before anything else imports torch."""
    for name, value in WAIT_POLICY.items():
        os.environ.setdefault(name, value)
    import torch

    torch.set_num_threads(threads or usable_cores())
