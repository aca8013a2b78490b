"""Machines of the scale tests: Redis or RabbitMQ, a judge, `babylon-rl dev` and workers.

Each is a process tree with a state directory of its own. Where the system allows it (root on Linux), a worker has a host name and process
ids of its own as well, so that nobody else sees whether it lives: its heartbeat alone says so, as on another machine.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import psycopg

from babylon_rl.serving.dagster_client import RANGE_END, RANGE_START
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.windows import next_window, window_of, window_range
from babylon_rl_tests.e2e.dev import Dev, ask, running_dev
from babylon_rl_tests.rows import START, insert, make_call, make_step, make_trajectory
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.scripted_judge.server import running
from babylon_rl_tests.store.servers import ROOT, free_port

PASSWORD = "swordfish-of-the-broker"
AGENTS = 5
# Only what is asked for runs.
QUIET = {"AUTOMATION_STATUS": "stopped", "FIRST_WINDOW": "2025-11-01T00:00"}
_APART = ["unshare", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child=KILL"]
LAUNCH = (
    "mutation($what: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $what) "
    "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"
)


def hour(number: int) -> str:
    """The id of one of the hours that ``fill`` writes."""
    return window_of(START + timedelta(hours=number))


def fill(connection: Connection, first: int, hours: int) -> list[str]:
    """Write ready hours of a game, from number ``first`` on; no two have the same texts, so that no answer of a judge serves two."""
    for number in range(first, first + hours):
        steps = [make_step(step, calls=[make_call(response=f"hold {number}/{step}")]) for step in range(5)]
        insert(
            connection,
            "trajectories",
            [
                make_trajectory(
                    f"t{number}-{agent}", f"agent-{agent}", steps=steps, minute=60 * number + 5 + agent, windowId=hour(number),
                    scenarioId=hour(number), finalPnL=10.0 * agent,
                )
                for agent in range(AGENTS)
            ],
        )  # fmt: skip
    return [hour(number) for number in range(first, first + hours)]


class Redis:
    """A server with a password on a port of its own that keeps nothing on disk."""

    name, program, address = "Redis", "redis-server", f"redis://:{PASSWORD}@127.0.0.1:{{port}}/0"

    def __init__(self, directory: Path) -> None:
        self.port, self.directory = free_port(), directory
        self.url = self.address.format(port=self.port)
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", PASSWORD, "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([self.program, *options], cwd=self.directory, stdout=subprocess.DEVNULL)
        wait_for(lambda: _listens(self.port), 20, lambda: "Redis does not answer")

    def kill(self) -> None:
        """End it at once; what it held is lost."""
        self.process.kill()
        self.process.wait()

    @classmethod
    def missing(cls) -> str:
        """What to do where it is not installed."""
        program = Path(cls.program).name
        return f"{program} is not installed here (Debian: apt install {program})"


class RabbitMQ(Redis):
    """The same of RabbitMQ, as Debian installs it; Erlang's port mapper, which it starts, goes on."""

    name, program, address = "RabbitMQ", "/usr/lib/rabbitmq/bin/rabbitmq-server", f"amqp://babylon:{PASSWORD}@127.0.0.1:{{port}}//"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        home = self.directory / "rabbitmq"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        (home / "plugins").write_text("[].")
        config = home / "rabbitmq.conf"
        config.write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndefault_user = babylon\ndefault_pass = {PASSWORD}\n")
        own = {
            "NODENAME": f"node{self.port}@localhost", "DIST_PORT": str(free_port()), "MNESIA_BASE": str(home / "data"),
            "LOG_BASE": str(home / "log"), "PID_FILE": str(home / "pid"), "ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "CONFIG_FILE": str(config), "CONF_ENV_FILE": os.devnull,
        }  # fmt: skip
        environment = os.environ | {"HOME": str(home)} | {f"RABBITMQ_{name}": value for name, value in own.items()}
        self.process = subprocess.Popen([self.program], env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        wait_for(lambda: _speaks_amqp(self.port), 120, lambda: "RabbitMQ does not answer")

    def kill(self) -> None:
        """End it at once; what it held is lost."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


BROKERS = {broker.name.lower(): broker for broker in (Redis, RabbitMQ)}


class Machine:
    """A worker in a process tree of its own; ``command`` is `babylon-rl worker ...`, as a user types it."""

    def __init__(self, site: "Site", name: str, command: Sequence[str], code: Path = ROOT, **settings: str) -> None:
        self.name, self.log, self.apart = name, site.directory / f"{name}.log", site.apart
        command = in_python(command)
        if self.apart:
            command = [*_APART, "sh", "-c", f'hostname {name}; exec "$@"', "sh", *command]
        environment = site.environment | {"BABYLON_RL_HOME": str(site.directory / name), "PYTHONPATH": str(code)} | settings
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=code, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def ready(self) -> "Machine":
        """Wait until it takes runs."""
        wait_for(lambda: "Waits for runs" in self.log.read_text(), 120, lambda: f"{self.name} does not start", self.log)
        return self

    def processes(self) -> list[psutil.Process]:
        """The worker, then the processes of its runs."""
        if self.process.poll() is not None:
            return []
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return tree[1:] if self.apart else tree  # without `unshare` itself

    def process_of(self, holder: str) -> psutil.Process | None:
        """The process that a heartbeat names as the holder of its run, if it is of this machine."""
        host, number = holder.partition("@")[0], int(holder.split("/")[1])
        if self.apart and host != self.name:
            return None
        return next((process for process in self.processes() if _own_number(process) == number), None)

    def kill(self) -> None:
        """SIGKILL for all of it, as a power cut."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Tell the worker to end, as a service does."""
        self.processes()[0].terminate()

    def ended(self, limit_s: float = 90) -> int:
        """Wait until it has ended; its exit code."""
        return self.process.wait(limit_s)


@dataclass
class Site:
    """A database, a broker and a judge that machines share."""

    directory: Path
    url: str
    broker: str
    settings: dict[str, str]
    apart: bool
    machines: list[Machine] = field(default_factory=list)
    dev: Dev | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a machine; nothing of the caller's own settings."""
        return inherited() | {"DATABASE_URL": self.url, "CELERY_BROKER_URL": self.broker} | self.settings

    def worker(self, name: str, *queues: str, runs: int = 1, code: Path = ROOT, **settings: str) -> Machine:
        """Start another machine, with a worker of some queues and of so many runs at once; ``settings`` win over those of the site."""
        command = ["babylon-rl", "worker", *(part for queue in queues for part in ("--queue", queue)), "--runs", str(runs)]
        return self.machine(name, command, code, **settings)

    def machine(self, name: str, command: Sequence[str], code: Path = ROOT, **settings: str) -> Machine:
        """Start another machine with the command of a worker."""
        self.machines.append(Machine(self, name, command, code, **settings))
        return self.machines[-1]

    def executed_by(self, machine: Machine) -> dict[str, psutil.Process]:
        """The runs that a machine executes now, with their processes."""
        held = self.query(
            """SELECT h."runId", h."holder" FROM babylon_rl.run_heartbeats h JOIN babylon_dagster.runs r ON r.run_id = h."runId"
            WHERE r.status = 'STARTED' AND h."holder" <> ''"""
        )
        return {run: process for run, holder in held if (process := machine.process_of(holder)) is not None}

    def waiting(self) -> list[str]:
        """The runs that nobody executes yet."""
        statement = "SELECT run_id FROM babylon_dagster.runs WHERE status IN ('QUEUED', 'NOT_STARTED', 'STARTING')"
        return [run for (run,) in self.query(statement)]

    def hours_of(self, runs: Iterable[str]) -> list[list[str]]:
        """The hours of each of some runs of a backfill."""
        statement = "SELECT value FROM babylon_dagster.run_tags WHERE run_id = %s AND key IN (%s, %s) ORDER BY value"
        ranges = [[value for (value,) in self.query(statement, run, RANGE_START, RANGE_END)] for run in runs]
        return [list(window_range(first, next_window(last))) for first, last in ranges]

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a query finds now."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(statement, parameters).fetchall()

    def backfill(self, asset: str, hours: Sequence[str]) -> str:
        """Start a backfill of some hours, as the UI does; its id."""
        assert self.dev is not None
        what = {"assetSelection": [{"path": [asset]}], "partitionNames": list(hours)}
        launched = ask(self.dev.url(), LAUNCH, what=what)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def asked(self) -> int:
        """Requests that the judge got."""
        with urlopen(self.settings["JUDGE_BASE_URL"].removesuffix("/v1") + "/stats", timeout=10) as answer:
            return int(json.load(answer)["requests"])

    def answers(self, hours: Sequence[str]) -> int:
        """Answers of the judge about some hours; each request that was asked once has one."""
        return int(self.query('SELECT count(*) FROM babylon_rl.judge_requests WHERE "window" = ANY(%s)', list(hours))[0][0])

    def scored(self, hours: Sequence[str]) -> int:
        """How many of some hours have scores."""
        return int(self.query('SELECT count(*) FROM babylon_rl.group_scores WHERE "window" = ANY(%s)', list(hours))[0][0])

    def status(self, run: str) -> str:
        """How a run stands."""
        return str(self.query("SELECT status FROM babylon_dagster.runs WHERE run_id = %s", run)[0][0])

    def runs(self) -> dict[str, int]:
        """How many runs there are of each status."""
        return dict(self.query("SELECT status, count(*) FROM babylon_dagster.runs GROUP BY 1"))  # type: ignore[arg-type]

    def at_rest(self) -> bool:
        """True once every run has ended."""
        return not set(self.runs()) & {"QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"}

    def wait(self, condition: Callable[[], Any], limit_s: float = 400) -> Any:
        """What a condition gives once it holds."""
        logs = [machine.log for machine in self.machines]
        if self.dev is not None:
            logs.append(self.dev.log)
        return wait_for(condition, limit_s, self.state, *logs)

    def state(self) -> str:
        """Runs, their heartbeats, and what the server is busy with."""
        asked = (
            "SELECT run_id, status FROM babylon_dagster.runs",
            "SELECT *, now() FROM babylon_rl.run_heartbeats",
            "SELECT pid, state, wait_event, xact_start, left(query, 90) FROM pg_stat_activity WHERE state <> 'idle'",
        )
        return "\n".join(str(self.query(statement)) for statement in asked)

    def clear(self) -> None:
        """Kill all workers."""
        while self.machines:
            self.machines.pop().kill()


@contextlib.contextmanager
def site(
    directory: Path, url: str, judge: ScriptedJudge, *, apart: bool = False, kind: type[Redis] = Redis, **settings: str
) -> Iterator[tuple[Site, Redis]]:
    """The first machine: `babylon-rl dev` with a broker and a judge; at the end nothing of them runs.

    ``apart``: workers with process ids of their own, where the system allows it.
    """
    broker = kind(directory)
    try:
        with running(judge) as judge_url:
            chosen = QUIET | {"JUDGE_MODEL": "openai/scripted", "JUDGE_BASE_URL": judge_url} | settings
            made = Site(directory, url, broker.url, chosen, apart and can_be_apart())
            with running_dev(directory / "dev", DATABASE_URL=url, CELERY_BROKER_URL=broker.url, **chosen) as made.dev:
                try:
                    yield made, broker
                finally:
                    made.clear()
    finally:
        broker.kill()


def wait_for(condition: Callable[[], Any], limit_s: float, otherwise: Callable[[], str], *logs: Path) -> Any:
    """What a condition gives once it holds; the state and the ends of the logs if it does not."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "\n".join([otherwise(), *(f"{log}:\n{log.read_text()[-3000:]}" for log in logs)])
        time.sleep(0.1)
    return found


def inherited() -> dict[str, str]:
    """The caller's variables without its settings of this project."""
    unset = {name.upper() for name in Settings.model_fields} | {"DAGSTER_HOME", "BABYLON_RL_DAGSTER_URL"}
    return {name: value for name, value in os.environ.items() if name not in unset}


def in_python(command: Sequence[str]) -> list[str]:
    """A command of babylon-rl, executed by this Python."""
    assert command[0] == "babylon-rl", command
    return [sys.executable, "-m", "babylon_rl", *command[1:]]


def _own_number(process: psutil.Process) -> int:
    """The number that a process has for itself, among process ids of its own."""
    with contextlib.suppress(OSError):
        found = re.search(r"^NSpid:.*\t(\d+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) if found else process.pid
    return process.pid


def _speaks_amqp(port: int) -> bool:
    """It listens for seconds before it lets anybody in."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"AMQP\0\0\x09\x01")
        return bool(connection.recv(1))
    return False


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def can_be_apart() -> bool:
    """True where a process may have process ids and a host name of its own."""
    return shutil.which("unshare") is not None and subprocess.run([*_APART, "true"], capture_output=True).returncode == 0
