"""Runs whose process is gone end, and free what they held; those that are slow, queued or somebody else's are left alone."""

import time
from collections.abc import Callable
from dataclasses import replace

import dagster as dg
import pytest

from babylon_rl.assets import resources
from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import (
    BATCH_TAG,
    COMES_BACK,
    ENDED_TAG,
    GOES_ON_AFTER_TAG,
    INTERRUPTED,
    LOST,
    SILENT_S,
    TAKEN_OVER,
    VERSION_TAG,
    failure_reason,
)
from babylon_rl.automation.batch_runs import FAILURE_REASON_TAG
from babylon_rl.automation.instance import report_dead_runs
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.sensors import end_dead_runs, start_training
from babylon_rl.processes import own_name
from babylon_rl.store.dagster_rows import end_heartbeat, lock_heartbeats
from babylon_rl.store.database import Database
from babylon_rl_tests.assets.conftest import DRY, TRAINING, Bench, a_batch, a_run, ask
from babylon_rl_tests.assets.dead_runs import elsewhere, gone, hold

STARTED = dg.DagsterRunStatus.STARTED


def status(bench: Bench, run_id: str) -> dg.DagsterRunStatus:
    return bench.instance.get_run_by_id(run_id).status


def looked(bench: Bench) -> str:
    return ask(bench, end_dead_runs).skip_message


@pytest.mark.parametrize(("job", "partition"), [("train", None), ("hours", "2025-10-29T14:00")])
def test_a_run_whose_process_is_gone_is_reported_failed_at_once(ready: Bench, job: str, partition: str | None):
    key = partition or a_batch(ready)
    run = ready.instance.create_run_for_job(job_definition(job, ready.babylon), tags={"dagster/partition": key}, status=STARTED).run_id
    hold(ready, run, gone())
    said = looked(ready)
    assert said.startswith(f"Run {run} of {key} is ended. Its process is gone: process ")
    assert status(ready, run) == dg.DagsterRunStatus.FAILURE
    assert ready.instance.get_run_by_id(run).tags[ENDED_TAG] == LOST
    assert looked(ready) == "Every run that has begun is alive."


@pytest.mark.slow
def test_a_batch_whose_runs_were_lost_with_their_machine_goes_on_and_is_not_given_up(ready: Bench):
    batch, name = a_batch(ready), gone()
    for attempt in range(1, 6):
        run = a_run(ready, batch, STARTED)
        hold(ready, run, name)
        assert ask(ready, start_training) == dg.SkipReason(f"{batch} has a live run.")
        looked(ready)
        (request,) = ask(ready, start_training).run_requests
        assert (request.run_key, request.tags[GOES_ON_AFTER_TAG]) == (f"{batch}/{attempt + 1}", run)


def test_a_process_elsewhere_is_dead_once_it_is_silent_and_one_of_this_machine_never_while_it_runs(ready: Bench):
    batch = a_batch(ready)
    far, near = a_run(ready, batch, STARTED), a_run(ready, batch, STARTED)
    hold(ready, far, elsewhere(), silent_s=SILENT_S - 30)
    hold(ready, near, own_name(), silent_s=7 * 24 * 3600)  # the machine slept for a week
    assert looked(ready) == "Every run that has begun is alive."
    hold(ready, far, elsewhere(), silent_s=SILENT_S + 1)
    assert f"Run {far} of {batch} is ended. Its process has been silent for 91 s: process " in looked(ready)
    assert (status(ready, far), status(ready, near)) == (dg.DagsterRunStatus.FAILURE, STARTED)


def test_a_run_that_died_before_its_first_heartbeat_ends_too_and_what_has_not_begun_is_left_to_dagster(ready: Bench):
    batch = a_batch(ready)
    begun, handed_over = a_run(ready, batch, STARTED), a_run(ready, batch, dg.DagsterRunStatus.STARTING)
    waiting = a_run(ready, batch, dg.DagsterRunStatus.NOT_STARTED)
    assert looked(ready) == "Every run that has begun is alive."
    ready.execute("""UPDATE babylon_rl.run_heartbeats SET "seenAt" = "seenAt" - interval '91 seconds'""")
    assert looked(ready).startswith(f"Run {begun} of {batch} is ended. It ended before its first heartbeat")
    assert [status(ready, run).value for run in (begun, handed_over, waiting)] == ["FAILURE", "STARTING", "NOT_STARTED"]
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} has a live run.")


def test_a_run_that_never_began_does_not_count_as_a_death_of_its_batch(ready: Bench):
    batch = a_batch(ready)
    for attempt in range(2, 6):
        # As Dagster's monitoring reports it.
        a_run(ready, batch, dg.DagsterRunStatus.FAILURE, **{FAILURE_REASON_TAG: "START_TIMEOUT"})
        assert ask(ready, start_training).run_requests[0].run_key == f"{batch}/{attempt}"


def test_a_run_that_a_person_canceled_ends_as_canceled(ready: Bench):
    run = a_run(ready, a_batch(ready), dg.DagsterRunStatus.CANCELING)
    hold(ready, run, gone())
    looked(ready)
    assert status(ready, run) == dg.DagsterRunStatus.CANCELED


def test_what_ended_in_peace_and_what_belongs_to_others_is_left_alone(ready: Bench):
    @dg.job(name="somebody_elses")
    def other() -> None: ...

    finished = a_run(ready, a_batch(ready), dg.DagsterRunStatus.SUCCESS)
    hold(ready, finished, gone())
    others = ready.instance.create_run_for_job(other, status=STARTED).run_id
    ready.execute("""UPDATE babylon_rl.run_heartbeats SET "seenAt" = "seenAt" - interval '1 hour'""")
    assert looked(ready) == looked(ready) == "Every run that has begun is alive."
    assert (status(ready, finished), status(ready, others)) == (dg.DagsterRunStatus.SUCCESS, STARTED)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["its heartbeat", "Dagster's monitoring", "a person"])
def test_every_run_says_that_it_is_alive_and_a_verdict_from_elsewhere_stops_it(ready: Bench, monkeypatch: pytest.MonkeyPatch, by: str):
    monkeypatch.setattr(resources, "BEAT_EVERY_S", 0.5)
    batch, seen = a_batch(ready), []

    def report_dead(what: str, done: int, total: int) -> None:
        with ready.babylon.database.connect(autocommit=True) as connection:
            while not seen:
                (run,) = ready.instance.get_runs(dg.RunsFilter(statuses=[STARTED]))
                with connection.transaction():
                    seen.extend(found for found in lock_heartbeats(connection, [run.run_id]) if found.holder)
                    if by == "its heartbeat":
                        end_heartbeat(connection, run.run_id)
        if by == "Dagster's monitoring":
            ready.instance.report_run_failed(run, "Detected run worker status UNKNOWN.")
        elif by == "a person":
            ready.instance.report_run_canceling(run)
        for _ in range(600):  # the interrupt comes between two sleeps
            time.sleep(0.1)

    whose = replace(ready.babylon, on_progress=report_dead)
    with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        Bench(ready.instance, whose).run("train", batch, asset_selection=TRAINING)
    assert [found.holder for found in seen] == [own_name()]
    # Its page says that it comes back, and how to prevent that.
    (ended,) = ready.instance.get_runs(dg.RunsFilter(tags={ENDED_TAG: INTERRUPTED}))
    assert COMES_BACK in [entry.user_message for entry in ready.instance.all_logs(ended.run_id)]


def test_the_reason_of_a_failed_run_is_whole_and_on_one_line(bench: Bench):
    @dg.asset
    def odd() -> None:
        raise ValueError("Partition range batch-0 to batch-0 is\n  no range.")

    failed = dg.materialize([odd], instance=bench.instance, raise_on_error=False)
    assert failure_reason(bench.instance, failed.run_id) == "ValueError: Partition range batch-0 to batch-0 is no range."


@pytest.mark.long
def test_the_second_run_of_a_batch_is_refused_while_the_first_is_alive_and_takes_over_when_it_is_not(ready: Bench):
    batch = a_batch(ready)
    first = a_run(ready, batch, STARTED)
    hold(ready, first, own_name())
    with pytest.raises(dg.Failure, match=rf"Another run trains these hours: {batch} is being trained by process \d+ on .* \(run {first}\)"):
        ready.run("train", batch, asset_selection=TRAINING)
    assert ready.instance.get_runs(limit=1)[0].tags[ENDED_TAG] == TAKEN_OVER
    hold(ready, first, gone())
    assert ready.run("train", batch, asset_selection=TRAINING).success
    (run,) = ready.instance.get_runs(dg.RunsFilter(tags={BATCH_TAG: batch}, statuses=[dg.DagsterRunStatus.SUCCESS]))
    assert run.tags[VERSION_TAG].startswith("v1.0.")


def test_a_database_that_is_not_migrated_has_no_runs_to_end(make_bench: Callable[..., Bench], empty_database: Database):
    bench = make_bench(empty_database, **DRY)
    bench.instance.add_dynamic_partitions(batches.name, ["a"])
    a_run(bench, "a", STARTED)
    assert report_dead_runs(bench.instance, empty_database) == []
