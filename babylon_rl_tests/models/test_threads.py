"""Threads that torch computes with: as many as OMP_NUM_THREADS says, asleep while they wait, and no reason for other results."""

import os
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
