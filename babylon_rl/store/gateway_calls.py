"""Calls through the gateway: babylon_rl.gateway_calls, and the texts of recorded ones in llm_call_logs.

A call is written once, however often it is given: its id is unique in both tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.store.connection import Connection

# Inferences are counted from the rows that are new, in the same statement, so that a repetition counts nothing twice. Versions of other
# producers are not changed.
_INSERT_CALLS = """
WITH new AS (
    INSERT INTO babylon_rl.gateway_calls
        ("callId", "at", "agentId", "keyName", "chosenVersion", "version", "arm", "fallback", "status", "latencyMs", "firstTokenMs",
         "promptTokens", "completionTokens")
    SELECT "callId", "at", "agentId", "keyName", "chosenVersion", "version", "arm", "fallback", "status", "latencyMs", "firstTokenMs",
           "promptTokens", "completionTokens"
    FROM jsonb_populate_recordset(NULL::babylon_rl.gateway_calls, %(calls)s)
    ON CONFLICT DO NOTHING
    RETURNING "version", "status"
), answered AS (
    SELECT "version", count(*)::int AS calls FROM new WHERE "status" = 200 AND "version" IS NOT NULL GROUP BY "version"
), counted AS (
    UPDATE public.trained_models m SET "totalInferences" = m."totalInferences" + answered.calls
    FROM answered JOIN babylon_rl.model_lineage l ON l."version" = answered."version"
    WHERE m.version = l."version" AND m."trainingBatch" = l."batchId"
)
SELECT count(*) FROM new
"""
_INSERT_LOGS = """
INSERT INTO public.llm_call_logs
    (id, "trajectoryId", "stepId", "callId", "timestamp", "latencyMs", model, purpose, "actionType", "systemPrompt", "userPrompt",
     "messagesJson", response, reasoning, temperature, "maxTokens", "topP", "promptTokens", "completionTokens", "totalTokens", metadata,
     "createdAt")
SELECT id, "trajectoryId", "stepId", "callId", "timestamp", "latencyMs", model, purpose, "actionType", "systemPrompt", "userPrompt",
       "messagesJson", response, reasoning, temperature, "maxTokens", "topP", "promptTokens", "completionTokens", "totalTokens", metadata,
       "createdAt"
FROM jsonb_populate_recordset(NULL::public.llm_call_logs, %(logs)s)
ON CONFLICT DO NOTHING
"""
_KEYS_USED = """
UPDATE babylon_rl.client_keys k SET "lastUsedAt" = greatest(k."lastUsedAt", used."at")
FROM (SELECT "keyName", max("at") AS "at" FROM jsonb_populate_recordset(NULL::babylon_rl.gateway_calls, %(calls)s) GROUP BY 1) used
WHERE k."name" = used."keyName"
"""


@dataclass(frozen=True)
class GatewayRows:
    """Rows of calls by column name: ``calls`` of gateway_calls, ``logs`` of llm_call_logs.

    Times as ISO texts in UTC.
    """

    calls: Sequence[dict[str, Any]]
    logs: Sequence[dict[str, Any]]


def write_calls(connection: Connection, rows: GatewayRows) -> int:
    """Write calls in one transaction; return the number of those that were not there yet."""
    with connection.transaction():
        (new,) = connection.execute(_INSERT_CALLS, {"calls": Jsonb(rows.calls)}).fetchone() or (0,)
        if any(call["keyName"] for call in rows.calls):
            connection.execute(_KEYS_USED, {"calls": Jsonb(rows.calls)})
        if rows.logs:
            connection.execute(_INSERT_LOGS, {"logs": Jsonb(rows.logs)})
        return int(new)


_READ_CALLS = """
SELECT "callId", "at", "agentId", "keyName", "chosenVersion", "version", "arm", "fallback", "status", "latencyMs", "firstTokenMs",
       "promptTokens", "completionTokens"
FROM babylon_rl.gateway_calls WHERE "at" >= %s AND "at" < %s ORDER BY "at", "callId"
"""


def read_calls(connection: Connection, since: datetime, until: datetime) -> Iterator[dict[str, Any]]:
    """Yield the calls of a time by column name, ``until`` excluded, in order.

    One transaction, a part in memory at a time.
    """
    with connection.transaction(), connection.cursor(name="gateway_calls", row_factory=dict_row) as cursor:
        yield from cursor.execute(_READ_CALLS, [since, until])


_FORGET = """WITH gone AS (DELETE FROM babylon_rl.gateway_calls WHERE "at" < %s RETURNING 1) SELECT count(*) FROM gone"""
_OLD = """SELECT count(*) FROM babylon_rl.gateway_calls WHERE "at" < %s"""


def forget_calls(connection: Connection, before: datetime, *, dry_run: bool) -> int:
    """Delete the routed calls before a time, and return their number; ``dry_run`` only counts.

    Their texts stay in llm_call_logs.
    """
    (calls,) = connection.execute(_OLD if dry_run else _FORGET, [before]).fetchone() or (0,)
    return int(calls)
