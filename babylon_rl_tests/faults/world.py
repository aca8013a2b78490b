"""A small world to train in: hours of three agents in one database, set back to its beginning in a few milliseconds.

The dry trainer makes weights that follow from a batch's content, its seed and its parent, so that two worlds that trained the same in the
same order hold the same bytes.
"""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import CheckpointError
from babylon_rl.models.checkpoints import load_manifest, verify
from babylon_rl.settings import Settings
from babylon_rl.store.batches import LIVE_STATES
from babylon_rl.store.connection import Connection
from babylon_rl_tests.rows import START, insert, make_call, make_step, make_trajectory

HOURS, AGENTS, ROWS = 2, 3, 2
NOW = START + timedelta(hours=HOURS + 1)
FOREIGN = "batch-of-somebody-else"
MEASURED_BY_THE_CLOCK = {"seconds", "tokensPerSecond"}

FOREIGN_ROWS = """
INSERT INTO public.training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson", status)
VALUES ('foreign', 'batch-of-somebody-else', 'dry', 'v0.9.0', '["t0-0-0"]', '[0.5]', 'pending');
INSERT INTO public.trained_models (id, "modelId", version, "baseModel", "storagePath", status, "updatedAt")
VALUES ('foreign', 'babylon-agent-v0.9.0', 'v0.9.0', 'dry', 'elsewhere', 'ready', '2025-01-01')
"""
RESET = f"""
DELETE FROM babylon_rl.remote_jobs; DELETE FROM babylon_rl.training_steps; DELETE FROM babylon_rl.batch_items;
DELETE FROM babylon_rl.batch_episodes; DELETE FROM babylon_rl.dropped_episodes; DELETE FROM babylon_rl.model_lineage;
DELETE FROM babylon_rl.batches; DELETE FROM babylon_rl.episode_scores; DELETE FROM babylon_rl.group_scores;
DELETE FROM public.training_batches; DELETE FROM public.trained_models; DELETE FROM public.reward_judgments;
UPDATE public.trajectories SET "usedInTraining" = FALSE, "trainedInBatch" = NULL, "aiJudgeReward" = NULL
WHERE "usedInTraining" OR "judgedAt" IS NOT NULL;
{FOREIGN_ROWS}"""


@dataclass(frozen=True)
class World:
    """A database with its hours read, and where versions lie."""

    url: str
    settings: Settings
    connection: Connection

    @property
    def checkpoints(self) -> Path:
        """The directory of versions."""
        return self.settings.home / "checkpoints"

    def reset(self) -> None:
        """Nothing was ever judged or trained; another producer has a version and a pending batch."""
        self.connection.execute(RESET)
        self.connection.commit()
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def make_world(url: str, settings: Settings, connection: Connection, hours: int = HOURS) -> World:
    """Fill an empty, migrated database."""
    windows = [f"{START + timedelta(hours=hour):%Y-%m-%dT%H}:00" for hour in range(hours)]
    for hour, window in enumerate(windows):
        for agent in range(AGENTS):
            call = make_call(response=json.dumps({"action": "hold", "of": f"{hour}/{agent}"}))
            rows = [
                make_trajectory(
                    f"t{hour}-{agent}-{row}", f"agent-{agent}", steps=[make_step(0, pnl=10.0 * agent * row, calls=[call])],
                    minute=60 * hour + 5 + 10 * row, windowId=window, finalPnL=10.0 * agent * (row + 1),
                )
                for row in range(ROWS)
            ]  # fmt: skip
            insert(connection, "trajectories", rows)
    chosen = settings.model_copy(
        update={"train_rl_local": True, "local_base_model": "dry", "iterations": 2, "epochs": 2, "checkpoints_kept": 1,
                "min_agents_per_window": 2, "min_actions_per_trajectory": 1}
    )  # fmt: skip
    sync_windows(connection, windows, chosen, START + timedelta(hours=hours + 1))
    connection.commit()
    return World(url, chosen, connection)


def rows(world: World, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """What a query finds, outside any transaction."""
    found = world.connection.execute(query, parameters or None).fetchall()
    world.connection.commit()
    return found


def check(world: World, *, at_rest: bool = False) -> None:
    """What holds whatever has died: nothing trained twice or lost, no row without its checkpoint; ``at_rest``, and the other way round."""
    twice = 'SELECT "trajectoryId" FROM babylon_rl.batch_items WHERE "live" OR "consumed" GROUP BY 1 HAVING count(*) > 1'
    assert (trained_twice := rows(world, twice)) == [], f"trained twice: {trained_twice}"
    marked = rows(world, 'SELECT "trainedInBatch", "trajectoryId" FROM trajectories WHERE "usedInTraining" ORDER BY 1, 2')
    consumed = rows(world, 'SELECT "batchId", "trajectoryId" FROM babylon_rl.batch_items WHERE "consumed" ORDER BY 1, 2')
    assert marked == consumed, f"marks and completed batches differ: {set(marked) ^ set(consumed)}"
    baseline = {row[0] for row in rows(world, """SELECT "trajectoryId" FROM babylon_rl.batch_items WHERE "contribution" = 'baseline'""")}
    ended = rows(
        world,
        """SELECT p."batchId", p.status, b."state", p."trajectoryIds", p."rewardsJson", p."rankingsJson", p."trainingLoss", p."completedAt",
        p."modelVersion", m.version, l."version", l."checkpointPath", l."prunedAt", m.status,
        EXISTS (SELECT FROM babylon_rl.remote_jobs j WHERE j."batchId" = p."batchId" AND j."state" = 'trained' AND j."loss" IS NULL)
        FROM public.training_batches p JOIN babylon_rl.batches b USING ("batchId")
        LEFT JOIN public.trained_models m ON m."trainingBatch" = p."batchId" LEFT JOIN babylon_rl.model_lineage l USING ("batchId")""",
    )
    by_batch: dict[str, set[str]] = {}
    for batch_id, trajectory in consumed:
        by_batch.setdefault(batch_id, set()).add(trajectory)
    for (
        batch_id,
        status,
        state,
        ids,
        rewards,
        rankings,
        loss,
        completed_at,
        reserved,
        version,
        lineage,
        path,
        pruned,
        known_as,
        silent,
    ) in ended:
        assert status == state and (completed_at is None) == (state in LIVE_STATES), batch_id
        assert (version is not None) == (lineage is not None) == (state == "completed"), batch_id
        if state == "completed":
            trajectories = json.loads(ids)
            assert by_batch[batch_id] <= set(trajectories) <= by_batch[batch_id] | baseline and len(trajectories) == len(
                json.loads(rewards)
            ) == len(json.loads(rankings))
            assert reserved == version == lineage and (loss is not None or silent)
            assert pruned is None or known_as == "archived"
            assert pruned is not None or verify(Path(path)).batch_id == batch_id
            assert pruned is None or not at_rest or not Path(path).exists()
        else:
            assert batch_id not in by_batch and rewards.count(",") <= ids.count(",")
    registered = {row[9]: row[0] for row in ended if row[9] is not None}
    for directory in sorted(world.checkpoints.glob("v*")):
        # What a run left that died, or lost its number to another producer, is there until the next training or cleanup.
        assert registered.get(directory.name) == _owner(directory) or not (at_rest or directory.name in registered), directory
    assert rows(world, 'SELECT status, "trajectoryIds" FROM training_batches WHERE "batchId" = %s', FOREIGN) == [("pending", '["t0-0-0"]')]
    assert rows(world, "SELECT status, \"storagePath\" FROM trained_models WHERE id = 'foreign'") == [("ready", "elsewhere")]


def _owner(directory: Path) -> str | None:
    try:
        return load_manifest(directory).batch_id
    except CheckpointError:
        return None


def registry(world: World) -> dict[str, Any]:
    """Everything that a training leaves behind, less the moments at which it did and how often it was begun."""
    models = rows(
        world,
        """SELECT m."modelId", m.version, m."baseModel", m."trainingBatch", m.status, m."storagePath", m."avgReward", l."parentVersion",
        l."backend", l."windows", m."evalMetrics" FROM trained_models m LEFT JOIN babylon_rl.model_lineage l USING (version) ORDER BY 2""",
    )
    batches = rows(
        world,
        """SELECT "batchId", status, "modelVersion", "baseModel", "trajectoryIds", "rewardsJson", "rankingsJson", "trainingLoss", error
        FROM training_batches ORDER BY 1""",
    )
    weights = {path.parent.name: path.read_bytes() for path in sorted(world.checkpoints.glob("v*/adapter_model.safetensors"))}
    for model in models:
        for iteration in (model[-1] or {}).get("training", {}).get("iterations", []):
            for name in MEASURED_BY_THE_CLOCK & set(iteration):
                iteration.pop(name)
    steps = rows(
        world,
        """SELECT "batchId", "iteration", "windows", "sequences", "loss", "trainableTokens" FROM babylon_rl.training_steps
        WHERE "finishedAt" IS NOT NULL ORDER BY 1, 2""",
    )
    marks = rows(world, 'SELECT "trajectoryId", "trainedInBatch", "aiJudgeReward" FROM trajectories ORDER BY 1')
    return {"models": models, "batches": batches, "weights": weights, "steps": steps, "marks": marks}


def later(hours: float) -> datetime:
    """So long after the world was made."""
    return NOW + timedelta(hours=hours)
