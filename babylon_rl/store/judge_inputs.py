"""Judge inputs besides outcomes and steps: hidden answers, game knowledge, recorded reasoning, agent names, the secret.

Hidden answers are read for the judge, and to find texts that state them; nothing else reads them. Opaque ids, nonces and orders are
derived from the secret: 32 random bytes, created once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
import psycopg.sql

from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection

# Most rows hold the key with an empty value: LIKE finds the key, the regular expression removes the empty ones.
_KNOWLEDGE = r"""
    SELECT "trajectoryId", "metadataJson" FROM public.trajectories
    WHERE "trajectoryId" = ANY(%s) AND "metadataJson" LIKE %s
      AND "metadataJson" !~ '"gameKnowledge"\s*:\s*\{\s*("[A-Za-z]+"\s*:\s*(\{\s*\}|\[\s*\]|null)\s*,?\s*)*\}'
"""

_LOGGED_REASONING = """
    SELECT "callId", reasoning FROM public.llm_call_logs WHERE "trajectoryId" = ANY(%s) AND reasoning <> ''
"""

NAME_COLUMNS = ("displayName", "username")
# Databases of other versions of the game may lack a column, and a role with few rights may not read one.
_READABLE = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass(%s) AND attname = ANY(%s) AND NOT attisdropped AND has_column_privilege(attrelid, attnum, 'SELECT')
"""
# The placeholder takes one (field, name) pair per readable column.
_SEEN = """
    SELECT agent.id, field, COALESCE(name, '') AS name FROM public."User" agent, LATERAL (VALUES {}) AS named (field, name)
    WHERE agent.id = ANY(%(agents)s)
"""
# A name first seen after hours of the agent were read does not count in those hours: ``after`` is the newest hour read by then.
# Names are compared by their hash, as in the unique index: a name may be longer than an index entry.
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
    """A name of an agent, valid in hours later than ``after``."""

    agent_id: str
    name: str
    after: str

    def counts_in(self, window: str) -> bool:
        """Return True if the name was known before ``window``, or is the first known one."""
        return self.after < window


def readable(connection: Connection, table: str, columns: Sequence[str]) -> list[str]:
    """Return the ``columns`` of a game table that exist and may be read, in order."""
    allowed = connection.column(_READABLE, (f'public."{table}"', list(columns)))
    return [name for name in columns if name in allowed]


def hidden_answers(connection: Connection, market_ids: Sequence[str]) -> dict[str, bool]:
    """Return the engine's answers to questions by id; empty without the right to read them."""
    if not market_ids or not readable(connection, "Question", ("outcome",)):
        return {}
    answers = 'SELECT id, outcome FROM public."Question" WHERE id = ANY(%s) ORDER BY id COLLATE "C"'
    return dict(connection.execute(answers, (list(market_ids),)).fetchall())


def recorded_knowledge(connection: Connection, trajectory_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (trajectory id, metadataJson) of trajectories with recorded game knowledge."""
    for ids in in_parts(trajectory_ids):
        yield from connection.execute(_KNOWLEDGE, (ids, "%gameKnowledge%"))


def logged_reasoning(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, str]:
    return {call: text for ids in in_parts(trajectory_ids) for call, text in connection.execute(_LOGGED_REASONING, (ids,))}


def known_names(connection: Connection, agent_ids: Sequence[str]) -> list[AgentName]:
    """Return the display and user names under which agents were seen. For agents whose hours were never read, the present names."""
    if not agent_ids:
        return []
    names = connection.rows(AgentName, 'babylon_rl.agent_names WHERE "agentId" = ANY(%s)', [list(agent_ids)])
    new = sorted(set(agent_ids) - {name.agent_id for name in names})
    if new and (seen := _seen(connection)) is not None:
        names += [AgentName(agent, name, "") for agent, _, name in connection.execute(seen, {"agents": new})]
    return [name for name in names if name.name]


def keep_names(connection: Connection, agent_ids: Sequence[str]) -> None:
    """Store the present names of agents, as far as they may be read. To be called before hours read for the first time are written."""
    if agent_ids and (seen := _seen(connection)) is not None:
        connection.execute(psycopg.sql.SQL(_KEEP_SEEN).format(seen), {"agents": list(agent_ids)})


def _seen(connection: Connection) -> psycopg.sql.Composed | None:
    columns = readable(connection, "User", NAME_COLUMNS)
    if not columns:
        return None
    pairs = [psycopg.sql.SQL("({}, agent.{})").format(psycopg.sql.Literal(name), psycopg.sql.Identifier(name)) for name in columns]
    return psycopg.sql.SQL(_SEEN).format(psycopg.sql.SQL(", ").join(pairs))


_READ_SECRET = """SELECT "secret" FROM babylon_rl.judge_secret"""
_KEEP_SECRET = """INSERT INTO babylon_rl.judge_secret ("secret", "createdAt") VALUES (%s, %s) ON CONFLICT DO NOTHING"""


def read_secret(connection: Connection) -> bytes | None:
    """Return the secret, or None before the first judgement."""
    with connection.transaction():
        secret = connection.value(_READ_SECRET)
    return None if secret is None else bytes(secret)


def keep_secret(connection: Connection, offered: bytes, now: datetime) -> bytes:
    """Store ``offered`` (32 bytes) unless a secret exists; return the stored one."""
    with connection.transaction():
        # Of two processes that offer one at the same time, both get the one that was stored first.
        connection.execute(_KEEP_SECRET, (offered, now))
        return bytes(connection.value(_READ_SECRET) or offered)
