"""Use of versions by live agents: gateway calls, other recorded calls, agent-hours.

Tables babylon_rl.gateway_calls, version_hours and usage_counted, and the texts of recorded calls in llm_call_logs. An agent's hour
belongs to the version that routing chose for all its calls in that hour; hours with several count for none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.store.columns import insertion, listed
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import lock_models
from babylon_rl.windows import window_of, window_start

COUNTED_AGAIN = timedelta(hours=3)  # before the last count: recorded calls may come that late
CLOCKS_DIFFER = timedelta(hours=1)  # an agent's clock may be that far ahead

# Calls that did not pass the gateway are known by their ids; agents of calls without a trajectory are not known.
# ``before`` sees the rows as they were before ``written``, as parts of one statement share a snapshot: only the difference is new, and an
# hour may be counted as often as one likes.
_COUNT_HOURS = """
WITH seen AS (
    SELECT substring(l.metadata FROM '"modelVersion": ?"([^"]+)"') AS version, date_trunc('hour', l."timestamp") AS hour,
           t."agentId" AS agent
    FROM public.llm_call_logs l LEFT JOIN public.trajectories t USING ("trajectoryId")
    WHERE l."timestamp" >= %(since)s AND l."timestamp" < %(until)s AND l.metadata LIKE '%%"modelVersion"%%'
      AND NOT EXISTS (SELECT FROM babylon_rl.gateway_calls g WHERE g."callId" = l."callId")
), counted AS (
    SELECT seen.version, to_char(hour, 'YYYY-MM-DD"T"HH24:MI') AS "window", count(*)::int AS calls,
           COALESCE(array_agg(DISTINCT agent) FILTER (WHERE agent IS NOT NULL), '{}') AS agents
    FROM seen JOIN public.trained_models m ON m.version = seen.version GROUP BY 1, 2
), before AS (
    SELECT h."version", h."window", h."calls" FROM babylon_rl.version_hours h
    JOIN counted c ON c.version = h."version" AND c."window" = h."window"
), written AS (
    INSERT INTO babylon_rl.version_hours ("version", "window", "calls", "agentIds") SELECT version, "window", calls, agents FROM counted
    ON CONFLICT ("version", "window") DO UPDATE SET "calls" = excluded."calls", "agentIds" = excluded."agentIds"
)
SELECT c.version, sum(c.calls - COALESCE(b."calls", 0))::int
FROM counted c LEFT JOIN before b ON b."version" = c.version AND b."window" = c."window" GROUP BY 1
"""
# Another producer's time may be infinite.
_FIRST_VERSION = """
SELECT least(greatest(min("createdAt"), timestamp '1970-01-01'), %s) FROM public.trained_models HAVING count(*) > 0
"""
_AGENTS = """
SELECT version, array_agg(DISTINCT agent ORDER BY agent) FROM (
    SELECT "version" AS version, "agentId" AS agent FROM babylon_rl.gateway_calls
    WHERE "at" >= %(since)s AND "status" = 200 AND "agentId" IS NOT NULL
    UNION SELECT "version", unnest("agentIds") FROM babylon_rl.version_hours WHERE "window" BETWEEN %(window)s AND %(newest)s
) used WHERE version IS NOT NULL GROUP BY version
"""
_LAST_CALLS = """
SELECT DISTINCT ON ("agentId") "agentId", "version", "fallback", "at" FROM babylon_rl.gateway_calls
WHERE "at" >= %s AND "agentId" IS NOT NULL AND "status" = 200 ORDER BY "agentId", "at" DESC
"""
_SET_USAGE = """
UPDATE public.trained_models m SET "agentsUsing" = used.agents, "totalInferences" = m."totalInferences" + used.calls
FROM (
    SELECT l."version", l."batchId", COALESCE((%s::jsonb ->> l."version")::int, 0) AS agents,
        COALESCE((%s::jsonb ->> l."version")::int, 0) AS calls
    FROM babylon_rl.model_lineage l
) used
WHERE m.version = used."version" AND m."trainingBatch" = used."batchId" AND (m."agentsUsing", 0) <> (used.agents, used.calls)
"""
_CALLS = """
SELECT "chosenVersion", count(*)::int, count(*) FILTER (WHERE "fallback" IS NOT NULL OR "status" >= 500)::int,
       count(*) FILTER (WHERE "latencyMs" > %s)::int
FROM babylon_rl.gateway_calls WHERE "at" >= %s AND "status" <> 499 GROUP BY 1
"""
# ``assigned`` has a row for each version that an agent was routed to in an hour (UNION drops repetitions), so ``one`` keeps hours with a
# single version. An agent that was recorded by its hash is found by ``names``.
_AGENT_HOURS = """
WITH names AS (
    SELECT recorded, agent FROM unnest(%(recorded)s::text[], %(agents)s::text[]) AS n(recorded, agent)
), assigned AS (
    SELECT to_char(date_trunc('hour', g."at"), 'YYYY-MM-DD"T"HH24:MI') AS "window", COALESCE(n.agent, g."agentId") AS agent,
           g."chosenVersion" AS version
    FROM babylon_rl.gateway_calls g LEFT JOIN names n ON n.recorded = g."agentId" WHERE g."at" >= %(since)s AND g."agentId" IS NOT NULL
    UNION SELECT "window", unnest("agentIds"), "version" FROM babylon_rl.version_hours WHERE "window" >= %(window)s
), one AS (
    SELECT "window", agent, min(version) AS version FROM assigned GROUP BY 1, 2 HAVING count(*) = 1
)
SELECT e."window", e."agentId", one.version, e."windowPnl", COALESCE((e."actions"->>'HOLD')::int, 0), acted.up, acted.down, acted.trades,
       acted.refused
FROM one JOIN babylon_rl.episodes e ON e."window" = one."window" AND e."agentId" = one.agent
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE a."side" IN ('YES', 'UP'))::int AS up, count(*) FILTER (WHERE a."side" IN ('NO', 'DOWN'))::int AS down,
           count(*)::int AS trades, count(*) FILTER (WHERE NOT a."executed")::int AS refused
    FROM babylon_rl.action_outcomes a WHERE a."agentId" = e."agentId" AND a."window" = e."window"
) acted
ORDER BY e."window", e."agentId"
"""


@dataclass(frozen=True, slots=True)
class CallCounts:
    """Calls routed to one version: all, not answered by it, and slow ones."""

    calls: int = 0
    failed: int = 0
    slow: int = 0


@dataclass(frozen=True, slots=True)
class LastCall:
    """Newest answered call of an agent. ``version`` is None for the base; ``fallback`` is the reason why it answered instead."""

    agent_id: str
    version: str | None
    fallback: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class AgentHour:
    """Hour of an agent with one version (None: base). ``trades`` are all trading decisions, ``refused`` those not carried out."""

    window: str
    agent_id: str
    version: str | None
    pnl_usd: float
    holds: int
    up: int
    down: int
    trades: int
    refused: int


def count_usage(connection: Connection, now: datetime) -> dict[str, int]:
    """Update agentsUsing (of the last day) and totalInferences of our versions; return new recorded calls. The caller commits.

    Calls outside of the gateway are counted by hour, from COUNTED_AGAIN before the last count to CLOCKS_DIFFER from now; none counts twice.
    """
    new: dict[str, int] = {}
    # The first count begins with the first version: no call that names one is older. Without a version there is nothing to count.
    counted_to = connection.value("""SELECT "countedTo" FROM babylon_rl.usage_counted""") or connection.value(_FIRST_VERSION, [now])
    if counted_to is not None:
        # Whole hours: a count replaces that of the hour.
        times = {"since": window_start(window_of(min(counted_to, now))) - COUNTED_AGAIN, "until": now + CLOCKS_DIFFER}
        new = {version: calls for version, calls in connection.execute(_COUNT_HOURS, times) if calls}
    connection.upsert("babylon_rl.usage_counted", [{"countedTo": now}], keys=("one",))
    # Read before the lock below, under which the gateways' writers wait.
    agents = {version: len(ids) for version, ids in agents_by_version(connection, now - timedelta(days=1), now).items()}
    # All rows at once and in order, as the gateways' writers update the same rows (_INSERT_CALLS).
    lock_models(connection)
    connection.execute(_SET_USAGE, [Jsonb(agents), Jsonb(new)])
    return new


def agents_by_version(connection: Connection, since: datetime, now: datetime) -> dict[str, list[str]]:
    """Return the agents of each version since then; an agent may have several."""
    times = {"since": since, "window": window_of(since), "newest": window_of(now + CLOCKS_DIFFER)}
    return dict(connection.execute(_AGENTS, times).fetchall())


def read_last_calls(connection: Connection, since: datetime) -> list[LastCall]:
    """Return the newest gateway call of each agent since then, by agent id."""
    return [LastCall(*row) for row in connection.execute(_LAST_CALLS, [since])]


def read_call_counts(connection: Connection, since: datetime, slow_ms: float) -> dict[str | None, CallCounts]:
    """Return the gateway's calls since then by routed version, None for the base."""
    return {version: CallCounts(*counts) for version, *counts in connection.execute(_CALLS, [slow_ms, since])}


def read_agent_hours(connection: Connection, since: datetime, agent_hash: Callable[[str], str] | None = None) -> list[AgentHour]:
    """Return the agents' hours since then that have been read, in order. ``agent_hash`` stands for an agent in recorded calls."""
    # The first hour as a whole: a call before ``since`` may show that the agent had another version in a part of it.
    window = window_of(since)
    agents = connection.column('SELECT DISTINCT "agentId" FROM babylon_rl.episodes WHERE "window" >= %s', [window]) if agent_hash else []
    recorded = list(map(agent_hash, agents)) if agent_hash else []
    given = {"since": window_start(window), "window": window, "recorded": recorded, "agents": agents}
    return [AgentHour(*row) for row in connection.execute(_AGENT_HOURS, given)]


_CALL_COLUMNS = (
    "callId", "at", "agentId", "keyName", "chosenVersion", "version", "arm", "fallback", "status", "latencyMs", "firstTokenMs",
    "promptTokens", "completionTokens",
)  # fmt: skip
# Inferences are counted from the rows that are new, in the same statement, so that a repetition counts nothing twice. Versions of other
# producers are not changed. Rows of versions are locked in one order (see lock_models).
_INSERT_CALLS = f"""
WITH new AS (
    {insertion("babylon_rl.gateway_calls", _CALL_COLUMNS, "%(calls)s")}
    ON CONFLICT DO NOTHING RETURNING "version", "status"
), answered AS (
    SELECT "version", count(*)::int AS calls FROM new WHERE "status" = 200 AND "version" IS NOT NULL GROUP BY "version"
), locked AS (
    SELECT m.id, answered.calls FROM answered JOIN babylon_rl.model_lineage l ON l."version" = answered."version"
    JOIN public.trained_models m ON m.version = l."version" AND m."trainingBatch" = l."batchId"
    ORDER BY m.version FOR NO KEY UPDATE OF m
), counted AS (
    UPDATE public.trained_models m SET "totalInferences" = m."totalInferences" + locked.calls FROM locked WHERE m.id = locked.id
)
SELECT count(*) FROM new
"""
_TRAJECTORY_S_AGENTS = """
SELECT "agentId" FROM public.trajectories WHERE "trajectoryId" = %(id)s
UNION SELECT g."agentId" FROM public.llm_call_logs l JOIN babylon_rl.gateway_calls g USING ("callId")
WHERE l."trajectoryId" = %(id)s AND g."agentId" IS NOT NULL
"""
_KEYS_USED = """
UPDATE babylon_rl.client_keys k SET "lastUsedAt" = greatest(k."lastUsedAt", used."at")
FROM (SELECT "keyName", max("at") AS "at" FROM jsonb_populate_recordset(NULL::babylon_rl.gateway_calls, %(calls)s) GROUP BY 1) used
WHERE k."name" = used."keyName"
"""


def agents_of_trajectory(connection: Connection, trajectory_id: str) -> set[str]:
    """Return the agents that a trajectory and its recorded calls name, as they were recorded."""
    return set(connection.column(_TRAJECTORY_S_AGENTS, {"id": trajectory_id}))


def write_calls(connection: Connection, calls: Sequence[dict[str, Any]], logs: Sequence[dict[str, Any]]) -> int:
    """Write calls and the texts of recorded ones in one transaction, each once; return how many calls were new.

    Rows are by column name, logs with the same columns each; times are ISO texts in UTC.
    """
    with connection.transaction():
        new = connection.value(_INSERT_CALLS, {"calls": Jsonb(calls)}) or 0
        if any(call["keyName"] for call in calls):
            connection.execute(_KEYS_USED, {"calls": Jsonb(calls)})
        connection.insert("public.llm_call_logs", logs, "ON CONFLICT DO NOTHING")
        return int(new)


_READ_CALLS = f"""
SELECT {listed(_CALL_COLUMNS)} FROM babylon_rl.gateway_calls WHERE "at" >= %s AND "at" < %s ORDER BY "at", "callId"
"""


def read_calls(connection: Connection, since: datetime, until: datetime) -> Iterator[dict[str, Any]]:
    """Yield the calls of a time by column name, ``until`` excluded, in order. One transaction, a part in memory at a time."""
    with connection.transaction(), connection.cursor(name="gateway_calls", row_factory=dict_row) as cursor:
        yield from cursor.execute(_READ_CALLS, [since, until])


def forget_calls(connection: Connection, before: datetime, *, dry_run: bool) -> int:
    """Delete the routed calls before a time, and return their number; ``dry_run`` only counts. Their texts stay in llm_call_logs."""
    if dry_run:
        return int(connection.value('SELECT count(*) FROM babylon_rl.gateway_calls WHERE "at" < %s', [before]) or 0)
    return connection.execute('DELETE FROM babylon_rl.gateway_calls WHERE "at" < %s', [before]).rowcount
