"""Which steps of a model a training deletes before it posts, and which it refuses to touch; and a job that ends late."""

from dataclasses import replace
from datetime import timedelta

import pytest

from babylon_rl.errors import CheckpointError, TrainingError, TrainingPaused
from babylon_rl.models.checkpoints import read_remote
from babylon_rl.store.batches import read_batch
from babylon_rl.store.write_ahead import give_up_job, read_jobs
from babylon_rl.training.backends.serverless.runner import Times
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import cancel_batch, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.training.remote_play import PLAYED_NOW, SEQUENCES
from babylon_rl_tests.training.sample import value

pytestmark = pytest.mark.slow

TIMES = Times(timedelta(seconds=0.6), timedelta(hours=1), poll_s=0.02, longest_poll_s=0.05, list_lag_s=0.3, timeout_s=0.5)
HOUR = SEQUENCES // 2


@pytest.fixture
def next_batch(played, remote):
    """Freezes and judges the next hour, a moment later each time."""
    moments = iter(range(99))

    def make():
        frozen = freeze(played, remote, PLAYED_NOW + timedelta(seconds=next(moments)), max_trajectories=HOUR).batch
        prepare_batch(played, frozen.batch_id, remote, PLAYED_NOW)
        return frozen

    return make


@pytest.fixture
def train(played, remote):
    def run(batch, at=lambda boundary: None, times=TIMES):
        return train_batch(played, batch.batch_id, remote, PLAYED_NOW, ServerlessTrainer(remote, times, at))

    return run


@pytest.fixture
def steps(stand_in):
    """The steps that the service lists."""

    def listed():
        (model,) = stand_in.service.models
        return [one.step for one in stand_in.service.checkpoints(model)]

    return listed


def mark_failed(connection, version):
    connection.execute("UPDATE trained_models SET status = 'failed' WHERE version = %s", [version])
    connection.commit()


def states(connection, batch):
    found = [job.state for job in read_jobs(connection, batch.batch_id)]
    connection.commit()
    return found


def test_a_step_of_a_version_is_not_deleted_for_a_job_that_made_none(played, stand_in, next_batch, train, steps):
    trained, failing = next_batch(), next_batch()
    version = train(trained).model.version
    stand_in.service.job_faults = ["zero"]
    with pytest.raises(TrainingError, match="without training a sequence"):
        train(failing)
    mark_failed(played, version)
    with pytest.raises(
        CheckpointError,
        match=rf"that failed, were refused, or are not deployed \({trained.batch_id}\). .*delete their steps at the service",
    ):
        train(next_batch())
    assert steps() == [1]
    (model,) = stand_in.service.models
    stand_in.service.delete_checkpoints(model, [1])
    assert read_remote(train(next_batch()).checkpoint).step == 2 and steps() == [2]


def test_a_version_that_is_not_deployed_is_named_and_continued_once_it_is(played, remote, next_batch, train):
    version, promoting = train(next_batch()).model, remote.model_copy(update={"auto_promote": True})
    batch = next_batch()
    with pytest.raises(CheckpointError, match=rf"or are not deployed \({version.training_batch}\). .*`babylon-rl models deploy`"):
        train_batch(played, batch.batch_id, promoting, PLAYED_NOW, ServerlessTrainer(promoting, TIMES))
    played.execute("UPDATE trained_models SET status = 'deployed', \"deployedAt\" = %s WHERE version = %s", [PLAYED_NOW, version.version])
    played.commit()
    assert train(next_batch()).model.parent_version == version.version


def test_a_step_that_is_gone_is_said_and_the_version_before_can_be_continued(played, stand_in, next_batch, train):
    version = train(next_batch()).model.version
    (model,) = stand_in.service.models
    stand_in.service.delete_checkpoints(model, [1])
    with pytest.raises(CheckpointError, match="continues from step 1, which the service does not list. Restore it, or mark"):
        train(next_batch())
    mark_failed(played, version)
    assert train(next_batch()).model.parent_version is None


@pytest.mark.parametrize("fault", ["zero", "fails"])
def test_a_foreign_step_is_not_taken_for_that_of_a_job_that_made_none(stand_in, next_batch, train, steps, fault):
    stand_in.service.job_faults = [fault]
    with pytest.raises(TrainingError):
        train(next_batch())
    (model,) = stand_in.service.models
    stand_in.service.foreign_step(model)
    with pytest.raises(CheckpointError, match="somebody else trained it. Set"):
        train(next_batch())
    assert steps() == [1]


@pytest.mark.parametrize("fault", ["nan", "steps_but_fails", "zero_but_steps"])
def test_the_step_of_a_job_that_failed_is_known_before_anything_else_is_posted(played, stand_in, next_batch, train, steps, fault):
    stand_in.service.job_faults, stand_in.service.lag_s = [fault], 0.2
    failing, patient = next_batch(), replace(TIMES, list_lag_s=3.0)
    with pytest.raises(TrainingError):
        train(failing, times=patient)
    (job,) = read_jobs(played, failing.batch_id)
    assert (job.state, job.step_after) == ("failed", 1) and steps() == [1]
    assert read_remote(train(next_batch(), times=patient).checkpoint).step == 2 and steps() == [2]
    assert read_jobs(played, failing.batch_id)[0].discarded_at is not None


@pytest.mark.long
def test_a_job_that_ends_late_is_waited_for_and_counts(played, stand_in, next_batch, train, steps):
    stand_in.service.job_faults = ["late"]
    batch = next_batch()
    for _ in range(2):
        with pytest.raises(TrainingPaused, match=r"has not ended within 0.01 minutes\."):
            train(batch)
        assert read_batch(played, batch.batch_id).state == "training" and states(played, batch) == ["running"]
    stand_in.service.let_go()
    assert read_remote(train(batch).checkpoint).step == 1
    assert len(stand_in.service.jobs) == 1 and states(played, batch) == ["trained"]


@pytest.mark.long
def test_nothing_is_posted_beside_a_late_job_of_a_cancelled_batch(played, stand_in, next_batch, train, steps):
    stand_in.service.job_faults = ["late"]
    late = next_batch()
    with pytest.raises(TrainingPaused):
        train(late)
    cancel_batch(played, late.batch_id, "enough", PLAYED_NOW)
    again = next_batch()
    with pytest.raises(TrainingPaused, match=f"of iteration 1 of {late.batch_id} has not ended.*If you know that it never will end"):
        train(again)
    assert len(stand_in.service.jobs) == 1
    stand_in.service.let_go()
    assert read_remote(train(again).checkpoint).step == 2 and steps() == [2]
    assert read_jobs(played, late.batch_id)[0].discarded_at is not None


def test_a_late_job_that_somebody_gave_up_leaves_its_step_to_the_next_training(played, stand_in, next_batch, train, steps):
    late, again = give_up(played, stand_in, next_batch, train), next_batch()
    stand_in.service.let_go()
    assert read_remote(train(again).checkpoint).step == 2 and steps() == [2]
    assert read_jobs(played, late.batch_id)[0].discarded_at is not None


def test_a_job_that_was_given_up_and_ends_under_the_next_one_gives_its_step_to_no_version(played, stand_in, next_batch, train, steps):
    give_up(played, stand_in, next_batch, train)
    stand_in.service.job_s = 0.2
    under = next_batch()
    with pytest.raises(TrainingError, match="moved by more than one step: a job that was given up has ended late"):
        patient = replace(TIMES, longest_job=timedelta(seconds=10), list_lag_s=3.0)
        train(under, lambda boundary: stand_in.service.let_go() if boundary == "id written" else None, patient)
    stand_in.service.job_s = 0.0
    assert steps() == [1, 2]
    assert read_remote(train(next_batch()).checkpoint).step == 3 and steps() == [3]


def test_a_job_given_up_that_ends_after_the_next_version_is_named_and_nothing_is_deleted(played, stand_in, next_batch, train, steps):
    late = give_up(played, stand_in, next_batch, train)
    train(next_batch())
    stand_in.service.let_go()
    with pytest.raises(CheckpointError, match=rf"has ended late \(iteration 1 of {late.batch_id}\).*delete the steps that are not its"):
        train(next_batch())
    assert steps() == [1, 2]
    assert value(played, 'SELECT count(*) FROM babylon_rl.remote_jobs WHERE "discardedAt" IS NOT NULL') == 0
    (model,) = stand_in.service.models
    stand_in.service.delete_checkpoints(model, [2])
    train(next_batch())
    assert steps() == [1, 3]


def give_up(connection, stand_in, next_batch, train):
    """A batch whose job never ended, by somebody's word."""
    stand_in.service.job_faults = ["late"]
    batch = next_batch()
    with pytest.raises(TrainingPaused):
        train(batch)
    job_id = stand_in.service.jobs[0].id
    assert give_up_job(connection, job_id, "its machine is gone", PLAYED_NOW) and not give_up_job(connection, job_id, "again", PLAYED_NOW)
    with pytest.raises(TrainingError, match="does not count: given up: its machine is gone"):
        train(batch)
    assert read_batch(connection, batch.batch_id).state == "failed"
    return batch
