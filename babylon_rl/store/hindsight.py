"""babylon_rl.hindsight, action_outcomes and leaks: what only became known after an hour; and what of the game it is made of.

Hours are written whole, in sets, and only where their content changed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]


class StoredAction(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One row of babylon_rl.action_outcomes; ``step`` is its place among the trajectory's completed steps, from 0."""

    window: str
    trajectory_id: str
    step: int
    agent_id: str
    action_type: str
    executed: bool
    kind: str
    target: str
    organization_id: str | None
    market_id: str | None
    side: str | None
    outcome: str | None
    change_percent: float | None
    correct: bool | None


class StoredLeak(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One row of babylon_rl.leaks; ``sequence`` is its place among the trajectory's sequences that would train, from 0."""

    window: str
    trajectory_id: str
    sequence: int
    kind: str
    call_id: str
    detail: str


class StoredHour(msgspec.Struct, frozen=True, kw_only=True):
    """One hour's hindsight: its actions and leaks, and how many sequences were looked at; ``data_version`` is a hash of all that."""

    window: str
    sequences: int
    actions: list[StoredAction]
    leaks: list[StoredLeak]
    data_version: str

    @classmethod
    def of(cls, window: str, sequences: int, actions: list[StoredAction], leaks: list[StoredLeak]) -> "StoredHour":
        """The hour, the same whatever the order in which its actions and leaks were found."""
        actions = sorted(actions, key=lambda row: (row.trajectory_id, row.step))
        leaks = sorted(leaks, key=lambda row: (row.trajectory_id, row.sequence, row.kind))
        version = hashlib.sha256(msgspec.json.encode([window, sequences, actions, leaks])).hexdigest()[:16]
        return cls(window=window, sequences=sequences, actions=actions, leaks=leaks, data_version=version)

    @property
    def leaked(self) -> int:
        """Sequences with a leak of any kind."""
        return len({(leak.trajectory_id, leak.sequence) for leak in self.leaks})


@dataclass(frozen=True, slots=True)
class AgentCorrectness:
    """How often an agent was right in an hour, of the actions of which it is known."""

    agent_id: str
    actions: int
    known: int
    right: int

    @property
    def share(self) -> float | None:
        """0 to 1; None while nothing is known."""
        return self.right / self.known if self.known else None


_HOURS = """SELECT "window", "rows" FROM babylon_rl.windows WHERE "window" = ANY(%s) ORDER BY "window\""""

_ORGANIZATIONS = 'SELECT id, name FROM public."Organization"'

_QUESTIONS = """
    SELECT question.id, question."questionNumber", question.text,
        COALESCE(question."resolvedOutcome", CASE WHEN market.resolved THEN market.resolution END)
    FROM public."Question" question LEFT JOIN public."Market" market ON market.id = question.id
    UNION ALL
    SELECT market.id, NULL, market.question, CASE WHEN market.resolved THEN market.resolution END
    FROM public."Market" market WHERE NOT EXISTS (SELECT FROM public."Question" question WHERE question.id = market.id)
"""

# Most rows hold the key with nothing in it.
_KNOWLEDGE = r"""
    SELECT "trajectoryId", "metadataJson" FROM public.trajectories
    WHERE "trajectoryId" = ANY(%s) AND "metadataJson" LIKE %s
      AND "metadataJson" !~ '"gameKnowledge"\s*:\s*\{\s*("[A-Za-z]+"\s*:\s*(\{\s*\}|\[\s*\]|null)\s*,?\s*)*\}'
"""

_VERSIONS = """SELECT "window", "dataVersion" FROM babylon_rl.hindsight WHERE "window" = ANY(%s)"""
_CLEAR_ACTIONS = """DELETE FROM babylon_rl.action_outcomes WHERE "window" = ANY(%s)"""
_CLEAR_LEAKS = """DELETE FROM babylon_rl.leaks WHERE "window" = ANY(%s)"""
_WRITE_ACTIONS = """COPY babylon_rl.action_outcomes ("window", "trajectoryId", "step", "agentId", "actionType", "executed", "kind",
    "target", "organizationId", "marketId", "side", "outcome", "changePercent", "correct") FROM STDIN"""
_WRITE_LEAKS = """COPY babylon_rl.leaks ("window", "trajectoryId", "sequence", "kind", "callId", "detail") FROM STDIN"""

_UPSERT = """
    INSERT INTO babylon_rl.hindsight AS held
        ("window", "actions", "known", "right", "sequences", "leaked", "dataVersion", "computedAt")
    SELECT given.*, %s::timestamp
    FROM unnest(%s::text[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::text[]) AS given
    ON CONFLICT ("window") DO UPDATE SET
        "actions" = excluded."actions", "known" = excluded."known", "right" = excluded."right", "sequences" = excluded."sequences",
        "leaked" = excluded."leaked", "dataVersion" = excluded."dataVersion", "computedAt" = excluded."computedAt"
"""

_AGENTS = """
    SELECT "window", "agentId", count(*), count("correct"), count(*) FILTER (WHERE "correct")
    FROM babylon_rl.action_outcomes WHERE "window" = ANY(%s) GROUP BY 1, 2 ORDER BY 1, 2
"""

_LEAKS = """
    SELECT "window", "trajectoryId", "sequence", "kind", "callId", "detail" FROM babylon_rl.leaks
    WHERE "window" = ANY(%s) ORDER BY "window", "trajectoryId", "sequence", "kind"
"""


def hours_read(connection: Connection, windows: Sequence[str]) -> dict[str, int]:
    """Those of some windows that window_groups holds, in order, each with its number of rows."""
    return dict(connection.execute(_HOURS, (list(windows),)).fetchall())


def organizations(connection: Connection) -> list[tuple[str, str]]:
    """(id, name) of every organization."""
    return [(organization_id, name) for organization_id, name in connection.execute(_ORGANIZATIONS)]


def questions(connection: Connection) -> list[tuple[str, int | None, str, bool | None]]:
    """(market id, number, text, official answer or None) of every question, and of every market without one."""
    return [(market_id, number, text, answer) for market_id, number, text, answer in connection.execute(_QUESTIONS)]


def recorded_knowledge(connection: Connection, trajectory_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(trajectory id, metadataJson) of those of some trajectories whose gameKnowledge seems to hold something."""
    yield from connection.execute(_KNOWLEDGE, (list(trajectory_ids), "%gameKnowledge%"))


def replace(connection: Connection, hours: Sequence[StoredHour], now: datetime) -> set[str]:
    """Make the tables say what ``hours`` say, and name those that were changed; to be called with the hours' locks held.

    All of them are held by babylon_rl.windows.
    """
    held: dict[str, str] = dict(connection.execute(_VERSIONS, ([hour.window for hour in hours],)).fetchall())
    changed = [hour for hour in hours if held.get(hour.window) != hour.data_version]
    if not changed:
        return set()
    windows = [hour.window for hour in changed]
    connection.execute(_CLEAR_ACTIONS, (windows,))
    connection.execute(_CLEAR_LEAKS, (windows,))
    _copy(connection, _WRITE_ACTIONS, [row for hour in changed for row in hour.actions])
    _copy(connection, _WRITE_LEAKS, [row for hour in changed for row in hour.leaks])
    columns = zip(*(_counts(hour) for hour in changed), strict=True)
    connection.execute(_UPSERT, (now, windows, *(list(column) for column in columns), [hour.data_version for hour in changed]))
    return set(windows)


def _counts(hour: StoredHour) -> tuple[int, int, int, int, int]:
    known = [row.correct for row in hour.actions if row.correct is not None]
    return len(hour.actions), len(known), sum(known), hour.sequences, hour.leaked


def _copy(connection: Connection, statement: str, rows: Sequence[StoredAction] | Sequence[StoredLeak]) -> None:
    if rows:
        with connection.cursor().copy(statement) as copy:
            for row in rows:
                copy.write_row(msgspec.structs.astuple(row))


def agent_correctness(connection: Connection, windows: Sequence[str]) -> dict[str, list[AgentCorrectness]]:
    """How often each agent was right, by window; an hour without actions has an empty list."""
    found: dict[str, list[AgentCorrectness]] = {window: [] for window in windows}
    for window, *counts in connection.execute(_AGENTS, (list(windows),)):
        found[window].append(AgentCorrectness(*counts))
    return found


def stored_leaks(connection: Connection, windows: Sequence[str]) -> list[StoredLeak]:
    """The leaks that were found in some windows, in order."""
    names = StoredLeak.__struct_fields__
    return [StoredLeak(**dict(zip(names, row, strict=True))) for row in connection.execute(_LEAKS, (list(windows),))]
