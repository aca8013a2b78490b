"""Freed memory is given back to the system where that was asked for."""

import platform
import subprocess
import sys

import pytest

_ASKED = """
import psutil
from babylon_rl.heap import keep_freed_memory, return_freed_memory
keep_freed_memory()
freed, kept = [bytes(4000) for _ in range(20_000)], bytes(4000)
before = psutil.Process().memory_info().rss
del freed
held = psutil.Process().memory_info().rss
return_freed_memory()
print((before - held) >> 20, (before - psutil.Process().memory_info().rss) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's allocator")
def test_freed_memory_is_kept_until_it_is_to_be_given_back() -> None:
    printed = subprocess.run([sys.executable, "-c", _ASKED], capture_output=True, text=True, check=True).stdout
    held_mb, given_back_mb = map(int, printed.split())
    assert held_mb < 10  # of 80 MB
    assert given_back_mb > 60
