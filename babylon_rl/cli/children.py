"""Child programs of commands, each in its own process group, ended with all their descendants.

While a group runs, the state directory holds a note about it, so that the next command finds the remains of a killed one. Signals that
arrive while a program ends wait until it has ended; a further one after IMPATIENT_S kills it.
"""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from babylon_rl.files.durable import write_atomically
from babylon_rl.interrupts import handling

GRACE_S = 20.0
REST_GRACE_S = 5.0
IMPATIENT_S = 1.0
CLOCK_TOLERANCE_S = 5.0
_ENDED = 0


def run_child(
    command: Sequence[str], environment: Mapping[str, str], home: Path, stdout: IO[bytes] | None = None, stderr: IO[bytes] | None = None
) -> int:
    """Run a program to its end and return its exit code.

    SIGINT, SIGTERM and SIGHUP to this process end the program and all its descendants. After that the signal has its usual effect (SIGINT:
    KeyboardInterrupt). A call in another thread than the main one gets no signals; ``stop_children`` ends its program.

    Args:
        environment: variables on top of this process's own.
        home: the state directory, where the note of the running group lies.
        stdout: the file for its standard output; by default that of this process. So is stderr for what it says.
    """
    _note(home, 0).parent.mkdir(parents=True, exist_ok=True)  # before anything runs: a program without its note is never found again

    def tell_of_end() -> None:
        process.wait()
        events.put(_ENDED)

    with _signals_queued() as events:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            note = {"group": _identity(process.pid), "parent": _identity(os.getpid()), "command": " ".join(command)}
            # Whole at once: `stop` takes half a note for a damaged one, removes it, and never finds the program again.
            write_atomically(_note(home, process.pid), json.dumps(note).encode())
            threading.Thread(target=tell_of_end, daemon=True).start()
            # The first event decides: the program's end, or a signal to this process.
            first = events.get()
        finally:
            _end_group(process.pid, _impatience(events))
            _note(home, process.pid).unlink(missing_ok=True)
    if first != _ENDED:
        signal.raise_signal(first)
    return process.wait()


def stop_children(home: Path, *, orphans_only: bool) -> list[str]:
    """End the groups that commands started; return a sentence for each. ``orphans_only``: only those whose command has died."""
    stopped = []
    for path in sorted((home / "children").glob("*.json")):
        try:
            note = json.loads(path.read_text())
            group, command = note["group"], str(note["command"])
        except FileNotFoundError:  # its program has ended since
            continue
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        # A group whose command still runs belongs to that command.
        if orphans_only and _lives(note["parent"]):
            continue
        if _lives(group):
            stopped.append(f"Stopped {command} (process {group['pid']}).")
        if _is_there(group) or not psutil.pid_exists(group["pid"]):  # otherwise the pid is in use again, by somebody else
            _end_group(group["pid"])
        path.unlink(missing_ok=True)
    return stopped


@contextmanager
def _signals_queued() -> Iterator["queue.SimpleQueue[int]"]:
    """Put SIGINT, SIGTERM and SIGHUP into a queue until the block ends. Its ``put`` may interrupt its ``get``."""
    events: queue.SimpleQueue[int] = queue.SimpleQueue()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    with handling(dict.fromkeys(numbers, lambda number, _: events.put(number))):
        yield events


def _impatience(events: "queue.SimpleQueue[int]") -> Callable[[], bool]:
    """A function that returns True after a further signal, IMPATIENT_S from now or later.

    Earlier ones do not count: `timeout`, for one, sends its signal twice at once.
    """
    began = time.monotonic()
    late = False

    def hurried() -> bool:
        nonlocal late
        while not events.empty():
            late |= events.get() != _ENDED and time.monotonic() - began > IMPATIENT_S
        return late

    return hurried


def _note(home: Path, pid: int) -> Path:
    return home / "children" / f"{pid}.json"


def _identity(pid: int) -> dict[str, float]:
    """A pid with its start time; pids are reused, the pair is unique."""
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "started": 0.0}


def _lives(identity: Mapping[str, float]) -> bool:
    with suppress(psutil.NoSuchProcess):
        return _is_there(identity) and _runs(psutil.Process(int(identity["pid"])))
    return False


def _is_there(identity: Mapping[str, float]) -> bool:
    # The start is computed from the clock, which may have been set meanwhile.
    return abs(_identity(int(identity["pid"]))["started"] - identity["started"]) < CLOCK_TOLERANCE_S


def _end_group(group: int, hurried: Callable[[], bool] = lambda: False) -> None:
    """End a process group as Ctrl-C in its terminal would.

    Processes that are left after their leader get SIGTERM and, a moment later, SIGKILL. What has left the group for a session of its own is
    ended as well, unless its parents had gone before.
    """
    family = _family(group)
    leader = {process for process in family if process.pid == group}
    # Ctrl-C first, so that the leader can end its children itself.
    if leader:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGINT)
        family |= _wait(group, leader, GRACE_S, hurried)
    # Then whatever is left, including processes that moved to another session.
    for number, grace_s in ((signal.SIGTERM, REST_GRACE_S), (signal.SIGKILL, 1.0)):
        family |= _family(group)
        for process in filter(_runs, family):
            try:
                process.send_signal(number)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        _wait(group, family, grace_s, hurried)


def _wait(group: int, awaited: Collection[psutil.Process], limit_s: float, hurried: Callable[[], bool]) -> set[psutil.Process]:
    """Wait for processes to end; return all members of the family seen meanwhile.

    At most ``limit_s`` seconds, or until ``hurried()`` is true.
    """
    deadline = time.monotonic() + limit_s
    seen = _family(group)
    while any(map(_runs, awaited)) and time.monotonic() < deadline and not hurried():
        time.sleep(0.1)
        seen |= _family(group)
    return seen


def _family(group: int) -> set[psutil.Process]:
    """The living members of a process group, and all their descendants."""
    children: dict[int, list[psutil.Process]] = {}
    parents = []
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process)
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group:
                parents.append(process)
    family = set(parents)
    while parents:
        parents = [child for parent in parents for child in children.get(parent.pid, []) if child not in family]
        family.update(parents)
    return {process for process in family if _runs(process)}


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
