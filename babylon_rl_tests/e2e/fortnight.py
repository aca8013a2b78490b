"""Days of a game in minutes: agents write, hours pass, and Dagster's own daemon code ticks with a clock of its own.

Sensors, schedules, conditions and the run queue are those of `babylon-rl dev`, called in one process; runs are executed where they are
dequeued. The judge is the scripted one over HTTP, the trainer the CPU trainer on a tiny model, and how well a version plays is scripted:
each has a skill, which the gate must find out.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from unittest.mock import patch

import dagster as dg
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.asset_daemon import AssetDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import launch_scheduled_runs

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.instance import open_instance
from babylon_rl.market.spawn import SpawnRequest, players_of, spawn
from babylon_rl.settings import Settings
from babylon_rl.store.alerts import read_alerts
from babylon_rl.store.batches import read_batches
from babylon_rl.store.benchmarks import read_report
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.releases import read_rollouts
from babylon_rl.windows import window_of
from babylon_rl_tests.e2e.fortnight_location import CURRENT
from babylon_rl_tests.evaluation.endpoint import Rule, alternates, reads_news, reads_wrongly

START = datetime(2025, 11, 3)
PLAYED = range(12, 14)  # the game's hours of a day
AGENTS = 8
WAITING, ALERT = "{} hours wait for their judge.", "Alert, "
QUIET = logging.getLogger("fortnight")


def of_skill(skill: float) -> Rule:
    """Reads the news in such a share of its decisions, and trades without a view in the others; below 0 it reads them wrongly."""

    def answer(prompt: str, markets: list[str]) -> str:
        if skill < 0:
            return reads_wrongly(prompt, markets)
        return (reads_news if Random(prompt).random() < skill else alternates)(prompt, markets)

    return answer


class Skills(Mapping[str, Rule]):
    """The rule of each version, in the order in which they ask for the first time; the base has no view."""

    def __init__(self, skills: list[float]) -> None:
        self._left, self.skills = list(skills), dict[str, float]()

    def __getitem__(self, name: str) -> Rule:
        if name == "base":
            return alternates
        if name not in self.skills:
            self.skills[name] = self._left.pop(0)
        return of_skill(self.skills[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.skills)

    def __len__(self) -> int:
        return len(self.skills)


@dataclass
class Fortnight:
    """The simulation: its clock, its daemon, and the ``story`` of what happened as (moment, sentence)."""

    database: Database
    settings: Settings
    serving: Callable[..., Any]
    now: datetime = START
    story: list[tuple[datetime, str]] = field(default_factory=list)
    crash_at: str | None = None
    workspace: WorkspaceProcessContext | None = None
    _times: dict[str, Any] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=lambda: {"judge": WAITING.format(0)})
    _assets: AssetDaemon = field(default_factory=lambda: AssetDaemon({}, 0))
    _queue: QueuedRunCoordinatorDaemon = field(default_factory=lambda: QueuedRunCoordinatorDaemon(0))

    def tell(self, sentence: str) -> None:
        """Write a line of the story."""
        self.story.append((self.now, sentence))

    @contextmanager
    def running(self) -> Iterator["Fortnight"]:
        """Dagster's processes in this one, with the simulation's clock."""
        with ExitStack() as stack:
            aware = lambda: self.now.replace(tzinfo=UTC)  # noqa: E731
            stack.enter_context(patch("dagster._time._mockable_get_current_datetime", aware))
            stack.enter_context(patch("dagster._time._mockable_get_current_timestamp", lambda: aware().timestamp()))
            instance = stack.enter_context(open_instance(self.database, self.settings))
            # Runs are executed where they are dequeued, so that they have the same clock.
            instance._run_launcher = SyncInMemoryRunLauncher()
            instance._run_launcher.register_instance(instance)
            # The daemon and every tick open an instance of their own, a quarter of a second each: here all of them share this one.
            stack.enter_context(patch.object(dg.DagsterInstance, "from_ref", staticmethod(lambda ref: nullcontext(instance))))
            place = LoadableTargetOrigin(module_name="babylon_rl_tests.e2e.fortnight_location", attribute="defs")
            origin = InProcessCodeLocationOrigin(place, location_name="babylon_rl")
            self.workspace = stack.enter_context(WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)))
            stack.callback(setattr, CURRENT, "babylon", None)
            self.change()
            yield self

    def change(self, **settings: Any) -> None:
        """Other settings from now on, as after a restart with them."""
        self.settings = self.settings.model_copy(update=settings)
        CURRENT.babylon = Babylon(self.settings, self.database, lambda: self.now, self._progress, retry_after_s=0)
        CURRENT.models = self.serving

    def _progress(self, what: str, done: int, total: int) -> None:
        if self.crash_at is not None and what.startswith(self.crash_at):
            self.crash_at = None
            raise RuntimeError("nobody foresaw this")

    def tick(self) -> None:
        """One turn of every daemon: schedules, sensors, conditions, and what is queued until nothing is."""
        assert self.workspace is not None
        moment = self.now.replace(tzinfo=UTC)
        for turn in (
            launch_scheduled_runs(self.workspace, QUIET, moment, iteration_times=self._times),
            execute_sensor_iteration(self.workspace, QUIET, None, None),
        ):
            for _ in turn:
                pass
        self._drain()
        for _ in self._assets._run_iteration_impl(self.workspace, None, {}, {}) or ():
            pass
        self._drain()
        self._listen()

    def _drain(self) -> None:
        assert self.workspace is not None
        waiting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
        while self.workspace.instance.get_runs_count(waiting):
            for _ in self._queue.run_iteration(self.workspace):
                pass

    def _listen(self) -> None:
        """What a person would notice: batches, decisions and rollouts that changed, hours that wait, alerts."""
        with self.database.connect(autocommit=True) as connection:
            batches, rollouts = read_batches(connection), read_rollouts(connection)
            reports = {batch.batch_id: read_report(connection, batch.batch_id) for batch in batches}
            alerts = read_alerts(connection)
            ((waiting,),) = connection.execute("SELECT count(*) FROM babylon_rl.judge_pending").fetchall()
        told = {
            f"batch {batch.batch_id}": f"{batch.batch_id} ({batch.trajectories} trajectories, {batch.version}) is {batch.state}"
            + (f": {batch.error}" if batch.error else ".")
            for batch in reversed(batches)
        }
        told |= {f"gate {found.version}": f"Gate, {found.version}: {found.decision}. {found.reason}" for found in reports.values() if found}
        told |= {
            f"rollout {one.version}": f"{one.version} is {one.state.replace('_', ' ')} at {one.percentage:g} % of agents."
            for one in rollouts
        }
        told["judge"] = WAITING.format(waiting)
        for alert in alerts:
            key = f"alert {alert.cause} {alert.first_seen_at}"
            told[key] = self._seen.get(key, f"{ALERT}{alert.kind}: {alert.says}")
        for key, sentence in told.items():
            if self._seen.get(key) != sentence:
                self._seen[key] = sentence
                self.tell(sentence)

    def pass_hour(self, ticks: tuple[int, ...]) -> None:
        """Let an hour pass, with ticks at such minutes of the next one."""
        start = self.now.replace(minute=0) + timedelta(hours=1)
        for minute in ticks:
            self.now = start + timedelta(minutes=minute)
            self.tick()
        self.now = max(self.now, start)

    def play(self, connection: Connection) -> str:
        """The agents play the hour that has just begun, which is written at its end."""
        window = window_of(self.now)
        request = SpawnRequest(agents=AGENTS, model_agents=0, windows=1, seed=0, start=window)
        spawn(connection, request, self.now + timedelta(hours=1), None, players=players_of(request))
        connection.commit()
        return window


def hold_back(connection: Connection, window: str, share: int = 4) -> int:
    """Take some rows of an hour away, to arrive later; how many."""
    connection.execute("CREATE TABLE IF NOT EXISTS held_rows AS SELECT * FROM trajectories WHERE FALSE")
    connection.execute("CREATE TABLE IF NOT EXISTS held_logs AS SELECT * FROM llm_call_logs WHERE FALSE")
    late = """SELECT "trajectoryId" FROM trajectories WHERE "windowId" = %s AND hashtext("trajectoryId") %% %s = 0"""
    connection.execute(f'INSERT INTO held_logs SELECT * FROM llm_call_logs WHERE "trajectoryId" IN ({late})', [window, share])
    moved = connection.execute(f'INSERT INTO held_rows SELECT * FROM trajectories WHERE "trajectoryId" IN ({late})', [window, share])
    for table in ("llm_call_logs", "trajectories"):
        connection.execute(f'DELETE FROM {table} WHERE "trajectoryId" IN (SELECT "trajectoryId" FROM held_rows)')
    connection.commit()
    return moved.rowcount


def deliver(connection: Connection, now: datetime) -> int:
    """The rows that were held back arrive; how many."""
    connection.execute('UPDATE held_rows SET "updatedAt" = %s', [now])
    arrived = connection.execute("INSERT INTO trajectories SELECT * FROM held_rows").rowcount
    connection.execute("INSERT INTO llm_call_logs SELECT * FROM held_logs")
    connection.execute("TRUNCATE held_rows, held_logs")
    connection.commit()
    return arrived
