"""Runs of a frozen batch: asked for until one ends it, tried again, given up."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.sensors import end_dead_runs, start_training
from babylon_rl.errors import BatchConflict, JudgeUnavailable, TrainingPaused
from babylon_rl.store.batches import claim_batch, note_waiting, read_batches
from babylon_rl.store.write_ahead import RemoteJob, begin_job, end_job, finished_steps, name_job, read_jobs
from babylon_rl.training.batches import pending_batches
from babylon_rl.windows import utc_now
from babylon_rl_tests.assets.conftest import DRY, Bench, a_batch, a_run, ask, run_into
from babylon_rl_tests.assets.dead_runs import elsewhere, hold
from babylon_rl_tests.training.sample import move_batch


def test_a_batch_is_frozen_once_and_asked_for_until_a_run_lives(ready: Bench):
    first = ask(ready, start_training)
    (request,) = first.run_requests
    assert request.run_key == f"{request.partition_key}/1"
    assert first.dynamic_partitions_requests[0].partition_keys == [request.partition_key]
    # The daemon crashed before it made the run: the batch is found again, under the same key.
    again = ask(ready, start_training)
    assert [r.run_key for r in again.run_requests] == [request.run_key]
    with ready.babylon.database.connect() as connection:
        assert len(read_batches(connection)) == 1


def test_a_batch_with_a_live_run_is_left_alone_and_one_whose_runs_die_thrice_given_up(ready: Bench):
    batch = a_batch(ready)
    alive = a_run(ready, batch, dg.DagsterRunStatus.STARTED)
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} has a live run.")
    ready.instance.delete_run(alive)
    a_run(ready, batch, dg.DagsterRunStatus.FAILURE)
    a_run(ready, batch, dg.DagsterRunStatus.CANCELED)  # in the UI: nothing died
    assert ask(ready, start_training).run_requests[0].run_key == f"{batch}/3"
    a_run(ready, batch, dg.DagsterRunStatus.FAILURE)
    assert ask(ready, start_training).run_requests[0].run_key == f"{batch}/4"
    a_run(ready, batch, dg.DagsterRunStatus.FAILURE)
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} was given up: 3 runs died without an error message.")
    with ready.babylon.database.connect() as connection:
        assert pending_batches(connection) == []


@pytest.mark.long
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), JudgeUnavailable("It is down."), TrainingPaused("It is down."), BatchConflict("Another run has it.")]
)
def test_runs_that_end_in_words_never_give_a_batch_up(make_bench: Callable[..., Bench], ready: Bench, error: BaseException):
    def fail(what: str) -> None:
        raise error

    def asked(after: timedelta) -> Any:
        return ask(make_bench(ready.babylon.database, now=utc_now() + after, **DRY), start_training)

    batch = a_batch(ready)
    run_into(ready, batch, fail)
    assert asked(timedelta(seconds=61)).run_requests[0].run_key == f"{batch}/2"  # what was away for a moment delays nothing for long
    for _ in range(3):
        run_into(ready, batch, fail)
    if isinstance(error, KeyboardInterrupt):
        assert asked(timedelta()).run_requests[0].run_key == f"{batch}/5"
    else:
        assert "it is tried again at" in asked(timedelta(minutes=7)).skip_message
        assert asked(timedelta(minutes=8, seconds=1)).run_requests[0].run_key == f"{batch}/5"
    later = make_bench(ready.babylon.database, now=utc_now() + timedelta(minutes=31), **DRY)
    with ready.babylon.database.connect(autocommit=True) as connection:
        claim_batch(connection, batch, utc_now() - timedelta(hours=1))  # what it waited for is taken back by the next run, which dies
    a_run(ready, batch, dg.DagsterRunStatus.FAILURE)
    assert ask(later, start_training).run_requests[0].run_key == f"{batch}/6"


@pytest.mark.long
def test_a_training_that_gets_on_is_not_given_up_however_often_its_runs_die(make_bench: Callable[..., Bench], ready: Bench):
    batch = a_batch(ready)

    def die(after: int) -> Callable[[str], None]:
        def look(what: str) -> None:
            if what.startswith("training") and what != f"training, iteration {after}":
                raise RuntimeError("nobody foresaw this")

        return look

    now = make_bench(ready.babylon.database, now=utc_now(), **DRY)
    for iteration in range(1, 5):
        run_into(ready, batch, die(iteration))
        with ready.babylon.database.connect() as connection:
            assert sorted(finished_steps(connection, batch)) == list(range(1, iteration + 1))
        assert ask(now, start_training).run_requests[0].run_key == f"{batch}/{iteration + 1}"
    for _ in range(3):
        run_into(ready, batch, die(0))
    assert "was given up: 3 runs died" in ask(now, start_training).skip_message


@pytest.mark.parametrize("held_by", ["running", "trained", "uploading"])
def test_what_was_paid_or_only_lacks_its_upload_is_tried_now_and_then_and_not_given_up(
    make_bench: Callable[..., Bench], ready: Bench, held_by: str
):
    batch, now = a_batch(ready), utc_now()
    for _ in range(3):
        a_run(ready, batch, dg.DagsterRunStatus.FAILURE)
    with ready.babylon.database.connect(autocommit=True) as connection:
        attempt = move_batch(connection, batch, "uploading" if held_by == "uploading" else "training", now)
        if held_by != "uploading":
            begin_job(connection, RemoteJob(batch, 1, 1, "serverless", "http://service", "model", 0, now), attempt)
            (job,) = read_jobs(connection, batch)
            name_job(connection, job, "job-1")
            if held_by == "trained":
                ended = replace(job, state="trained", ended_at=now, step_after=1, sequences=4, trainable_tokens=9, loss=0.1)
                end_job(connection, ended)
    soon = make_bench(ready.babylon.database, now=utc_now(), **DRY)
    assert "3 runs died, and the next is tried every 0:30:00" in ask(soon, start_training).skip_message
    later = make_bench(ready.babylon.database, now=utc_now() + timedelta(minutes=31), **DRY)
    assert ask(later, start_training).run_requests[0].run_key == f"{batch}/4"


def test_a_batch_that_only_lacks_its_upload_is_taken_up_again_after_the_machine_was_off(ready: Bench, make_bench: Callable[..., Bench]):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    run = a_run(ready, batch, dg.DagsterRunStatus.STARTED)
    with ready.babylon.database.connect() as connection:
        move_batch(connection, batch, "uploading", utc_now())
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} has a live run.")
    hold(ready, run, elsewhere(), silent_s=3 * 24 * 3600)
    later = make_bench(ready.babylon.database, now=utc_now() + timedelta(days=3), **DRY)
    ask(later, end_dead_runs)
    assert ask(later, start_training).run_requests[0].run_key == f"{batch}/2"


def test_a_batch_that_waits_for_a_service_or_a_storage_is_tried_again_and_not_given_up(ready: Bench, make_bench: Callable[..., Bench]):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    job = job_definition("train", ready.babylon)
    for _ in range(4):
        ready.instance.create_run_for_job(job, tags={"dagster/partition": batch}, status=dg.DagsterRunStatus.FAILURE)
    with ready.babylon.database.connect(autocommit=True) as connection:
        attempt = claim_batch(connection, batch, ready.babylon.now())
        note_waiting(connection, batch, attempt, "It could not be uploaded.")
        assert "It could not be uploaded." in ask(ready, start_training).skip_message
        later = make_bench(ready.babylon.database, now=utc_now() + timedelta(minutes=31), **DRY)
        assert [request.run_key for request in ask(later, start_training).run_requests] == [f"{batch}/5"]
        claim_batch(connection, batch, ready.babylon.now())  # a run that dies leaves no word: it counts
    assert "given up" in ask(ready, start_training).skip_message
