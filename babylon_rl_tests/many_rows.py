"""Slim rows by the million, and a small table that the planner takes for a big one.

The rows look like a game's: some hundred agents acting every hour for months, in the order of time, a share of them without a window id
or with logged calls. Used by the tests of query plans and by benchmarks/ten_million_rows.py.
"""

import json
import os
import random
import string
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from babylon_rl.store.connection import Connection
from babylon_rl.windows import window_of
from babylon_rl_tests.rows import make_call, make_step

_PAGE_BYTES, _SEGMENT_BYTES = 8192, 1 << 30


@dataclass(frozen=True)
class ManyRows:
    """How many rows, between which moments, and by whom.

    The rows of the first ``unnamed_agents`` have no window id; every ``logged_every``-th row has a logged call instead of an embedded one.
    Each of the ``organizations`` has a price every twenty minutes, and with ``trades`` every step buys one of them.
    """

    rows: int
    start: datetime
    end: datetime
    agents: int = 400
    unnamed_agents: int = 20
    logged_every: int = 10
    steps: int = 1
    prompt_characters: int = 110
    organizations: int = 0
    trades: bool = False

    @property
    def hours(self) -> int:
        """Windows that the rows fall into."""
        return -(-(self.end - self.start) // timedelta(hours=1))

    @property
    def newest_window(self) -> str:
        """The last hour that holds rows."""
        return window_of(self.end - timedelta(milliseconds=1))


_AGENTS = """INSERT INTO public."User" (id, "updatedAt") SELECT 'many-' || n, %(start)s FROM generate_series(0, %(agents)s - 1) n"""
# In the steps of a row, @row is its number and 1000000000000 the millisecond at which it starts, so that no two rows are the same.
_TRAJECTORIES = """
    INSERT INTO public.trajectories (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "scenarioId",
        "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus", "finalPnL",
        "createdAt", "updatedAt")
    SELECT 'row-' || n, 'many-' || n, 'many-' || n %% %(agents)s, at, at + interval '30 seconds', 30000,
        CASE WHEN n %% %(agents)s >= %(unnamed)s THEN hour END, hour,
        replace(replace(CASE WHEN n %% %(logged_every)s > 0 THEN %(served)s ELSE %(silent)s END, '@row', n::text),
            '1000000000000', (extract(epoch FROM at) * 1000)::bigint::text),
        '{}', '{}', '{}', 0, 1, 'completed', n %% 997, at, at
    FROM (
        SELECT n, at, to_char(at, 'YYYY-MM-DD"T"HH24:00') AS hour FROM (
            SELECT n, %(start)s::timestamp + (%(end)s::timestamp - %(start)s::timestamp) * (n::float8 / %(rows)s) AS at
            FROM generate_series(0, %(rows)s - 1) n
        ) timed
    ) placed
"""
_LOGS = """
    INSERT INTO public.llm_call_logs (id, "trajectoryId", "stepId", "callId", "timestamp", model, purpose, "systemPrompt", "userPrompt",
        response, temperature, "maxTokens")
    SELECT 'log-' || n, 'many-' || n, 'many-' || n || '-step-0', 'call-' || n, %(start)s, 'm', 'action', %(system)s, %(prompt)s, 'hold',
        0.7, 300
    FROM generate_series(0, %(rows)s - 1, %(logged_every)s) n
"""
_ORGANIZATIONS = """
    INSERT INTO public."Organization" (id, name, description, type, "initialPrice", "updatedAt")
    SELECT 'many-' || n, 'Organization ' || n, '', 'company', 100, %(start)s FROM generate_series(1, %(organizations)s) n
"""
_PRICES = """
    INSERT INTO public."StockPrice" (id, "organizationId", price, change, "changePercent", "timestamp")
    SELECT 'many-' || n || '-' || at::text, 'many-' || n, 100 + 10 * sin(extract(epoch FROM at) / (3600 + 60 * n)), 0, 0, at
    FROM generate_series(1, %(organizations)s) n, generate_series(%(start)s::timestamp, %(end)s::timestamp, interval '20 minutes') at
"""
_SYSTEM = "You trade shares and predictions, a decision every ten minutes."
_EPOCH_MS = 1_000_000_000_000


def insert_many(connection: Connection, many: ManyRows) -> None:
    """Write the rows, a statement a table; their steps are the same but for the row's number and times."""
    prompt = "".join(random.Random(0).choices(string.ascii_lowercase + "     ", k=many.prompt_characters))
    bought = {"marketType": "perp", "ticker": "many-1", "side": "long"} if many.trades else {}
    action = {"action": {"actionType": "TRADING_DECISION", "parameters": bought, "success": True}}
    call = make_call(systemPrompt=_SYSTEM, userPrompt=f"@row {prompt}")
    given = {
        "rows": many.rows, "start": many.start, "end": many.end, "agents": many.agents, "unnamed": many.unnamed_agents,
        "logged_every": many.logged_every, "organizations": many.organizations, "system": _SYSTEM, "prompt": prompt,
        "served": json.dumps([make_step(number, calls=[call], timestamp=_EPOCH_MS) | action for number in range(many.steps)]),
        "silent": json.dumps([make_step(number, timestamp=_EPOCH_MS, reason="@row") | action for number in range(many.steps)]),
    }  # fmt: skip
    for statement in (_AGENTS, _TRAJECTORIES, _LOGS, _ORGANIZATIONS, _PRICES):
        connection.execute(statement, given)


def pretend_rows(connection: Connection, table: str, rows: int, **distinct: float) -> None:
    """Make the planner take ``table`` for one of ``rows`` rows, vacuumed, with ``distinct`` values in some columns.

    The planner counts a table's pages by the length of its files, so these are lengthened by a hole, which takes no room on the disk.
    Rows, pages and visible pages are set in pg_class, distinct values by the columns' own setting, and the rest is what ANALYZE finds.
    Only for a database that is thrown away, by a superuser on the server's machine.
    """
    for column, values in distinct.items():
        connection.execute(f'ALTER TABLE {table} ALTER COLUMN "{column}" SET (n_distinct = {values})')
    connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    connection.execute(f"VACUUM (ANALYZE) {table}")
    (directory,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    (held,) = connection.execute("SELECT count(*) FROM " + table).fetchone() or (0,)
    relations = connection.execute(
        """
        SELECT oid, pg_relation_size(oid) / %(page)s, pg_relation_filepath(oid) FROM (
            SELECT %(table)s::regclass::oid UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = %(table)s::regclass
        ) of_table (oid)
        """,
        {"table": table, "page": _PAGE_BYTES},
    ).fetchall()
    connection.execute("CHECKPOINT")
    for oid, pages, path in relations:
        wanted = -(-pages * rows // held)
        _lengthen(Path(directory) / path, wanted * _PAGE_BYTES)
        connection.execute(
            "UPDATE pg_class SET relpages = %s, reltuples = %s, relallvisible = %s WHERE oid = %s", [wanted, rows, wanted, oid]
        )


def _lengthen(file: Path, size: int) -> None:
    owner = file.stat()
    for number in range(-(-size // _SEGMENT_BYTES)):
        segment = file if number == 0 else file.with_name(f"{file.name}.{number}")
        segment.touch()
        os.truncate(segment, min(_SEGMENT_BYTES, size - number * _SEGMENT_BYTES))
        os.chown(segment, owner.st_uid, owner.st_gid)
