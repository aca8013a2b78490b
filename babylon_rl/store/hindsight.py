"""Rows of babylon_rl.hindsight, action_outcomes and leaks, and the game rows they use.

Hindsight is knowledge that exists only after an hour. Hours are written whole, in sets, and only if their content changed.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec import structs

from babylon_rl.store.columns import camel, columns_of, listed
from babylon_rl.store.connection import Connection
from babylon_rl.store.market import ASKED


class StoredAction(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One row of babylon_rl.action_outcomes. ``step`` is the index among the trajectory's completed steps, from 0."""

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


class StoredLeak(msgspec.Struct, frozen=True, gc=False):
    """One row of babylon_rl.leaks. ``sequence`` is the index among the trajectory's trainable sequences, from 0."""

    window: str
    trajectory_id: str
    sequence: int
    kind: str
    call_id: str
    detail: str


class StoredHour(msgspec.Struct, frozen=True):
    """Actions and leaks of one hour, in any order. ``sequences`` counts the sequences examined."""

    window: str
    sequences: int
    actions: list[StoredAction]
    leaks: list[StoredLeak]

    @property
    def counts(self) -> "HourHindsight":
        # Sorted, so that equal content gives an equal version.
        actions = sorted(self.actions, key=lambda row: (row.trajectory_id, row.step))
        leaks = sorted(self.leaks, key=lambda row: (row.trajectory_id, row.sequence, row.kind))
        version = _version(self.window, self.sequences, actions, leaks)
        known = [row.correct for row in actions if row.correct is not None]
        leaked = {(leak.trajectory_id, leak.sequence) for leak in leaks}
        return HourHindsight(self.window, len(actions), len(known), sum(known), self.sequences, len(leaked), version)


class HourHindsight(msgspec.Struct, frozen=True, rename="camel"):
    """Counts of one hour: a row of babylon_rl.hindsight. ``data_version`` is a hash of the content.

    Of ``actions`` with a target, ``known`` have a known outcome, and ``right`` were right; ``leaked`` of the ``sequences`` leak.
    ``changed``, which is not stored, says whether the call that returned them wrote them.
    """

    window: str
    actions: int
    known: int
    right: int
    sequences: int
    leaked: int
    data_version: str
    changed: bool = False


def _version(window: str, sequences: int, *rows: list[StoredAction] | list[StoredLeak]) -> str:
    """Hash the JSON array of the arguments, a row at a time. That of a full hour is longer than the rows."""
    encode = msgspec.json.encode
    # Without its closing bracket: the lists of rows follow as further elements.
    content = hashlib.sha256(encode([window, sequences])[:-1])
    for kind in rows:
        content.update(b",[")
        for place, row in enumerate(kind):
            content.update(b"," * (place > 0) + encode(row))
        content.update(b"]")
    content.update(b"]")
    return content.hexdigest()[:16]


class AgentCorrectness(msgspec.Struct, frozen=True, rename="camel"):
    """Count of an agent's right actions in an hour. ``known`` counts the actions with a known result."""

    agent_id: str
    actions: int
    known: int
    right: int

    @property
    def share(self) -> float | None:
        """Share of right actions, 0 to 1; None while no result is known."""
        return self.right / self.known if self.known else None


# Fields keep their names in the content's hash, and have others as columns.
_ACTIONS = [camel(name) for name in StoredAction.__struct_fields__]
_LEAKS = [camel(name) for name in StoredLeak.__struct_fields__]
_COUNTS = columns_of(HourHindsight, but=("changed",))

_AGENTS = """(
        SELECT "window", "agentId", count(*) AS "actions", count("correct") AS "known", count(*) FILTER (WHERE "correct") AS "right"
        FROM babylon_rl.action_outcomes WHERE "window" = ANY(%s) GROUP BY 1, 2
    ) AS counted ORDER BY "window", "agentId"
"""

_READ_LEAKS = f"""
    SELECT {listed(_LEAKS)} FROM babylon_rl.leaks
    WHERE "window" = ANY(%s) ORDER BY "window", "trajectoryId", "sequence", "kind"
"""


def hours_read(connection: Connection, windows: Sequence[str]) -> dict[str, int]:
    """Return those of ``windows`` that window_groups has read, with their row counts. Ordered by window."""
    return connection.of_hours("babylon_rl.windows", "rows", windows)


def organizations(connection: Connection) -> list[tuple[str, str]]:
    """Return (id, name) of every organization."""
    return connection.execute('SELECT id, name FROM public."Organization"').fetchall()


def questions(connection: Connection) -> list[tuple[str, int | None, str, bool | None]]:
    """Return (market id, number, text, official answer or None) of every question. Markets without a question are included."""
    return connection.execute(f"WITH {ASKED} SELECT id, number, text, answer FROM asked").fetchall()


def replace(connection: Connection, hours: Sequence[StoredHour], now: datetime) -> list[HourHindsight]:
    """Write ``hours`` where their content changed, and return their counts. The caller holds the hours' locks."""
    counts = {hour.window: hour.counts for hour in hours}
    stored_versions = connection.of_hours("babylon_rl.hindsight", "dataVersion", list(counts))
    changed = [hour for hour in hours if stored_versions.get(hour.window) != counts[hour.window].data_version]
    windows = [hour.window for hour in changed]
    # Rows have no versions of their own, so a changed hour is written anew as a whole.
    connection.delete_hours("babylon_rl.action_outcomes", windows)
    connection.delete_hours("babylon_rl.leaks", windows)
    astuple = structs.astuple
    connection.copy_rows("babylon_rl.action_outcomes", _ACTIONS, (astuple(row) for hour in changed for row in hour.actions))
    connection.copy_rows("babylon_rl.leaks", _LEAKS, (astuple(row) for hour in changed for row in hour.leaks))
    rows = [dict(zip(_COUNTS, astuple(counts[window]), strict=False)) | {"computedAt": now} for window in windows]
    connection.upsert("babylon_rl.hindsight", rows)
    return [structs.replace(hour, changed=hour.window in windows) for hour in counts.values()]


def agent_correctness(connection: Connection, windows: Sequence[str]) -> dict[str, list[AgentCorrectness]]:
    """Return the agents' counts by window; a window without actions has an empty list."""
    return connection.by_window(AgentCorrectness, _AGENTS, windows)


def stored_leaks(connection: Connection, windows: Sequence[str]) -> list[StoredLeak]:
    return [StoredLeak(*row) for row in connection.execute(_READ_LEAKS, (list(windows),))]


class HourLeaks(NamedTuple):
    window: str
    leaks: list[StoredLeak]


def leaks_by_hour(connection: Connection, windows: Sequence[str]) -> list[HourLeaks]:
    """Return the leaks of each of ``windows`` whose texts were examined, in order."""
    examined = connection.of_hours("babylon_rl.hindsight", "leaked", windows)
    hours: dict[str, list[StoredLeak]] = {window: [] for window in examined}
    for leak in stored_leaks(connection, list(examined)):
        hours[leak.window].append(leak)
    return [HourLeaks(window, leaks) for window, leaks in hours.items()]
