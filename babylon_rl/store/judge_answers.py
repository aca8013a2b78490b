"""Rows of babylon_rl.judge_requests: every paid answer of a judge, by request key.

The table is both cache and bill. A retired answer stays in the bill and is no longer found in the cache.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from babylon_rl.store.connection import Connection


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One row, without ``id`` and ``retired``.

    The comments of the table describe the columns. ``asked_at`` is naive UTC.
    """

    key: str
    window: str
    judge: str
    rubric_version: str
    order: int
    part: int
    attempt: int
    shown_version: str
    ids: list[tuple[str, str]]
    answer: str
    faults: list[str]
    scores: dict[str, float] | None
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    latency_seconds: float
    tries: int
    asked_at: datetime


_COLUMNS = tuple(field.encode_name for field in msgspec.structs.fields(StoredAnswer))
_LIST = ", ".join(f'"{name}"' for name in _COLUMNS)
_FIND = f'SELECT {_LIST} FROM babylon_rl.judge_requests WHERE "key" = ANY(%s) AND NOT "retired"'
_COUNT = 'SELECT count(*), count(*) FILTER (WHERE cardinality("faults") > 0) FROM babylon_rl.judge_requests WHERE "judge" = %s'
# Two processes may have paid for the same request: the first answer stays in use, the second is stored as retired.
_ADD = f"""
    INSERT INTO babylon_rl.judge_requests ({_LIST}, "retired")
    SELECT given."key", given."window", given."judge", given."rubricVersion", given."order", given."part", given."attempt",
        given."shownVersion", given."ids", given."answer",
        ARRAY(SELECT jsonb_array_elements_text(given."faults")), NULLIF(given."scores", 'null'), given."promptTokens",
        given."completionTokens", given."usd", given."latencySeconds", given."tries", given."askedAt",
        EXISTS (SELECT FROM babylon_rl.judge_requests held WHERE held."key" = given."key" AND NOT held."retired")
    FROM jsonb_to_recordset(%s) AS given ("key" text, "window" text, "judge" text, "rubricVersion" text, "order" int, "part" int,
        "attempt" int, "shownVersion" text,
        "ids" jsonb, "answer" text, "faults" jsonb, "scores" jsonb, "promptTokens" int, "completionTokens" int,
        "usd" float8, "latencySeconds" float8, "tries" int, "askedAt" timestamp)
    ON CONFLICT DO NOTHING
"""
# Only answers with faults are retired; a good answer stays in the cache.
_RETIRE = """
    UPDATE babylon_rl.judge_requests SET "retired" = TRUE WHERE "window" = ANY(%s) AND NOT "retired" AND cardinality("faults") > 0
"""
_SPENT = """
    SELECT COALESCE(sum("usd"), 0), count(*) FILTER (WHERE "usd" IS NULL)
    FROM babylon_rl.judge_requests WHERE "askedAt" >= %s AND "askedAt" < %s
"""


def count_answers(connection: Connection, judge: str) -> tuple[int, int]:
    """Return the number of a judge's answers and of the unusable ones among them."""
    row = connection.execute(_COUNT, (judge,)).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def find_answers(connection: Connection, keys: Sequence[str]) -> dict[str, StoredAnswer]:
    """Return the stored answers for ``keys``, by key; unanswered ones are absent."""
    with connection.transaction():
        rows = connection.execute(_FIND, (list(keys),)).fetchall()
    return {row[0]: _loaded(row) for row in rows}


def add_answers(connection: Connection, answers: Sequence[StoredAnswer]) -> None:
    """Store answers, in a transaction of their own unless the caller has one open."""
    with connection.transaction():
        connection.execute(_ADD, (Jsonb([msgspec.to_builtins(answer) for answer in answers]),))


def retire_unusable(connection: Connection, windows: Sequence[str]) -> None:
    """Retire the unusable answers about ``windows``, so that they are requested again."""
    connection.execute(_RETIRE, (list(windows),))


def spent_on(connection: Connection, day: datetime) -> tuple[float, int]:
    """Return the dollars of the UTC day of ``day`` and the number of unpriced answers."""
    midnight = day.replace(hour=0, minute=0, second=0, microsecond=0)
    with connection.transaction():
        row = connection.execute(_SPENT, (midnight, midnight + timedelta(days=1))).fetchone()
    return (0.0, 0) if row is None else (float(row[0]), int(row[1]))


def _loaded(row: tuple[Any, ...]) -> StoredAnswer:
    return msgspec.convert(dict(zip(_COLUMNS, row, strict=True)), StoredAnswer)
