"""Metadata common to all assets: owner, columns, counts, tables, pictures and links."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from babylon_rl.reporting.plots import Picture
from babylon_rl.settings import Settings

OWNERS = ["team:babylon-rl"]
MOST_TABLE_ROWS = 100
SIGNIFICANT = 5
_TYPES = {str: "string", int: "int", float: "float", bool: "bool"}


def column_schema(**columns: tuple[str, str]) -> dict[str, dg.TableSchema]:
    """Definition metadata: the columns of the table that an asset fills, as ``name=(type, description)``."""
    described = [dg.TableColumn(name, kind, description) for name, (kind, description) in columns.items()]
    return {"dagster/column_schema": dg.TableSchema(described)}


def described(text: str, when_red: str) -> str:
    """Description for the catalog: content of an asset or check, and its remedy."""
    return f"{text}\n\n**When red:** {when_red}"


def admin_link(settings: Settings) -> dict[str, dg.UrlMetadataValue]:
    """The link to the admin page, as an entry of an asset's metadata."""
    return {"admin_page": dg.MetadataValue.url(f"{settings.admin_url.rstrip('/')}/admin")}


def counts(rows: int, /, **numbers: Any) -> dict[str, Any]:
    """The row count under the key that Dagster plots, and values that are not None."""
    return {"dagster/row_count": rows} | {name: _readable(value) for name, value in numbers.items() if value is not None}


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue | dg.TextMetadataValue:
    """A table of the first MOST_TABLE_ROWS rows, with the columns of the first row."""
    if not rows:
        return dg.MetadataValue.text("no rows")
    records = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in rows[:MOST_TABLE_ROWS]]
    columns = [dg.TableColumn(name, _type(name, rows)) for name in rows[0]]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def embedded(picture: Picture) -> dg.MarkdownMetadataValue:
    """The picture in Markdown, as a data URI."""
    return dg.MetadataValue.md(f"![{picture.title}](data:image/png;base64,{base64.b64encode(picture.png).decode()})")


def linked_windows(windows: Iterable[str], assets: Sequence[str]) -> dg.MarkdownMetadataValue:
    """The hours of a batch, each with links to its partition of ``assets``."""
    lines = []
    for window in sorted(windows):
        links = ", ".join(f"[{asset}](/assets/{asset}?view=partitions&partition={window.replace(':', '%3A')})" for asset in assets)
        lines.append(f"* {window}: {links}")
    return dg.MetadataValue.md("\n".join(lines) or "none")


def _readable(value: Any) -> Any:
    """Round floats to SIGNIFICANT digits; return everything else unchanged."""
    return float(f"{value:.{SIGNIFICANT}g}") if isinstance(value, float) else value


def _cell(value: Any) -> str | int | float | bool | None:
    value = _readable(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _type(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    value = next((row[name] for row in rows if row.get(name) is not None), "")
    return _TYPES.get(type(value), "string")
