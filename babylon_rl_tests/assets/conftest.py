"""The sample game behind the definitions, in an instance that forgets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import dagster as dg
import pytest

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database

NOW = datetime(2025, 10, 31, 12)
VERSION = "dagster/data_version"
# A session hands over what it has written when it is idle: at once after this, before its answer.
COUNTED = "SELECT pg_stat_force_next_flush()"


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

    def materializations(self, asset: str) -> dict[str, dg.AssetMaterialization]:
        """The newest materialization of every partition."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1000, ascending=True).records
        return {str(record.partition_key): record.asset_materialization for record in records}

    def observed(self, asset: str) -> dict[str, str]:
        """The version of every observed hour."""
        tags = self.instance.event_log_storage.get_latest_tags_by_partition(
            dg.AssetKey(asset), dg.DagsterEventType.ASSET_OBSERVATION, [VERSION]
        )
        return {window: found[VERSION] for window, found in tags.items()}

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
