"""kill -9 of a real process at twenty random moments: nothing is trained twice or lost, by our books and by the service's."""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.store.write_ahead import read_jobs
from babylon_rl.training.batches import pending_batches
from babylon_rl.training.publishing import prune
from babylon_rl_tests.faults.killed_run import train_all
from babylon_rl_tests.faults.world import AGENTS, NOW, ROWS, World, check, registry, rows
from babylon_rl_tests.tiny_model import make_base
from babylon_rl_tests.training.remote_play import PLAYED_NOW, TRAINABLE
from babylon_rl_tests.training.serverless_stand_in import StandIn

pytestmark = pytest.mark.long

KILLS = 20
PROCESSES = multiprocessing.get_context("forkserver")
ALONE = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@contextmanager
def forking_after(module: str) -> Iterator[None]:
    """A fork server of its own, which has imported ``module``."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    before = server._preload_modules
    server._stop()
    PROCESSES.set_forkserver_preload([module])
    try:
        yield
    finally:
        server._stop()
        PROCESSES.set_forkserver_preload(before)


@pytest.fixture
def forks_cpu() -> Iterator[None]:
    with forking_after("babylon_rl_tests.faults.preload_cpu"):
        yield


@pytest.fixture
def forks_serverless() -> Iterator[None]:
    with forking_after("babylon_rl_tests.faults.preload_serverless"):
        yield


def start(world: World, now: datetime, most: int) -> Any:
    """A process that trains, once it is up."""
    alive = world.settings.home / "alive"
    alive.unlink(missing_ok=True)
    process = PROCESSES.Process(target=train_all, args=(world.url, world.settings, now, most, alive))
    process.start()
    while not alive.exists() and process.is_alive():
        time.sleep(0.002)
    return process


def wait_until_alone(world: World) -> None:
    """What a killed client had open is undone by the server once it has noticed."""
    while rows(world, ALONE) != [(0,)]:
        time.sleep(0.005)


def train_to_the_end(world: World, now: datetime, most: int) -> float:
    """The seconds that it took, the start of the process and of the one that it is forked from left out."""
    process = start(world, now, most)
    began_s = time.monotonic()
    process.join()
    took_s = time.monotonic() - began_s
    assert process.exitcode == 0
    wait_until_alone(world)
    prune(world.connection, world.settings, world.checkpoints, now)
    check(world, at_rest=True)
    return took_s


def kill_at_random(world: World, now: datetime, most: int, chance: random.Random, kills: int, longest_s: float) -> int:
    """Start a training again and again, killing it within ``longest_s``, until it ended or was killed so often; the kills that hit."""
    hit = 0
    while hit < kills:
        process = start(world, now, most)
        process.join(chance.uniform(0.0, longest_s))
        process.kill()
        process.join()
        wait_until_alone(world)
        check(world)
        if process.exitcode == 0:
            break
        hit += 1
    return hit


@pytest.mark.timeout(600)
def test_a_killed_training_on_the_processor_ends_as_one_that_nobody_killed(world: World, forks_cpu: None, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    chosen = {"local_base_model": str(base), "iterations": 5, "epochs": 5, "learning_rate": 1e-5, "warmup_steps": 0}
    small = World(world.url, world.settings.model_copy(update=chosen), world.connection)
    whole_s = train_to_the_end(small, NOW, AGENTS * ROWS)
    expected = registry(small)
    assert len(expected["weights"]) == 1 and len(expected["steps"]) == 10
    chance, killed, struck = random.Random(6), 0, 0
    while killed < KILLS:
        small.reset()
        killed += kill_at_random(small, NOW, AGENTS * ROWS, chance, KILLS - killed, whole_s / 5)
        train_to_the_end(small, NOW, AGENTS * ROWS)
        assert registry(small) == expected
        struck += begun_in_vain(small)
    assert struck > 0


@pytest.mark.timeout(600)
def test_a_killed_serverless_training_posts_no_job_twice(played_world: World, forks_serverless: None, stand_in: StandIn) -> None:
    service = stand_in.service
    service.job_s, service.lag_s = 0.2, 0.2
    whole_s = train_to_the_end(played_world, PLAYED_NOW, 1000)
    assert_trained_once(played_world, stand_in)
    chance, killed, struck = random.Random(7), 0, 0
    while killed < KILLS:
        played_world.reset()
        service.models.clear()
        service.jobs.clear()
        killed += kill_at_random(played_world, PLAYED_NOW, 1000, chance, KILLS - killed, whole_s / 2)
        train_to_the_end(played_world, PLAYED_NOW, 1000)
        assert_trained_once(played_world, stand_in)
        struck += begun_in_vain(played_world)
    assert struck > 0


def begun_in_vain(world: World) -> int:
    """How often a kill struck while an iteration was being trained."""
    ((struck,),) = rows(world, 'SELECT count(*) FROM babylon_rl.training_steps WHERE "finishedAt" IS NULL')
    return int(struck)


def assert_trained_once(world: World, stand_in: StandIn) -> None:
    """The service's own books: every iteration was one job, every trajectory with log-probabilities once in each pass over its hour."""
    trained = stand_in.service.trained()
    marks = Counter(mark for job in trained for mark in job.trajectories)
    assert len(trained) == len(stand_in.service.jobs) == 6 and not any(job.deleted for job in trained)
    assert set(marks.values()) == {1}
    assert {mark[1] for mark in marks} == set(range(1, 7)) and len({mark[2] for mark in marks}) == TRAINABLE
    ((batch_id,),) = rows(world, 'SELECT "batchId" FROM babylon_rl.model_lineage')
    jobs = [job for job in read_jobs(world.connection, batch_id) if job.state == "trained"]
    assert [job.iteration for job in jobs] == [job.step_after for job in jobs] == list(range(1, 7))
    named = {job.job_id for job in jobs if job.job_id is not None}  # a kill between a post and its answer leaves a job without its id
    assert named <= {job.job_id for job in trained}
    assert not pending_batches(world.connection)
