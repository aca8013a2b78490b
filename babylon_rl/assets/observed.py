"""Which hours have changed since Dagster last saw them.

What Dagster has seen is asked of Dagster's own storage, not kept beside it: an observation that was lost in a crash, or a storage
that was wiped, mends itself at the next look (docs/decisions/0002-observed-versions.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from babylon_rl.assets.hours import DATA_VERSION_TAG
from babylon_rl.assets.resources import Babylon
from babylon_rl.store import observation
from babylon_rl.windows import window_of

RAW_TRAJECTORIES = dg.AssetKey("raw_trajectories")
MARKET_DATA = dg.AssetKey("market_data")
NO_ROWS = "no rows"


@dataclass(frozen=True)
class Observed:
    """The versions that differ from those last observed, by window, for both sources."""

    trajectories: Mapping[str, str]
    market: Mapping[str, str]

    @property
    def events(self) -> list[dg.AssetObservation]:
        """One observation per changed hour and source, newest hour first."""
        found = [(window, RAW_TRAJECTORIES, version) for window, version in self.trajectories.items()]
        found += [(window, MARKET_DATA, version) for window, version in self.market.items()]
        found.sort(key=lambda entry: entry[0], reverse=True)
        return [dg.AssetObservation(key, partition=window, tags={DATA_VERSION_TAG: version}) for window, key, version in found]


def observe(instance: dg.DagsterInstance, babylon: Babylon, *, full: bool) -> Observed:
    """Look at the recent hours (``full``: at all from FIRST_WINDOW) that ended OUTCOME_DELAY_MINUTES ago, and give the changed ones.

    An hour whose rows are gone changes to ``no rows``. An hour that holds trajectories is observed in market_data too, so that what
    stands on both is not kept waiting by a market that recorded nothing.
    """
    end = window_of(babylon.now() - timedelta(minutes=babylon.settings.outcome_delay_minutes))
    first = babylon.settings.first_window
    if end <= first:
        return Observed({}, {})
    with babylon.database.connect(autocommit=True) as connection:
        recent, recent_market = (first, first) if full else observation.recent_hours(connection, end)
        recent, recent_market = max(first, recent), max(first, recent_market)
        trajectories = observation.trajectory_versions(connection, recent, end)
        market = observation.market_versions(connection, recent_market, end)
    silent = {window: observation.NOTHING for window in trajectories if window >= recent_market}
    return Observed(
        _unseen(instance, RAW_TRAJECTORIES, trajectories, recent, end),
        _unseen(instance, MARKET_DATA, silent | market, recent_market, end),
    )


def _unseen(instance: dg.DagsterInstance, key: dg.AssetKey, versions: Mapping[str, str], first: str, end: str) -> dict[str, str]:
    # Not in the public API; the pinned release's own conditions read versions through it.
    tags = instance.event_log_storage.get_latest_tags_by_partition(key, dg.DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION_TAG])
    seen = {window: found.get(DATA_VERSION_TAG) for window, found in tags.items() if first <= window < end}
    gone = {window: NO_ROWS for window in seen if window not in versions}
    return {window: version for window, version in ({**gone, **versions}).items() if seen.get(window) != version}
