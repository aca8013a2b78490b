"""What a judge is shown beyond outcomes and steps: hidden answers, recorded reasoning, and the names that must not leave.

The hidden answers are read for a judge, and to find texts that state them; nothing else reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import psycopg.sql

Connection = psycopg.Connection[tuple[Any, ...]]

_HIDDEN_ANSWERS = 'SELECT id, outcome FROM public."Question" WHERE id = ANY(%s) ORDER BY id COLLATE "C"'

_LOGGED_REASONING = """
    SELECT "callId", reasoning FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%s) AND reasoning <> ''
"""

NAME_COLUMNS = ("displayName", "username")
# Databases of other versions of the game may lack a column, and a role with few rights may not read one.
_READABLE = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass(%s) AND attname = ANY(%s) AND NOT attisdropped AND has_column_privilege(attrelid, attnum, 'SELECT')
"""
_SEEN = """
    SELECT agent.id, field, COALESCE(name, '') AS name FROM public."User" agent, LATERAL (VALUES {}) AS named (field, name)
    WHERE agent.id = ANY(%(agents)s)
"""
_KNOWN = 'SELECT "agentId", "name", "after" FROM babylon_rl.agent_names WHERE "agentId" = ANY(%s)'
# A name that is seen first when hours of the agent have been read before says nothing of these.
_KEEP_SEEN = """
    INSERT INTO babylon_rl.agent_names ("agentId", "field", "name", "after")
    SELECT seen.*, CASE WHEN EXISTS (SELECT FROM babylon_rl.agent_names known WHERE known."agentId" = seen.id)
        THEN COALESCE((SELECT max("window") FROM babylon_rl.windows), '') ELSE '' END
    FROM ({}) seen
    WHERE NOT EXISTS (SELECT FROM babylon_rl.agent_names known
                      WHERE known."agentId" = seen.id AND known."field" = seen.field AND md5(known."name") = md5(seen.name))
    ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class AgentName:
    """A name that an agent was seen under, which counts in hours ``after`` one."""

    agent_id: str
    name: str
    after: str

    def counts_in(self, window: str) -> bool:
        """Whether it was known when this hour was read first, or is the first that was known at all."""
        return self.after < window


def readable(connection: Connection, table: str, columns: Sequence[str]) -> list[str]:
    """Those of some columns of a table of the game that are there and may be read, in the order given."""
    found = {name for (name,) in connection.execute(_READABLE, (f'public."{table}"', list(columns))).fetchall()}
    return [name for name in columns if name in found]


def hidden_answers(connection: Connection, market_ids: Sequence[str]) -> dict[str, bool]:
    """The engine's own answer to some questions, by their id; none where the role may not read them."""
    if not market_ids or not readable(connection, "Question", ("outcome",)):
        return {}
    return dict(connection.execute(_HIDDEN_ANSWERS, (list(market_ids),)).fetchall())


def logged_reasoning(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, str]:
    """The reasoning that the log holds of some trajectories' calls, by call id."""
    return dict(connection.execute(_LOGGED_REASONING, (list(trajectory_ids),)).fetchall()) if trajectory_ids else {}


def known_names(connection: Connection, agent_ids: Sequence[str]) -> list[AgentName]:
    """The display and user names that some agents were seen under; of those whose hours were never read, the present ones."""
    if not agent_ids:
        return []
    found = [AgentName(*row) for row in connection.execute(_KNOWN, (list(agent_ids),))]
    new = sorted(set(agent_ids) - {name.agent_id for name in found})
    if new and (seen := _seen(connection)) is not None:
        found += [AgentName(agent, name, "") for agent, _, name in connection.execute(seen, {"agents": new})]
    return [name for name in found if name.name]


def keep_names(connection: Connection, agent_ids: Sequence[str]) -> None:
    """Keep the names that some agents have now, as far as they may be read; before hours that are read for the first time are written."""
    if agent_ids and (seen := _seen(connection)) is not None:
        connection.execute(psycopg.sql.SQL(_KEEP_SEEN).format(seen), {"agents": list(agent_ids)})


def _seen(connection: Connection) -> psycopg.sql.Composed | None:
    columns = readable(connection, "User", NAME_COLUMNS)
    if not columns:
        return None
    named = [psycopg.sql.SQL("({}, agent.{})").format(psycopg.sql.Literal(name), psycopg.sql.Identifier(name)) for name in columns]
    return psycopg.sql.SQL(_SEEN).format(psycopg.sql.SQL(", ").join(named))
