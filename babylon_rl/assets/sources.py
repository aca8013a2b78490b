"""Observable sources with owners and with change descriptions, for changed hours only.

The decorator of the pinned release supports neither.
"""

import warnings
from collections.abc import Iterable

import dagster as dg
from dagster._core.definitions.external_asset import create_external_asset_from_source_asset

from babylon_rl.assets.metadata import OWNERS


def owned(source: dg.SourceAsset) -> dg.AssetsDefinition:
    """The source with owners, ready for ``Definitions``.

    The decorator has no parameter for owners. This uses an attribute outside the public API, and Dagster warns of that.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asset = create_external_asset_from_source_asset(source)
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS, code_version="1"))


def report_changes(context: dg.OpExecutionContext, changed: Iterable[dg.AssetObservation]) -> dg.DataVersionsByPartition:
    """Record one observation per changed hour, with a description of the change.

    The result of the observation itself leaves every version as it is.
    """
    # The events carry the change descriptions; the empty result adds none of its own.
    for event in changed:
        context.log_event(event)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.DataVersionsByPartition({})
