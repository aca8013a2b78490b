"""A running ``babylon-rl dev``, as a user has it in a terminal."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil

from babylon_rl.settings import Settings
from babylon_rl_tests.store.servers import ROOT, free_port

# A shell's background jobs ignore SIGINT, and so would what they start.
_DEV = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from babylon_rl.cli import main
main()
"""


class Dev:
    """The command with its output in ``log``; ``group`` is the process group of what it started."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.log = home.parent / f"{home.name}.log"
        unset = {name.upper() for name in Settings.model_fields} | {"DAGSTER_HOME"}
        self.environment = {name: value for name, value in os.environ.items() if name not in unset}
        self.environment |= {"BABYLON_RL_HOME": str(home), **settings}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                # Two that start at once find the same port free, and the second would have the first one's page.
                [sys.executable, "-c", _DEV, "dev", "--port", str(free_port())],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def url(self) -> str:
        """The UI's address, once it answers."""
        said = self._wait(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text()))
        address = str(said[0])
        self._wait(lambda: _answers(address))
        return address

    def group(self, at_least: int) -> list[psutil.Process]:
        """Dagster's processes, once there are so many of them."""
        return list(self._wait(lambda: found if len(found := self._members()) >= at_least else None))

    def daemon(self) -> psutil.Process:
        """Dagster's daemon."""
        return self._wait(lambda: next((process for process in self._members() if "dagster._daemon" in process.cmdline()), None))

    def babylon_rl(self, *arguments: str) -> str:
        """Another command on the same state directory; its output."""
        command = [sys.executable, "-m", "babylon_rl", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, check=True, capture_output=True, text=True).stdout

    def processor_s(self) -> float:
        """Processor seconds that it has used, its children with it: a measure of waiting that does not depend on the machine's load."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        total = 0.0
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def postgres(self) -> psutil.Process:
        """The embedded server."""
        return psutil.Process(int((self.home / "postgres" / "postmaster.pid").read_text().split()[0]))

    def _members(self) -> list[psutil.Process]:
        notes = [json.loads(path.read_text() or "{}") for path in (self.home / "children").glob("*.json")]
        leaders = [psutil.Process(note["group"]["pid"]) for note in notes if note]
        return [process for leader in leaders for process in (leader, *leader.children(recursive=True))]

    def _wait(self, look: Any, limit_s: float = 240) -> Any:
        deadline = time.monotonic() + limit_s
        while not (found := look()):
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.2)
        return found


def _answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/server_info", timeout=5):
            return True
    except (URLError, OSError):
        return False


def ask(address: str, query: str, **variables: Any) -> dict[str, Any]:
    """The answer of the UI's GraphQL endpoint."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    try:
        with urlopen(Request(f"{address}/graphql", body, {"Content-Type": "application/json"}), timeout=60) as answer:
            found = json.load(answer)
    except HTTPError as refused:  # the answer says which error it was
        raise AssertionError(f"{address} answered {refused.code}: {refused.read().decode()}") from refused
    assert "errors" not in found, found["errors"]
    return dict(found["data"])


def living(processes: list[psutil.Process], limit_s: float = 20) -> list[psutil.Process]:
    """Those that are still there after a while."""
    _, left = psutil.wait_procs(processes, timeout=limit_s)
    return [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def running_dev(home: Path, **settings: str) -> Iterator[Dev]:
    """The command, and at the end nothing of it whatever happened."""
    dev = Dev(home, **settings)
    try:
        yield dev
    finally:
        if dev.process.poll() is None:
            dev.process.send_signal(signal.SIGTERM)
        try:
            dev.process.wait(40)
        except subprocess.TimeoutExpired:
            dev.process.kill()
            dev.process.wait()
        dev.babylon_rl("stop")
