"""Names of processes, unique enough to tell whether the named process still runs.

Process ids are reused, and host names are shared by containers and outlive a reboot. So a name holds the host, its boot and its process
namespace (if the system has them, as Linux does), the process id, and the process's start time.
"""

import os
import socket
import sys
from pathlib import Path

import psutil

START_TOLERANCE_S = 5.0  # between two readings of one start, which are computed from the clock outside of Linux
_BOOT, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


def own_name() -> str:
    """The name of this process."""
    return f"{_place()}/{os.getpid()}/{_started_s(psutil.Process()):.2f}"


def is_running(name: str) -> bool | None:
    """True while the named process runs; None if this machine cannot tell."""
    place, pid, started_s = (*name.split("/"), "", "")[:3]
    if place != _place() or not pid.isdecimal():
        return None
    if not psutil.pid_exists(int(pid)):
        return False
    try:
        process = psutil.Process(int(pid))
        return process.status() != psutil.STATUS_ZOMBIE and abs(_started_s(process) - float(started_s)) < START_TOLERANCE_S
    except (psutil.Error, ValueError):  # another user's, hidden from us, or one that ends right now
        return None


def described(name: str) -> str:
    """A process's name for messages: ``process PID on HOST``."""
    place, pid, *_ = (*name.split("/"), "")
    return f"process {pid} on {place.partition('@')[0]}"


def _place() -> str:
    try:
        return f"{socket.gethostname()}@{_BOOT.read_text().strip()}@{_NAMESPACE.readlink()}"
    except OSError:
        return socket.gethostname()


def _started_s(process: psutil.Process) -> float:
    """Start in seconds; on Linux since the boot, as clocks may be set."""
    started_s = process.create_time()
    return started_s - psutil.boot_time() if sys.platform == "linux" else started_s
