"""Commands as processes of their own, forked from one that has imported Dagster and the commands.

Those imports are most of the time of a command. A worker of pytest starts one server at its first command. Every command has its own
environment, directory, output and exit code, as from a shell; what tests how a command starts, dies or is interrupted starts an
interpreter instead.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from babylon_rl.cli import COMMANDS
from babylon_rl_tests.store.servers import ROOT

# Nothing that reads the environment when it is imported.
_COMMANDS = sorted({f"babylon_rl.cli.{module}" for module, _ in COMMANDS.values()})
PRELOADED = ("babylon_rl.automation.code_location", "babylon_rl.automation.launch", *_COMMANDS)
PROGRAMS = {name: entry_points(group="console_scripts")[name] for name in ("babylon-rl", "dagster")}


def run_command(
    *arguments: str, environment: Mapping[str, str], directory: Path, timeout_s: float = 240, program: str = "babylon-rl"
) -> subprocess.CompletedProcess[str]:
    """Run ``babylon-rl``, or another program of PROGRAMS, to its end.

    Raises:
        subprocess.TimeoutExpired: it was killed after ``timeout_s``.
    """
    with tempfile.TemporaryDirectory() as place:
        said, complained = Path(place) / "stdout", Path(place) / "stderr"
        request = {
            "program": program, "arguments": arguments, "environment": dict(environment), "directory": str(directory),
            "stdout": str(said), "stderr": str(complained), "timeout_s": timeout_s,
        }  # fmt: skip
        code = _answer(request)
        done = subprocess.CompletedProcess([program, *arguments], code, said.read_text(), complained.read_text())
    if code == -signal.SIGALRM:
        raise subprocess.TimeoutExpired(done.args, timeout_s, done.stdout, done.stderr)
    return done


def _answer(request: dict[str, Any]) -> int:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


@functools.cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "babylon_rl_tests.command_server"]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    with server:
        assert server.stdin is not None
        server.stdin.close()


def _serve() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    for program in PROGRAMS.values():
        program.load()
    gc.freeze()  # children share these pages
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _command(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _command(request: dict[str, Any]) -> None:
    """Be the command, and exit."""
    code = 1
    with _streams(request["stdout"], request["stderr"]):
        try:
            os.chdir(request["directory"])
            os.environ.clear()
            os.environ.update(request["environment"])
            tempfile.tempdir = None
            signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])  # its default action ends the process
            sys.argv[:] = [request["program"], *request["arguments"]]
            PROGRAMS[request["program"]].load()()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        # As an interpreter ends: threads, then what was registered.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    os._exit(code)


@contextmanager
def _streams(stdout: str, stderr: str) -> Iterator[None]:
    """Standard output and error into files, as descriptors too, for what the command starts."""
    for number, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
