"""Other processes that use an embedded server, the end of a server's sessions, and ports for servers."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import babylon_rl
from babylon_rl.store.connection import Connection

ROOT = Path(babylon_rl.__file__).resolve().parents[1]
_HOLD = """
import subprocess, sys
from pathlib import Path
from babylon_rl.store.embedded import use_server
with use_server(Path(sys.argv[1])) as url:
    if len(sys.argv) > 2:
        print(subprocess.Popen(sys.argv[2:], **dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.DEVNULL)).pid, flush=True)
    print(url, flush=True)
    sys.stdin.read()
"""


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Holder:
    """A process that uses the server under ``home`` until it is told to leave; ``child`` is a program that it starts meanwhile."""

    def __init__(self, home: Path, child: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(home), *child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.child = bool(child)
        self.child_pid = 0

    def url(self) -> str:
        """Wait until the server can be used."""
        assert self.process.stdout is not None and self.process.stderr is not None
        if self.child:
            self.child_pid = int(self.process.stdout.readline())
        url = self.process.stdout.readline().strip()
        assert url, self.process.stderr.read()
        return url

    def leave(self) -> int:
        """Let it end as it should; its exit code."""
        self.process.communicate(timeout=60)
        return self.process.returncode

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def end_other_sessions(connection: Connection) -> None:
    """End every session on this database but the connection's own; return when the server has let go of them (10 s at most)."""
    connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
