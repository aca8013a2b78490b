"""A sample of the simulation's schedules (simulation.py); ``make faults`` runs a thousand."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from babylon_rl.errors import BatchConflict, CheckpointError, TrainingPaused
from babylon_rl.store.database import Database
from babylon_rl_tests.faults import run_schedules
from babylon_rl_tests.faults.lives import Fault
from babylon_rl_tests.faults.run_schedules import copied, judge_site, own_server, quiet, run_schedule, trainer_of
from babylon_rl_tests.faults.simulation import Schedule, Site
from babylon_rl_tests.judge.scripted_server import judging

pytestmark = pytest.mark.long
SEEDS = [seed for seed in range(11) if trainer_of(seed) == "dry"]
CPU_SEED, PAID_SEED = 9, 7

_TIMED = re.compile(r"(?<=^.{9}trainer ends) after \d+ boundaries")  # it writes heartbeats and progress by the clock


@pytest.fixture
def site() -> Iterator[Site]:
    """Schedules with the dry trainer: the others import torch, which takes longer than all of these."""
    with judging() as judge, quiet():
        yield judge_site(judge)


def test_schedules_lose_and_repeat_nothing(site: Site, copy_of: Callable[[str], Database]) -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        counts += run_schedule(seed, site, copy_of("migrated").url).counts
    assert counts["dies"] > 5 and counts["two at once"] > 5 and counts["SIGKILL"] > 0 and counts["clock jumps"] > 5
    assert counts["trained trajectories of versions"] > 0


def test_a_seed_repeats_its_schedule(site: Site, copy_of: Callable[[str], Database]) -> None:
    first, again = (run_schedule(3, site, copy_of("migrated").url) for _ in range(2))
    assert first.story == again.story


def test_a_seed_is_the_same_schedule_among_those_of_other_trainers_which_repeat(site: Site, copy_of: Callable[[str], Database]) -> None:
    counts: Counter[str] = Counter()
    alone = run_schedule(3, site, copy_of("migrated").url)
    with own_server() as server, run_schedules.site(server, {"cpu", "paid"}) as at, quiet():
        with copied(server, "schedule") as url:
            assert run_schedule(3, at, url).story == alone.story
        for seed in (CPU_SEED, PAID_SEED):
            stories = []
            for _ in range(2):
                with copied(server, "schedule") as url:
                    schedule = run_schedule(seed, at, url)
                stories.append([_TIMED.sub("", sentence) for sentence in schedule.story])
            assert stories[0] == stories[1]
            counts += schedule.counts
    assert counts["pass by play"] and counts["fail by play"] and counts["training service with faults"]


def frozen_batch(site: Site, copy_of: Callable[[str], Database], home: Path) -> Schedule:
    """An hour, judged and frozen into a batch."""
    home.mkdir()
    schedule = Schedule(1, site, copy_of("migrated").url, home, "dry")
    schedule.next_hour()
    schedule.act("recorder", "hours", "judge", "freezer")
    return schedule


def test_a_number_that_another_producer_takes_at_the_last_moment_sends_the_batch_back_for_the_next(
    site: Site, copy_of: Callable[[str], Database], tmp_path: Path
) -> None:
    schedule = frozen_batch(site, copy_of, tmp_path / "home")
    with closing(schedule.connection):
        trainer = schedule.life("trainer", [Fault("pauses", 1, "INSERT INTO public.trained_models")])
        trainer.go_on()
        schedule.beside(trainer, "other producer")
        assert isinstance(trainer.error, TrainingPaused)
        schedule.finish()


def test_a_trainer_that_stands_still_while_it_publishes_lets_a_newer_run_finish_and_harms_nothing(
    site: Site, copy_of: Callable[[str], Database], tmp_path: Path
) -> None:
    frozen = partial(frozen_batch, site, copy_of)
    schedule = frozen(tmp_path / "whole")
    with closing(schedule.connection):
        schedule.act("trainer")
    passed = schedule.lives[-1].passed
    first = next(place for place, boundary in enumerate(passed) if "/publish-" in boundary)
    completed = 0
    registers = next(place for place, boundary in enumerate(passed) if boundary.startswith("INSERT INTO public.trained_models"))
    for place in range(first, registers):
        schedule = frozen(tmp_path / str(place))
        with closing(schedule.connection):
            older = schedule.life("trainer", [Fault("pauses", place)])
            older.go_on()
            schedule.beside(older, "trainer")
            schedule.check()
            completed += isinstance(older.error, BatchConflict)
            schedule.finish()
    assert completed  # by the newer run


@pytest.fixture
def trained(site: Site, copy_of: Callable[[str], Database], tmp_path: Path) -> Iterator[Schedule]:
    """Two hours without faults, each trained to a version of its own, and one that is not judged yet."""
    schedule = Schedule(1, site, copy_of("migrated").url, tmp_path, "dry")
    with closing(schedule.connection):
        for _ in range(2):
            schedule.next_hour()
            schedule.act("recorder", "hours", "judge", "freezer", "trainer")
        schedule.next_hour()
        schedule.act("recorder")
        yield schedule


def cut_a_checkpoint(schedule: Schedule) -> None:
    weights, *_ = schedule.world.checkpoints.glob("v*/adapter_model.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)


OURS = 'version IN (SELECT "version" FROM babylon_rl.model_lineage)'
HARMS: dict[str, str | Callable[[Schedule], None]] = {
    "rows of others were changed or lost: ..User": "UPDATE \"User\" SET username = id",
    "rows of others were changed or lost: ..traj": 'UPDATE trajectories SET "totalReward" = 7',
    "lost: ..trajectories": 'DELETE FROM trajectories WHERE "windowId" = (SELECT max("windowId") FROM trajectories)',
    "lost: ..training_batches foreign": "UPDATE training_batches SET error = 'x' WHERE id = 'foreign'",
    "lost: ..trained_models foreign": 'UPDATE trained_models SET "totalInferences" = 1 WHERE id = \'foreign\'',
    "lost: ..reward_judgments foreign": "UPDATE reward_judgments SET reasoning = 'x' WHERE id = 'foreign'",
    "lost: ..market_outcomes foreign": "DELETE FROM market_outcomes WHERE id = 'foreign'",
    "rows of no batch or trajectory: ...reward_judgments": "UPDATE reward_judgments SET \"groupId\" = 'x' WHERE id <> 'foreign'",
    "rows of no batch or trajectory: ...training_batches": """INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion",
        "trajectoryIds", "rewardsJson") VALUES ('nobody', 'nobody', 'x', 'v1', '[]', '[]')""",
    "columns of public changed: ..User.age": 'ALTER TABLE "User" ADD COLUMN age int',
    "columns of public changed: ..Question.text": 'ALTER TABLE "Question" ALTER COLUMN text DROP NOT NULL',
    "tables .* changed: ..extra": "CREATE TABLE extra ()",
    "tables .* changed: ..Organization'": """INSERT INTO "Organization" (id, name, description, type, "updatedAt")
        VALUES ('o', 'o', 'o', 'company', now())""",
    "marks and completed batches differ": """UPDATE trajectories SET "usedInTraining" = TRUE, "trainedInBatch" = 'b'
        WHERE "trajectoryId" <> 'foreign'""",
    "trained twice": """INSERT INTO babylon_rl.batch_items ("batchId", "window", "agentId", "trajectoryId", "position", "live", "consumed")
        SELECT b."batchId", i."window", i."agentId", i."trajectoryId", 99, FALSE, TRUE FROM babylon_rl.batch_items i
        JOIN babylon_rl.batches b ON b."batchId" <> i."batchId" WHERE i."consumed" LIMIT 1""",
    "hours are half judged": """DELETE FROM babylon_rl.episode_scores WHERE "agentId" = 'agent-1'""",
    "answers lost": "DELETE FROM babylon_rl.judge_requests",
    "did not pass": f"UPDATE trained_models SET status = 'deployed' WHERE {OURS}",
    "did not pass: .*v0": """INSERT INTO babylon_rl.rollouts ("version", "state", "strategy", "percentage", "createdAt", "changedAt",
        "stepSince") SELECT max("version"), 'candidate', 'immediate', 0, now(), now(), now() FROM babylon_rl.model_lineage""",
    "several versions are deployed": f"""UPDATE trained_models SET status = 'deployed' WHERE {OURS};
        INSERT INTO babylon_rl.releases ("batchId", "version", "decision", "reason", "reportVersion", "decidedAt")
        SELECT "batchId", "version", 'pass', '', '1', now() FROM babylon_rl.model_lineage""",
    "CheckpointError|changed|damaged": cut_a_checkpoint,
}  # fmt: skip


@pytest.mark.parametrize("says", HARMS)
def test_each_invariant_is_seen_to_break(trained: Schedule, says: str) -> None:
    harm = HARMS[says]
    if isinstance(harm, str):
        trained.connection.execute(harm)
        trained.connection.commit()
    else:
        harm(trained)
    with pytest.raises((AssertionError, CheckpointError), match=says):
        trained.act("observer")


def test_a_call_that_is_lost_is_seen_at_the_end(trained: Schedule) -> None:
    trained.act("gateway", "writer of calls")
    trained.connection.execute("DELETE FROM babylon_rl.gateway_calls")
    trained.connection.commit()
    with pytest.raises(AssertionError, match="calls are lost"):
        trained.finish()
