"""Sources ``raw_trajectories`` and ``market_data``: the game's tables by hour, never written.

An hour is observed when its content differs from the version that was last reported to this Dagster storage. That version is kept in a
table of ours and written after the report, so that a crash in between reports again. A storage that is new, wiped or another project's
gets everything (docs/decisions/0002-observed-versions.md).
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import dagster as dg

from babylon_rl.assets.partitions import DATA_VERSION_TAG, END_OF_HOURS, catalog_page, hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.store.columns import in_parts
from babylon_rl.store.dagster_rows import forget_versions, lock_reports, note_versions, told_versions
from babylon_rl.store.observation import NOTHING, TABLES, market_versions, recent_hours, trajectory_versions
from babylon_rl.store.observation import watermark as watermark_of
from babylon_rl.versions import change_in_words
from babylon_rl.windows import next_window, window_of

RAW_TRAJECTORIES = dg.AssetKey("raw_trajectories")
MARKET_DATA = dg.AssetKey("market_data")
SOURCES = (RAW_TRAJECTORIES, MARKET_DATA)
NO_ROWS = "no rows"
OUTCOME_DELAY = timedelta(minutes=5)  # after an hour's end, before automation reads it
# Dynamic partitions of no asset; the only one is the id of the Dagster storage that holds it.
STORAGE_ID = "babylon_rl_storage"
REPORTED_TOGETHER = 100  # with one write to our table


class NewVersion(NamedTuple):
    """New version of an hour of a source, and the version that was last reported (None: none yet)."""

    source: dg.AssetKey
    window: str
    before: str | None
    after: str


class Observed(NamedTuple):
    """Changed hours, newest first, and the Dagster storage that gets the report.

    ``watermark`` stands for everything written before this observation (None: unknown).
    """

    storage: str
    changes: Sequence[NewVersion] = ()
    watermark: str | None = None


def storage_id(instance: dg.DagsterInstance) -> str:
    """Id of the instance's storage, made at the first call and kept there."""
    known = instance.get_dynamic_partitions(STORAGE_ID)
    if not known:
        instance.add_dynamic_partitions(STORAGE_ID, [uuid4().hex])
        known = instance.get_dynamic_partitions(STORAGE_ID)
    # Two processes may have made one each: all take the same.
    return min(known)


def observe(instance: dg.DagsterInstance, babylon: Babylon, *, full: bool, watermark: str | None = None) -> Observed:
    """Compare the recent hours (``full``: all from FIRST_WINDOW) with what was last reported; return the changes.

    Only hours of the graph that ended OUTCOME_DELAY ago are read. An hour whose rows are gone changes to ``no rows``. An hour with
    trajectories is observed in market_data too; otherwise a market without records would block assets that depend on both. No hour is
    read while ``watermark``, from an earlier observation whose changes were all reported, is still current.
    """
    storage = storage_id(instance)
    end = min(filter(None, (window_of(babylon.now() - OUTCOME_DELAY), END_OF_HOURS)))
    first = babylon.settings.first_window
    if end <= first:
        return Observed(storage)
    with babylon.database.connect(autocommit=True) as connection, connection.transaction():
        written = watermark_of(connection, TABLES, first, end)
        if watermark is not None and watermark == written:
            return Observed(storage, watermark=written)
        since = [first, first] if full else [max(first, recent) for recent in recent_hours(connection, end)]
        trajectories, market = trajectory_versions(connection, since[0], end), market_versions(connection, since[1], end)
        # Hours with trajectories but without market rows get a version too, so that no asset waits for them.
        silent = {window: NOTHING for window in trajectories if window >= since[1]}
        changes = list[NewVersion]()
        for source, versions, recent in zip(SOURCES, (trajectories, silent | market), since, strict=True):
            # Without any observation the asset was wiped.
            if not instance.fetch_observations(source, limit=1).records:
                forget_versions(connection, storage, source.to_user_string())
            told = told_versions(connection, storage, source.to_user_string(), recent, end)
            # Hours that were reported and have no rows any more.
            now = {window: NO_ROWS for window in told if window not in versions} | versions
            changes += [NewVersion(source, window, told.get(window), after) for window, after in now.items() if told.get(window) != after]
    return Observed(storage, sorted(changes, key=lambda change: change.window, reverse=True), written)


def report(babylon: Babylon, storage: str, changes: Sequence[NewVersion], tell: Callable[[dg.AssetObservation], object]) -> int:
    """Report changes by ``tell``, then note them as reported; return how many.

    A change whose hour was reported by somebody else meanwhile is left to the next call.
    """
    count = 0
    with babylon.database.connect(autocommit=True) as connection:
        for some in in_parts(changes, REPORTED_TOGETHER):
            with connection.transaction():
                lock_reports(connection, storage)
                for source in SOURCES:
                    own = [change for change in some if change.source == source]
                    if not own:
                        continue
                    windows = [change.window for change in own]
                    told = told_versions(connection, storage, source.to_user_string(), min(windows), next_window(max(windows)))
                    current = [change for change in own if told.get(change.window) == change.before]
                    for _, window, before, after in current:
                        metadata = {"change": change_in_words(before, after), "version_before": before or NO_ROWS}
                        tell(dg.AssetObservation(source, partition=window, tags={DATA_VERSION_TAG: after}, metadata=metadata))
                    note_versions(connection, storage, source.to_user_string(), {change.window: change.after for change in current})
                    count += len(current)
    return count


_GAME: dict[str, Any] = {"partitions_def": hours, "group_name": "game", "code_version": "1", "kinds": {"postgres", "source"}}
_WHEN_RED = (
    "the log of its run says why the tables could not be read; observe_changes looks again within a minute, the job `observe` at once."
)


@dg.multi_observable_source_asset(  # type: ignore[untyped-decorator] # of Dagster's, without types
    name="observe_game",
    specs=[
        dg.AssetSpec(
            RAW_TRAJECTORIES,
            **_GAME,
            **catalog_page(
                {
                    "trajectoryId": ("text", "Unique id of the row"),
                    "agentId": ("text", "The agent"),
                    "windowId": ("varchar(50)", "The hour, where the producer wrote it"),
                    "startTime": ("timestamp(3)", "UTC; gives the hour where windowId does not"),
                    "stepsJson": ("text", "The steps: state, prompts and answers, action, reward"),
                    "finalPnL": ("double precision", "Lifetime P&L in dollars at the end"),
                    "usedInTraining": ("boolean", "Set when a batch that held the row has produced a checkpoint"),
                },
                "Rows of `trajectories`, by the hour they belong to. An hour's version is its rows, their newest change and their logged "
                "calls.",
                _WHEN_RED,
                "public.trajectories",
            ),
        ),
        dg.AssetSpec(
            MARKET_DATA,
            **_GAME,
            **catalog_page(
                {
                    "StockPrice": ("table", "price of an organization at a moment"),
                    "WorldEvent": ("table", "what happened, to whom, about which question"),
                    "Question": ("table", "prediction questions and their official answers"),
                    "PredictionPriceHistory": ("table", "probabilities, and the moment of each resolution"),
                },
                "Prices, events, questions and probabilities, by hour. A late official answer changes the version of every hour in which "
                "the question was open.",
                _WHEN_RED,
            ),
        ),
    ],
    can_subset=True,
)
def sources(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.ObserveResult]:
    """Observe every hour; events of changed hours alone are reported, and no result for a source as a whole."""
    seen = observe(context.instance, babylon, full=True)
    changes = [change for change in seen.changes if change.source in context.selected_asset_keys]
    report(babylon, seen.storage, changes, context.log_event)
    yield from ()
