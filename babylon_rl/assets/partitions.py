"""Partitions of the asset graph, hours and batches, and the results of hourly assets.

An hour's key is its window id, so that UI, CLI, database and logs name it the same way; a batch's key is its batch id.

Dagster gives all partitions of a range run one data version. So a range run leaves out the step's own events and writes one event per hour
instead, with the same provenance, in one batch (docs/decisions/0001-data-version-per-hour.md).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg

# Not in the public API; the pinned release's own steps report through these.
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as REPORTED_BY_THE_BODY
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata
from dagster._core.execution.plan.execute_step import _build_data_version_tags, _get_code_version, _get_input_provenance_data

from babylon_rl.assets.resources import Babylon
from babylon_rl.assets.runs import tag_run
from babylon_rl.serving.dagster_client import BATCHES
from babylon_rl.settings import load_settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import reading_chunks
from babylon_rl.versions import content_version
from babylon_rl.windows import WINDOW_FORMAT, is_complete

hours = dg.HourlyPartitionsDefinition(start_date=load_settings().first_window, fmt=WINDOW_FORMAT)
batches = dg.DynamicPartitionsDefinition(name=BATCHES)
DATA_VERSION_TAG = "dagster/data_version"


def hours_of(context: dg.AssetExecutionContext, now: datetime) -> list[str]:
    """The hours that a run was started for; tags the run with them.

    Raises:
        dagster.Failure: it names none, or one that has not ended.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        raise _refused(
            'This run names no hour: give it one by --tags \'{"dagster/partition": "2025-10-29T14:00"}\', '
            "or a range (docs/reference/ui.md)."
        )
    windows = list(context.partition_keys)
    # An hour that has not ended would be read in part, and its content would count as that of the hour.
    unfinished = next((window for window in windows if not is_complete(window, now)), None)
    if unfinished is not None:
        raise _refused(f"{unfinished} has not ended; an hour is read once it is over.")
    tag_run(context, window=windows[0] if len(windows) == 1 else f"{windows[0]}...{windows[-1]}")
    return windows


def batch_of(context: dg.AssetExecutionContext) -> str:
    """The batch that a run was started for; tags the run with it.

    Raises:
        dagster.Failure: it names none.
    """
    if not context.has_partition_key:
        raise _refused('This run names no batch: give it one by --tags \'{"dagster/partition": "ID"}\'; `babylon-rl batches` lists them.')
    tag_run(context, batch=str(context.partition_key))
    return str(context.partition_key)


def _refused(sentence: str) -> dg.Failure:
    return dg.Failure(sentence, allow_retries=False)


@dataclass(frozen=True)
class HourReport:
    """Result of one hour: the hash of its content and the metadata of its page."""

    data_version: str
    metadata: Mapping[str, Any]


# Reports on a portion of a run's hours, of which the given ones get plots.
ReportsOf = Callable[[Connection, list[str], Babylon, frozenset[str]], Mapping[str, HourReport]]


def plotted(windows: Sequence[str]) -> frozenset[str]:
    """The hours of a run that get plots: only the newest.

    A range is read by its tables, and a plot costs more than the rest of the hour.
    """
    return frozenset(sorted(windows)[-1:])


def report_hours(context: dg.AssetExecutionContext, babylon: Babylon, reports_of: ReportsOf) -> Iterator[dg.MaterializeResult[Any]]:
    """Yield the results of an hourly asset.

    A portion's events are written before the next one is made, so that a run holds one portion, whatever the length of its range.
    """
    windows = hours_of(context, babylon.now())
    with babylon.connection() as connection:
        portions = reading_chunks(connection, windows)
        yield from _results(context, windows, (reports_of(connection, some, babylon, plotted(windows)) for some in portions))


def _results(
    context: dg.AssetExecutionContext, windows: Sequence[str], reported: Iterable[Mapping[str, HourReport]]
) -> Iterator[dg.MaterializeResult[Any]]:
    step = context.get_step_execution_context()
    # Read once: all hours of a step have the same code and the same inputs.
    code_version, inputs = _get_code_version(context.asset_key, step), _get_input_provenance_data(context.asset_key, step)
    versions: dict[str, str] = {}
    for number, reports in enumerate(reported):
        # A single hour needs no special handling: the step's own event has the right version.
        if len(windows) == 1:
            (report,) = reports.values()
            yield dg.MaterializeResult(metadata=report.metadata, data_version=dg.DataVersion(report.data_version))
            return
        # Dagster writes the events of a batch together once the last one is marked as the end.
        batch, left = f"{context.run.run_id}/{step.step.key}/{number}", len(reports)
        for window, report in reports.items():
            left -= 1
            versions[window] = report.data_version
            tags = _build_data_version_tags(dg.DataVersion(report.data_version), code_version, inputs, True)
            event = dg.AssetMaterialization(context.asset_key, partition=window, metadata=report.metadata, tags=tags)
            DagsterEvent.asset_materialization(step, event, DagsterEventBatchMetadata(batch, is_end=left == 0))
    # The step still returns one result; its metadata key keeps Dagster from recording it for all hours.
    yield dg.MaterializeResult(metadata={REPORTED_BY_THE_BODY: True}, data_version=dg.DataVersion(content_version(versions)))
