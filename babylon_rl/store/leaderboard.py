"""What the leaderboard needs of the evidence: which weights have played benchmark markets, and what the gate said of each version."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

_GATED = """SELECT "batchId", "version", "decision", "reason", "reference", "markets" FROM babylon_rl.benchmark_reports"""

_IDENTITIES = """
SELECT "model", "identity" FROM babylon_rl.benchmark_results WHERE "model" = ANY(%s)
GROUP BY "model", "identity" ORDER BY max("playedAt") DESC, "identity"
"""


@dataclass(frozen=True, slots=True)
class Gated:
    """What the gate decided on a batch's version and why, against whom (None: it could not be played), over how many markets."""

    batch_id: str
    version: str
    decision: str
    reason: str
    reference: str | None
    markets: int


def read_gated(connection: psycopg.Connection[Any]) -> dict[str, Gated]:
    """What the gate decided, by batch."""
    return {row[0]: Gated(*row) for row in connection.execute(_GATED)}


def read_identities(connection: psycopg.Connection[Any], models: Sequence[str]) -> dict[str, list[str]]:
    """The weights under which each of ``models`` has played anything, those that played last first."""
    found: dict[str, list[str]] = {model: [] for model in models}
    for model, identity in connection.execute(_IDENTITIES, [list(models)]):
        found[model].append(identity)
    return found
