"""What a judge is shown beyond outcomes and steps: hidden answers, recorded reasoning, and the names that must not leave.

Nothing else reads the hidden answers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

_HIDDEN_ANSWERS = 'SELECT id, outcome FROM public."Question" WHERE id = ANY(%s) ORDER BY id COLLATE "C"'

_LOGGED_REASONING = """
    SELECT "callId", reasoning FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%s) AND reasoning <> ''
"""

# Databases of other versions of the game may lack a name's column.
_NAMES = """
    SELECT agent.id, name FROM public."User" agent,
        LATERAL (VALUES (to_jsonb(agent)->>'displayName'), (to_jsonb(agent)->>'username')) AS named (name)
    WHERE agent.id = ANY(%s) AND name <> ''
"""


def hidden_answers(connection: Connection, market_ids: Sequence[str]) -> dict[str, bool]:
    """The engine's own answer to some questions, by their id."""
    return dict(connection.execute(_HIDDEN_ANSWERS, (list(market_ids),)).fetchall()) if market_ids else {}


def logged_reasoning(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, str]:
    """The reasoning that the log holds of some trajectories' calls, by call id."""
    return dict(connection.execute(_LOGGED_REASONING, (list(trajectory_ids),)).fetchall()) if trajectory_ids else {}


def agent_names(connection: Connection, agent_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The display and user names of some agents, as (agent id, name)."""
    if agent_ids:
        yield from connection.execute(_NAMES, (list(agent_ids),)).fetchall()
