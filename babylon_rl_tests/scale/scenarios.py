"""Judged backfills on several machines; each scenario asserts that nothing was lost or made twice but what a fault explains.

After a fault it asserts too that the work went on within the bound that the how-to says.

The judge answers after a latency and one request at a time for each run, so that a backfill takes as long as its answers.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from babylon_rl.serving.dagster_client import DagsterClient
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.windows import utc_now
from babylon_rl_tests.e2e.dev import ask
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.scale.machines import PASSWORD, Machine, Redis, Site, fill, hour
from babylon_rl_tests.scale.results import BUSY_S, Row, bound_s
from babylon_rl_tests.scored import read_hours
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.trace_receiver import TraceReceiver

ORDERS = 2  # requests for each hour
# Of a run; more runs wait in the broker than there are workers. Hours are judged when the scenario asks, by whom it says.
SETTINGS = {
    "JUDGE_CONCURRENCY": "1", "JUDGE_ORDERS": str(ORDERS), "MAX_CONCURRENT_RUNS": "6",
    # Hours are added while the UI runs, and without automation its graph would end with those that were there.
    "AUTOMATION_STATUS": "stopped", "LAST_WINDOW": "2100-01-01T00:00",
}  # fmt: skip
QUEUES = ("hours",)
TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"
TERMINATED_S = 30  # until the run has ended with its process

Way = Callable[[list[str]], AbstractContextManager[None]]  # starts to judge some hours; its end waits for what it started


@dataclass(frozen=True)
class Fault:
    """A fault and its effect on runs.

    ``what_stops`` begins its row in the how-to, ``strikes`` gives the runs that it stops, once there are any, and it lasts as long as the
    block of ``lasts``. So many ``requests`` may be repeated, and hours of these runs made again where they are ``lost``. The work goes on
    when each of them makes hours again and ``goes_on`` holds.
    """

    what_stops: str
    remark: str
    strikes: Callable[[], Sequence[str]]
    lasts: Callable[[], AbstractContextManager[None]]
    lost: bool = False
    requests: int = 0
    goes_on: Callable[[], bool] = lambda: True


@dataclass
class Scenarios:
    """A site with its broker and the receiver of its spans, and the number of the next hour to be made."""

    site: Site
    broker: Redis
    receiver: TraceReceiver
    next_hour: int = 0

    def backfill(self, name: str, hours: int, workers: int, fault: Callable[[list[Machine]], Fault] | None = None, runs: int = 1) -> Row:
        """Judge new hours on so many workers, each of so many runs at once; a fault strikes once some are judged."""
        machines = [self.site.worker(f"{name.replace(' ', '-')}-{number}", *QUEUES, runs=runs) for number in range(workers)]
        for machine in machines:
            machine.ready()

        @contextlib.contextmanager
        def asked(windows: list[str]) -> Iterator[None]:
            self.site.backfill("scored_groups", windows)
            yield

        row = self.judged(name, hours, asked, None if fault is None else fault(machines))
        self.site.clear()
        return row

    def judged(self, name: str, hours: int, way: Way, fault: Fault | None = None) -> Row:
        """Make new hours and have them judged in some way; its seconds begin with the first scores, or with the fault."""
        windows = self._new_hours(hours)
        asked, struck, waited_s = self.site.asked(), list[list[str]](), None
        with way(windows):
            self.site.wait(lambda: self.site.scored(windows))
            began_s = time.monotonic()
            if fault is not None:
                struck = self.site.wait(lambda: self.site.scored(windows) > 3 and self.site.hours_of(fault.strikes()))
                began_s = time.monotonic()
                waited_s = self._waited_s(fault, struck)
            self.site.wait(lambda: self.site.scored(windows) == hours, 400 + 2 * hours)
            seconds = time.monotonic() - began_s
            self.site.wait(self.site.at_rest)
        repeated = self.site.asked() - asked - self.site.answers(windows)
        row = Row(
            name, hours, seconds, repeated, self.remade(windows, struck if fault and fault.lost else []),
            waited_s, None if fault is None else bound_s(fault.what_stops), "" if fault is None else fault.remark,
        )  # fmt: skip
        self.check(windows, row, 0 if fault is None else fault.requests)
        return row

    def _new_hours(self, hours: int) -> list[str]:
        """Make new hours, read as the graph does."""
        with connect(self.site.url) as connection:
            windows = fill(connection, self.next_hour, hours)
            read_hours(connection, windows, Settings(_env_file=None), utc_now())
        self.next_hour += hours
        return windows

    def _waited_s(self, fault: Fault, struck: Sequence[Sequence[str]]) -> float:
        """Seconds from the end of a fault until each of the runs that it struck makes hours again."""
        with fault.lasts():
            before = [self.site.scored(hours) for hours in struck]
        ended_s = time.monotonic()
        assert all(made < len(hours) for made, hours in zip(before, struck, strict=True)), f"{fault.what_stops}: it came too late"
        self.site.wait(lambda: fault.goes_on() and all(self.site.scored(hours) > made for made, hours in zip(before, struck, strict=True)))
        return time.monotonic() - ended_s

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

    def remade(self, windows: Sequence[str], lost: Sequence[Sequence[str]]) -> int:
        """Count the hours that were materialized again.

        Only hours of ``lost`` runs may be; scores of an hour were written once.
        """
        events = self.site.query(
            """SELECT partition, event::jsonb @? '$.**.metadata_entries[*] ? (@.label == "changed" && @.entry_data.value == true)'
            FROM babylon_dagster.event_logs
            WHERE asset_key = %s AND partition = ANY(%s) AND dagster_event_type = 'ASSET_MATERIALIZATION'""",
            '["scored_groups"]', list(windows),
        )  # fmt: skip
        made, judged = Counter(window for window, _ in events), Counter(window for window, anew in events if anew)
        assert set(made) == set(windows), set(windows) - set(made)
        again = {window for window, times in made.items() if times > 1}
        assert again <= {window for hours in lost for window in hours}, sorted(again)
        assert max(judged.values(), default=0) <= 1, judged.most_common(3)
        return len(again)

    def check(self, windows: Sequence[str], row: Row, repeats: int = 0) -> None:
        """Every hour was judged, nothing asked twice but what was in flight, nothing late; no secret is in a log."""
        assert self.site.scored(windows) == len(windows)
        assert 0 <= row.repeated <= repeats, row
        assert row.waited_s is None or row.bound_s is None or row.waited_s <= row.bound_s + BUSY_S, row
        for log in self.site.directory.glob("*.log"):
            assert PASSWORD not in log.read_text(), log

    def worker_killed(self, hours: int) -> Row:
        """A machine is lost with its run."""

        def fault(machines: list[Machine]) -> Fault:
            @contextlib.contextmanager
            def lost() -> Iterator[None]:
                machines[0].kill()
                yield

            remark = "one of two machines lost"
            return Fault("a worker with its machine", remark, lambda: self.begun(machines[0]), lost, lost=True, requests=1)

        return self.backfill("worker killed", hours, 2, fault)

    def process_killed(self, hours: int) -> Row:
        """The process of a run is killed, and its worker lives."""

        def fault(machines: list[Machine]) -> Fault:
            @contextlib.contextmanager
            def killed() -> Iterator[None]:
                for process in self.site.executed_by(machines[0]).values():
                    process.kill()
                yield

            remark = "the process of one of two runs killed"
            return Fault("the process of a run", remark, lambda: self.begun(machines[0]), killed, lost=True, requests=1)

        return self.backfill("process killed", hours, 2, fault)

    def worker_ended(self, hours: int) -> Row:
        """A worker of two runs gets SIGTERM, and another one starts, as a service is restarted."""

        def fault(machines: list[Machine]) -> Fault:
            (ended,) = machines

            @contextlib.contextmanager
            def restart() -> Iterator[None]:
                executed, (third,) = self.site.executed_by(ended), self.site.hours_of(self.site.waiting())
                ended.end()
                yield
                assert ended.ended() == 0, ended.log.read_text()
                assert [self.site.status(run) for run in executed] == ["SUCCESS", "SUCCESS"], self.site.state()
                assert self.site.scored(third) == 0, "it took another run"
                self.site.worker("started-instead", *QUEUES).ready()

            def waits() -> list[str]:
                return self.site.waiting() if len(self.begun(ended)) == 2 else []

            return Fault("a worker is told to end", "told to end beside two runs, and another one started", waits, restart)

        return self.backfill("worker ended", hours, 1, fault, runs=2)

    def run_terminated(self, hours: int) -> Row:
        """A run is terminated in the UI, and its hours are asked for again."""

        def fault(machines: list[Machine]) -> Fault:
            @contextlib.contextmanager
            def terminated() -> Iterator[None]:
                assert self.site.dev is not None
                ((run, process),) = self.site.executed_by(machines[0]).items()
                answer = ask(self.site.dev.url(), TERMINATE, run=run)["terminateRun"]
                assert answer["__typename"] == "TerminateRunSuccess", answer
                self.site.wait(lambda: self.site.status(run) == "CANCELED" and not process.is_running(), TERMINATED_S)
                yield
                self.site.backfill("scored_groups", self.site.hours_of([run])[0])

            remark = "its hours asked for again"
            return Fault("a run is terminated", remark, lambda: self.begun(machines[0]), terminated, lost=True, requests=1)

        return self.backfill("run terminated", hours, 1, fault)

    def broker_emptied(self, hours: int) -> Row:
        """The broker is killed with what waits in it, and comes back empty."""

        @contextlib.contextmanager
        def restart() -> Iterator[None]:
            self.broker.kill()
            yield
            time.sleep(5)
            self.broker.start()

        # Those that waited have lost their messages.
        fault = Fault("Redis, emptied or not", "away for 5 s, then empty", self.site.waiting, restart)
        return self.backfill(f"{self.broker.name} emptied", hours, 2, lambda machines: fault)

    def cut_off(self, hours: int, broker: bool) -> Row:
        """A machine loses the broker, or Postgres, and gets it back after two minutes."""
        away_s, lost = 120, self.broker.name if broker else "Postgres"

        with Proxy(f"postgresql://u@127.0.0.1:{self.broker.port}/" if broker else self.site.url) as proxy:
            port = proxy.url.rpartition(":")[2].partition("/")[0]
            through = {"CELERY_BROKER_URL": self.broker.address.format(port=port)} if broker else {"DATABASE_URL": proxy.url}
            machine = self.site.worker(f"cut-off-from-{lost}", *QUEUES, **through).ready()
            struck, refused = list[list[str]](), 0

            @contextlib.contextmanager
            def cut() -> Iterator[None]:
                nonlocal refused, struck
                struck = self.site.hours_of(self.site.executed_by(machine))
                proxy.cut(away=True)
                yield
                time.sleep(away_s)
                # A run needs no broker.
                assert not broker or all(self.site.scored(hours) == len(hours) for hours in struck), struck
                refused = proxy.connections
                proxy.away = False

            remark = f"one of two machines cut off for {away_s} s"
            row = "a worker is cut off from Redis" if broker else "a worker is cut off from Postgres"
            # Once it has found the broker again it takes runs.
            found_again = (lambda: proxy.connections > refused) if broker else lambda: True
            fault = Fault(row, remark, lambda: self.begun(machine), cut, lost=not broker, requests=0 if broker else 2, goes_on=found_again)
            return self.backfill(f"cut off from {lost}", hours, 1, lambda machines: fault)

    def begun(self, machine: Machine) -> list[str]:
        """Runs of a machine with hours made and hours left."""
        runs = list(self.site.executed_by(machine))
        return [run for run, hours in zip(runs, self.site.hours_of(runs), strict=True) if 1 < self.site.scored(hours) < len(hours) - 3]

    def older_code(self, hours: int) -> Row:
        """A worker with other code fails the runs that it gets with a sentence; Dagster runs them again, on another worker."""
        code = self.site.directory / "older-code"
        for name in ("babylon_rl", "migrations"):
            shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, code)
        # Of the same migrations: a worker with fewer refuses the database when it starts.
        with (code / "babylon_rl" / "windows.py").open("a") as file:
            file.write("# Other code.\n")
        older = self.site.worker("older", *QUEUES, code=code).ready()
        windows = self._new_hours(hours)
        began_s = time.monotonic()
        assert self.site.dev is not None
        first = DagsterClient(self.site.dev.url()).launch_scoring(windows[0], windows[-1])
        self.site.wait(lambda: self.site.status(first) == "FAILURE")
        said = self.site.query("SELECT event FROM babylon_dagster.event_logs WHERE run_id = %s", first)
        assert any("Install the same version here, then start it again." in event for (event,) in said), said
        assert self.site.scored(windows) == 0
        older.end()
        newer = self.site.worker("newer", *QUEUES).ready()
        self.site.wait(lambda: self.site.scored(windows) == hours)
        self.site.wait(self.site.at_rest)
        seconds = time.monotonic() - began_s
        row = Row("older code", hours, seconds, remade=self.remade(windows, []), remark="refused by one worker, made by the next")
        newer.end()
        assert newer.ended() == 0, newer.log.read_text()
        self.check(windows, row)
        ((run,),) = self.site.query("SELECT run_id FROM babylon_dagster.runs WHERE status = 'SUCCESS' ORDER BY id DESC LIMIT 1")
        # Its process ended right after it, and its spans were sent.
        assert UUID(str(run)).hex in {span.trace for span in self.receiver.spans if span.name.startswith("run ")}
        self.site.clear()
        return row
