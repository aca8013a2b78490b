"""What a judge is shown beyond outcomes and steps: hidden answers, recorded reasoning, and the names that must not leave.

Nothing else reads the hidden answers.
"""

from collections.abc import Iterator, Sequence
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
_NAMES = """
    SELECT agent.id, name FROM public."User" agent, LATERAL (VALUES {}) AS named (name)
    WHERE agent.id = ANY(%s) AND name <> ''
"""


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


def agent_names(connection: Connection, agent_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The display and user names of some agents, as (agent id, name), as far as they may be read."""
    columns = readable(connection, "User", NAME_COLUMNS) if agent_ids else []
    if columns:
        named = psycopg.sql.SQL(", ").join(psycopg.sql.SQL("(agent.{})").format(psycopg.sql.Identifier(name)) for name in columns)
        yield from connection.execute(psycopg.sql.SQL(_NAMES).format(named), (list(agent_ids),)).fetchall()
