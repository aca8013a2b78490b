"""Sources ``raw_trajectories`` and ``market_data``: the game's tables by hour, never written.

An hour is observed when its content differs from the version that Dagster saw last. These versions are read from Dagster's own storage,
not kept beside it, so an observation lost in a crash, or a wiped storage, is repaired by the next one
(docs/decisions/0002-observed-versions.md). The decorator of the pinned release supports neither owners nor change descriptions.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import NamedTuple

import dagster as dg
from dagster._core.definitions.external_asset import create_external_asset_from_source_asset

from babylon_rl.assets.metadata import OWNERS, column_schema, described
from babylon_rl.assets.partitions import DATA_VERSION_TAG, hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.store.observation import NOTHING, market_versions, observed_watermark, recent_hours, trajectory_versions
from babylon_rl.versions import change_in_words
from babylon_rl.windows import window_of, window_range

RAW_TRAJECTORIES = dg.AssetKey("raw_trajectories")
MARKET_DATA = dg.AssetKey("market_data")
NO_ROWS = "no rows"
HOURS_ASKED_FOR = 1000


class Change(NamedTuple):
    """New version of an hour, and the version that Dagster saw last (None: none yet)."""

    before: str | None
    after: str


@dataclass(frozen=True)
class Observed:
    """Changed versions by window, for both sources.

    ``watermark`` stands for everything written before this observation (None: unknown).
    """

    trajectories: Mapping[str, Change]
    market: Mapping[str, Change]
    watermark: str | None = None

    @property
    def events(self) -> list[dg.AssetObservation]:
        """One observation per changed hour and source, newest hour first."""
        changes = [*_observations(RAW_TRAJECTORIES, self.trajectories), *_observations(MARKET_DATA, self.market)]
        return sorted(changes, key=lambda event: event.partition or "", reverse=True)

    def events_of(self, key: dg.AssetKey) -> list[dg.AssetObservation]:
        """Observations of one source."""
        return [event for event in self.events if event.asset_key == key]


def _observations(key: dg.AssetKey, changes: Mapping[str, Change]) -> Iterator[dg.AssetObservation]:
    for window, change in changes.items():
        metadata = {"change": change_in_words(*change), "version_before": change.before or NO_ROWS}
        yield dg.AssetObservation(key, partition=window, tags={DATA_VERSION_TAG: change.after}, metadata=metadata)


def observe(
    instance: dg.DagsterInstance, babylon: Babylon, *, full: bool, with_market: bool = True, watermark: str | None = None
) -> Observed:
    """Compare the recent hours (``full``: all from FIRST_WINDOW) with Dagster's records; return the changes.

    Only hours that ended OUTCOME_DELAY_MINUTES ago are read. An hour whose rows are gone changes to ``no rows``. An hour with trajectories
    is observed in market_data too; otherwise a market without records would block assets that depend on both. No hour is read while
    ``watermark``, from an earlier observation whose changes were all reported, is still current.
    """
    end = window_of(babylon.now() - timedelta(minutes=babylon.settings.outcome_delay_minutes))
    first = babylon.settings.first_window
    if end <= first:
        return Observed({}, {})
    with babylon.database.connect(autocommit=True) as connection, connection.transaction():
        written = observed_watermark(connection, first, end)
        # Nothing was written since the last complete observation.
        if watermark is not None and watermark == written:
            return Observed({}, {}, written)
        recent, recent_market = (first, first) if full else recent_hours(connection, end)
        recent, recent_market = max(first, recent), max(first, recent_market)
        trajectories = trajectory_versions(connection, recent, end)
        if not with_market:
            return Observed(_unseen(instance, RAW_TRAJECTORIES, trajectories, recent, end), {})
        market = market_versions(connection, recent_market, end)
    # Hours with trajectories but without market rows get a version too, so that no asset waits for them.
    silent = {window: NOTHING for window in trajectories if window >= recent_market}
    return Observed(
        _unseen(instance, RAW_TRAJECTORIES, trajectories, recent, end),
        _unseen(instance, MARKET_DATA, silent | market, recent_market, end),
        written,
    )


def _unseen(instance: dg.DagsterInstance, key: dg.AssetKey, versions: Mapping[str, str], first: str, end: str) -> dict[str, Change]:
    # Not in the public API; the pinned release's own conditions read versions through it. Of a short range only its own hours are asked
    # for: the log keeps every observation of all hours.
    hours = list(islice(window_range(first, end), HOURS_ASKED_FOR + 1))
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        key, dg.DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION_TAG], hours if len(hours) <= HOURS_ASKED_FOR else None
    )
    seen = {window: latest.get(DATA_VERSION_TAG) for window, latest in tags.items() if first <= window < end}
    # Hours that Dagster knows and the database has no rows of any more.
    gone = {window: NO_ROWS for window in seen if window not in versions}
    now = gone | dict(versions)
    return {window: Change(seen.get(window), version) for window, version in now.items() if seen.get(window) != version}


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
    """The source with owners, by an attribute outside the public API, as Dagster warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asset = create_external_asset_from_source_asset(source)
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS, code_version="1"))


def report_changes(context: dg.OpExecutionContext, changed: Iterable[dg.AssetObservation]) -> dg.DataVersionsByPartition:
    """Record an observation per changed hour; the empty result leaves other versions alone."""
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
