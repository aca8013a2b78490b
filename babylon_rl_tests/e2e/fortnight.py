"""Days of a game in minutes: agents write, hours pass, and automation ticks with a clock of its own.

Sensors, schedules and conditions are those of `babylon-rl dev`, each evaluated here as Dagster's daemon does, and the runs that they ask
for are executed one after another in this process. The judge is the scripted one over HTTP, the trainer the CPU trainer on a tiny model,
and how well a version plays is scripted: each has a skill, which the gate must find out.
"""

import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import dagster as dg
import psycopg
import time_machine
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import SQLAlchemyError

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.jobs import CHECKS_JOB
from babylon_rl.automation.launch import QUIET
from babylon_rl.automation.sensors import checks_follow_hours
from babylon_rl.errors import BabylonError
from babylon_rl.market.spawn import SpawnRequest, players_of, spawn
from babylon_rl.serving.dagster_client import HOURS_JOB, hour_tags
from babylon_rl.settings import Settings
from babylon_rl.store.alerts import read_alerts
from babylon_rl.store.batches import read_batches
from babylon_rl.store.benchmarks import read_report
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.releases import read_rollouts
from babylon_rl.windows import window_of, window_stretches
from babylon_rl_tests.e2e.fortnight_location import CURRENT, defs
from babylon_rl_tests.evaluation.endpoint import Rule, alternates, reads_news, reads_wrongly

START = datetime(2025, 11, 3)
PLAYED = range(12, 14)  # the game's hours of a day
AGENTS = 8
WAITING, ALERT = "{} hours wait for their judge.", "Alert, "
LOG = logging.getLogger("fortnight")
TICK_FAILS = (BabylonError, dg.DagsterError, dg.Failure, psycopg.Error, SQLAlchemyError, DagsterPostgresException)


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


class Daemon:
    """What Dagster's daemon does of automation, by the public functions for tests; runs are executed where they are asked for."""

    def __init__(self, instance: dg.DagsterInstance, resources: Callable[[], Mapping[str, object]], start: datetime) -> None:
        self.instance, self._resources = instance, resources
        self._cursors: dict[str, Any] = {}
        self._ticked = {schedule.name: start for schedule in defs.schedules or ()}
        self._failed: list[tuple[dg.DagsterRun, Any]] = []

    def tick(self, now: datetime) -> None:
        """One turn of all schedules, sensors and conditions."""
        for schedule in defs.schedules or ():
            if (due := _newest(str(schedule.cron_schedule), now)) > self._ticked[schedule.name]:
                self._ticked[schedule.name] = due
                context = dg.build_schedule_context(
                    self.instance, due.replace(tzinfo=UTC), resources=self._resources(), repository_def=defs.get_repository_def()
                )
                self._evaluate(schedule, context)
        for sensor in defs.sensors or ():
            if isinstance(sensor, dg.AutomationConditionSensorDefinition):
                continue
            if isinstance(sensor, dg.RunStatusSensorDefinition):
                self._tell_failures(sensor)
            else:
                self._evaluate(sensor, self._sensor_context(sensor))
        for sensor in defs.sensors or ():
            if isinstance(sensor, dg.AutomationConditionSensorDefinition):
                self._evaluate_conditions(sensor)

    def _sensor_context(self, sensor: Any) -> dg.SensorEvaluationContext:
        return dg.build_sensor_context(
            self.instance, self._cursors.get(sensor.name), sensor_name=sensor.name, resources=self._resources(), definitions=defs
        )

    def _evaluate(self, what: Any, context: Any) -> None:
        """Evaluate a sensor or schedule; what it reports and asks for is done, and its cursor kept afterwards."""
        try:
            answer = what(context)
        except TICK_FAILS as failed:
            LOG.warning("The tick of %s failed: %s", what.name, failed)
            return
        requests = answer if isinstance(answer, list) else [answer]
        cursor = getattr(context, "cursor", None)
        if isinstance(answer, dg.SensorResult):
            requests, cursor = list(answer.run_requests or ()), answer.cursor if answer.cursor is not None else cursor
            for addition in answer.dynamic_partitions_requests or ():
                self.instance.add_dynamic_partitions(addition.partitions_def_name, addition.partition_keys)
            for event in answer.asset_events or ():
                self.instance.report_runless_asset_event(event)
        self._cursors[what.name] = cursor
        for request in requests:
            if isinstance(request, dg.RunRequest):
                self._request(what, request)

    def _request(self, what: Any, request: dg.RunRequest) -> None:
        """Execute a requested run, unless one of its key was there before."""
        kind = "dagster/sensor_name" if isinstance(what, dg.SensorDefinition) else "dagster/schedule_name"
        tags = {**request.tags, kind: what.name}
        if request.run_key is not None:
            tags["dagster/run_key"] = request.run_key
            if self.instance.get_runs_count(dg.RunsFilter(tags={"dagster/run_key": request.run_key, kind: what.name})):
                return
        self.execute(what.job_name, tags, request.asset_selection, request.partition_key)

    def execute(self, job: str, tags: Mapping[str, str], assets: Sequence[dg.AssetKey] | None, partition: str | None = None) -> None:
        """Execute a run of a job in this process; one that fails is a failed run."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Asset job .* materializes assets with varying BackfillPolicies")
            definition = defs.resolve_job_def(job)
        done = definition.execute_in_process(
            run_config=QUIET, instance=self.instance, tags=tags, asset_selection=assets, partition_key=partition, raise_on_error=False
        )
        if not done.success:
            self._failed.append((done.dagster_run, done.get_run_failure_event()))

    def _tell_failures(self, sensor: dg.RunStatusSensorDefinition) -> None:
        while self._failed:
            run, event = self._failed.pop(0)
            found = self.instance.get_run_by_id(run.run_id) or run
            context = dg.build_run_status_sensor_context(sensor.name, event, self.instance, found, resources=self._resources())
            try:
                sensor(context.for_run_failure())
            except TICK_FAILS as failed:
                LOG.warning("The tick of %s failed: %s", sensor.name, failed)
                self._failed.insert(0, (run, event))
                return

    def _evaluate_conditions(self, sensor: dg.AutomationConditionSensorDefinition) -> None:
        """Ask the conditions; hours that several assets wish are one run of these, in stretches."""
        cursor = self._cursors.get(sensor.name)
        result = dg.evaluate_automation_conditions(defs, self.instance, sensor.asset_selection, cursor=cursor)
        self._cursors[sensor.name] = result.cursor
        assets_of: dict[str | None, list[dg.AssetKey]] = defaultdict(list)
        if sensor.name == checks_follow_hours.name and result.total_requested:
            self.execute(CHECKS_JOB, {}, None)
        for key in sorted(defs.resolve_asset_graph().get_all_asset_keys()):
            for window in result.get_requested_partitions(key):
                assets_of[window].append(key)
        stretches: dict[tuple[dg.AssetKey, ...], list[str]] = defaultdict(list)
        for window, assets in assets_of.items():
            if window is None:
                self.execute("__ASSET_JOB", {}, assets)
            else:
                stretches[tuple(assets)].append(window)
        for assets, windows in stretches.items():
            for first, last in window_stretches(sorted(windows), 24):
                self.execute(HOURS_JOB, hour_tags(first, last), list(assets))


def _newest(cron: str, now: datetime) -> datetime:
    """The newest moment of a cron schedule of every hour (`M * * * *`) or every day (`M H * * *`), now at the latest."""
    minute, hour, *rest = cron.split()
    assert rest == ["*", "*", "*"], cron
    moment = now.replace(minute=int(minute), second=0, microsecond=0, hour=now.hour if hour == "*" else int(hour))
    return moment if moment <= now else moment - (timedelta(hours=1) if hour == "*" else timedelta(days=1))


@dataclass
class Fortnight:
    """The simulation: its clock, its daemon, and the ``story`` of what happened as (moment, sentence)."""

    database: Database
    settings: Settings
    serving: Callable[..., Any]
    now: datetime = START
    story: list[tuple[datetime, str]] = field(default_factory=list)
    crash_at: str | None = None
    daemon: Daemon | None = None
    _seen: dict[str, str] = field(default_factory=lambda: {"judge": WAITING.format(0)})

    def tell(self, sentence: str) -> None:
        """Write a line of the story."""
        self.story.append((self.now, sentence))

    @contextmanager
    def running(self) -> Iterator["Fortnight"]:
        """Automation in this process, with the simulation's clock."""
        with ExitStack() as stack:
            instance = stack.enter_context(open_instance(self.database, self.settings))
            self.daemon = Daemon(instance, lambda: {"babylon": CURRENT.babylon}, self.now)
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
        """One turn of the daemon, and what a person would notice then."""
        assert self.daemon is not None
        with time_machine.travel(self.now.replace(tzinfo=UTC)):
            self.daemon.tick(self.now)
        self._listen()

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
