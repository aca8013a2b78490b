"""Columns of statements, from the structs of types.py, rows as JSON, and texts that Postgres accepts.

A column has the encoded name of its field, so a new field reaches every statement of its table.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, structs

from babylon_rl.windows import moment

T = TypeVar("T")
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]  # as ``moment`` makes it
IDS_AT_ONCE = 5000  # as one parameter the ids of a large hour would be megabytes, several times over
SERVER_NOW = "clock_timestamp() AT TIME ZONE 'UTC'"  # for signs of life: the clocks of two machines may differ by more than a silence lasts
UNSTORABLE = "\ufffd"  # replaces U+0000, which JSON allows and Postgres does not


def in_parts(items: Sequence[T], size: int = IDS_AT_ONCE) -> Iterator[list[T]]:
    """Split ``items`` into parts of at most ``size``, in order."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def portions(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Split ``items``, in order, into lists of at most ``most`` by ``size``. A larger item forms its own list."""
    some, total = list[T](), 0
    for item in items:
        if some and total + size(item) > most:
            yield some
            some, total = [], 0
        some.append(item)
        total += size(item)
    if some:
        yield some


def columns_of(struct: type, but: Collection[str] = ()) -> tuple[str, ...]:
    """Return the column names of the fields of a struct or dataclass, in order, without the columns ``but``."""
    names = [camel(field.name) for field in fields(struct)] if is_dataclass(struct) else [f.encode_name for f in structs.fields(struct)]
    return tuple(name for name in names if name not in but)


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def document_of(row: Any, *names: str) -> dict[str, Any]:
    """Return the fields ``names`` of a row (all of a dataclass) by their camelCase names, JSON-ready; times are UTC texts."""
    values = {camel(name): getattr(row, name) for name in names or [field.name for field in fields(row)]}
    return {name: json_value(value) for name, value in values.items()}


def json_value(value: Any) -> Any:
    """Return a field of a row as JSON has it; a time as UTC text."""
    return moment(value) if isinstance(value, datetime) else list(value) if isinstance(value, tuple) else value


def listed(columns: Iterable[str], table: str = "") -> str:
    """Return the quoted columns, joined by commas, each qualified by ``table`` if given."""
    return ", ".join(f'{table}."{name}"' if table else f'"{name}"' for name in columns)


def updates(columns: Iterable[str], but: Mapping[str, str] | None = None) -> str:
    """Return the assignments of an upsert. ``but`` maps columns to another value than the excluded row's."""
    values = but or {}
    return ", ".join(f'"{name}" = ' + values.get(name, f'excluded."{name}"') for name in columns)


def insertion(table: str, columns: Iterable[str], parameter: str = "%s") -> str:
    """Return the statement that inserts rows given as one JSON document, by the types of the table, which is ``held`` in it."""
    names = listed(columns)
    return f"INSERT INTO {table} AS held ({names}) SELECT {names} FROM jsonb_populate_recordset(NULL::{table}, {parameter}) "


def loaded(struct: type[T], columns: Iterable[str], row: Iterable[Any]) -> T:
    """Build ``struct`` from the values of ``columns``; absent fields have their defaults, of a dataclass only the last can be absent."""
    if is_dataclass(struct):
        return struct(*row)
    return msgspec.convert(dict(zip(columns, row, strict=True)), struct)


def storable(text: str) -> str:
    """Return a text that Postgres accepts: without NUL and lone surrogates."""
    return text.replace("\0", UNSTORABLE).encode("utf-8", "replace").decode()
