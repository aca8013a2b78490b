"""One hour judged by a language model at URL, in a process without Dagster: `python -m benchmarks.judged_hour DATABASE HOME WINDOW URL`.

A step of fat_hour.py. The exit code is 1 when the process holds more than the bound.
"""

import os
import resource
import sys
import time
from pathlib import Path

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.scoring import score_windows
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.windows import window_end

BOUND_MB = 250


def report(name: str, started: float, said: str) -> int:
    """Print what this process has spent since ``started``, and return its peak memory in MB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    held = used.ru_maxrss // 1024
    print(
        f"{name:32} {time.perf_counter() - started:8.1f} s by the clock, {used.ru_utime + used.ru_stime:6.1f} s of its processor, "
        f"{held:5} MB, load {os.getloadavg()[0]:.0f}  {said}",
        flush=True,
    )
    return held


def judged(database: str, home: Path, window: str, url: str) -> str:
    """Judge the hour; its scores in words."""
    settings = Settings(_env_file=None, babylon_rl_home=home, judge_model="openai/scripted", judge_base_url=url)  # type: ignore[call-arg]
    with connect(database, autocommit=True) as connection:
        sync_windows(connection, [window], settings, window_end(window))
        scored = score_windows(connection, [window], settings, window_end(window), force=True)
    if window not in scored:
        return f"pending {scored.pending}, quarantined {scored.quarantined}"
    group = scored[window]
    assert group.judgement is not None
    return f"{group.group_size} agents, {group.judgement.orders} orders, {group.judgement.requests} requests"


if __name__ == "__main__":
    began = time.perf_counter()
    sys.exit(int(report("fat judged", began, judged(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:5])) > BOUND_MB))
