"""A process that dies between any two effects of a paid training trains nothing twice, and loses nothing."""

import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from babylon_rl.errors import BatchConflict
from babylon_rl.models.checkpoints import read_remote, verify
from babylon_rl.store.batches import read_batch
from babylon_rl.store.registry import read_models
from babylon_rl.store.write_ahead import RemoteJob, begin_job, end_job, name_job, read_jobs, usual_duration
from babylon_rl.training.backends.serverless.runner import Times
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import cancel_batch, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.training.remote_play import PLAYED_NOW, TRAINABLE
from babylon_rl_tests.training.sample import value

TIMES = Times(timedelta(seconds=3), timedelta(hours=1), poll_s=0.02, longest_poll_s=0.05, list_lag_s=1.0, timeout_s=0.5)
BOUNDARIES = ["request built", "row written", "answered", "id written", "end seen", "end written", "pointer written"]


class Killed(BaseException):
    """Stands for the death of the process: nothing in the package handles it."""


class Dying(ServerlessTrainer):
    """Dies at the ``nth`` time that it reaches a boundary."""

    def __init__(self, settings, boundary, nth=1):
        super().__init__(settings, TIMES, self._reached)
        self._boundary, self._left = boundary, nth

    def _reached(self, boundary):
        if boundary == self._boundary:
            self._left -= 1
            if self._left == 0:
                raise Killed


@pytest.fixture
def two(remote):
    return remote.model_copy(update={"iterations": 2, "windows_per_iteration": 1})


@pytest.fixture
def batch(played, two):
    frozen = freeze(played, two, PLAYED_NOW).batch
    prepare_batch(played, frozen.batch_id, two, PLAYED_NOW)
    return frozen


def train(connection, batch, settings, trainer=None):
    return train_batch(connection, batch.batch_id, settings, PLAYED_NOW, trainer or ServerlessTrainer(settings, TIMES))


def assert_trained_once(connection, batch, stand_in) -> None:
    """Every trajectory of the batch in one job that stands, every job in one step, every step in the registered line."""
    standing = [job for job in stand_in.service.trained() if not job.deleted]
    marks = [mark for job in standing for mark in job.trajectories]
    assert len(marks) == len(set(marks)) == TRAINABLE and {mark[0] for mark in marks} == {batch.batch_id}
    assert [job.step for job in standing] == [1, 2]
    (model,) = read_models(connection)
    assert read_remote(read_model_directory(model)).step == 2 and verify(read_model_directory(model)).batch_id == batch.batch_id
    assert read_batch(connection, batch.batch_id).state == "completed"
    assert value(connection, 'SELECT count(*) FROM trajectories WHERE "usedInTraining"') == TRAINABLE


def read_model_directory(model):
    from pathlib import Path

    return Path(model.checkpoint)


@pytest.mark.long
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_death_at_any_boundary_is_resumed(played, two, stand_in, batch, boundary, nth):
    stand_in.service.job_s, stand_in.service.lag_s = 0.2, 0.2
    with pytest.raises(Killed):
        train(played, batch, two, Dying(two, boundary, nth))
    played.rollback()
    assert not read_models(played) and value(played, 'SELECT count(*) FROM trajectories WHERE "usedInTraining"') == 0
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    posts = [job.attempt for job in read_jobs(played, batch.batch_id)]
    assert len(stand_in.service.jobs) == 2
    assert posts == ([1, 2, 1] if nth == 1 else [1, 1, 2]) if boundary == "row written" else [1, 1]


@pytest.mark.long
def test_a_post_whose_process_died_is_posted_again_only_after_the_longest_job_time(played, two, stand_in, batch):
    with pytest.raises(Killed):
        train(played, batch, two, Dying(two, "row written"))
    played.rollback()
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    lost, trained, _ = read_jobs(played, batch.batch_id)
    assert lost.state == "lost" and trained.posted_at - lost.posted_at >= TIMES.longest_job


@pytest.mark.long
@pytest.mark.parametrize("faults", [["none", "drop_after"], ["none", "500_after"], ["drop_after"], ["500_after"]])
def test_the_look_after_a_faulty_post_lasts_as_long_as_jobs_take(played, two, stand_in, batch, faults):
    stand_in.service.job_s, stand_in.service.post_faults = 1.5, faults
    train(
        played,
        batch,
        two,
        ServerlessTrainer(two, replace(TIMES, longest_job=timedelta(hours=3), list_lag_s=0.5, first_job=timedelta(seconds=1))),
    )
    assert_trained_once(played, batch, stand_in)
    assert len(stand_in.service.jobs) == 2


@pytest.mark.slow
def test_a_cancelled_batch_leaves_no_step_under_the_next_one(played, two, stand_in, batch):
    stand_in.service.job_s = 0.4
    with pytest.raises(Killed):
        train(played, batch, two, Dying(two, "id written"))
    played.rollback()
    cancel_batch(played, batch.batch_id, "asked to", PLAYED_NOW)
    again = freeze(played, two, PLAYED_NOW + timedelta(seconds=1)).batch
    prepare_batch(played, again.batch_id, two, PLAYED_NOW)
    trained = train(played, again, two)
    jobs = stand_in.service.trained()
    assert [(job.deleted, job.trajectories[0][0]) for job in jobs] == [
        (True, batch.batch_id),
        (False, again.batch_id),
        (False, again.batch_id),
    ]
    (orphan,) = read_jobs(played, batch.batch_id)
    assert orphan.state == "trained" and orphan.discarded_at is not None
    assert read_remote(trained.checkpoint).step == 3


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["id written", "pointer written"])
def test_a_batch_waits_for_one_of_another_line_that_has_the_same_model(played, two, stand_in, batch, boundary, tmp_path):
    other_base = shutil.copytree(two.base_model, tmp_path / "base")
    single = two.model_copy(update={"iterations": 1, "base_model": str(other_base)})
    stand_in.service.job_s = 0.3
    with pytest.raises(Killed):
        train(played, batch, two, Dying(two, boundary))
    played.rollback()
    played.execute('UPDATE babylon_rl.batch_items SET "live" = FALSE')  # as if other hours had been frozen
    played.commit()
    other = freeze(played, single, PLAYED_NOW + timedelta(seconds=1)).batch
    prepare_batch(played, other.batch_id, single, PLAYED_NOW)
    with pytest.raises(BatchConflict, match=f"Finish it with `babylon-rl train --batch {batch.batch_id}`"):
        train(played, other, single)
    assert len(stand_in.service.jobs) == 1 and read_batch(played, other.batch_id).live


def test_one_job_at_a_time_is_a_key_of_the_database(played, two, batch):
    attempt = read_batch(played, batch.batch_id).attempt
    job = RemoteJob(batch.batch_id, 1, 1, "serverless", "http://there", "e/p/m", 0, PLAYED_NOW)
    begin_job(played, job, attempt)
    with pytest.raises(BatchConflict, match="has not ended"):
        begin_job(played, replace(job, iteration=2), attempt)
    with pytest.raises(BatchConflict, match="has taken the batch over|stops"):
        begin_job(played, replace(job, iteration=2), attempt - 1)
    begin_job(played, replace(job, iteration=2, model="e/p/other"), attempt)
    end_job(played, replace(job, state="lost", ended_at=PLAYED_NOW, error="nothing came"))
    begin_job(played, replace(job, attempt=2), attempt)


@pytest.mark.parametrize("end", [{"step_after": 0}, {"step_after": None}, {"sequences": 0}, {"loss": float("nan")}, {"loss": float("inf")}])
def test_the_database_takes_no_job_for_trained_without_a_step_or_against_what_is_told(played, two, batch, end):
    from psycopg.errors import CheckViolation

    job = RemoteJob(batch.batch_id, 1, 1, "serverless", "http://there", "e/p/m", 0, PLAYED_NOW)
    begin_job(played, job, read_batch(played, batch.batch_id).attempt)
    ended = replace(job, state="trained", ended_at=PLAYED_NOW, step_after=1, sequences=5, trainable_tokens=50, loss=0.5)
    with pytest.raises(CheckViolation):
        end_job(played, replace(ended, **end))


def test_the_usual_time_of_a_job_is_that_of_nine_of_ten(played, two, batch):
    assert usual_duration(played, "http://there") is None
    attempt = read_batch(played, batch.batch_id).attempt
    for minutes in range(1, 11):
        job = RemoteJob(batch.batch_id, minutes, 1, "serverless", "http://there", "e/p/m", minutes - 1, PLAYED_NOW)
        begin_job(played, job, attempt)
        name_job(played, job, f"job-{minutes}")
        ended_at = PLAYED_NOW + timedelta(minutes=minutes)
        end_job(played, replace(job, state="trained", ended_at=ended_at, step_after=minutes, sequences=5, trainable_tokens=50, loss=0.5))
    assert usual_duration(played, "http://there") == timedelta(minutes=9) and usual_duration(played, "http://elsewhere") is None


@pytest.mark.slow
def test_what_was_paid_is_with_the_iteration(played, two, stand_in, batch):
    priced = two.model_copy(update={"serverless_usd_per_million_tokens": 2.0})
    train(played, batch, priced)
    (model,) = read_models(played)
    paid = [iteration["trainingUsd"] for iteration in model.metrics["iterations"]]
    assert paid == [job.estimated_usd for job in read_jobs(played, batch.batch_id)] and min(paid) > 0
