"""Programs that a command starts and stays with: each in a process group of its own, ended as a whole when the command ends.

A note of every group lies in the state directory while it runs, so that what a killed command left behind is found by the next one.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

GRACE_S = 20.0


def run_child(command: Sequence[str], environment: Mapping[str, str], home: Path, cwd: Path | None = None) -> int:
    """Run a program to its end and return its exit code; SIGINT and SIGTERM to us end it and everything it started.

    Args:
        environment: variables on top of our own.
        home: the state directory, where the note of the running group lies.
    """
    process = None
    try:
        with _deferred_signals():  # one that came while the program starts would leave it behind
            process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=cwd, start_new_session=True)
            _write_note(home, process.pid, command)
        return process.wait()
    finally:
        if process is not None:
            _end(process)
            _note(home, process.pid).unlink(missing_ok=True)


def stop_children(home: Path, *, orphans_only: bool) -> list[str]:
    """End the groups that commands started and say which; with ``orphans_only`` just those whose command has died."""
    stopped = []
    for path in sorted((home / "children").glob("*.json")):
        try:
            note = json.loads(path.read_text())
            group, command = note["group"], str(note["command"])
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        if orphans_only and _lives(note["parent"]):
            continue
        if _lives(group):
            _signal(group["pid"], signal.SIGINT)
            _wait_for(group)
            stopped.append(f"Stopped {command} (process {group['pid']}).")
        if _identity(group["pid"])["started"] in (0.0, group["started"]):  # otherwise the pid is in use again, by somebody else
            _end_group(group["pid"])
        path.unlink(missing_ok=True)
    return stopped


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends; their handlers run then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _note(home: Path, pid: int) -> Path:
    return home / "children" / f"{pid}.json"


def _write_note(home: Path, pid: int, command: Sequence[str]) -> None:
    path = _note(home, pid)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"group": _identity(pid), "parent": _identity(os.getpid()), "command": " ".join(command)}
    path.write_text(json.dumps(note))


def _identity(pid: int) -> dict[str, float]:
    """A pid with its start time: pids are used again, the two together are not."""
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "started": 0.0}


def _lives(identity: Mapping[str, float]) -> bool:
    try:
        process = psutil.Process(int(identity["pid"]))
        return process.create_time() == identity["started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C in its terminal would, and more firmly after a while; then whatever it leaves in its group."""
    if process.poll() is None:
        _signal(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            _signal(process.pid, signal.SIGKILL)
    _end_group(process.pid)
    process.wait()


def _wait_for(identity: Mapping[str, float]) -> None:
    deadline = time.monotonic() + GRACE_S
    while _lives(identity) and time.monotonic() < deadline:
        time.sleep(0.1)


def _end_group(group: int) -> None:
    """What the leader left behind gets a moment after SIGTERM, then SIGKILL."""
    _signal(group, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while _members(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(group, signal.SIGKILL)


def _members(group: int) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return
