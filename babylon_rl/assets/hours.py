"""How an hourly asset reports: one materialization per hour with that hour's own content hash, in a range as in a single run.

Dagster gives all partitions of a range run one data version. So in a range the step's result is followed by a materialization
per hour, which repeats the step's provenance with the hour's own version; being the newest, it is the one that counts
(docs/decisions/0001-data-version-per-hour.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from babylon_rl.versions import content_version

DATA_VERSION_TAG = "dagster/data_version"
PLOTTED_HOURS = 24


@dataclass(frozen=True)
class HourReport:
    """What one hour came to: the hash of its content and what its page shows."""

    data_version: str
    metadata: Mapping[str, Any]


def plotted(windows: Sequence[str]) -> frozenset[str]:
    """The hours of a run that get pictures: the newest PLOTTED_HOURS, as a long backfill is read by its tables."""
    return frozenset(sorted(windows)[-PLOTTED_HOURS:])


def report_hours(
    context: dg.AssetExecutionContext, reports: Mapping[str, HourReport]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetMaterialization]:
    """Yield what the asset's body has to yield, given a report for each of the run's partitions."""
    if len(reports) == 1:
        (report,) = reports.values()
        yield dg.MaterializeResult(metadata=report.metadata, data_version=dg.DataVersion(report.data_version))
        return
    versions = {window: report.data_version for window, report in reports.items()}
    yield dg.MaterializeResult(data_version=dg.DataVersion(content_version(versions)))
    newest = context.instance.fetch_materializations(context.asset_key, limit=1).records[0].asset_materialization
    provenance = dict(newest.tags or {}) if newest is not None else {}
    for window, report in reports.items():
        yield dg.AssetMaterialization(
            context.asset_key,
            partition=window,
            metadata=report.metadata,
            tags=provenance | {DATA_VERSION_TAG: report.data_version},
        )
