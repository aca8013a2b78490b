"""Rows of babylon_rl.ab_tests, and the agents that routing put into their arms."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from babylon_rl.store.connection import Connection

_TESTS = """
SELECT "name", "arms", "shares", "expectedEffect", "state", "startedAt", "startedBy", "startedWhy", "stoppedAt", "stoppedBy", "stoppedWhy"
FROM babylon_rl.ab_tests
"""
_START = """
INSERT INTO babylon_rl.ab_tests ("name", "arms", "shares", "expectedEffect", "startedAt", "startedBy", "startedWhy")
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
_STOP = """
UPDATE babylon_rl.ab_tests SET "state" = 'stopped', "stoppedAt" = %s, "stoppedBy" = %s, "stoppedWhy" = %s
WHERE "name" = %s AND "state" = 'running'
"""
_ASSIGNED = """
SELECT "chosenVersion", count(DISTINCT "agentId")::int FROM babylon_rl.gateway_calls
WHERE "arm" = 'ab' AND "agentId" IS NOT NULL AND "at" >= %s AND "at" <= COALESCE(%s::timestamp, 'infinity') GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class ABTest:
    """Arms (versions, or base) with their percent of all agents.

    The others are compared with the first.
    """

    name: str
    arms: Sequence[str]
    shares: Sequence[float]
    expected_effect_usd: float
    state: str
    started_at: datetime
    started_by: str
    started_why: str
    stopped_at: datetime | None
    stopped_by: str | None
    stopped_why: str | None


def read_tests(connection: Connection) -> list[ABTest]:
    """Return all A/B tests, newest first."""
    return [ABTest(*row) for row in connection.execute(_TESTS + 'ORDER BY "startedAt" DESC, "name"')]


def insert_test(
    connection: Connection, name: str, arms: Sequence[str], shares: Sequence[float], expected_effect_usd: float, who: str, why: str,
    now: datetime,
) -> None:  # fmt: skip
    """Write a running test, in the caller's transaction."""
    connection.execute(_START, [name, list(arms), list(shares), expected_effect_usd, now, who, why])


def end_test(connection: Connection, name: str, who: str, why: str, now: datetime) -> bool:
    """Stop a test, in the caller's transaction; False if it does not run."""
    return connection.execute(_STOP, [now, who, why, name]).rowcount > 0


def assigned_agents(connection: Connection, since: datetime, until: datetime | None) -> dict[str | None, int]:
    """Return the number of agents in each arm, by version, None for the base."""
    return dict(connection.execute(_ASSIGNED, [since, until]).fetchall())
