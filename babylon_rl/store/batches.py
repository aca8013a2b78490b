"""Rows of batches: frozen episodes, state, run attempts and judgements.

Every run of a batch has a number, its attempt. Each write names the attempt it belongs to and matches no row once a newer run has
begun, so an old process that comes back cannot change anything (fencing).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.errors import BatchConflict
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.types import PartScore

DROPOUT = "dropout"  # reason of an episode left out of a batch before it is judged
# States in which a batch still holds its trajectories.
LIVE_STATES = ("pending", "preparing", "scoring", "training", "uploading")
TRAINED, BASELINE = "trained", "baseline"
# For choosing a version number. It is taken last: after the freeze lock, and after the locks of hours.
REGISTRY_LOCK = 7_306_002

# Our row and the game's row of the same batch, with the count of its trajectories and its windows.
_BATCHES = """(
    SELECT b.*, p."startedAt", p."completedAt", p."error", p."trainingLoss" AS "loss",
           (SELECT count(*) FROM babylon_rl.batch_items i WHERE i."batchId" = b."batchId" AND (i."live" OR i."consumed")) AS "trajectories",
           ARRAY(SELECT DISTINCT e."window" FROM babylon_rl.batch_episodes e WHERE e."batchId" = b."batchId" AND e."dropped" IS NULL
                 ORDER BY e."window" DESC) AS "windows"
    FROM babylon_rl.batches b JOIN public.training_batches p ON p."batchId" = b."batchId"
) AS batch"""


@dataclass(frozen=True, slots=True)
class Transition:
    """Change of a batch's state from one of ``sources`` to ``target``, of the table in training/lifecycle.py."""

    name: str
    sources: tuple[str, ...]
    target: str
    actor: str
    when: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch with its state in both tables.

    ``trajectories`` counts those it holds or has consumed; ``windows`` are newest first. ``passes`` over the data are None in batches of an
    older form (training/lifecycle.py). ``error`` is the reason of a failure; in a live batch, the reason why its last run waits.
    """

    batch_id: str
    base_model: str
    backend: str
    parent_version: str | None
    version: str
    seed: int
    attempt: int
    state: str
    settings: Mapping[str, Any]
    dropout: Mapping[str, Any]
    preflight: Mapping[str, Any] | None
    created_at: datetime
    heartbeat_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error: str | None
    loss: float | None
    trajectories: int
    windows: Sequence[str]
    passes: int | None = None

    @property
    def live(self) -> bool:
        return self.state in LIVE_STATES


@dataclass(frozen=True, slots=True)
class BatchEpisode:
    """An episode of a batch with its judgement.

    ``parts`` are empty where its hour was judged as a whole. ``dropped`` is the reason why it left the batch. ``trained_ids`` are the
    trajectories with a trainable token, None before a training has counted them.
    """

    window: str
    agent_id: str
    trajectory_ids: Sequence[str]
    score: float | None
    rank: int | None
    advantage: float | None
    sequences: int | None
    dropped: str | None
    trained_ids: Sequence[str] | None = None
    parts: Sequence[PartScore] = ()

    @property
    def contributes(self) -> str | None:
        """``trained``, or ``baseline`` (only its score counts, in the group's mean); None: it left, or is not counted yet."""
        if self.dropped is not None or self.trained_ids is None:
            return None
        return TRAINED if self.trained_ids else BASELINE


def batch_id_taken(connection: Connection, batch_id: str) -> bool:
    return connection.value('SELECT 1 FROM public.training_batches WHERE "batchId" = %s OR id = %s', [batch_id, batch_id]) is not None


def read_batch(connection: Connection, batch_id: str) -> Batch | None:
    return connection.first(Batch, f'{_BATCHES} WHERE "batchId" = %s', [batch_id])


def read_batches(connection: Connection, states: Sequence[str] | None = None, limit: int | None = 100) -> list[Batch]:
    """Return our batches, newest first; with ``states``, only those in one of them. Without ``limit`` all."""
    chosen = """
    WHERE %(states)s::text[] IS NULL OR "state" = ANY(%(states)s) ORDER BY "createdAt" DESC, "batchId" DESC LIMIT %(limit)s
    """
    return connection.rows(Batch, _BATCHES + chosen, {"states": None if states is None else list(states), "limit": limit})


def read_foreign_batches(connection: Connection) -> list[dict[str, Any]]:
    """Return the newest 100 batches written by other producers, newest first, by column name, for display only."""
    rows = connection.cursor(row_factory=dict_row).execute(
        """
        SELECT p."batchId", p.status, p."baseModel", p."modelVersion", p."createdAt", p."completedAt", p.error
        FROM public.training_batches p
        WHERE NOT EXISTS (SELECT FROM babylon_rl.batches b WHERE b."batchId" = p."batchId")
        ORDER BY p."createdAt" DESC LIMIT 100
        """
    )
    return rows.fetchall()


def read_batch_episodes(connection: Connection, batch_id: str) -> list[BatchEpisode]:
    """Return the episodes of a batch, newest window first, then by agent. Episodes that left the batch are included."""
    rows = connection.execute(
        """
        SELECT e."window", e."agentId", array_agg(i."trajectoryId" ORDER BY i."position"), e."score", e."rank", e."advantage",
               e."sequences", e."dropped",
               -- NULL: not counted yet; an empty list: nothing of it trained.
               CASE WHEN count(i."contribution") > 0
                    THEN COALESCE(array_agg(i."trajectoryId" ORDER BY i."position") FILTER (WHERE i."contribution" = 'trained'), '{}') END,
               e."parts"
        FROM babylon_rl.batch_episodes e
        JOIN babylon_rl.batch_items i USING ("batchId", "window", "agentId")
        WHERE e."batchId" = %s
        GROUP BY e."batchId", e."window", e."agentId"
        ORDER BY e."window" DESC, e."agentId"
        """,
        [batch_id],
    )
    return [BatchEpisode(*(*row, msgspec.convert(parts, tuple[PartScore, ...]))) for *row, parts in rows]


def last_completed_at(connection: Connection) -> datetime | None:
    """Return the end of the newest completed batch, ours or foreign, or None."""
    return connection.value("SELECT max(\"completedAt\") FROM public.training_batches WHERE status = 'completed'")


def claim_batch(connection: Connection, batch_id: str, now: datetime) -> int | None:
    """Begin a run and return its attempt number, or None if the batch ended. The caller commits."""
    attempt: int | None = connection.value(
        """
        -- From here on no write of an earlier run matches a row.
        UPDATE babylon_rl.batches SET "attempt" = "attempt" + 1, "heartbeatAt" = greatest("heartbeatAt", %s)
        WHERE "batchId" = %s AND "state" = ANY(%s) RETURNING "attempt"
        """,
        [now, batch_id, list(LIVE_STATES)],
    )
    if attempt is not None:
        # The new run starts without the waiting reason of the run before it.
        connection.execute('UPDATE public.training_batches SET error = NULL WHERE "batchId" = %s AND error IS NOT NULL', [batch_id])
    return attempt


def note_waiting(connection: Connection, batch_id: str, attempt: int, reason: str) -> None:
    """Store the reason why run ``attempt`` of a live batch stopped and waits. The next run clears it. The caller commits."""
    connection.execute(
        """
        UPDATE public.training_batches p SET error = %s FROM babylon_rl.batches b
        WHERE b."batchId" = %s AND b."attempt" = %s AND b."state" = ANY(%s) AND p."batchId" = b."batchId"
        """,
        [reason, batch_id, attempt, list(LIVE_STATES)],
    )


def advance_batch(connection: Connection, batch_id: str, attempt: int, transition: Transition, now: datetime) -> None:
    """Move a batch on in both tables, for the run ``attempt``. Raises BatchConflict as ``hold_batch``."""
    # Our row first, which holds the fencing token: a run that has lost the batch must not touch the game's row.
    hold_batch(connection, batch_id, attempt, now, transition)
    connection.execute(
        'UPDATE public.training_batches SET status = %s, "startedAt" = COALESCE("startedAt", %s) WHERE "batchId" = %s',
        [transition.target, now, batch_id],
    )


def heartbeat(connection: Connection, batch_id: str, attempt: int, now: datetime) -> None:
    """Write the heartbeat of a run, in its own short transaction. Raises BatchConflict as ``hold_batch``."""
    with own_transaction(connection):
        hold_batch(connection, batch_id, attempt, now)


def hold_batch(connection: Connection, batch_id: str, attempt: int, now: datetime, transition: Transition | None = None) -> None:
    """Lock a batch's row for the run ``attempt``, in the caller's transaction; with ``transition``, change its state.

    Raises BatchConflict: the batch ended, a newer run has taken it over, or its state does not allow the transition.
    """
    target, sources = (None, LIVE_STATES) if transition is None else (transition.target, transition.sources)
    updated = connection.execute(
        """
        UPDATE babylon_rl.batches SET "heartbeatAt" = %s, "state" = COALESCE(%s, "state")
        WHERE "batchId" = %s AND "attempt" = %s AND "state" = ANY(%s)
        """,
        [now, target, batch_id, attempt, list(sources)],
    )
    if updated.rowcount == 0:
        raise BatchConflict(_why_not(connection, batch_id, attempt, sources))


def _why_not(connection: Connection, batch_id: str, attempt: int, sources: Sequence[str]) -> str:
    batch = read_batch(connection, batch_id)
    if batch is None:
        return f"There is no batch {batch_id}; `babylon-rl batches` lists them."
    if batch.live and batch.attempt == attempt:
        return f"{batch_id} is {batch.state}, and this step begins only in {' or '.join(sources)}; `babylon-rl train` goes on with it."
    if batch.live:
        return f"Run {attempt} of {batch_id} stops: run {batch.attempt} has taken the batch over."
    return f"{batch_id} is {batch.state}{f' ({batch.error})' if batch.error else ''}; freeze a new batch with `babylon-rl train`."


_JUDGED = ("window", "agent_id", "score", "rank", "advantage", "sequences", "dropped", "parts")


def write_judgements(connection: Connection, batch_id: str, episodes: Sequence[BatchEpisode]) -> None:
    """Store scores, ranks and advantages, also in the columns that the game reads, and free dropped trajectories."""
    connection.execute(
        """
        UPDATE babylon_rl.batch_episodes e
        SET "score" = n."score", "rank" = n."rank", "advantage" = n."advantage", "sequences" = n."sequences", "dropped" = n."dropped",
            "parts" = n."parts"
        FROM jsonb_populate_recordset(NULL::babylon_rl.batch_episodes, %s) n
        WHERE e."batchId" = %s AND e."window" = n."window" AND e."agentId" = n."agentId"
        """,
        [Jsonb([msgspec.to_builtins(document_of(episode, *_JUDGED)) for episode in episodes]), batch_id],
    )
    connection.execute(
        """
        -- Free for the next batch, unless dropped_episodes holds them (bar_dropped).
        UPDATE babylon_rl.batch_items i SET "live" = FALSE FROM babylon_rl.batch_episodes e
        WHERE i."batchId" = %s AND i."live" AND e."batchId" = i."batchId" AND e."window" = i."window" AND e."agentId" = i."agentId"
          AND e."dropped" IS NOT NULL
        """,
        [batch_id],
    )
    # The game reads three parallel JSON lists.
    remaining = [(episode, trajectory) for episode in episodes if episode.dropped is None for trajectory in episode.trajectory_ids]
    connection.execute(
        'UPDATE public.training_batches SET "trajectoryIds" = %s, "rewardsJson" = %s, "rankingsJson" = %s WHERE "batchId" = %s',
        [json.dumps([trajectory for _, trajectory in remaining]), json.dumps([episode.score for episode, _ in remaining]),
         json.dumps([episode.rank for episode, _ in remaining]), batch_id],
    )  # fmt: skip


def write_contributions(connection: Connection, batch_id: str, trained: Collection[str]) -> None:
    """Store whether each live trajectory trains (is ``trained``) or is baseline only. The caller commits."""
    connection.execute(
        """
        UPDATE babylon_rl.batch_items SET "contribution" = CASE WHEN "trajectoryId" = ANY(%s) THEN 'trained' ELSE 'baseline' END
        WHERE "batchId" = %s AND "live"
        """,
        [list(trained), batch_id],
    )


def write_preflight(connection: Connection, batch_id: str, preflight: Mapping[str, Any], parent: str | None) -> None:
    """Store the pre-flight report and the parent version that training continues from."""
    connection.execute(
        'UPDATE babylon_rl.batches SET "preflight" = %s, "parentVersion" = %s WHERE "batchId" = %s',
        [Jsonb(dict(preflight)), parent, batch_id],
    )


def record_dropped(connection: Connection, batch_id: str | None, reason: str, episodes: Sequence[tuple[str, str]], now: datetime) -> None:
    """Exclude ``episodes`` (window, agent id) from all later batches, for ``reason``."""
    why = {"batchId": batch_id, "reason": reason, "createdAt": now}
    rows = [{"window": window, "agentId": agent_id, **why} for window, agent_id in episodes]
    connection.insert("babylon_rl.dropped_episodes", rows, "ON CONFLICT DO NOTHING")


def bar_dropped(connection: Connection, batch_id: str, reasons: Sequence[str], now: datetime) -> None:
    """Exclude episodes dropped from a batch for ``reasons`` from all later batches."""
    connection.execute(
        """
        INSERT INTO babylon_rl.dropped_episodes ("window", "agentId", "batchId", "reason", "createdAt")
        SELECT "window", "agentId", "batchId", "dropped", %s FROM babylon_rl.batch_episodes
        WHERE "batchId" = %s AND "dropped" = ANY(%s)
        ON CONFLICT DO NOTHING
        """,
        [now, batch_id, list(reasons)],
    )


def left_to_dropout(connection: Connection, windows: Sequence[str]) -> set[tuple[str, str]]:
    """Return (window, agent id) of the episodes that dropout left out of a batch."""
    statement = 'SELECT "window", "agentId" FROM babylon_rl.dropped_episodes WHERE "window" = ANY(%s) AND "reason" = %s'
    return set(connection.execute(statement, (list(windows), DROPOUT)).fetchall())


def end_failed(
    connection: Connection, batch_id: str, transition: Transition, error: str, now: datetime, attempt: int | None = None
) -> bool:
    """End a batch without a version, in the caller's transaction. False if it had ended, or ``attempt`` is not its current run."""
    ended = connection.execute(
        """
        UPDATE babylon_rl.batches SET "state" = %s
        WHERE "batchId" = %s AND "state" = ANY(%s) AND (%s::int IS NULL OR "attempt" = %s)
        """,
        [transition.target, batch_id, list(transition.sources), attempt, attempt],
    )
    if ended.rowcount == 0:
        return False
    connection.execute(
        'UPDATE public.training_batches SET status = %s, error = %s, "completedAt" = %s WHERE "batchId" = %s',
        [transition.target, error, now, batch_id],
    )
    connection.execute('UPDATE babylon_rl.batch_items SET "live" = FALSE WHERE "batchId" = %s AND "live"', [batch_id])
    return True


MOST_READ = 50

# Without a batch that did not fail, every failed one counts.
_SINCE = """
SELECT b."batchId", COALESCE(p."error", ''), COALESCE(p."completedAt", b."heartbeatAt")
FROM babylon_rl.batches b JOIN public.training_batches p ON p."batchId" = b."batchId"
WHERE b."backend" = %(backend)s AND b."state" = 'failed' AND b."createdAt" > COALESCE(
    (SELECT max(o."createdAt") FROM babylon_rl.batches o WHERE o."backend" = %(backend)s AND o."state" <> 'failed'), '-infinity')
ORDER BY b."createdAt" DESC, b."batchId" DESC LIMIT %(most)s
"""


def failures_in_a_row(connection: Connection, backend: str) -> list[tuple[str, str, datetime]]:
    """Return (id, error, end) of the failed batches of ``backend`` newer than its newest other batch. Newest first, at most MOST_READ."""
    return connection.execute(_SINCE, {"backend": backend, "most": MOST_READ}).fetchall()


# DISTINCT ON keeps the row of the best agent.
_GROUPS = """
WITH mine AS (
    SELECT "window", count(*) FILTER (WHERE "dropped" IS NULL) AS "training", min("dropped") AS "dropped"
    FROM babylon_rl.batch_episodes WHERE "batchId" = %s AND "score" IS NOT NULL GROUP BY "window"
)
SELECT DISTINCT ON (s."window") s."window", mine."training",
       count(*) OVER hour, min(s."score") OVER hour, max(s."score") OVER hour, avg(s."score") OVER hour,
       s."agentId", s."score", COALESCE(own."windowPnl", 0), g."judge", CASE WHEN mine."training" = 0 THEN mine."dropped" END
FROM mine
JOIN babylon_rl.group_scores g ON g."window" = mine."window"
JOIN babylon_rl.episode_scores s ON s."window" = mine."window"
LEFT JOIN babylon_rl.episodes own ON own."window" = s."window" AND own."agentId" = s."agentId"
WINDOW hour AS (PARTITION BY s."window")
ORDER BY s."window", s."score" DESC, s."agentId"
"""
# The cost in dollars is optional in the stored judgement.
_JUDGING = """
SELECT g."window", g."disagreement", (g."judgement" ->> 'usd')::float8 FROM babylon_rl.group_scores g
WHERE g."window" IN (SELECT e."window" FROM babylon_rl.batch_episodes e WHERE e."batchId" = %s)
"""


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """One judged window of a batch: ``training`` of its ``agents`` train (else ``dropped`` says why), ``best_pnl`` in dollars."""

    window: str
    training: int
    agents: int
    lowest: float
    highest: float
    mean: float
    best_agent: str
    best_score: float
    best_pnl: float
    judge: str
    dropped: str | None


def judged_groups(connection: Connection, batch_id: str) -> list[BatchGroup]:
    return [BatchGroup(*row) for row in connection.execute(_GROUPS, [batch_id])]


def judging_of(connection: Connection, batch_id: str) -> dict[str, tuple[float, float | None]]:
    """Return disagreement (0 to 1) and dollars (None: no price known) of each window's judgement, dropped ones included."""
    return {row[0]: (row[1], row[2]) for row in connection.execute(_JUDGING, [batch_id])}
