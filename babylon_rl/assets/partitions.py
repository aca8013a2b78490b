"""Partitions of the asset graph (hours, batches), results of hourly assets, and metadata of all.

An hour's key is its window id, so that UI, CLI, database and logs name it the same way; a batch's key is its batch id.

Dagster gives all hours of a range run one data version (docs/decisions/0001-one-data-version-per-run.md).
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import dagster as dg

from babylon_rl.assets.resources import Babylon, tag_run
from babylon_rl.reporting.numbers import percent
from babylon_rl.reporting.plots import Picture
from babylon_rl.serving.dagster_client import BATCHES
from babylon_rl.settings import DatabaseSettings, Settings, load_settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import newest_window_with_rows
from babylon_rl.store.windows import reading_chunks
from babylon_rl.traces import traced_step
from babylon_rl.versions import content_version
from babylon_rl.windows import WINDOW_FORMAT, newest_complete, next_window, utc_now

F = TypeVar("F", bound=Callable[..., Any])
Columns = Mapping[str, tuple[str, str]]
OWNERS = ["team:babylon-rl"]
UPSTREAM = ("window_groups", "market_outcomes", "scored_groups", "answer_groups")
MOST_TABLE_ROWS = 100
SIGNIFICANT, SIGNIFICANT_IN_TABLES = 5, 4  # a table of eight columns fits a page of 1,440 pixels
_TYPES = {str: "string", int: "int", float: "float", bool: "bool"}


def asset(columns: Columns, says: str, when_red: str, *, table: str | None = None, **options: Any) -> Callable[[F], dg.AssetsDefinition]:
    """``dg.asset`` with ``options``, the page of ``catalog_page``, and a trace of each step."""
    page = catalog_page(columns, says, when_red, table)
    return lambda function: dg.asset(**(page | {"kinds": {"python", "postgres"}} | options))(traced_step(function))


def catalog_page(columns: Columns, says: str, when_red: str, table: str | None = None) -> dict[str, Any]:
    """Options of an asset that fill its page in the catalog: owner, content, remedy, and the table that it fills.

    Under Dagster's own key for it the columns, ``{name: (type, description)}``, would fill the first screen of the page.
    """
    schema = dg.TableSchema([dg.TableColumn(name, kind, description) for name, (kind, description) in columns.items()])
    metadata = {"columns": schema} | ({} if table is None else {"table": table})
    return {"owners": OWNERS, "metadata": metadata, "description": described(says, when_red)}


def described(text: str, when_red: str) -> str:
    """Description for the catalog: content of an asset or check, and its remedy."""
    return f"{text}\n\n**When red:** {when_red}"


def admin_link(settings: Settings) -> dict[str, dg.UrlMetadataValue]:
    return {"admin_page": dg.MetadataValue.url(f"{settings.admin_url.rstrip('/')}/admin")}


def counts(rows: int, /, **numbers: Any) -> dict[str, Any]:
    """Values that are not None, and after them the row count under the key that Dagster plots."""
    return {name: _readable(value) for name, value in numbers.items() if value is not None} | {"dagster/row_count": rows}


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue | dg.TextMetadataValue:
    """A table of the first MOST_TABLE_ROWS rows, with the columns of the first row."""
    if not rows:
        return dg.MetadataValue.text("no rows")
    records = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in rows[:MOST_TABLE_ROWS]]
    # The type of a column is that of its first value.
    first = {name: next((row[name] for row in rows if row.get(name) is not None), "") for name in rows[0]}
    columns = [dg.TableColumn(name, _TYPES.get(type(value), "string")) for name, value in first.items()]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def embedded(pictures: Sequence[Picture]) -> dict[str, dg.MarkdownMetadataValue]:
    """One metadata entry with all pictures of a page, in Markdown; empty without pictures."""
    shown = (f"![{picture.title}](data:image/png;base64,{base64.b64encode(picture.png).decode()})" for picture in pictures)
    return {"pictures": dg.MetadataValue.md("\n\n".join(shown))} if pictures else {}


def results_table(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> dg.TableMetadataValue | dg.TextMetadataValue:
    """A table of a report's rows, with the columns of ``titles`` in whole dollars and percent."""
    return table([{title: shown.get(name) for name, title in titles.items()} for shown in map(_with_interval, rows)])


def _with_interval(row: Mapping[str, Any]) -> dict[str, Any]:
    whole = {name: round(row[name]) for name in ("pnl", "improvement") if row.get(name) is not None}
    shares = {name: percent(row[name]) for name in ("winRate", "holdShare") if row.get(name) is not None}
    bounds = row.get("low"), row.get("high")
    return {**row, **whole, **shares, "interval": None if None in bounds else "{:+.0f} to {:+.0f}".format(*bounds)}


def linked_windows(windows: Iterable[str]) -> dg.MarkdownMetadataValue:
    """The hours of a batch, each with links to its partition of UPSTREAM."""
    lines = []
    for window in sorted(windows):
        links = ", ".join(f"[{asset}](/assets/{asset}?view=partitions&partition={window.replace(':', '%3A')})" for asset in UPSTREAM)
        lines.append(f"* {window}: {links}")
    return dg.MetadataValue.md("\n".join(lines) or "none")


def _readable(value: Any, digits: int = SIGNIFICANT) -> Any:
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _cell(value: Any) -> str | int | float | bool | None:
    value = _readable(value, SIGNIFICANT_IN_TABLES)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


AS_LOADED = load_settings()  # of the environment in which the code location was loaded


def end_of_hours(settings: DatabaseSettings, now: datetime) -> str | None:
    """The hour after the last partition; None where partitions go on with the clock.

    A game that went on after LAST_WINDOW has no last hour. That is looked up where DATABASE_URL is given, as to every process of `dev`.
    """
    if settings.last_window is None:
        return None
    if (database := Database.of(settings)) is not None:
        with database.connect(autocommit=True) as connection:
            newest = newest_window_with_rows(connection, newest_complete(now))
        if newest is not None and newest > settings.last_window:
            return None
    return next_window(settings.last_window)


END_OF_HOURS = end_of_hours(AS_LOADED, utc_now())
hours = dg.HourlyPartitionsDefinition(start_date=AS_LOADED.first_window, end_date=END_OF_HOURS, fmt=WINDOW_FORMAT)
batches = dg.DynamicPartitionsDefinition(name=BATCHES)
DATA_VERSION_TAG = "dagster/data_version"
# Longer runs report no tables of rows: Dagster keeps the metadata of all hours in memory until the end of the step.
MOST_HOURS_WITH_TABLES = 168
MOST_HOURS_WITH_PLOTS = 24


def batch_of(context: dg.AssetExecutionContext) -> str:
    """The batch that a run was started for; tags the run with it."""
    tag_run(context, batch=str(context.partition_key))
    return str(context.partition_key)


@dataclass(frozen=True)
class HourReport:
    """Result of one hour: the hash of its content and the metadata of its page."""

    data_version: str
    metadata: Mapping[str, Any]


# Reports on a portion of a run's hours, of which the given ones get plots.
ReportsOf = Callable[[Connection, list[str], Babylon, frozenset[str]], Mapping[str, HourReport]]


def hourly_asset(**options: Any) -> Callable[[ReportsOf], dg.AssetsDefinition]:
    """Decorator of an asset of hours, a range of them in one run unless ``options`` say otherwise; see ``asset``."""

    def define(reports_of: ReportsOf) -> dg.AssetsDefinition:
        def materialize(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
            return _report_hours(context, babylon, reports_of)

        materialize.__name__ = reports_of.__name__
        options.setdefault("backfill_policy", dg.BackfillPolicy.single_run())
        return asset(partitions_def=hours, **options)(materialize)

    return define


def _report_hours(context: dg.AssetExecutionContext, babylon: Babylon, reports_of: ReportsOf) -> dg.MaterializeResult[Any]:
    """The result of an hourly asset, with metadata for each hour; tags the run with its hours.

    A run of one hour has the hour's data version, a range one version of all its hours.
    """
    windows = list(context.partition_keys)
    tag_run(context, window=windows[0] if len(windows) == 1 else f"{windows[0]}...{windows[-1]}")
    versions: dict[str, str] = {}
    # The newest hour of a day at most: a longer range is read by its tables, and the first plot costs as much as a hundred hours of it.
    plotted = frozenset([max(windows)] if len(windows) <= MOST_HOURS_WITH_PLOTS else [])
    with babylon.connection() as connection:
        for some in reading_chunks(connection, windows):
            for window, report in reports_of(connection, some, babylon, plotted).items():
                versions[window] = report.data_version
                metadata = dict(report.metadata)
                if len(windows) > MOST_HOURS_WITH_TABLES:
                    metadata = {name: value for name, value in metadata.items() if not isinstance(value, dg.TableMetadataValue)}
                context.add_asset_metadata(metadata, partition_key=window)
    version = versions[windows[0]] if len(windows) == 1 else content_version(versions)
    return dg.MaterializeResult(data_version=dg.DataVersion(version))
