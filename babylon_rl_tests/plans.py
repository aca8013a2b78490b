"""Which statements were really sent, how Postgres would run them, and whether one of them reads a whole big table.

A scan is a Seq Scan, or an index read without a condition on the index's leading column: both cost as much as the table is long.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database

BIG = ("trajectories", "llm_call_logs")
MOST_SHOWN = 120
_COPY_OUT = re.compile(r"\s*COPY\s*\((?P<query>.*)\)\s*TO\s+STDOUT.*", re.DOTALL | re.IGNORECASE)
_PLANNED = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """One statement as it was sent, with its parameters, the seconds until its answer was read, and the rows of that."""

    text: str
    parameters: Any = None
    seconds: float = 0.0
    rows: int = 0


@dataclass(frozen=True)
class Read:
    """One node of a plan that reads a big table: how, by which index, and the index's condition."""

    table: str
    node: str
    index: str | None
    condition: str | None
    rows: float
    scans: bool

    def __str__(self) -> str:
        by = f" by {self.index} on {(self.condition or 'no condition')[:MOST_SHOWN]}" if self.index else ""
        return f"{'SCAN' if self.scans else 'ok  '} {self.table}: {self.node}{by}, {self.rows:.0f} rows"


class RecordedDatabase(Database):
    """A database whose connections note in ``sent`` every statement that they send."""

    sent: list[Statement]

    def __init__(self, url: str) -> None:
        super().__init__(url, url)
        object.__setattr__(self, "sent", [])

    def connect(self, autocommit: bool = False) -> Connection:
        connection = super().connect(autocommit)
        connection.cursor_factory = recording_cursor(self.sent)
        return connection


def recording_cursor(sent: list[Statement]) -> type[psycopg.Cursor[Any]]:
    """A cursor class that notes in ``sent`` every statement that it sends."""

    class RecordingCursor(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> "RecordingCursor":
            started = time.perf_counter()
            super().execute(query, params, **options)
            sent.append(Statement(_text(query, self), params, time.perf_counter() - started, self.rowcount))
            return self

        @contextmanager
        def copy(self, statement: Any, params: Any = None, **options: Any) -> Iterator[psycopg.Copy]:
            started = time.perf_counter()
            with super().copy(statement, params, **options) as copy:
                yield copy
            sent.append(Statement(_text(statement, self), params, time.perf_counter() - started, self.rowcount))

    return RecordingCursor


def _text(query: Any, cursor: psycopg.Cursor[Any]) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string(cursor)
    return query.decode() if isinstance(query, bytes) else str(query)


def explainable(statement: Statement) -> str | None:
    """The query to explain; None for what has no plan."""
    copied = _COPY_OUT.fullmatch(statement.text)
    text = copied["query"] if copied else statement.text
    return text if _PLANNED.match(text) else None


def reads_of(connection: Connection, statement: Statement) -> list[Read]:
    """How a statement would read the big tables, according to the planner; nothing is executed."""
    text = explainable(statement)
    if text is None:
        return []
    ((documents,),) = connection.execute(f"EXPLAIN (FORMAT JSON) {text}", statement.parameters).fetchall()
    return list(_reads(documents[0]["Plan"], _leading_columns(connection)))


def plan_text(connection: Connection, statement: Statement) -> str:
    """The plan as Postgres prints it."""
    return "\n".join(line for (line,) in connection.execute(f"EXPLAIN {explainable(statement)}", statement.parameters))


def _reads(node: dict[str, Any], leading: dict[str, str], table: str = "") -> Iterator[Read]:
    table = node.get("Relation Name", table)
    index, condition = node.get("Index Name"), node.get("Index Cond")
    if node["Node Type"] != "Bitmap Heap Scan" and table in BIG and ("Relation Name" in node or index):
        scans = node["Node Type"] not in ("ModifyTable", "Sample Scan") and (index is None or not _bounds(leading[index], condition))
        yield Read(table, node["Node Type"], index, condition, node["Plan Rows"], scans)
    for child in node.get("Plans", []):
        yield from _reads(child, leading, table if node["Node Type"] == "Bitmap Heap Scan" or "Bitmap" in node["Node Type"] else "")


def _bounds(column: str, condition: str | None) -> bool:
    return condition is not None and re.search(rf'(^|[^.\w])"?{re.escape(column)}"?(?!\w)', condition) is not None


def _leading_columns(connection: Connection) -> dict[str, str]:
    rows = connection.execute(
        """
        SELECT index.relname, a.attname FROM pg_index i
        JOIN pg_class index ON index.oid = i.indexrelid
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid IN ('public.trajectories'::regclass, 'public.llm_call_logs'::regclass)
        """
    )
    return dict(rows.fetchall())
