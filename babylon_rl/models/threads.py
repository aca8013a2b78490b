"""How torch uses the processor: as many threads as OMP_NUM_THREADS says, or as there are cores; they sleep while they wait.

OpenMP's threads spin by default, and on busy cores a spinning thread holds up the one that it waits for: two trainings side by side
then take several times as long. The wait policy is read when torch is first imported, so every process of ours has it from its start
(cli/caches.py); ``set_threads`` sets it for the programs that start otherwise.
"""

import os

WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE"}


def usable_cores() -> int:
    """OMP_NUM_THREADS if it is a number, else the cores that this process may use, at most 4: a small model gains nothing from more."""
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores))


def set_threads(threads: int | None = None) -> None:
    """Let torch compute with ``threads`` threads (None: ``usable_cores``); call it before anything else imports torch."""
    for name, value in WAIT_POLICY.items():
        os.environ.setdefault(name, value)
    import torch

    torch.set_num_threads(threads or usable_cores())
