"""Change detection: hours whose content differs from the version that Dagster saw last.

The versions seen last are read from Dagster's own storage, not kept beside it. So an observation lost in a crash, or a wiped storage, is
repaired by the next observation (docs/decisions/0002-observed-versions.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import NamedTuple

import dagster as dg

from babylon_rl.assets.partition_results import DATA_VERSION_TAG
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
