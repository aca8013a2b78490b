"""In-process runs for commands and the demo, on the instance that the UI shows.

They leave the same records as any other run: the job's name, the partition or range, one materialization per hour. Data changes only
through the asset graph, so the lineage does not depend on the caller.
"""

import signal
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import dagster as dg

from babylon_rl.assets.benchmark_report import models_here
from babylon_rl.assets.partitions import AS_LOADED
from babylon_rl.assets.resources import Babylon, given
from babylon_rl.assets.run_parts import why_no_hour
from babylon_rl.assets.scored_groups import hours_per_run
from babylon_rl.automation.code_location import code_location
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.jobs import BATCHED, CHECKS_JOB, HOURLY, MOST_HOURS, OBSERVE_JOB
from babylon_rl.errors import BabylonError, DatabaseError, UsageError
from babylon_rl.interrupts import handling
from babylon_rl.models.server_process import Serving
from babylon_rl.progress import Progress, no_progress
from babylon_rl.serving.dagster_client import BATCHES, HOURS_JOB, PARTITION_TAG, SCORE_JOB, SCORING_JOBS, TRAIN_JOB, hour_tags
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now, window_stretches

# Log lines of a run belong in its event log; a command's own output stays readable.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
Clock = Callable[[], datetime]


def run_hours(
    database: Database,
    settings: Settings,
    windows: Iterable[str],
    selection: Sequence[str] | None = None,
    *,
    now: Clock = utc_now,
    on_range: Callable[[str, str], None] = lambda first, last: None,
) -> list[str]:
    """Materialize some hours and return the ids of the runs, in order.

    Runs the job ``hours``, or only the assets in ``selection``. Consecutive hours share a run: up to ``hours_per_run`` if groups are
    judged, else MOST_HOURS. ``on_range`` is called before each run with its first and last hour.

    Raises:
        UsageError: an hour lies before FIRST_WINDOW or has not ended.
        BabylonError: raised by an asset; its run is recorded as failed.
    """
    chosen = tuple(selection or HOURLY)
    hour_set = sorted(set(windows))
    refuse_impossible(hour_set, now())
    job = SCORE_JOB if chosen == ("scored_groups",) else HOURS_JOB
    runs = []
    with open_instance(database, settings) as instance:
        longest = hours_per_run(settings) if "scored_groups" in chosen else None
        for first, last in window_stretches(hour_set, longest or MOST_HOURS):
            on_range(first, last)
            runs.append(_execute(job, instance, Babylon(settings, database, now), hour_tags(first, last), chosen))
        if hour_set:
            _execute(CHECKS_JOB, instance, Babylon(settings, database, now), hour_tags(hour_set[0], hour_set[-1]), None)
    return runs


def run_batch(
    database: Database,
    settings: Settings,
    batch_id: str,
    selection: Sequence[str] | None = None,
    *,
    now: Clock = utc_now,
    on_progress: Progress = no_progress,
    serving: Serving | None = None,
) -> str:
    """Run the job ``train`` for a frozen batch and return the run's id.

    ``selection`` limits it to some assets. ``on_progress`` receives (label, done, total) of the long steps; ``serving`` answers for the
    compared models instead of a server of the run.

    Raises:
        BabylonError: raised by an asset; the run is recorded as failed.
    """
    with open_instance(database, settings) as instance:
        # Dagster refuses a run of a partition that it does not know; adding one that is there changes nothing.
        instance.add_dynamic_partitions(BATCHES, [batch_id])
        tags = {PARTITION_TAG: batch_id}
        return _execute(TRAIN_JOB, instance, Babylon(settings, database, now, on_progress), tags, tuple(selection or BATCHED), serving)


def observe_hours(database: Database, settings: Settings, *, now: Clock = utc_now) -> str:
    """Run the job ``observe``, which reports changed hours, and return the run's id."""
    with open_instance(database, settings) as instance:
        return _execute(OBSERVE_JOB, instance, Babylon(settings, database, now), {}, None)


def refuse_impossible(windows: Sequence[str], now: datetime) -> None:
    """Raise UsageError for an hour that lies before FIRST_WINDOW or has not ended."""
    for window in windows:
        if why_not := why_no_hour(window, AS_LOADED.first_window, now):
            raise UsageError(why_not)


def _execute(
    job: str,
    instance: dg.DagsterInstance,
    babylon: Babylon,
    tags: dict[str, str],
    selection: Sequence[str] | None,
    serving: Serving | None = None,
) -> str:
    definition, keys = job_definition(job, babylon, serving), None
    if selection is not None and job in SCORING_JOBS:
        definition = hours_part(definition, selection)
    elif selection is not None:
        keys = [dg.AssetKey(name) for name in selection]
    # A BabylonError that an asset raised is raised again here, so that commands print its sentence.
    try:
        # Dagster leaves SIGINT's handler for SIGTERM too. A script's background job ignores SIGINT, and could not be ended then.
        with handling({signal.SIGTERM: signal.getsignal(signal.SIGTERM)}):
            result = definition.execute_in_process(instance=instance, tags=tags, asset_selection=keys, run_config=QUIET)
    except dg.Failure as failure:
        if isinstance(failure.__cause__, BabylonError):
            raise failure.__cause__ from None
        raise
    except dg.DagsterError as failed:
        # Raised after the last retry of a lost connection (assets/resources.py), whose cause holds the sentence.
        said = failed.__context__.__cause__ if isinstance(failed.__context__, dg.RetryRequested) else None
        if isinstance(said, dg.Failure) and said.description:
            raise DatabaseError(said.description) from None
        raise
    except dg.DagsterExecutionInterruptedError:
        # Dagster has recorded the run as canceled; for the command it is Ctrl-C like any other
        raise KeyboardInterrupt from None
    return result.run_id


def hours_part(job: dg.JobDefinition, assets: Iterable[str]) -> dg.JobDefinition:
    """A job of hours with some of its assets. By a list of assets alone Dagster adds their checks, which the job has not."""
    return job.get_subset(asset_selection={dg.AssetKey(name) for name in assets}, asset_check_selection=set())


def job_definition(name: str, babylon: Babylon, serving: Serving | None = None) -> dg.JobDefinition:
    """A job of the code location whose assets use ``babylon``, and ``serving`` if given."""
    models = models_here if serving is None else dg.ResourceDefinition.hardcoded_resource(serving)
    return code_location(given(babylon), models).resolve_job_def(name)
