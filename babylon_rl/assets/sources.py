"""Sources ``raw_trajectories`` and ``market_data``: the game's tables by hour, never written.

The decorator of the pinned release supports neither owners nor change descriptions; both are added here, for changed hours only.
"""

import warnings
from collections.abc import Iterable

import dagster as dg
from dagster._core.definitions.external_asset import create_external_asset_from_source_asset

from babylon_rl.assets.change_detection import MARKET_DATA, observe
from babylon_rl.assets.metadata import OWNERS, column_schema, described
from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon

TRAJECTORY_COLUMNS = column_schema(
    trajectoryId=("text", "Unique id of the row"),
    agentId=("text", "The agent"),
    windowId=("varchar(50)", "The hour, where the producer wrote it"),
    startTime=("timestamp(3)", "UTC; gives the hour where windowId does not"),
    stepsJson=("text", "The steps: state, prompts and answers, action, reward"),
    finalPnL=("double precision", "Lifetime P&L in dollars at the end"),
    usedInTraining=("boolean", "Set when a batch that held the row has produced a checkpoint"),
)
_WHEN_RED = (
    "the log of its run says why the tables could not be read; observe_changes looks again within a minute, the job `observe` at once."
)
MARKET_COLUMNS = column_schema(
    StockPrice=("table", "price of an organization at a moment"),
    WorldEvent=("table", "what happened, to whom, about which question"),
    Question=("table", "prediction questions and their official answers"),
    PredictionPriceHistory=("table", "probabilities, and the moment of each resolution"),
)


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


@dg.observable_source_asset(
    name="raw_trajectories",
    partitions_def=hours,
    group_name="game",
    tags={"dagster/kind/postgres": "", "dagster/kind/source": ""},
    metadata={**TRAJECTORY_COLUMNS, "table": "public.trajectories"},
    description=described(
        "Rows of `trajectories`, by the hour they belong to. An hour's version is its rows, their newest change and their logged calls.",
        _WHEN_RED,
    ),
)
def _raw_trajectories(context: dg.OpExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.DataVersionsByPartition:
    return report_changes(context, observe(context.instance, babylon, full=True, with_market=False).events)


raw_trajectories = owned(_raw_trajectories)


@dg.observable_source_asset(
    name="market_data",
    partitions_def=hours,
    group_name="game",
    tags={"dagster/kind/postgres": "", "dagster/kind/source": ""},
    metadata=MARKET_COLUMNS,
    description=described(
        "Prices, events, questions and probabilities, by hour. A late official answer changes the version of every hour in which the "
        "question was open.",
        _WHEN_RED,
    ),
)
def _market_data(context: dg.OpExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.DataVersionsByPartition:
    return report_changes(context, observe(context.instance, babylon, full=True).events_of(MARKET_DATA))


market_data = owned(_market_data)
