"""Observable sources with what the decorator of the pinned release cannot take: owners, and what changed, for changed hours only."""

import warnings
from collections.abc import Iterable

import dagster as dg
from dagster._core.definitions.external_asset import create_external_asset_from_source_asset

from babylon_rl.assets.metadata import OWNERS


def owned(source: dg.SourceAsset) -> dg.AssetsDefinition:
    """The source as ``Definitions`` would take it, with owners; the decorator has no parameter for them, so this goes past the
    public API, which warns of an attribute that only itself reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asset = create_external_asset_from_source_asset(source)
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS, code_version="1"))


def report_changes(context: dg.OpExecutionContext, changed: Iterable[dg.AssetObservation]) -> dg.DataVersionsByPartition:
    """Record the hours that changed, each with what changed; the answer of the observation itself leaves every version as it is."""
    for event in changed:
        context.log_event(event)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.DataVersionsByPartition({})
