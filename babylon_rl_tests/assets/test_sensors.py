"""The sensors and schedules on the recorded game, with the dry trainer."""

from collections.abc import Callable
from datetime import timedelta

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.automation.checks_batches import CHECKS
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.sensors import finish_evidence, observe_changes, start_training, train_daily
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.store.batches import advance_batch, claim_batch, note_waiting, read_batches
from babylon_rl.store.database import Database
from babylon_rl.training.batches import pending_batches
from babylon_rl.windows import utc_now
from babylon_rl_tests.assets.conftest import NOW, Bench

HOURS = [f"2025-10-29T{hour:02}:00" for hour in (13, 14, 15, 16, 17)]
DRY = {"train_rl_local": True, "local_base_model": "dry", "training_min_trajectories": 20}


@pytest.fixture
def ready(make_bench: Callable[..., Bench], sample_database: Database) -> Bench:
    """Five hours read, and a trainer that needs nothing."""
    bench = make_bench(sample_database, **DRY)
    with sample_database.connect(autocommit=True) as connection:
        sync_windows(connection, HOURS, bench.babylon.settings, NOW)
    return bench


def ask(bench: Bench, sensor: dg.SensorDefinition, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=bench.instance, cursor=cursor, resources={"babylon": bench.babylon})
    return sensor(context)


def test_the_first_look_reports_all_hours_and_the_second_none(bench: Bench):
    first = ask(bench, observe_changes)
    assert {event.partition for event in first.asset_events} >= {"2025-01-15T10:00", *HOURS}
    assert first.cursor == "swept"
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


def test_too_few_trajectories_are_said_in_numbers(ready: Bench, make_bench: Callable[..., Bench]):
    bench = make_bench(ready.babylon.database, **DRY | {"training_min_trajectories": 100_000})
    skipped = ask(bench, start_training)
    assert isinstance(skipped, dg.SkipReason)
    assert "of 100000 freezable trajectories" in skipped.skip_message


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


def test_a_batch_with_a_live_run_is_left_alone_and_one_that_fails_thrice_given_up(ready: Bench):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    job = job_definition("train", ready.babylon)

    def add_run(status: dg.DagsterRunStatus) -> None:
        ready.instance.create_run_for_job(job, tags={"dagster/partition": batch}, status=status)

    add_run(dg.DagsterRunStatus.STARTED)
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} has a live run.")
    ready.instance.delete_run(ready.instance.get_runs()[0].run_id)
    add_run(dg.DagsterRunStatus.FAILURE)
    assert ask(ready, start_training).run_requests[0].run_key == f"{batch}/2"
    add_run(dg.DagsterRunStatus.FAILURE)
    add_run(dg.DagsterRunStatus.FAILURE)
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} was given up after 3 runs.")
    with ready.babylon.database.connect() as connection:
        assert pending_batches(connection) == []


def test_a_batch_that_only_lacks_its_upload_is_taken_up_again_after_the_machine_was_off(ready: Bench, make_bench: Callable[..., Bench]):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.instance.create_run_for_job(
        job_definition("train", ready.babylon), tags={"dagster/partition": batch}, status=dg.DagsterRunStatus.STARTED
    )
    with ready.babylon.database.connect() as connection:
        attempt = claim_batch(connection, batch, utc_now())
        advance_batch(connection, batch, attempt, "uploading", utc_now())
    assert ask(ready, start_training) == dg.SkipReason(f"{batch} has a live run.")
    later = make_bench(ready.babylon.database, now=utc_now() + timedelta(days=3), **DRY)
    assert ask(later, start_training).run_requests[0].run_key == f"{batch}/2"


def test_a_batch_that_waits_for_a_service_or_a_storage_is_tried_again_and_not_given_up(ready: Bench):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    job = job_definition("train", ready.babylon)
    for _ in range(4):
        ready.instance.create_run_for_job(job, tags={"dagster/partition": batch}, status=dg.DagsterRunStatus.FAILURE)
    with ready.babylon.database.connect(autocommit=True) as connection:
        attempt = claim_batch(connection, batch, ready.babylon.now())
        note_waiting(connection, batch, attempt, "It could not be uploaded.")
        assert "It could not be uploaded." in ask(ready, start_training).skip_message
        connection.execute("""UPDATE babylon_rl.batches SET "heartbeatAt" = "heartbeatAt" - interval '31 minutes'""")
        assert [request.run_key for request in ask(ready, start_training).run_requests] == [f"{batch}/5"]
        claim_batch(connection, batch, ready.babylon.now())  # a run that dies leaves no word: it counts
    assert "given up" in ask(ready, start_training).skip_message


def test_the_schedule_says_why_it_waits_and_only_freezes(ready: Bench, make_bench: Callable[..., Bench]):
    def tick(bench: Bench) -> str:
        resources = {"babylon": bench.babylon}
        return train_daily(dg.build_schedule_context(bench.instance, resources=resources)).skip_message

    assert tick(ready).startswith("Need more scenario groups")
    able = make_bench(
        ready.babylon.database, **DRY | {"training_min_groups": 1, "training_min_group_size": 1, "data_quality_threshold": 0.0}
    )
    assert "start_training runs it" in tick(able)
    assert len(ask(able, start_training).run_requests) == 1
    assert "is pending" in tick(able)


def test_a_frozen_batch_is_trained_by_the_job(ready: Bench):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    chosen = [dg.AssetKey("training_batch"), dg.AssetKey("trained_checkpoint")]
    result = ready.run("train", batch, asset_selection=chosen)
    checkpoint = ready.materializations("trained_checkpoint")[batch].metadata
    assert checkpoint["version"].value.startswith("v1.0.")
    assert HOURS[0] in checkpoint["upstream_windows"].value
    assert "loss_curve" in checkpoint and "reward_curve" in checkpoint
    assert "WANDB_API_KEY is not set" in checkpoint["weights_and_biases"].value
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == dict.fromkeys(CHECKS, True)
    assert isinstance(ask(ready, start_training), dg.SkipReason)


def test_a_completed_batch_without_a_decision_is_asked_for_thrice(ready: Bench, make_bench: Callable[..., Bench]):
    assert ask(ready, finish_evidence) == dg.SkipReason("Every completed batch has been decided on.")
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=[dg.AssetKey("training_batch"), dg.AssetKey("trained_checkpoint")])
    job = job_definition("train", ready.babylon)

    def add_run(status: dg.DagsterRunStatus, key: str) -> None:
        ready.instance.create_run_for_job(job, tags={"dagster/partition": batch, "dagster/run_key": key}, status=status)

    (request,) = ask(ready, finish_evidence).run_requests
    assert request.run_key == f"{batch}/benchmark/1"
    assert request.asset_selection == [dg.AssetKey(name) for name in ("benchmark_report", "released_model", "leaderboard")]
    add_run(dg.DagsterRunStatus.STARTED, request.run_key)
    assert ask(ready, finish_evidence) == dg.SkipReason(f"{batch} has a live run.")
    later = make_bench(ready.babylon.database, now=utc_now() + timedelta(hours=5), **DRY)
    (request,) = ask(later, finish_evidence).run_requests
    assert request.run_key == f"{batch}/benchmark/2"
    add_run(dg.DagsterRunStatus.FAILURE, request.run_key)
    add_run(dg.DagsterRunStatus.FAILURE, f"{batch}/benchmark/3")
    assert "given up after 3 runs" in ask(later, finish_evidence).skip_message


def test_a_batch_whose_report_failed_is_finished_by_the_run_that_is_asked_for(ready: Bench):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=[dg.AssetKey("training_batch"), dg.AssetKey("trained_checkpoint")])
    (request,) = ask(ready, finish_evidence).run_requests
    ready.run("train", batch, asset_selection=request.asset_selection)
    assert ready.materializations("released_model")[batch].metadata["decision"].value == "not_compared"
    assert ask(ready, finish_evidence) == dg.SkipReason("Every completed batch has been decided on.")
