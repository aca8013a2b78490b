"""When the sensor ``start_training`` and the schedule ``train_daily`` freeze a batch, and when they wait."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from babylon_rl.automation.schedules import train_daily
from babylon_rl.automation.sensors import start_training
from babylon_rl.cli.training_batches import TrainArguments, choose_batch
from babylon_rl.store.batches import Batch, read_batches
from babylon_rl.training.batches import cancel_batch, fail_batch, prepare_batch, train_batch
from babylon_rl.training.conversion import refused_lately
from babylon_rl.training.freezing import freeze
from babylon_rl.training.readiness import readiness
from babylon_rl_tests.assets.conftest import DRY, NOW, TRAINING, Bench, a_batch, ask, repository
from babylon_rl_tests.training.sample import move_batch


def tick(bench: Bench) -> str:
    """What the daily schedule says, where it asks for nothing."""
    return train_daily(dg.build_schedule_context(bench.instance, resources={"babylon": bench.babylon})).skip_message


def frozen(bench: Bench) -> list[Batch]:
    with bench.babylon.database.connect() as connection:
        return read_batches(connection)


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


@pytest.mark.slow
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


@pytest.mark.long
def test_a_cancelled_batch_comes_back_after_the_interval_and_by_hand_at_once(ready: Bench, make_bench: Callable[..., Bench]):
    batch = a_batch(ready)
    ready.babylon.database.prepare_dagster_schema()
    with ready.babylon.database.connect() as connection:
        cancel_batch(connection, batch, "not these", NOW)
        assert "Cancelled: not these. Automation tries again at 2025-11-01 12:00 UTC" in ask(ready, start_training).skip_message
        other = ready.babylon.settings.model_copy(update={"wandb_api_key": SecretStr("x")})
        assert refused_lately(connection, other, NOW) is None  # another backend may try
        by_hand = choose_batch(ready.babylon.database, ready.babylon.settings, TrainArguments())
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


@pytest.mark.long
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


def test_the_schedule_leaves_a_batch_that_has_not_ended_to_the_sensor(ready: Bench, make_bench: Callable[..., Bench]):
    assert tick(make_bench(ready.babylon.database, **DRY | {"training_min_groups": 10})).startswith("Need more scenario groups")
    batch = a_batch(ready)
    assert tick(ready) == f"{batch} is pending."
