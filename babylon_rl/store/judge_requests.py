"""Paid requests to judges: answers, reservations of the budget, leases of hours.

babylon_rl.judge_requests is both cache and bill: a retired answer stays in the bill and is no longer found in the cache. A killed run's row
of babylon_rl.judge_reservations counts until it is dropped, or for RESERVED_FOR after its last sign of life.

A lease is a row that its holder renews, as a database lock would last for minutes of the judge's answer, and none of a session holds behind
a transaction pooler. It only saves money: every write is checked under the hour's own lock.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from psycopg.types.json import Jsonb

from babylon_rl.store.columns import SERVER_NOW, columns_of, listed
from babylon_rl.store.connection import Connection


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One row, without ``id`` and ``retired``. The comments of the table describe the columns. ``asked_at`` is naive UTC."""

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


_COLUMNS = columns_of(StoredAnswer)
_COUNT = 'SELECT count(*), count(*) FILTER (WHERE cardinality("faults") > 0) FROM babylon_rl.judge_requests WHERE "judge" = %s'
# Two processes may have paid for the same request: the first answer stays in use, the second is stored as retired and counts as paid too.
# An insert that conflicts waits for the other transaction's end; in the order of keys, two with several requests in common cannot deadlock.
_ADD_ANSWERS = f"""
    WITH given AS MATERIALIZED (SELECT {listed(_COLUMNS)} FROM jsonb_populate_recordset(NULL::babylon_rl.judge_requests, %s)),
    used AS (
        INSERT INTO babylon_rl.judge_requests ({listed(_COLUMNS)})
        SELECT * FROM given ORDER BY "key" ON CONFLICT ("key") WHERE NOT "retired" DO NOTHING RETURNING "key"
    )
    INSERT INTO babylon_rl.judge_requests ({listed(_COLUMNS)}, "retired")
    SELECT *, TRUE FROM given WHERE "key" NOT IN (SELECT "key" FROM used)
"""
_RETIRE = """
    UPDATE babylon_rl.judge_requests SET "retired" = TRUE WHERE "window" = ANY(%s) AND NOT "retired" AND cardinality("faults") > 0
"""
_SPENT = """
    SELECT COALESCE(sum("usd"), 0), count(*) FILTER (WHERE "usd" IS NULL)
    FROM babylon_rl.judge_requests WHERE "askedAt" >= %s AND "askedAt" < %s
"""


def count_answers(connection: Connection, judge: str) -> tuple[int, int]:
    """Return the number of a judge's answers and of the unusable ones among them."""
    answers, unusable = connection.row(_COUNT, (judge,))
    return answers, unusable


def find_answers(connection: Connection, keys: Sequence[str]) -> dict[str, StoredAnswer]:
    """Return the stored answers for ``keys``, by key; unanswered ones are absent."""
    with connection.transaction():
        found = connection.rows(StoredAnswer, 'babylon_rl.judge_requests WHERE "key" = ANY(%s) AND NOT "retired"', [list(keys)])
    return {answer.key: answer for answer in found}


def add_answers(connection: Connection, answers: Sequence[StoredAnswer]) -> None:
    """Store answers to different requests, in a transaction of their own unless the caller has one open."""
    with connection.transaction():
        connection.execute(_ADD_ANSWERS, (Jsonb([msgspec.to_builtins(answer) for answer in answers]),))


def retire_unusable(connection: Connection, windows: Sequence[str]) -> None:
    """Retire the unusable answers about ``windows``, so that they are requested again."""
    connection.execute(_RETIRE, (list(windows),))


def spent_on(connection: Connection, day: datetime) -> tuple[float, int]:
    """Return the dollars of the UTC day of ``day`` and the number of unpriced answers."""
    # Times of requests are naive UTC, so this is a UTC day.
    midnight = day.replace(hour=0, minute=0, second=0, microsecond=0)
    with connection.transaction():
        usd, unpriced = connection.row(_SPENT, (midnight, midnight + timedelta(days=1)))
    return float(usd), unpriced


# After this silence a run counts as dead.
RESERVED_FOR = timedelta(hours=1)
_BUDGET_LOCK = 0x6A75646765  # "judge": one reservation at a time

_UNDER_WAY = """
    SELECT COALESCE(sum("usd"), 0), COALESCE(array_agg("holder"), '{}') FROM babylon_rl.judge_reservations WHERE "seenAt" >= %s
"""
_ADD_RESERVATION = """
    INSERT INTO babylon_rl.judge_reservations AS held ("holder", "usd", "seenAt") VALUES (%s, %s, %s)
    ON CONFLICT ("holder") DO UPDATE SET "usd" = held."usd" + excluded."usd", "seenAt" = excluded."seenAt"
"""


class Reservation(msgspec.Struct, frozen=True):
    """Result of a reservation, in dollars. ``fits``: the amount was reserved. ``holders``: runs with open reservations."""

    spent: float
    under_way: float
    fits: bool
    holders: Sequence[str] = ()


def reserve(connection: Connection, holder: str, usd: float, most: float, paid: float, now: datetime) -> Reservation:
    """Reserve dollars for ``holder`` if, with open reservations and the day's spending or ``paid``, they fit into ``most``."""
    with connection.transaction():
        connection.take_lock(_BUDGET_LOCK)
        spent = max(spent_on(connection, now)[0], paid)
        # The lock makes check and reservation one step for all runs.
        under_way, holders = connection.row(_UNDER_WAY, (now - RESERVED_FOR,))
        fits = spent + under_way + usd <= most
        if fits:
            connection.execute(_ADD_RESERVATION, (holder, usd, now))
    return Reservation(spent, under_way, fits, holders)


def give_back(connection: Connection, holder: str, usd: float, now: datetime) -> None:
    """Release a part of the holder's reservation."""
    with connection.transaction():
        # Not under the budget's lock: a check that runs beside it may count these dollars as still reserved, never the other way round.
        connection.execute(_ADD_RESERVATION, (holder, -usd, now))


def drop_reservations(connection: Connection, holders: Sequence[str]) -> None:
    with connection.transaction():
        connection.execute("""DELETE FROM babylon_rl.judge_reservations WHERE "holder" = ANY(%s)""", (list(holders),))


# A lease is taken over from a holder that was silent for ``lasts``, or is known to be ``gone``.
_CLAIM = f"""
    INSERT INTO babylon_rl.judge_leases AS held ("window", "holder", "seenAt") VALUES (%(window)s, %(holder)s, {SERVER_NOW})
    ON CONFLICT ("window") DO UPDATE SET "holder" = excluded."holder", "seenAt" = excluded."seenAt"
    WHERE held."holder" = excluded."holder" OR held."seenAt" < excluded."seenAt" - %(lasts)s OR held."holder" = ANY(%(gone)s)
    RETURNING "window"
"""
_DROP_LEASES = """
    DELETE FROM babylon_rl.judge_leases WHERE "holder" = %(holder)s AND ("window" = ANY(%(windows)s) OR %(windows)s::text[] IS NULL)
"""


def claim_lease(connection: Connection, window: str, holder: str, lasts: timedelta, gone: Sequence[str] = ()) -> str | None:
    """Claim the lease of an hour: None on success, else its holder, seen for the last time less than ``lasts`` ago, and not ``gone``."""
    with connection.transaction():
        parameters = {"window": window, "holder": holder, "lasts": lasts, "gone": list(gone)}
        if connection.value(_CLAIM, parameters) is not None:
            return None
        return str(connection.value("""SELECT "holder" FROM babylon_rl.judge_leases WHERE "window" = %s""", (window,)) or "")


def renew_leases(connection: Connection, holder: str) -> None:
    with connection.transaction():
        connection.execute(f"""UPDATE babylon_rl.judge_leases SET "seenAt" = {SERVER_NOW} WHERE "holder" = %s""", (holder,))


def drop_leases(connection: Connection, holder: str, windows: Sequence[str] | None = None) -> None:
    """Release the holder's leases of ``windows``, or all of them."""
    with connection.transaction():
        connection.execute(_DROP_LEASES, {"holder": holder, "windows": None if windows is None else list(windows)})
