"""Evidence for the leaderboard: played model identities and gate decisions."""

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.store.connection import Connection

_GATED = """SELECT "batchId", "version", "decision", "reason", "reference", "markets" FROM babylon_rl.benchmark_reports"""

_IDENTITIES = """
SELECT "model", "identity" FROM babylon_rl.benchmark_results WHERE "model" = ANY(%s)
GROUP BY "model", "identity" ORDER BY max("playedAt") DESC, "identity"
"""


@dataclass(frozen=True, slots=True)
class Gated:
    """The gate's decision on the version of a batch.

    ``reference`` is None if it could not be played; ``markets`` counts the markets compared.
    """

    batch_id: str
    version: str
    decision: str
    reason: str
    reference: str | None
    markets: int


def read_gated(connection: Connection) -> dict[str, Gated]:
    """Return the gate's decisions by batch."""
    return {row[0]: Gated(*row) for row in connection.execute(_GATED)}


def read_identities(connection: Connection, models: Sequence[str]) -> dict[str, list[str]]:
    """Return the weight identities with stored results by model, newest first."""
    identities: dict[str, list[str]] = {model: [] for model in models}
    for model, identity in connection.execute(_IDENTITIES, [list(models)]):
        identities[model].append(identity)
    return identities
