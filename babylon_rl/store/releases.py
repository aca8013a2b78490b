"""Rollouts, their events, A/B tests, and the routing table that gateways read of them.

Tables babylon_rl.rollouts, rollout_events and ab_tests. Triggers send CHANNEL when a transaction that changed one of them commits, or that
registered or pruned a version of ours.
The rules of transitions stand in serving/releases.py. Rows of trained_models that another producer wrote are never changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from babylon_rl.services import LOCAL, upstream_of
from babylon_rl.store.columns import columns_of, document_of, listed
from babylon_rl.store.connection import Connection

CHANNEL = "babylon_rl_releases"
BASE = "base"
AUTOMATION = "automation"  # author of automatic transitions
ON_TRIAL = ("rolling", "paused")
State = Literal["candidate", "rolling", "paused", "released", "rolled_back", "superseded"]
Strategy = Literal["immediate", "gradual", "test"]
# Taken before the locks of versions' rows (registry.lock_models).
RELEASES_LOCK = 0x72656C6561736573  # "releases": one transition at a time

# A step begins when state or share changes; a new list of agents alone does not begin one.
_UPDATE_ROLLOUT = """
UPDATE babylon_rl.rollouts SET
    "stepSince" = CASE WHEN "state" = %(state)s AND "percentage" = %(percentage)s THEN "stepSince" ELSE %(now)s END,
    "state" = %(state)s, "strategy" = %(strategy)s, "percentage" = %(percentage)s, "agentIds" = %(agentIds)s, "changedAt" = %(now)s
WHERE "rolloutId" = %(rolloutId)s
"""
_NEEDED = """
SELECT "version", "previousVersion" FROM babylon_rl.rollouts WHERE "state" IN ('candidate', 'rolling', 'paused', 'released')
UNION ALL SELECT unnest("arms"), NULL FROM babylon_rl.ab_tests WHERE "state" = 'running'
"""
_VERSIONS = """
SELECT m.version, m.status, m."deployedAt", m."storagePath", l."backend", l."checkpointPath", l."prunedAt" IS NOT NULL, l."manifestSha"
FROM public.trained_models m
LEFT JOIN babylon_rl.model_lineage l ON l."version" = m.version AND l."batchId" = m."trainingBatch"
ORDER BY m."deployedAt" DESC NULLS LAST, m."createdAt" DESC, m.id
"""
_MOVE_MODEL = """
UPDATE public.trained_models m SET
    status = %(status)s, "deployedAt" = CASE WHEN %(status)s = 'deployed' THEN %(now)s ELSE m."deployedAt" END,
    "archivedAt" = CASE WHEN %(status)s = 'archived' THEN %(now)s::timestamp END, "updatedAt" = %(now)s
FROM babylon_rl.model_lineage l
WHERE m.version = %(version)s AND m.status <> %(status)s AND l."version" = m.version AND l."batchId" = m."trainingBatch"
"""


@dataclass(frozen=True, slots=True)
class ReleaseAuthor:
    """Author and reason of a transition; an ``automatic`` one never deploys what was rolled back."""

    who: str
    why: str
    now: datetime
    automatic: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout of a version, to ``percentage`` of all agents, or (``test``) to ``agent_ids``. ``previous_version`` None is the base."""

    rollout_id: int
    version: str
    state: State
    strategy: Strategy
    percentage: float
    agent_ids: Sequence[str]
    previous_version: str | None
    created_at: datetime
    step_since: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class RolloutEvent:
    """One transition of a rollout; ``from_state`` is None for its first."""

    rollout_id: int
    version: str
    from_state: State | None
    to_state: State
    from_percentage: float | None
    to_percentage: float
    who: str
    why: str
    at: datetime


_INSERT_ROLLOUT = f"""
INSERT INTO babylon_rl.rollouts ({listed(columns_of(Rollout)[1:])}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING "rolloutId"
"""


@dataclass(frozen=True, slots=True)
class RoutedVersion:
    """A registered version: ``model_name`` at ``upstream``. ``checkpoint`` is its directory, None for a foreign version."""

    version: str
    status: str
    upstream: str
    model_name: str
    checkpoint: str | None
    pruned: bool
    manifest_sha: str | None = None

    @property
    def can_be_asked(self) -> bool:
        """True unless its training is not over, has failed, or its files are gone."""
        return self.status not in ("training", "failed") and not self.pruned


@dataclass(frozen=True, slots=True)
class ABTest:
    """Arms (versions, or base) with their percent of all agents, compared with the first; the effect is in dollars an hour."""

    name: str
    arms: Sequence[str]
    shares: Sequence[float]
    expected_effect: float
    state: str
    started_at: datetime
    stopped_at: datetime | None


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """Routing facts of the registry at one moment: the newest ``deployed`` version, the rollout on ``trial``, the running ``test``."""

    versions: Mapping[str, RoutedVersion] = field(default_factory=dict)
    deployed: str | None = None
    trial: Rollout | None = None
    test: ABTest | None = None


def read_routing(connection: Connection) -> RoutingTable:
    """Read the routing table in a transaction of its own, which holds no lock."""
    with connection.transaction():
        trials = read_rollouts(connection, ON_TRIAL)
        test = next((test for test in read_tests(connection) if test.state == "running"), None)
        versions: dict[str, RoutedVersion] = {}
        deployed: str | None = None
        for version, status, deployed_at, storage_path, backend, checkpoint, pruned, manifest_sha in connection.execute(_VERSIONS):
            # Versions of a service are asked there, by the name in ``storage_path``.
            upstream = upstream_of(backend, storage_path)
            name = version if upstream == LOCAL else storage_path
            # The first row of a version wins: the statement has the one deployed last on top.
            versions.setdefault(version, RoutedVersion(version, status, upstream, name, checkpoint, pruned, manifest_sha))
            if deployed is None and status == "deployed" and deployed_at is not None:
                deployed = version
    return RoutingTable(versions, deployed, trials[0] if trials else None, test)


def read_rollouts(connection: Connection, states: Sequence[str] | None = None) -> list[Rollout]:
    """Return the rollouts in ``states`` (None: all), newest first."""
    source = 'babylon_rl.rollouts WHERE %(states)s::text[] IS NULL OR "state" = ANY(%(states)s) ORDER BY "rolloutId" DESC'
    return connection.rows(Rollout, source, {"states": None if states is None else list(states)})


def versions_needed(connection: Connection) -> set[str]:
    """Return the versions in use, waiting or returned to: their files must stay."""
    return {version for row in connection.execute(_NEEDED) for version in row if version is not None}


def read_events(connection: Connection, rollout_id: int | None = None, *, since: datetime | None = None) -> list[RolloutEvent]:
    """Return the transitions of one rollout, or of all, oldest first; with ``since``, the later ones."""
    chosen = """babylon_rl.rollout_events
    WHERE (%(rollout)s::bigint IS NULL OR "rolloutId" = %(rollout)s) AND (%(since)s::timestamp IS NULL OR "at" >= %(since)s)
    ORDER BY "eventId"
    """
    return connection.rows(RolloutEvent, chosen, {"rollout": rollout_id, "since": since})


def newest_events(connection: Connection, limit: int) -> list[RolloutEvent]:
    return connection.rows(RolloutEvent, 'babylon_rl.rollout_events ORDER BY "eventId" DESC LIMIT %s', [limit])


def insert_rollout(
    connection: Connection, version: str, state: State, strategy: Strategy, percentage: float, agent_ids: Sequence[str],
    previous_version: str | None, author: ReleaseAuthor,
) -> Rollout:  # fmt: skip
    """Write a new rollout with its first event, in the caller's transaction."""
    values: list[Any] = [version, state, strategy, percentage, list(agent_ids), previous_version, *[author.now] * 3]
    rollout = Rollout(connection.row(_INSERT_ROLLOUT, values)[0], *values)
    _insert_event(connection, None, rollout, author)
    return rollout


def change_rollout(connection: Connection, before: Rollout, after: Rollout, author: ReleaseAuthor) -> None:
    """Write a changed rollout with its event, in the caller's transaction."""
    connection.execute(_UPDATE_ROLLOUT, document_of(after) | {"now": author.now})
    _insert_event(connection, before, after, author)


def _insert_event(connection: Connection, before: Rollout | None, after: Rollout, author: ReleaseAuthor) -> None:
    state, share = (None, None) if before is None else (before.state, before.percentage)
    event = RolloutEvent(after.rollout_id, after.version, state, after.state, share, after.percentage, author.who, author.why, author.now)
    connection.insert("babylon_rl.rollout_events", [event])


def move_model(connection: Connection, version: str, status: Literal["deployed", "archived"], now: datetime) -> None:
    """Change the status of a version of ours in trained_models, in the caller's transaction."""
    connection.execute(_MOVE_MODEL, {"version": version, "status": status, "now": now})


def switch_game(connection: Connection, model_name: str | None, now: datetime) -> None:
    """Set the model of the game's own agents, in the caller's transaction. None switches it off."""
    row = {"id": "system", "wandbModel": model_name, "wandbEnabled": model_name is not None, "updatedAt": now}
    connection.upsert('public."SystemSettings"', [row], keys=("id",))


_STOP = """
UPDATE babylon_rl.ab_tests SET "state" = 'stopped', "stoppedAt" = %s, "stoppedBy" = %s, "stoppedWhy" = %s
WHERE "name" = %s AND "state" = 'running'
"""
_ASSIGNED = """
SELECT "chosenVersion", count(DISTINCT "agentId")::int FROM babylon_rl.gateway_calls
WHERE "arm" = 'ab' AND "agentId" IS NOT NULL AND "at" >= %s AND "at" <= COALESCE(%s::timestamp, 'infinity') GROUP BY 1
"""


def read_tests(connection: Connection) -> list[ABTest]:
    return connection.rows(ABTest, 'babylon_rl.ab_tests ORDER BY "startedAt" DESC, "name"')


def insert_test(
    connection: Connection, name: str, arms: Sequence[str], shares: Sequence[float], expected_effect_usd: float, author: ReleaseAuthor
) -> None:
    """Write a running test, in the caller's transaction."""
    row = {"name": name, "arms": list(arms), "shares": list(shares), "expectedEffect": expected_effect_usd}
    connection.insert("babylon_rl.ab_tests", [row | {"startedAt": author.now, "startedBy": author.who, "startedWhy": author.why}])


def end_test(connection: Connection, name: str, author: ReleaseAuthor) -> bool:
    """Stop a test, in the caller's transaction; False if it does not run."""
    return connection.execute(_STOP, [author.now, author.who, author.why, name]).rowcount > 0


def assigned_agents(connection: Connection, since: datetime, until: datetime | None) -> dict[str | None, int]:
    """Return the number of agents in each arm, by version, None for the base."""
    return dict(connection.execute(_ASSIGNED, [since, until]).fetchall())
