"""What was posted is paid: a batch with a running or trained job waits for whatever is in its way, and goes on.

And what has never left is over at once.
"""

import functools
import shutil
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from babylon_rl.errors import BatchConflict, ModelUnavailable, TrainingError, TrainingPaused
from babylon_rl.models.checkpoints import MANIFEST
from babylon_rl.store.batches import read_batch
from babylon_rl.store.registry import read_models
from babylon_rl.store.write_ahead import newest_job, read_jobs
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.full_disk import full_disk
from babylon_rl_tests.training.remote_play import PLAYED_NOW
from babylon_rl_tests.training.serverless_stand_in import standing_in
from babylon_rl_tests.training.test_remote_once import TIMES, Dying, Killed, assert_trained_once, batch, train, two

__all__ = ["batch", "two"]


def die(connection, batch, settings, boundary, nth=1):
    with pytest.raises(Killed):
        train(connection, batch, settings, Dying(settings, boundary, nth))
    connection.rollback()


def states(connection, batch):
    found = [job.state for job in read_jobs(connection, batch.batch_id)]
    connection.commit()
    return found


@pytest.mark.long
def test_past_the_time_limit_nothing_is_posted_and_what_is_trained_is_kept(played, two, stand_in, batch):
    die(played, batch, two, "row written", 2)
    took = """UPDATE babylon_rl.training_steps SET "metrics" = "metrics" || '{"seconds": 7200}' WHERE "finishedAt" IS NOT NULL"""
    played.execute(took)
    played.commit()
    short = ServerlessTrainer(two, replace(TIMES, whole=timedelta(hours=1)))
    for _ in range(2):  # what the first iteration took counts in every run
        with pytest.raises(TrainingPaused, match="TRAINING_TIME_LIMIT_HOURS.*raise the limit and run"):
            train(played, batch, two, short)
        assert read_batch(played, batch.batch_id).state == "training" and states(played, batch) == ["trained", "lost"]
    train(played, batch, two, ServerlessTrainer(two, replace(TIMES, whole=timedelta(hours=3))))
    assert_trained_once(played, batch, stand_in)


@pytest.mark.slow
def test_the_time_in_which_a_batch_lies_idle_does_not_count(played, two, stand_in, batch):
    die(played, batch, two, "pointer written")
    train_batch(played, batch.batch_id, two, PLAYED_NOW + timedelta(days=6), ServerlessTrainer(two, TIMES))
    assert_trained_once(played, batch, stand_in)


@pytest.mark.long
@pytest.mark.parametrize("changed", ["serverless_base_url", "wandb_entity"])
@pytest.mark.parametrize(("boundary", "nth"), [("answered", 1), ("id written", 1), ("end written", 1), ("id written", 2)])
def test_a_batch_goes_on_only_where_its_jobs_are(played, two, stand_in, batch, changed, boundary, nth):
    die(played, batch, two, boundary, nth)
    with standing_in() as elsewhere:
        other = two.model_copy(update={changed: {"serverless_base_url": elsewhere.url, "wandb_entity": "another"}[changed]})
        for _ in range(2):
            with pytest.raises(TrainingPaused, match=r"WANDB_ENTITY.*back to what") as paused:
                train(played, batch, other)
            assert two.serverless_base_url in str(paused.value)
        assert elsewhere.service.jobs == [] and len(stand_in.service.jobs) <= nth
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)


@pytest.mark.long
@pytest.mark.parametrize("lost", ["calls", "logprobs"])
@pytest.mark.parametrize("boundary", ["answered", "id written", "end written"])
def test_a_job_counts_though_what_it_trained_cannot_be_converted_again(played, two, stand_in, batch, boundary, lost):
    die(played, batch, two, boundary, 2)
    lose(played, lost)
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    assert min(job.step_after for job in read_jobs(played, batch.batch_id)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["calls", "logprobs"])
def test_what_cannot_be_converted_any_more_is_not_posted(played, two, stand_in, batch, lost):
    die(played, batch, two, "pointer written")
    lose(played, lost)
    with pytest.raises(TrainingPaused, match="(no training sequence|no trainable token).*What was posted"):
        train(played, batch, two)
    assert len(stand_in.service.jobs) == 1 and states(played, batch) == ["trained"]


@pytest.mark.slow
def test_a_base_that_is_not_at_hand_is_waited_for(played, two, stand_in, tmp_path):
    base = shutil.copytree(two.base_model, tmp_path / "base")
    own = two.model_copy(update={"base_model": str(base)})
    frozen = freeze(played, own, PLAYED_NOW).batch
    prepare_batch(played, frozen.batch_id, own, PLAYED_NOW)
    die(played, frozen, own, "id written", 2)
    away = base.rename(tmp_path / "away")
    with pytest.raises(ModelUnavailable):
        train(played, frozen, own)
    assert read_batch(played, frozen.batch_id).state == "training"
    away.rename(base)
    train(played, frozen, own)
    assert_trained_once(played, frozen, stand_in)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["400", "wrong key"])
def test_a_refusal_keeps_what_is_trained(played, two, stand_in, batch, fault):
    die(played, batch, two, "pointer written")
    stand_in.service.post_faults = [fault] if fault == "400" else []
    key = "wrong" if fault == "wrong key" else "x"
    with pytest.raises(TrainingPaused, match="What was posted is kept"):
        train(played, batch, two.model_copy(update={"wandb_api_key": type(two.wandb_api_key)(key)}))
    assert read_batch(played, batch.batch_id).state == "training"
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_trained(played, two, stand_in, batch):
    with ExitStack() as disk:

        def fills(boundary):
            if boundary == "end written":
                disk.enter_context(full_disk(10))

        with pytest.raises(TrainingPaused, match="could not be written: .* What is finished is kept"):
            train(played, batch, two, ServerlessTrainer(two, TIMES, fills))
    assert read_batch(played, batch.batch_id).state == "training" and len(stand_in.service.jobs) == 1
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)


@pytest.mark.slow
def test_a_parent_that_is_damaged_keeps_what_is_trained(played, two, stand_in, batch):
    train(played, batch, two)
    (model,) = read_models(played)
    played.execute('UPDATE trajectories SET "usedInTraining" = FALSE; DELETE FROM babylon_rl.batch_items')
    played.commit()
    after = freeze(played, two, PLAYED_NOW + timedelta(seconds=1)).batch
    prepare_batch(played, after.batch_id, two, PLAYED_NOW)
    die(played, after, two, "pointer written")
    manifest = Path(model.checkpoint) / MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    with pytest.raises(TrainingPaused, match="cannot be continued from: .* What was posted is kept"):
        train(played, after, two)
    manifest.write_bytes(whole)
    train(played, after, two)
    assert [job.step for job in stand_in.service.trained()] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_post_that_was_taken_over_before_it_left_is_posted_at_once_by_the_other_run(played, two, stand_in, batch):
    def taken_over(boundary):
        if boundary == "row written":
            played.execute('UPDATE babylon_rl.batches SET "attempt" = "attempt" + 1')
            played.commit()

    with pytest.raises(BatchConflict, match="this run posts nothing"):
        train(played, batch, two, ServerlessTrainer(two, TIMES, taken_over))
    refused = newest_job(played, batch.batch_id, 1)
    assert refused.state == "refused" and "it was not sent: " in refused.error and stand_in.service.jobs == []
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    assert states(played, batch) == ["refused", "trained", "trained"]


@pytest.mark.slow
def test_what_goes_wrong_in_art_before_the_request_leaves_is_no_post(played, two, stand_in, batch, monkeypatch):
    import art

    real = art.ServerlessBackend.train

    @functools.wraps(real)
    async def breaks(*arguments, **named):
        raise RuntimeError("no room")

    monkeypatch.setattr(art.ServerlessBackend, "train", breaks)
    with pytest.raises(RuntimeError):
        train(played, batch, two)
    assert states(played, batch) == ["refused"]
    monkeypatch.setattr(art.ServerlessBackend, "train", real)
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    assert states(played, batch) == ["refused", "trained", "trained"]


def two_seconds_later() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # in whole seconds


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", [lambda: "0.7", two_seconds_later], ids=["seconds", "date"])
def test_a_service_that_asks_to_be_left_alone_is(played, two, stand_in, batch, retry_after):
    stand_in.service.post_faults, stand_in.service.retry_after = ["429"], retry_after
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    refused, posted, _ = read_jobs(played, batch.batch_id)
    assert posted.posted_at - refused.ended_at >= timedelta(seconds=0.7)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["drop_after", "reset_after", "500_after", "garbled_after"])
def test_the_step_of_an_unanswered_post_counts_though_its_checkpoint_is_silent(played, two, stand_in, batch, fault):
    stand_in.service.post_faults, stand_in.service.checkpoint_metrics = [fault], False
    trained = train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    job, _ = read_jobs(played, batch.batch_id)
    assert (job.state, job.step_after, job.job_id, job.loss) == ("trained", 1, None, None)
    assert job.sequences == trained.steps[0].metrics["sequences"] > 0  # as posted


@pytest.mark.slow
def test_a_death_between_the_post_and_its_answer_counts_though_the_checkpoint_is_silent(played, two, stand_in, batch):
    stand_in.service.checkpoint_metrics = False
    for _ in range(2):
        die(played, batch, two, "answered")
    train(played, batch, two)
    assert_trained_once(played, batch, stand_in)
    assert len(stand_in.service.jobs) == 2 and [job.loss for job in read_jobs(played, batch.batch_id)] == [None, None]


def test_a_checkpoint_that_tells_a_loss_that_is_no_number_does_not_count(played, two, stand_in, batch):
    stand_in.service.post_faults, stand_in.service.job_faults = ["drop_after"], ["nan"]
    with pytest.raises(TrainingError, match="its loss is not finite"):
        train(played, batch, two)
    assert states(played, batch) == ["failed"]


@pytest.mark.long
@pytest.mark.parametrize("while_built", [False, True])
def test_a_step_that_comes_after_its_post_was_given_up_counts_and_is_not_deleted(played, two, stand_in, batch, while_built):
    stand_in.service.post_faults, stand_in.service.job_faults = ["500_after", *["429"] * 4], ["late"]
    with pytest.raises(TrainingPaused, match="took no job"):
        train(played, batch, two)
    assert states(played, batch) == ["lost", *["refused"] * 4]

    def ends_late(boundary):
        if boundary == "request built":
            stand_in.service.let_go()

    if not while_built:
        stand_in.service.let_go()
    train(played, batch, two, ServerlessTrainer(two, TIMES, ends_late))
    assert_trained_once(played, batch, stand_in)
    assert len(stand_in.service.jobs) == 2


@pytest.mark.slow
def test_a_post_that_was_accepted_though_it_was_answered_with_an_error_deletes_nothing(played, two, stand_in, batch):
    stand_in.service.post_faults, stand_in.service.job_faults = ["500_after"], ["late"]

    def ends_late(boundary):
        if boundary == "id written":
            stand_in.service.let_go()

    train(played, batch, two, ServerlessTrainer(two, TIMES, ends_late))
    assert read_batch(played, batch.batch_id).state == "completed"
    assert [job.deleted for job in stand_in.service.trained()] == [False] * 3


def lose(connection, what):
    """Prune what the batch was converted from."""
    if what == "calls":
        connection.execute("DELETE FROM llm_call_logs")
        connection.execute("""UPDATE trajectories SET "stepsJson" = '[]'""")
    else:
        connection.execute("""UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'tokenId', 'gone')""")
    connection.commit()
