"""The sensors and schedules on the recorded game, with the dry trainer."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from babylon_rl.assets.metadata import embedded
from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import given
from babylon_rl.assets.run_tags import ENDED_TAG, WAITS
from babylon_rl.automation.checks_batches import CHECKPOINT_CHECKS
from babylon_rl.automation.code_location import code_location
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.schedules import train_daily
from babylon_rl.automation.sensors import end_dead_runs, finish_evidence, observe_changes, start_training
from babylon_rl.cli.training_batches import choose_batch
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import BatchConflict, JudgeUnavailable, ModelUnavailable, TrainingPaused
from babylon_rl.reporting.plots import line_plot
from babylon_rl.store.batches import Batch, claim_batch, note_waiting, read_batches
from babylon_rl.store.database import Database
from babylon_rl.store.registry import note_tracking
from babylon_rl.store.write_ahead import JobEnd, RemoteJob, begin_job, end_job, finished_steps, name_job, read_jobs
from babylon_rl.training.batches import cancel_batch, fail_batch, pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.preflight import refused_lately
from babylon_rl.training.readiness import readiness
from babylon_rl.windows import utc_now
from babylon_rl_tests.assets.conftest import NOW, Bench
from babylon_rl_tests.assets.dead_runs import elsewhere, gone, hold
from babylon_rl_tests.training.moved_batches import move_batch

HOURS = [f"2025-10-29T{hour:02}:00" for hour in (13, 14, 15, 16, 17)]
DRY = {
    "train_rl_local": True, "local_base_model": "dry", "training_min_trajectories": 20, "training_min_groups": 1,
    "training_min_group_size": 1, "data_quality_threshold": 0.0, "epochs": 10,
}  # fmt: skip
TRAINING = [dg.AssetKey("training_batch"), dg.AssetKey("trained_checkpoint")]


@pytest.fixture
def ready(make_bench: Callable[..., Bench], sample_database: Database) -> Bench:
    """Five hours read, and a trainer that needs nothing."""
    bench = make_bench(sample_database, **DRY)
    with sample_database.connect(autocommit=True) as connection:
        sync_windows(connection, HOURS, bench.babylon.settings, NOW)
        connection.execute('UPDATE training_batches SET "completedAt" = %s', (NOW - timedelta(days=2),))  # another producer's
    return bench


def ask(bench: Bench, sensor: dg.SensorDefinition, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=bench.instance, cursor=cursor, resources={"babylon": bench.babylon})
    return sensor(context)


def test_the_first_look_reports_all_hours_and_the_second_none(bench: Bench):
    first = ask(bench, observe_changes)
    assert {event.partition for event in first.asset_events} >= {"2025-01-15T10:00", *HOURS}
    assert first.cursor.startswith("swept ")
    for event in first.asset_events:
        bench.instance.report_runless_asset_event(event)
    assert ask(bench, observe_changes, first.cursor) == dg.SkipReason("No hour changed.")


def test_the_recent_look_sees_what_the_full_look_sees(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute("""UPDATE trajectories SET "updatedAt" = '2025-10-31 11:00' WHERE "windowId" = '2025-10-29T14:00'""")
    late = ask(bench, observe_changes, "swept")
    assert [(event.asset_key.to_user_string(), event.partition) for event in late.asset_events] == [
        ("raw_trajectories", "2025-10-29T14:00")
    ]


def test_columns_that_the_pipeline_writes_change_no_version(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute(
        """UPDATE trajectories SET "usedInTraining" = TRUE, "trainedInBatch" = 'x', "aiJudgeReward" = 0.5, "judgedAt" = '2025-10-31'"""
    )
    assert ask(bench, observe_changes).asset_events == []
    assert ask(bench, observe_changes, "swept") == dg.SkipReason("No hour changed.")


def test_an_hour_whose_rows_are_gone_is_reported(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute("""DELETE FROM trajectories WHERE "windowId" = '2025-10-29T15:00'""")
    gone = {event.asset_key.to_user_string(): event for event in ask(bench, observe_changes, "swept").asset_events}
    assert gone["raw_trajectories"].partition == "2025-10-29T15:00"


def test_what_changed_is_said_in_words(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        assert event.metadata["change"].value == "seen for the first time"
        bench.instance.report_runless_asset_event(event)
    bench.execute("""DELETE FROM "WorldEvent" WHERE id = (SELECT max(id) FROM "WorldEvent" WHERE "timestamp" >= '2025-10-29 14:00'
        AND "timestamp" < '2025-10-29 15:00')""")
    bench.execute("""UPDATE "Organization" SET name = name || '!' WHERE id = (SELECT max("organizationId") FROM "StockPrice")""")
    changes = {event.partition: event.metadata["change"].value for event in ask(bench, observe_changes, "swept").asset_events}
    assert changes.pop("2025-10-29T14:00") == "events: 1 fewer; start prices: changed"
    assert set(changes.values()) == {"start prices: changed"}
    bench.run("observe")
    logged = bench.instance.fetch_observations(dg.AssetKey("market_data"), limit=1000).records
    assert {record.asset_observation.metadata["change"].value for record in logged[: len(changes)]} >= {"start prices: changed"}
    assert ask(bench, observe_changes, "swept") == dg.SkipReason("No hour changed.")


def test_an_hour_older_than_a_week_waits_for_the_night(bench: Bench):
    for event in ask(bench, observe_changes).asset_events:
        bench.instance.report_runless_asset_event(event)
    bench.execute("""DELETE FROM trajectories WHERE "windowId" = '2025-01-15T11:00'""")
    assert ask(bench, observe_changes, "swept") == dg.SkipReason("No hour changed.")
    bench.run("observe")
    assert bench.observed("raw_trajectories")["2025-01-15T11:00"] == "no rows"


def tick(bench: Bench) -> str:
    """What the daily schedule says, where it asks for nothing."""
    return train_daily(dg.build_schedule_context(bench.instance, resources={"babylon": bench.babylon})).skip_message


def frozen(bench: Bench) -> list[Batch]:
    with bench.babylon.database.connect() as connection:
        return read_batches(connection)


def a_batch(bench: Bench) -> str:
    """What the sensor freezes, as a partition that runs can have."""
    batch = ask(bench, start_training).run_requests[0].partition_key
    bench.instance.add_dynamic_partitions(batches.name, [batch])
    return batch


def a_run(bench: Bench, batch: str, status: dg.DagsterRunStatus, **tags: str) -> str:
    run = bench.instance.create_run_for_job(
        job_definition("train", bench.babylon), tags={"dagster/partition": batch, **tags}, status=status
    )
    return run.run_id


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ({"training_min_trajectories": 100_000, "training_daily_min_trajectories": 100_000}, "Need 99653 more trajectories"),
        ({"training_min_groups": 99}, "Need more scenario groups (5/99 minimum)"),
        ({"data_quality_threshold": 1.0}, "Data quality too low ("),
    ],
)
def test_a_batch_is_frozen_only_when_ready_and_the_reason_is_that_of_ready(
    ready: Bench, make_bench: Callable[..., Bench], lacking: dict[str, float], reason: str
):
    bench = make_bench(ready.babylon.database, **DRY | lacking)
    skipped = ask(bench, start_training)
    assert isinstance(skipped, dg.SkipReason) and skipped.skip_message.startswith(reason)
    assert tick(bench) == skipped.skip_message and frozen(bench) == []
    with ready.babylon.database.connect() as connection:
        assert readiness(connection, bench.babylon.settings, NOW).reason == skipped.skip_message


def test_a_batch_holds_no_more_than_the_setting_allows(ready: Bench, make_bench: Callable[..., Bench]):
    for _ in range(2):
        bench = make_bench(ready.babylon.database, **DRY | {"training_max_trajectories": 100})
        ask(bench, start_training)
        (batch, *_) = frozen(bench)
        assert 80 < batch.trajectories <= 100 and batch.live
        with ready.babylon.database.connect() as connection:
            move_batch(connection, batch.batch_id, "completed", NOW - timedelta(days=2))


def test_what_failed_is_not_trained_again_for_a_while_that_doubles(ready: Bench, make_bench: Callable[..., Bench]):
    moment, hour = NOW, timedelta(hours=1)
    chosen = DRY | {"training_interval_hours": 1.0}
    for failures, pause in enumerate((1, 2, 4, 8, 16, 24, 24), start=1):
        batch = a_batch(make_bench(ready.babylon.database, now=moment, **chosen))
        with ready.babylon.database.connect() as connection:
            fail_batch(connection, batch, "The disk is full.", moment)
        held = make_bench(ready.babylon.database, now=moment + pause * hour - timedelta(minutes=1), **chosen)
        said = ask(held, start_training).skip_message
        assert said == tick(held) and said.startswith(f"{batch} failed") and "The disk is full. Automation tries again at " in said
        assert f"{moment + pause * hour:%Y-%m-%d %H:%M} UTC; `babylon-rl train` does at once" in said
        assert (f"as did the {failures - 1} before it" in said) == (failures > 1)
        assert len(frozen(held)) == failures
        moment += pause * hour


@pytest.mark.slow
def test_a_cancelled_batch_comes_back_after_the_interval_and_by_hand_at_once(ready: Bench, make_bench: Callable[..., Bench]):
    batch = a_batch(ready)
    ready.babylon.database.prepare_dagster_schema()
    with ready.babylon.database.connect() as connection:
        cancel_batch(connection, batch, "not these", NOW)
        assert "Cancelled: not these. Automation tries again at 2025-11-01 12:00 UTC" in ask(ready, start_training).skip_message
        other = ready.babylon.settings.model_copy(update={"wandb_api_key": SecretStr("x")})
        assert refused_lately(connection, other, NOW) is None  # another backend may try
        by_hand = choose_batch(ready.babylon.database, ready.babylon.settings, None, None, None, 0, False)
        cancel_batch(connection, by_hand.batch_id, "enough", NOW)
        assert "as did the 1 before it" in ask(ready, start_training).skip_message
    later = make_bench(ready.babylon.database, now=NOW + timedelta(days=1), **DRY)
    assert len(ask(later, start_training).run_requests) == 1


def test_a_training_that_ended_well_forgets_the_failures_before_it(ready: Bench):
    with ready.babylon.database.connect() as connection:
        for _ in range(3):
            batch = freeze(connection, ready.babylon.settings, NOW, max_trajectories=60).batch
            fail_batch(connection, batch.batch_id, "It diverged.", NOW)
        batch = freeze(connection, ready.babylon.settings, NOW + timedelta(seconds=1), max_trajectories=60).batch
        prepare_batch(connection, batch.batch_id, ready.babylon.settings, NOW)
        train_batch(connection, batch.batch_id, ready.babylon.settings, NOW)
        assert refused_lately(connection, ready.babylon.settings, NOW) is None
        newest = freeze(connection, ready.babylon.settings, NOW + timedelta(seconds=2)).batch
        fail_batch(connection, newest.batch_id, "It diverged.", NOW)
        assert refused_lately(connection, ready.babylon.settings, NOW).startswith(f"{newest.batch_id} failed: It diverged.")


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
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} was given up: 3 runs died without a word.")
    with ready.babylon.database.connect() as connection:
        assert pending_batches(connection) == []


def run_into(bench: Bench, batch: str, error: Callable[[str], None]) -> None:
    """A real run of the batch, which raises ``error`` when its trainer says how far it is."""
    whose = replace(bench.babylon, now=utc_now, on_progress=lambda what, done, total: error(what))
    with pytest.raises((dg.Failure, RuntimeError, KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        Bench(bench.instance, whose).run("train", batch, asset_selection=TRAINING)


@pytest.mark.slow
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


@pytest.mark.slow
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
                end_job(connection, job, JobEnd("trained", now, step_after=1, sequences=4, trainable_tokens=9, loss=0.1))
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


@pytest.mark.slow
def test_the_schedule_trains_what_there_is_once_the_interval_has_passed(ready: Bench, make_bench: Callable[..., Bench], tmp_path: Path):
    little = DRY | {"training_min_trajectories": 1000, "training_daily_min_trajectories": 300, "training_interval_hours": 24.0}
    ready.execute('UPDATE training_batches SET "completedAt" = %s', NOW - timedelta(hours=1))  # another producer's
    soon = make_bench(ready.babylon.database, **little)
    assert "Need 653 more trajectories" in ask(soon, start_training).skip_message
    assert tick(soon) == "The last batch was completed at 2025-10-31 11:00 UTC; the next is due at 2025-11-01 11:00 UTC."
    later = NOW + timedelta(hours=24)
    lacking = make_bench(ready.babylon.database, now=later, **little | {"training_min_groups": 9})
    assert tick(lacking).startswith("Need more scenario groups") and frozen(soon) == []
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        due = Bench(instance, make_bench(ready.babylon.database, now=later, **little).babylon)
        with dg.build_schedule_context(instance, resources={"babylon": due.babylon}, repository_def=repository(due)) as context:
            (request,), (batch,) = train_daily.evaluate_tick(context).run_requests, frozen(due)
        assert (request.partition_key, request.run_key) == (batch.batch_id, f"{batch.batch_id}/1")
        assert due.run("train", request.partition_key, asset_selection=TRAINING).success
        assert tick(due).startswith("The last batch was completed at 2025-11-01 12:")


def repository(bench: Bench) -> dg.RepositoryDefinition:
    """The code location as the daemon loads it."""
    return code_location(given(bench.babylon)).get_repository_def()


def test_the_schedule_leaves_a_batch_that_has_not_ended_to_the_sensor(ready: Bench, make_bench: Callable[..., Bench]):
    assert tick(make_bench(ready.babylon.database, **DRY | {"training_min_groups": 10})).startswith("Need more scenario groups")
    batch = a_batch(ready)
    assert tick(ready) == f"{batch} is pending."


@pytest.mark.slow
def test_a_frozen_batch_is_trained_by_the_job(ready: Bench):
    batch = a_batch(ready)
    result = ready.run("train", batch, asset_selection=TRAINING)
    checkpoint = ready.materializations("trained_checkpoint")[batch].metadata
    assert checkpoint["version"].value.startswith("v1.0.")
    assert HOURS[0] in checkpoint["upstream_windows"].value
    assert "loss_curve" in checkpoint and "reward_curve" in checkpoint
    assert "WANDB_API_KEY is not set" in checkpoint["weights_and_biases"].value
    measured = {"checkpoint_whole", "iterations_complete", "scores_spread", "no_leakage"}  # of a dry run
    checks = result.get_asset_check_evaluations()
    assert {check.check_name: check.passed for check in checks} == {name: name in measured for name in CHECKPOINT_CHECKS}
    assert {check.severity for check in checks if not check.passed} == {dg.AssetCheckSeverity.WARN}
    assert isinstance(ask(ready, start_training), dg.SkipReason)


def test_preflight_is_said_before_the_first_step_and_kept_with_the_checkpoint(ready: Bench):
    batch = a_batch(ready)
    result = ready.run("train", batch, asset_selection=TRAINING)
    logged = [record.event_log_entry.user_message for record in ready.instance.get_records_for_run(result.run_id).records]
    said = [message for message in logged if message.startswith(("Training on ", "  Spread of scores", "iteration 1, step 1"))]
    assert [message.split(" of ")[0] for message in said] == [said[0].split(" of ")[0], "  Spread", "iteration 1, step 1"]
    assert re.match(r"Training on \d+ sequences of \d+ episodes in 5 groups", said[0])
    kept = ready.materializations("trained_checkpoint")[batch].metadata["preflight"].value
    assert kept.splitlines()[0] == f"* {said[0]}" and "* Spread of scores in a group: " in kept


def test_preflight_of_a_training_that_is_refused_is_said_too(ready: Bench):
    batch = a_batch(ready)
    ready.run("train", batch, asset_selection=TRAINING[:1])
    ready.execute("DELETE FROM llm_call_logs")
    ready.execute("""UPDATE trajectories SET "stepsJson" = regexp_replace("stepsJson", '"llmCalls"', '"calls"', 'g')""")
    with pytest.raises(dg.Failure, match="no training sequence"):
        ready.run("train", batch, asset_selection=TRAINING[1:])
    logged = [record.event_log_entry.user_message for run in ready.instance.get_runs(limit=1)
              for record in ready.instance.get_records_for_run(run.run_id).records]  # fmt: skip
    assert sum(message.startswith("Training on 0 sequences") for message in logged) == 1


def test_the_curves_of_a_resumed_training_show_every_iteration(ready: Bench):
    batch = a_batch(ready)

    def stop(what: str) -> None:
        if what == "training, iteration 9":
            raise KeyboardInterrupt

    run_into(ready, batch, stop)
    ready.run("train", batch, asset_selection=TRAINING)
    found = ready.materializations("trained_checkpoint")[batch].metadata
    version = found["version"].value
    losses = [1.0 / (1 + iteration) for iteration in range(1, 11)]
    assert found["loss_curve"] == embedded(line_plot(f"Loss of {version}", "loss", {"loss": losses}, x_label="iteration"))
    assert "entropy_curve" not in found  # a dry run measures none


def test_a_completed_batch_without_a_decision_is_asked_for_thrice(ready: Bench):
    assert ask(ready, finish_evidence) == dg.SkipReason("Every completed batch has been decided on.")
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=TRAINING)
    job = job_definition("train", ready.babylon)

    def add_run(status: dg.DagsterRunStatus, key: str) -> str:
        tags = {"dagster/partition": batch, "dagster/run_key": key}
        return str(ready.instance.create_run_for_job(job, tags=tags, status=status).run_id)

    (request,) = ask(ready, finish_evidence).run_requests
    assert request.run_key == f"{batch}/benchmark/1"
    assert request.asset_selection == [dg.AssetKey(name) for name in ("benchmark_report", "released_model", "leaderboard")]
    lost = add_run(dg.DagsterRunStatus.STARTED, request.run_key)
    assert ask(ready, finish_evidence) == dg.SkipReason(f"{batch} has a live run.")
    hold(ready, lost, gone())
    ask(ready, end_dead_runs)
    for attempt in (2, 3, 4):  # one that was lost with its machine does not count
        (request,) = ask(ready, finish_evidence).run_requests
        assert request.run_key == f"{batch}/benchmark/{attempt}"
        add_run(dg.DagsterRunStatus.FAILURE, request.run_key)
    assert "given up after 3 runs" in ask(ready, finish_evidence).skip_message


def test_evidence_that_waits_for_a_service_is_asked_for_again_and_never_given_up(ready: Bench, make_bench: Callable[..., Bench]):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=TRAINING)

    def asked(after: timedelta) -> Any:
        return ask(make_bench(ready.babylon.database, now=utc_now() + after, **DRY), finish_evidence)

    tags = {"dagster/partition": batch, ENDED_TAG: WAITS}
    runs = []
    for attempt in range(1, 6):
        (request,) = asked(timedelta(hours=1)).run_requests
        assert request.run_key == f"{batch}/benchmark/{attempt}"
        own = tags | {"dagster/run_key": request.run_key}
        job = job_definition("train", ready.babylon)
        runs.append(ready.instance.create_run_for_job(job, tags=own, status=dg.DagsterRunStatus.FAILURE).run_id)
    assert "could not be compared, as its last run says; it is tried again at" in asked(timedelta(minutes=15)).skip_message
    ready.instance.delete_run(runs[0])  # a key that was used is not used again
    assert asked(timedelta(minutes=17)).run_requests[0].run_key == f"{batch}/benchmark/6"


@pytest.mark.slow
def test_a_batch_whose_report_failed_is_finished_by_the_run_that_is_asked_for(ready: Bench):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=TRAINING)
    (request,) = ask(ready, finish_evidence).run_requests

    def away() -> datetime:
        raise ModelUnavailable("The store does not answer.")

    waiting = Bench(ready.instance, replace(ready.babylon, now=away))
    with pytest.raises(dg.Failure):
        waiting.run("train", batch, asset_selection=[dg.AssetKey("benchmark_report"), dg.AssetKey("released_model")])
    assert ready.instance.get_runs(limit=1)[0].tags[ENDED_TAG] == WAITS
    with ready.babylon.database.connect(autocommit=True) as connection:
        note_tracking(connection, batch, batch, "https://wandb.test/run", NOW)
    ready.run("train", batch, asset_selection=request.asset_selection)
    released = ready.materializations("released_model")[batch].metadata
    assert released["decision"].value == "not_compared"
    links = {name: entry.url for name, entry in released.items() if isinstance(entry, dg.UrlMetadataValue)}
    assert links == {"admin_page": f"{ready.babylon.settings.admin_url}/admin", "weights_and_biases": "https://wandb.test/run"}
    assert ask(ready, finish_evidence) == dg.SkipReason("Every completed batch has been decided on.")
