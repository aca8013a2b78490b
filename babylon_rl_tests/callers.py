"""Everything that runs by itself on a tick, or that a person asks of an hour or a few, by name.

The tests of query plans and benchmarks/ten_million_rows.py run them over a database that records what is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import dagster as dg

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.jobs import HOURLY
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.automation.schedules import train_daily
from babylon_rl.automation.sensors import (
    advance_rollouts,
    finish_evidence,
    keep_counts_sensor,
    observe_changes,
    send_alerts_sensor,
    start_training,
)
from babylon_rl.episodes.reading import read_window, read_windows
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.serving.admin_api import AdminApi, AdminRequest
from babylon_rl.serving.dagster_client import RANGE_END, RANGE_START
from babylon_rl.serving.status import status_document
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.live_usage import count_usage
from babylon_rl.store.trajectories import newest_window_with_rows, windows_with_rows
from babylon_rl.store.windows import quarantined
from babylon_rl.training.freezing import freeze
from babylon_rl.training.readiness import readiness
from babylon_rl.windows import newest_complete, window_end, window_of
from babylon_rl_tests.scored import score_windows

# A trainer that needs nothing.
DRY = {
    "train_rl_local": True, "local_base_model": "dry", "training_min_trajectories": 20, "training_min_groups": 1,
    "training_min_group_size": 1, "data_quality_threshold": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """What a caller is handed; the hours from ``first`` to ``last`` (inclusive) are read and scored, and ready."""

    database: Database
    settings: Settings
    instance: dg.DagsterInstance
    now: datetime
    first: str
    last: str

    @property
    def babylon(self) -> Babylon:
        """The resource of sensors and assets; its clock stands still."""
        return Babylon(self.settings.model_copy(update=DRY), self.database, lambda: self.now)

    @property
    def end(self) -> str:
        """The hour after ``last``."""
        return window_of(window_end(self.last))

    def tick(self, sensor: dg.SensorDefinition, cursor: str | None = None) -> object:
        """One evaluation of a sensor."""
        return sensor(dg.build_sensor_context(instance=self.instance, cursor=cursor, resources={"babylon": self.babylon}))

    def run(self, job: str, tags: dict[str, str], *assets: str) -> None:
        """One run of some assets."""
        definition = job_definition(job, self.babylon)
        keys = [dg.AssetKey(name) for name in assets]
        definition.execute_in_process(instance=self.instance, tags=tags, asset_selection=keys, run_config=QUIET)


Caller = Callable[[World], object]


def _train_daily(world: World) -> object:
    # Only the count: once it has frozen a batch, the schedule needs an instance that is stored, and start_training freezes in the same way.
    too_few = {"training_min_trajectories": 10**9, "training_daily_min_trajectories": 10**9}
    waiting = replace(world.babylon, settings=world.babylon.settings.model_copy(update=too_few))
    return train_daily(dg.build_schedule_context(world.instance, resources={"babylon": waiting}))


def _advance_rollouts(world: World) -> object:
    # After the first count, which reads all recorded calls since the first version.
    with Database(world.database.url, world.database.url).connect(autocommit=True) as connection:
        count_usage(connection, world.now)
    return world.tick(advance_rollouts)


def _a_training(world: World) -> None:
    asked = world.tick(start_training)
    assert isinstance(asked, dg.SensorResult) and asked.run_requests
    batch = str(asked.run_requests[0].partition_key)
    world.instance.add_dynamic_partitions("batch", [batch])
    world.run("train", {"dagster/partition": batch}, "training_batch", "trained_checkpoint")


def _windows_looking_back(world: World) -> None:
    with world.database.connect() as connection:
        newest = newest_window_with_rows(connection, newest_complete(world.now))
        assert newest is not None
        windows = windows_with_rows(connection, world.first, window_of(window_end(newest)))
        read_windows(connection, windows, world.settings)
        stored_scores(connection, windows)
        quarantined(connection, windows)


def _episodes(world: World) -> None:
    with world.database.connect() as connection:
        read_window(connection, world.last, world.settings)


def _readiness(world: World) -> None:
    with world.database.connect() as connection:
        readiness(connection, world.settings, world.now)


def _status(world: World) -> None:
    with world.database.connect() as connection:
        status_document(connection, world.settings, world.now)


def _training_data(world: World) -> None:
    AdminApi(world.settings, world.database).training_data(AdminRequest("test", world.now))


def _freezing_by_hand(world: World) -> None:
    with world.database.connect() as connection:
        assert freeze(connection, world.babylon.settings, world.now, windows=(world.first, world.end)).batch


def _scoring_again(world: World) -> None:
    with world.database.connect(autocommit=True) as connection:
        assert score_windows(connection, [world.last], world.settings, world.now, force=True)


def _for_an_hour(asset: str) -> Caller:
    return lambda world: world.run("hours", {"dagster/partition": world.last}, asset)


def _for_a_range(asset: str) -> Caller:
    return lambda world: world.run("hours", {RANGE_START: world.first, RANGE_END: world.last}, asset)


CALLERS: dict[str, Caller] = {
    "observe_changes": lambda world: world.tick(observe_changes, "swept"),
    "start_training": lambda world: world.tick(start_training),
    "finish_evidence": lambda world: world.tick(finish_evidence),
    "train_daily": _train_daily,
    **{f"an hour of {asset}": _for_an_hour(asset) for asset in HOURLY},
    **{f"a range of {asset}": _for_a_range(asset) for asset in HOURLY},
    "windows --lookback-hours": _windows_looking_back,
    "episodes": _episodes,
    "score --force": _scoring_again,
    "ready": _readiness,
    "status": _status,
    "the training-data endpoint": _training_data,
    "advance_rollouts": _advance_rollouts,
    "send_alerts": lambda world: world.tick(send_alerts_sensor),
    "keep_counts": lambda world: world.tick(keep_counts_sensor),
    "train --from --to": _freezing_by_hand,
    "a training": _a_training,
}
