"""A paid training that dies at any boundary, under a service with faults of its own, is posted once and trained once.

As test_training_crashes.py, at the stand-in over HTTP: a life also dies between its record, its post, the answer and the evidence.
ROUNDS=10 in the environment (repeatable.py) lives some 1,100 lives.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from babylon_rl.errors import TrainingError, TrainingPaused
from babylon_rl.training.backends.serverless.runner import Times
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.publishing import prune
from babylon_rl_tests.faults.boundaries import FUSE, process
from babylon_rl_tests.faults.people import WithPeople
from babylon_rl_tests.faults.world import World, check, rows
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.training.remote_play import PLAYED_NOW, SEQUENCES, TRAINABLE
from babylon_rl_tests.training.serverless_stand_in import StandIn
from babylon_rl_tests.training.serverless_stand_in.jobs import Job

TIMES = Times(timedelta(seconds=4), timedelta(hours=1), poll_s=0.01, longest_poll_s=0.02, list_lag_s=1.0, timeout_s=2.0)
IMPATIENT = replace(TIMES, longest_job=timedelta(seconds=0.1))
NO_TIME_LEFT = replace(TIMES, whole=timedelta(0))
HOUR = SEQUENCES // 2  # trajectories of one hour: every hour is a generation
GAPS = st.integers(1, 160)  # boundaries between deaths; a whole training of one generation passes some 150
BOUNDARIES = ["row written", "answered", "id written", "end seen", "end written", "pointer written", "steps deleted"]
AROUND_A_POST = st.sampled_from(BOUNDARIES)
# After these nobody knows whether the post was accepted, or knows that it was not.
POST_FAULTS = st.sampled_from(["429", "drop_after", "reset_after", "500_after", "garbled_after"])
UNACCEPTED = st.sampled_from(["500", "drop_before"])  # nobody knows either, and looks for a step in vain
# After these the batch has failed, and its trajectories are frozen again; but out of order is none.
JOB_FAULTS = st.sampled_from(["out_of_order", "zero", "fails", "nan", "no_step", "steps_but_fails"])


def live(world: World, dies_at: int | str | None, times: Times) -> list[str]:
    """One life of a process that trains whatever can be trained; a training that fails or pauses leaves the rest to the next life.

    ``dies_at``: the number of a boundary, or the name of one around a post.
    """

    def at(boundary: str) -> None:
        if boundary == dies_at:
            FUSE.at = len(FUSE.passed) + 1
        FUSE.reach(boundary)

    with process(world.url, dies_at if isinstance(dies_at, int) else None) as (connection, passed):
        while True:
            pending = pending_batches(connection)
            batch = pending[0] if pending else freeze(connection, world.settings, PLAYED_NOW, max_trajectories=HOUR).batch
            if batch is None:
                break
            try:
                prepare_batch(connection, batch.batch_id, world.settings, PLAYED_NOW)
                trainer = ServerlessTrainer(world.settings, times, at)
                train_batch(connection, batch.batch_id, world.settings, PLAYED_NOW, trainer)
            except TrainingPaused:
                break
            except TrainingError:
                continue
    return passed


class PaidTrainings(WithPeople):
    """Processes that die, people who cancel, a service with faults: whatever their order, no iteration is posted twice."""

    now = PLAYED_NOW

    def __init__(self, world: World, stand_in: StandIn, lives: list[str]) -> None:
        super().__init__()
        self.world, self.service, self.lives = world, stand_in.service, lives

    @initialize(job_s=st.sampled_from([0.0, 0.03]), lag_s=st.sampled_from([0.0, 0.03]))
    def begin(self, job_s: float, lag_s: float) -> None:
        self.world.reset()
        self.service.models.clear()
        self.service.jobs.clear()
        self.service.job_s, self.service.lag_s, self.service.checkpoint_metrics = job_s, lag_s, lag_s == 0.0

    @rule(dies_at=GAPS)
    def train(self, dies_at: int) -> None:
        self._live(dies_at)

    @rule(dies_at=AROUND_A_POST)
    def train_until_around_a_post(self, dies_at: str) -> None:
        self._live(dies_at)

    @rule(dies_at=st.one_of(GAPS, AROUND_A_POST), fault=POST_FAULTS)
    def train_with_a_post_that_fails(self, dies_at: int | str, fault: Any) -> None:
        self.service.post_faults = [fault]
        self._live(dies_at)

    @rule(dies_at=st.one_of(GAPS, AROUND_A_POST), fault=JOB_FAULTS)
    def train_with_a_job_that_fails(self, dies_at: int | str, fault: Any) -> None:
        self.service.job_faults = [fault]
        self._live(dies_at)

    @rule(dies_at=st.one_of(GAPS, AROUND_A_POST), fault=UNACCEPTED)
    def train_with_a_post_that_is_lost(self, dies_at: int | str, fault: Any) -> None:
        self.service.post_faults = [fault]
        self._live(dies_at, IMPATIENT)

    @rule(dies_at=st.one_of(GAPS, AROUND_A_POST), waits=st.booleans())
    def train_with_a_job_that_is_late(self, dies_at: int | str, waits: bool) -> None:
        self.service.job_faults = ["late"]
        self._live(dies_at, IMPATIENT)
        # While nobody knows its id, a job that outlives the longest time is posted again: it may be late only once its id is known.
        if waits and not rows(self.world, """SELECT FROM babylon_rl.remote_jobs WHERE "state" = 'posting'"""):
            self._pass_time("\"state\" = 'running'")
        else:
            self.service.let_go()

    @rule()
    def let_the_late_end(self) -> None:
        self.service.let_go()

    @rule(fault=st.sampled_from(["nan", "steps_but_fails"]))
    def train_until_a_step_is_deleted(self, fault: Any) -> None:
        self.service.job_faults = [fault]
        self._live("steps deleted")

    @rule(dies_at=GAPS)
    def train_without_time_left(self, dies_at: int) -> None:
        posted = len(self.service.jobs)
        self._live(dies_at, NO_TIME_LEFT)
        assert len(self.service.jobs) == posted

    @invariant()
    def nothing_is_posted_or_trained_twice(self) -> None:
        check(self.world)
        self.service.trained()  # what is over by now has ended
        # A job of which nobody learnt the id, and that ended without a step, is posted again once the longest time has passed.
        training = _iterations(job for job in self.service.jobs if job.step is not None or not job.settled)
        assert all(number == 1 for number in training.values()), training

    def teardown(self) -> None:
        self.service.post_faults, self.service.job_faults = [], []
        self.service.let_go()
        self._live(None)
        prune(self.world.connection, self.world.settings, self.world.checkpoints, PLAYED_NOW)
        check(self.world, at_rest=True)
        assert rows(self.world, 'SELECT count(*) FROM trajectories WHERE "usedInTraining"') == [(TRAINABLE,)]
        completed = {row[0] for row in rows(self.world, 'SELECT "batchId" FROM babylon_rl.model_lineage')}
        standing = [job for job in self.service.trained() if not job.deleted]
        assert {mark[0] for job in standing for mark in job.trajectories} == completed and len(completed) == 2
        assert Counter((job.trajectories[0][0], job.trajectories[0][1]) for job in standing) == Counter(
            (batch_id, iteration) for batch_id in completed for iteration in (1, 2)
        )
        marks = Counter(mark for job in standing for mark in job.trajectories)
        assert set(marks.values()) == {1}
        made = {(job.trajectories[0][0], job.trajectories[0][1], job.step) for job in self.service.trained()}
        counted = rows(self.world, 'SELECT "batchId", "iteration", "stepAfter" FROM babylon_rl.remote_jobs WHERE "stepAfter" IS NOT NULL')
        assert made == set(counted)

    def _live(self, dies_at: int | str | None, times: Times = TIMES) -> None:
        self.lives.append(live(self.world, dies_at, times)[-1])
        self.service.post_faults, self.service.job_faults = [], []
        for iteration in rows(self.world, """SELECT "batchId", "iteration" FROM babylon_rl.remote_jobs WHERE "state" = 'posting'"""):
            if iteration not in _iterations(self.service.jobs):  # recorded and never sent: let the longest job time pass
                self._pass_time('"batchId" = %s AND "iteration" = %s', *iteration)

    def _pass_time(self, which: str, *named: Any) -> None:
        past = f'UPDATE babylon_rl.remote_jobs SET "postedAt" = "postedAt" - %s WHERE {which}'
        self.world.connection.execute(past, [timedelta(hours=1), *named])
        self.world.connection.commit()


def _iterations(jobs: Iterable[Job]) -> Counter[tuple[str, int]]:
    """How many of the jobs are of each iteration of each batch."""
    return Counter(iteration for job in jobs for iteration in {mark[:2] for mark in job.payload.trajectories})


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_dies_and_fails_no_iteration_is_posted_twice(played_world: World, stand_in: StandIn) -> None:
    world = World(played_world.url, played_world.settings.model_copy(update={"iterations": 2}), played_world.connection)
    lives: list[str] = []
    chosen = hypothesis_settings(repeatable(20), stateful_step_count=8)
    run_state_machine_as_test(lambda: PaidTrainings(world, stand_in, lives), settings=chosen)
    assert len(lives) > 80 and set(BOUNDARIES) <= set(lives)
