"""The sample game behind the definitions, in an instance that forgets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon, given
from babylon_rl.automation.code_location import code_location
from babylon_rl.automation.jobs import CHECKS_JOB, SOURCES
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.automation.sensors import observe_changes, start_training
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.serving.dagster_client import hour_tags
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now

NOW = datetime(2025, 10, 31, 12)
VERSION = "dagster/data_version"
# A session hands over what it has written when it is idle: at once after this, before its answer.
COUNTED = "SELECT pg_stat_force_next_flush()"
HOURS = [f"2025-10-29T{hour:02}:00" for hour in (13, 14, 15, 16, 17)]
DRY = {
    "train_rl_local": True, "local_base_model": "dry", "training_min_trajectories": 20, "training_min_groups": 1,
    "training_min_group_size": 1, "data_quality_threshold": 0.0, "epochs": 10,
}  # fmt: skip
TRAINING = [dg.AssetKey("training_batch"), dg.AssetKey("trained_checkpoint")]


@dataclass(frozen=True)
class Bench:
    """An instance, and what every run on it is handed."""

    instance: dg.DagsterInstance
    babylon: Babylon

    def run(self, job: str, first: str | None = None, last: str | None = None, **options: object) -> dg.ExecuteInProcessResult:
        """One run of a job; of a range when ``last`` is given."""
        range_tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        return job_definition(job, self.babylon).execute_in_process(
            instance=self.instance,
            tags=range_tags if last else {},
            partition_key=None if last else first,
            run_config=QUIET,
            **options,
        )

    def verdicts(self, job: str, first: str, last: str | None = None, **options: object) -> dict[str, dg.AssetCheckEvaluation]:
        """What the checks of hours say after a run of hours."""
        self.run(job, first, last, **options)
        tags = hour_tags(first, last or first)
        result = job_definition(CHECKS_JOB, self.babylon).execute_in_process(instance=self.instance, tags=tags, run_config=QUIET)
        return {found.check_name: found for found in result.get_asset_check_evaluations()}

    def materializations(self, asset: str) -> dict[str, dg.AssetMaterialization]:
        """The newest materialization of every partition."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1000, ascending=True).records
        return {str(record.partition_key): record.asset_materialization for record in records}

    def observed(self, asset: str) -> dict[str, str]:
        """The version of every observed hour."""
        records = self.instance.fetch_observations(dg.AssetKey(asset), limit=1000, ascending=True).records
        return {str(record.partition_key): record.asset_observation.tags[VERSION] for record in records}

    def look(self, cursor: str | None = None) -> tuple[list[dg.AssetObservation], str | None, str]:
        """One tick of observe_changes: what it reported, the cursor of the next, and what it said."""
        before = [len(self.observed_events(name)) for name in SOURCES]
        context = dg.build_sensor_context(instance=self.instance, cursor=cursor, resources={"babylon": self.babylon})
        said = observe_changes(context)
        new = [event for name, known in zip(SOURCES, before, strict=True) for event in self.observed_events(name)[known:]]
        return new, context.cursor, said.skip_message

    def observed_events(self, asset: str) -> list[dg.AssetObservation]:
        """Every observation of a source, oldest first."""
        records = self.instance.fetch_observations(dg.AssetKey(asset), limit=1000, ascending=True).records
        return [record.asset_observation for record in records]

    def execute(self, statement: str, *parameters: object) -> None:
        """One statement on the game's database."""
        with self.babylon.database.connect(autocommit=True) as connection:
            connection.execute(statement, parameters)
            connection.execute(COUNTED)


@pytest.fixture
def make_bench(settings: Settings) -> Iterator[Callable[..., Bench]]:
    """``make_bench(database, now=NOW, **settings)``: a bench whose clock stands still."""

    def make(database: Database, now: datetime = NOW, **changed: object) -> Bench:
        return Bench(instance, Babylon(settings.model_copy(update=changed), database, lambda: now))

    with dg.DagsterInstance.ephemeral() as instance:
        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Bench], sample_database: Database) -> Bench:
    """A bench on the recorded game, all of which is over."""
    return make_bench(sample_database)


@pytest.fixture
def ready(make_bench: Callable[..., Bench], sample_database: Database) -> Bench:
    """Five hours read, and a trainer that needs nothing."""
    bench = make_bench(sample_database, **DRY)
    with sample_database.connect(autocommit=True) as connection:
        sync_windows(connection, HOURS, bench.babylon.settings, NOW)
        connection.execute('UPDATE training_batches SET "completedAt" = %s', (NOW - timedelta(days=2),))  # another producer's
    return bench


def ask(bench: Bench, sensor: dg.SensorDefinition, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=bench.instance, cursor=cursor, resources={"babylon": bench.babylon})
    return sensor(context)


def a_batch(bench: Bench) -> str:
    """What the sensor freezes, as a partition that runs can have."""
    batch = ask(bench, start_training).run_requests[0].partition_key
    bench.instance.add_dynamic_partitions(batches.name, [batch])
    return batch


def a_run(bench: Bench, batch: str, status: dg.DagsterRunStatus, **tags: str) -> str:
    run = bench.instance.create_run_for_job(
        job_definition("train", bench.babylon), tags={"dagster/partition": batch, **tags}, status=status
    )
    return run.run_id


def run_into(bench: Bench, batch: str, error: Callable[[str], None]) -> None:
    """A real run of the batch, which raises ``error`` when its trainer says how far it is."""
    whose = replace(bench.babylon, now=utc_now, on_progress=lambda what, done, total: error(what))
    with pytest.raises((dg.Failure, RuntimeError, KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        Bench(bench.instance, whose).run("train", batch, asset_selection=TRAINING)


def repository(bench: Bench) -> dg.RepositoryDefinition:
    """The code location as the daemon loads it."""
    return code_location(given(bench.babylon)).get_repository_def()
