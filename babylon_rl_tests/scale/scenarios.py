"""Judged backfills on several machines; each scenario asserts that nothing was made twice or lost, and says how long it took.

The judge answers after a latency and one request at a time for each run, so that a backfill takes as long as its answers.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg

from babylon_rl.judge.scoring import HOURS_PER_RUN
from babylon_rl.serving.dagster_client import hour_tags
from babylon_rl.windows import window_stretches
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.scale.machines import PASSWORD, Machine, Redis, Site, fill, hour
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.trace_receiver import TraceReceiver

ORDERS = 2  # requests for each hour
# Of a run; two more of Dagster's runs wait in the broker than there are workers. Hours are judged when the scenario asks, by whom it says.
SETTINGS = {
    "JUDGE_CONCURRENCY": "1", "JUDGE_ORDERS": str(ORDERS), "JUDGE_MAX_ORDERS": str(ORDERS), "MAX_CONCURRENT_RUNS": "6",
    "AUTOMATION_STATUS": "stopped",
}  # fmt: skip
QUEUES = ("hours", "judge")
BY_EXECUTOR, EXECUTOR_JOB = "babylon_rl_tests.scale.by_executor", "score_by_executor"


Way = Callable[[list[str]], AbstractContextManager[None]]  # starts to judge some hours; its end waits for what it started


@dataclass(frozen=True)
class Row:
    """A line of the table: how long the backfill took, how many requests the judge got twice."""

    scenario: str
    hours: int
    seconds: float
    repeated: int
    remark: str = ""


@dataclass
class Scenarios:
    """A site with its broker and the receiver of its spans, and the number of the next hour to be made."""

    site: Site
    broker: Redis
    receiver: TraceReceiver
    next_hour: int = 0

    def backfill(
        self, name: str, hours: int, workers: int, fault: Callable[[list[Machine], list[str]], str] | None = None, repeats: int = 0
    ) -> Row:
        """Judge new hours on so many workers; ``fault`` strikes once some are judged, says what it did, and may repeat some requests."""
        machines = [self.site.worker(f"{name.replace(' ', '-')}-{number}", *QUEUES) for number in range(workers)]
        for machine in machines:
            machine.ready()

        @contextlib.contextmanager
        def asked(windows: list[str]) -> Iterator[None]:
            self.site.backfill("scored_groups", windows)
            yield

        row = self.judged(name, hours, asked, None if fault is None else lambda windows: fault(machines, windows), repeats)
        self.site.clear()
        return row

    def judged(self, name: str, hours: int, way: Way, fault: Callable[[list[str]], str] | None = None, repeats: int = 0) -> Row:
        """Make new hours and have them judged in some way; its seconds begin with the first scores."""
        with psycopg.connect(self.site.url) as connection:
            windows = fill(connection, self.next_hour, hours)
        self.next_hour += hours
        asked = self.site.asked()
        with way(windows):
            self.site.wait(lambda: self.site.scored(windows))
            began_s = time.monotonic()
            remark = ""
            if fault is not None:
                self.site.wait(lambda: self.site.scored(windows) > 3)
                began_s = time.monotonic()
                remark = fault(windows)
            self.site.wait(lambda: self.site.scored(windows) == hours, 400 + 2 * hours)
            seconds = time.monotonic() - began_s
            self.site.wait(self.site.at_rest)
        row = Row(name, hours, seconds, self.site.asked() - asked - ORDERS * hours, remark)
        self.check(windows, row, repeats)
        return row

    def one_process(self, hours: int) -> Row:
        """The same work by one command, without workers."""

        @contextlib.contextmanager
        def command(windows: list[str]) -> Iterator[None]:
            end = hour(self.next_hour)
            score = ["python", "-m", "babylon_rl", "score", "--from", windows[0], "--to", end]
            with self._process("one-process", *score) as process:
                yield
                assert process.wait(120) == 0

        return self.judged("one process", hours, command)

    def by_executor(self, hours: int) -> Row:
        """Celery's executor: each run a process that sends its steps to the worker, one run after another."""
        url = self.site.broker
        broker = {"broker": url, "backend": "rpc://" if url.startswith("amqp") else url}  # RabbitMQ keeps no results
        config = self.site.directory / "executor.yaml"
        config.write_text(json.dumps({"execution": {"config": broker}}))

        @contextlib.contextmanager
        def steps(windows: list[str]) -> Iterator[None]:
            execute = ["python", "-m", "dagster", "job", "execute", "-m", BY_EXECUTOR, "-j", EXECUTOR_JOB, "-c", str(config), "--tags"]
            stretches = window_stretches(windows, HOURS_PER_RUN)
            script = " && ".join(shlex.join([*execute, json.dumps(hour_tags(first, last))]) for first, last in stretches)
            worker = ["dagster-celery", "worker", "start", "-A", "dagster_celery.app", "-y", str(config), "--", "--concurrency=1"]
            runs = ["bash", "-c", script]
            with self._without_daemon(), self._process("executor-worker", *worker), self._process("executor-runs", *runs) as process:
                yield
                assert process.wait(600) == 0

        return self.judged("Celery's executor", hours, steps)

    @contextlib.contextmanager
    def _without_daemon(self) -> Iterator[None]:
        """Suspend the daemon: it would end runs without a heartbeat of their own."""
        assert self.site.dev is not None
        daemon = self.site.dev.group(1)
        for process in daemon:
            process.suspend()
        try:
            yield
        finally:
            for process in daemon:
                process.resume()

    @contextlib.contextmanager
    def _process(self, name: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process group with the variables of a machine of its own and of its Dagster; nothing of it is left at the end."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = self.site.environment | {"BABYLON_RL_HOME": str(self.site.directory / name), "PATH": path}
        script = 'eval "$(python -m babylon_rl env)" && exec "$@"'
        with (self.site.directory / f"{name}.log").open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", script, "bash", *command], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def check(self, windows: Sequence[str], row: Row, repeats: int = 0) -> None:
        """Every hour was judged and made; nothing was asked twice but what was in flight; no secret is in a log."""
        assert self.site.scored(windows) == len(windows)
        made = self.site.query(
            "SELECT count(DISTINCT partition) FROM babylon_dagster.event_logs WHERE asset_key = %s AND partition = ANY(%s) "
            "AND dagster_event_type = 'ASSET_MATERIALIZATION'", '["scored_groups"]', list(windows),
        )  # fmt: skip
        assert made == [(len(windows),)], made
        twice = self.site.query(
            """SELECT "window", "agentId" FROM babylon_rl.episode_scores WHERE "window" = ANY(%s) GROUP BY 1, 2 HAVING count(*) > 1""",
            list(windows),
        )
        assert twice == []
        assert row.repeated <= repeats, row
        for log in self.site.directory.glob("*.log"):
            assert PASSWORD not in log.read_text(), log

    def worker_killed(self, hours: int) -> Row:
        """A machine is lost with its run."""

        def kill(machines: list[Machine], windows: list[str]) -> str:
            machines[0].kill()
            return "one of two machines lost"

        return self.backfill("worker killed", hours, 2, kill, repeats=1)

    def broker_emptied(self, hours: int) -> Row:
        """The broker is killed with what waits in it, and comes back empty."""

        def restart(machines: list[Machine], windows: list[str]) -> str:
            self.broker.kill()
            time.sleep(5)
            self.broker.start()
            return "away for 5 s, then empty"

        return self.backfill(f"{self.broker.name} emptied", hours, 2, restart)

    def cut_off(self, hours: int, broker: bool) -> Row:
        """A machine loses the broker, or Postgres, and gets it back after two minutes."""
        away_s, lost = 120, self.broker.name if broker else "Postgres"

        with Proxy(f"postgresql://u@127.0.0.1:{self.broker.port}/" if broker else self.site.url) as proxy:
            port = proxy.url.rpartition(":")[2].partition("/")[0]
            through = {"CELERY_BROKER_URL": self.broker.address.format(port=port)} if broker else {"DATABASE_URL": proxy.url}
            self.site.worker(f"cut-off-from-{lost}", *QUEUES, **through).ready()

            def cut(machines: list[Machine], windows: list[str]) -> str:
                proxy.cut(away=True)
                time.sleep(away_s)
                proxy.away = False
                return f"one of two machines cut off for {away_s} s"

            return self.backfill(f"cut off from {lost}", hours, 1, cut, repeats=2)

    def older_code(self, hours: int) -> Row:
        """A worker with other code refuses a run and ends; another takes it."""
        code = self.site.directory / "older-code"
        for name in ("babylon_rl", "migrations"):
            shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, code)
        sorted((code / "migrations").glob("[0-9]*.sql"))[-1].unlink()
        older = self.site.worker("older", *QUEUES, code=code).ready()
        with psycopg.connect(self.site.url) as connection:
            windows = fill(connection, self.next_hour, hours)
        self.next_hour += hours
        began_s = time.monotonic()
        self.site.backfill("scored_groups", windows)
        self.site.wait(lambda: older.process.poll() is not None)
        said = older.log.read_text()
        assert "Install the same version here, then start it again." in said, said
        assert self.site.scored(windows) == 0
        newer = self.site.worker("newer", *QUEUES).ready()
        self.site.wait(lambda: self.site.scored(windows) == hours)
        self.site.wait(self.site.at_rest)
        row = Row("older code", hours, time.monotonic() - began_s, 0, "refused by one worker, made by the next")
        newer.stop()
        self.check(windows, row)
        ((run,),) = self.site.query("SELECT run_id FROM babylon_dagster.runs WHERE status = 'SUCCESS' ORDER BY id DESC LIMIT 1")
        # Its process ended right after it, and its spans were sent.
        assert UUID(str(run)).hex in {span.trace for span in self.receiver.spans if span.name.startswith("run ")}
        self.site.clear()
        return row


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| scenario | hours | seconds | requests repeated | |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.scenario} | {row.hours} | {row.seconds:.0f} | {row.repeated} | {row.remark} |" for row in rows)])
