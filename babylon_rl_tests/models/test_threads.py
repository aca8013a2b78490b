"""Threads that torch computes with: as many as OMP_NUM_THREADS says, asleep while they wait; and its memory, which is used again."""

import os
import platform
import subprocess
import sys

import pytest

from babylon_rl.models.threads import usable_cores

pytestmark = pytest.mark.slow

CORES = min(4, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("asked", "expected"), [(None, CORES), ("1", 1), ("7", 7), ("0", CORES), ("", CORES), ("many", CORES)])
def test_omp_num_threads_is_honoured(monkeypatch: pytest.MonkeyPatch, asked: str | None, expected: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert usable_cores() == expected


def test_a_command_has_the_wait_policy_before_anything_can_import_torch() -> None:
    asked = (
        "import sys; from babylon_rl.cli.caches import keep_caches_at_home as keep; keep();"
        "import os; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    free = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert subprocess.run([sys.executable, "-c", asked], env=free, capture_output=True, text=True, check=True).stdout == "False PASSIVE\n"


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's allocator")
def test_memory_of_a_result_is_used_again_by_the_next_one() -> None:
    asked = (
        "import resource, threading\n"
        "from babylon_rl.models.threads import set_threads\n"
        "set_threads(1)\n"
        "import torch\n"
        "def results():\n"
        "    for _ in range(20):\n"
        "        torch.ones(2**21)\n"  # 8 MB each: 2,048 pages, if they come from the system
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    thread = threading.Thread(target=results)\n"
        "    thread.start(); thread.join()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        # The fewest of some rounds: a small object may now and then lie where a result was, so that the next one takes new pages.
        "print(min(faults() for _ in range(10)))\n"
    )
    printed = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 2048
