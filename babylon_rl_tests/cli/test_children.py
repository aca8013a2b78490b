"""Programs that a command starts end with it, whatever they started themselves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from babylon_rl.cli.children import IMPATIENT_S, run_child, stop_children
from babylon_rl_tests.store.servers import ROOT

_RUN = """
import sys
from pathlib import Path
from babylon_rl.cli.children import run_child
run_child(["bash", "-c", sys.argv[2]], {}, Path(sys.argv[1]))
"""
WITH_CHILD = "sleep 300 & echo $!; wait"
# Deaf to what is polite, with a child in a session of its own.
STUBBORN = "trap '' INT TERM; setsid sleep 300 & echo $!; while true; do sleep 1; done"


@pytest.fixture
def parent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command that runs a program that runs a program, and the pid of the last."""
    command = [sys.executable, "-c", _RUN, str(tmp_path), getattr(request, "param", WITH_CHILD)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    yield process, grandchild
    process.kill()
    stop_children(tmp_path, orphans_only=False)
    process.communicate(timeout=30)


def wait_for_note(home: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(home.glob("children/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def insist(process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)


def test_exit_code_and_environment_are_the_programs(tmp_path: Path) -> None:
    assert run_child(["sh", "-c", "exit $WANTED"], {"WANTED": "7"}, tmp_path) == 7
    assert list((tmp_path / "children").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_grandchildren_too_and_may_come_twice(
    parent: tuple[subprocess.Popen[str], int], number: signal.Signals, tmp_path: Path
) -> None:
    process, grandchild = parent
    process.send_signal(number)
    os.killpg(process.pid, number)  # as `timeout` does
    assert gone(grandchild)
    assert process.wait(60) != 0
    assert list((tmp_path / "children").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("parent", [STUBBORN], indirect=True)
def test_a_second_signal_kills_the_stubborn(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, grandchild = parent
    process.send_signal(signal.SIGINT)
    time.sleep(IMPATIENT_S + 0.3)
    assert psutil.pid_exists(grandchild)
    again = threading.Thread(target=insist, args=(process,))  # the time runs from when the first one was noticed
    again.start()
    assert gone(grandchild)
    again.join()
    assert process.wait(60) != 0


def test_what_a_killed_command_left_is_stopped_by_the_next(parent: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    process, grandchild = parent
    wait_for_note(tmp_path)
    assert stop_children(tmp_path, orphans_only=True) == []
    process.kill()
    process.wait()
    assert len(stop_children(tmp_path, orphans_only=True)) == 1
    assert gone(grandchild)
    assert stop_children(tmp_path, orphans_only=True) == []


def test_stop_ends_the_children_of_a_living_command(parent: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    wait_for_note(tmp_path)
    assert len(stop_children(tmp_path, orphans_only=False)) == 1
    assert gone(parent[1])


@pytest.mark.long
def test_a_program_that_starts_while_others_are_stopped_is_found(tmp_path: Path) -> None:
    for _ in range(40):
        running = threading.Thread(target=run_child, args=(["sleep", "300"], {}, tmp_path), daemon=True)
        running.start()
        deadline = time.monotonic() + 20
        while running.is_alive() and time.monotonic() < deadline:
            stop_children(tmp_path, orphans_only=False)
        assert not running.is_alive()


def test_note_of_a_pid_that_is_used_again_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "children").mkdir()
    mine = {"pid": os.getpid(), "started": 1.0}
    (tmp_path / "children" / "1.json").write_text(json.dumps({"group": mine, "parent": mine, "command": "x"}))
    (tmp_path / "children" / "2.json").write_text("half a note")
    assert stop_children(tmp_path, orphans_only=True) == []
    assert list((tmp_path / "children").iterdir()) == []


def test_a_note_that_goes_before_it_is_read_is_of_a_program_that_has_ended(tmp_path: Path) -> None:
    (tmp_path / "children").mkdir()
    (tmp_path / "children" / "1.json").symlink_to(tmp_path / "gone")  # listed, and not there
    assert stop_children(tmp_path, orphans_only=False) == []
