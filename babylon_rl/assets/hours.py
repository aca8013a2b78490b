"""How an hourly asset reports: one materialization per hour with that hour's own content hash, in a range as in a single run.

Dagster gives all partitions of a range run one data version. So in a range the step's own events are left out, and those of the hours
take their place: as many, with the same provenance, in one batch (docs/decisions/0001-data-version-per-hour.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

# Not in the public API; the pinned release's own steps report through these.
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as REPORTED_BY_THE_BODY
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata
from dagster._core.execution.plan.execute_step import _build_data_version_tags, _get_code_version, _get_input_provenance_data

from babylon_rl.versions import content_version

DATA_VERSION_TAG = "dagster/data_version"


@dataclass(frozen=True)
class HourReport:
    """What one hour came to: the hash of its content and what its page shows."""

    data_version: str
    metadata: Mapping[str, Any]


def plotted(windows: Sequence[str]) -> frozenset[str]:
    """The hours of a run that get pictures: the newest alone, as a range is read by its tables and a picture costs more than the hour."""
    return frozenset(sorted(windows)[-1:])


def report_hours(context: dg.AssetExecutionContext, reports: Mapping[str, HourReport]) -> Iterator[dg.MaterializeResult[Any]]:
    """Yield what the asset's body has to yield, given a report for each of the run's partitions."""
    if len(reports) == 1:
        (report,) = reports.values()
        yield dg.MaterializeResult(metadata=report.metadata, data_version=dg.DataVersion(report.data_version))
        return
    step = context.get_step_execution_context()
    code_version, inputs = _get_code_version(context.asset_key, step), _get_input_provenance_data(context.asset_key, step)
    batch, left = f"{context.run.run_id}/{step.step.key}", len(reports)
    for window, report in reports.items():
        left -= 1
        tags = _build_data_version_tags(dg.DataVersion(report.data_version), code_version, inputs, True)
        event = dg.AssetMaterialization(context.asset_key, partition=window, metadata=report.metadata, tags=tags)
        DagsterEvent.asset_materialization(step, event, DagsterEventBatchMetadata(batch, is_end=left == 0))
    whole = content_version({window: report.data_version for window, report in reports.items()})
    yield dg.MaterializeResult(metadata={REPORTED_BY_THE_BODY: True}, data_version=dg.DataVersion(whole))
