"""Rows of babylon_rl.replayed_hours and answer_groups: answers that nobody played, replayed for their tick.

They stand in tables of their own, so that no count of what was played can take them in.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from babylon_rl.store.connection import Connection
from babylon_rl.versions import content_version

Answers = tuple[tuple[str, float, float], ...]


class AnswerGroup(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The answers to the prompt of one recorded call: (answer, dollars of its tick, score 0 to 1) each, means over its futures.

    ``model_version`` is the version of ours that was asked, None for another model.
    """

    trajectory_id: str
    call_id: str
    model_version: str | None
    answers: Answers


class ReplayedHour(msgspec.Struct, frozen=True, kw_only=True):
    """Answer groups of an hour, in order, or the reason why it has none. ``changed``: the call that returned it wrote it."""

    window: str
    groups: tuple[AnswerGroup, ...] = ()
    reason: str = ""
    sources_version: str = ""
    changed: bool = False

    @property
    def answers(self) -> int:
        return sum(len(group.answers) for group in self.groups)

    @property
    def data_version(self) -> str:
        """Hash of the groups, or of the reason."""
        return content_version([self.window, self.reason, [[g.trajectory_id, g.call_id, g.model_version, g.answers] for g in self.groups]])


# The hour as window_groups and market_outcomes last wrote it.
_ROWS = """
    SELECT w."window", w."dataVersion" || ' ' || coalesce(m."dataVersion", '')
    FROM babylon_rl.windows w LEFT JOIN babylon_rl.market_windows m USING ("window") WHERE w."window" = ANY(%s)
"""
_HOURS = 'SELECT "window", "reason", "sourcesVersion" FROM babylon_rl.replayed_hours WHERE "window" = ANY(%s) ORDER BY 1'
_GROUPS = 'babylon_rl.answer_groups WHERE "window" = ANY(%s) ORDER BY "window", "trajectoryId", "callId"'
_HELD = """
    SELECT "trajectoryId" FROM babylon_rl.batch_items
    WHERE "window" = ANY(%s) AND "live" AND "batchId" IS DISTINCT FROM %s
"""


def rows_versions(connection: Connection, windows: Sequence[str]) -> dict[str, str]:
    """Return the versions of rows and market of those of ``windows`` that window_groups has read."""
    return dict(connection.execute(_ROWS, (list(windows),)).fetchall())


def held_trajectories(connection: Connection, windows: Sequence[str], batch_id: str | None) -> set[str]:
    """Return the trajectories of ``windows`` in live batches other than ``batch_id``."""
    return set(connection.column(_HELD, (list(windows), batch_id)))


def read_replayed(connection: Connection, windows: Sequence[str]) -> dict[str, ReplayedHour]:
    groups = connection.by_window(AnswerGroup, _GROUPS, windows)
    return {
        window: ReplayedHour(window=window, groups=tuple(groups[window]), reason=reason, sources_version=sources)
        for window, reason, sources in connection.execute(_HOURS, (list(windows),))
    }


def replace(connection: Connection, hours: Sequence[ReplayedHour], now: datetime) -> None:
    """Write hours. The caller holds their locks; each has a row in babylon_rl.windows."""
    connection.delete_hours("babylon_rl.answer_groups", [hour.window for hour in hours])
    groups = [{"window": hour.window, **msgspec.to_builtins(group)} for hour in hours for group in hour.groups]
    connection.insert("babylon_rl.answer_groups", groups)
    connection.upsert("babylon_rl.replayed_hours", [
        {"window": hour.window, "groups": len(hour.groups), "answers": hour.answers, "reason": hour.reason,
         "sourcesVersion": hour.sources_version, "dataVersion": hour.data_version, "computedAt": now}
        for hour in hours
    ])  # fmt: skip
