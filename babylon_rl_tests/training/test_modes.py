"""What a bare `babylon-rl train` does in each MODE, and what pins one run."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from babylon_rl.cli import run, training_batches
from babylon_rl.cli.options import pinned_windows
from babylon_rl.cli.training import train_as, train_continuously
from babylon_rl.cli.training_batches import TrainArguments, choose_batch, read_new_hours
from babylon_rl.episodes.reading import read_windows
from babylon_rl.errors import BatchConflict, NothingToTrain, UsageError
from babylon_rl.settings import Settings
from babylon_rl.store import windows
from babylon_rl.store.batches import read_batches, read_foreign_batches
from babylon_rl.store.freezing import FREEZE_LOCK
from babylon_rl.store.registry import read_models
from babylon_rl.training.batches import cancel_batch, pending_batches
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import HOUR, newest_complete, utc_now, window_of, window_start
from babylon_rl_tests.rows import insert, make_group
from babylon_rl_tests.training.sample import NOW, value

FOREIGN = "batch-1761971999000"


@pytest.fixture
def graph(read_sample):
    """The recorded game with its hours read, and Dagster's schema in it."""
    read_sample.prepare_dagster_schema()
    return read_sample


def ours(connection) -> list[str]:
    found = [model.version for model in read_models(connection) if not model.foreign]
    connection.commit()
    return found[::-1]


def test_a_list_shows_what_could_be_frozen_and_changes_nothing(read_sample, connection, settings, capsys):
    train_as("list", read_sample, settings, TrainArguments(as_json=True))
    listed = json.loads(capsys.readouterr().out)
    assert sum(row["freezable"] for row in listed["windows"]) == 373 and len(listed["windows"]) == 7 and listed["pending"] == []
    assert listed["notTrainable"]["synthetic"] == 204
    batch = freeze(connection, settings, NOW, max_trajectories=100).batch
    train_as("list", read_sample, settings, TrainArguments())
    said = capsys.readouterr().out
    assert f"`babylon-rl train` goes on with {batch.batch_id}, which is pending." in said
    assert "Not trainable: 204 synthetic" in said and f"{373 - batch.trajectories} trajectories in " in said
    assert len(read_batches(connection)) == 1


@pytest.mark.long
def test_a_backfill_trains_batch_after_batch_until_its_hours_hold_nothing_more(graph, connection, settings, capsys):
    back = settings.model_copy(update={"mode": "backfill", "backfill_hours": 168, "iterations": 1, "training_max_trajectories": 200})
    train_as("backfill", graph, back, TrainArguments(as_json=True))
    last = json.loads(capsys.readouterr().out)
    versions = ours(connection)
    assert versions == [f"v1.0.{11 + number}" for number in range(len(versions))] and len(versions) > 1
    assert (last["modelVersion"], last["parent"]) == (versions[-1], versions[-2])
    assert last["earlierBatches"] == [batch.batch_id for batch in read_batches(connection)][:0:-1]
    assert value(connection, 'SELECT count(*) FROM babylon_rl.batch_items WHERE "consumed"') > 300
    with pytest.raises(NothingToTrain):
        train_as("backfill", graph, back, TrainArguments())


def a_flat_hour(connection, hours_ago: int) -> str:
    """An hour whose agents all do the same, so that their scores do not differ."""
    window = window_of(window_start(newest_complete(utc_now())) - hours_ago * HOUR)
    start = window_start(window) + timedelta(minutes=5)
    when = {"startTime": start, "endTime": start + timedelta(minutes=1), "windowId": window, "finalPnL": 5.0}
    names = [f"{hours_ago}-{number}" for number in range(5)]
    rows = [row | when | {"trajectoryId": name, "id": name} for name, row in zip(names, make_group(), strict=True)]
    insert(connection, "trajectories", rows)
    connection.commit()
    return window


def a_batch_of_each_hour(settings: Settings, **chosen: object) -> Settings:
    return settings.model_copy(update={"iterations": 1, "windows_per_iteration": 1, "training_min_trajectories": 1, **chosen})


@pytest.mark.long
def test_a_backfill_says_what_teaches_nothing_and_goes_on_with_older_hours(graph, connection, settings, capsys):
    connection.execute("DELETE FROM trajectories")
    for hours_ago in (0, 3):
        a_flat_hour(connection, hours_ago)
    start = window_start(a_flat_hour(connection, 1))
    within = [start, start + HOUR]
    connection.execute('UPDATE trajectories SET "finalPnL" = right("agentId", 1)::int * 9 WHERE "startTime" BETWEEN %s AND %s', within)
    connection.commit()
    back = a_batch_of_each_hour(settings, mode="backfill", backfill_hours=12)
    train_as("backfill", graph, back, TrainArguments(as_json=True))
    printed = capsys.readouterr()
    assert json.loads(printed.out)["modelVersion"] == ours(connection)[-1] and len(ours(connection)) == 1
    assert printed.err.count("Going on with older hours.") == 2
    assert sorted(batch.state for batch in read_batches(connection)) == ["completed", "failed", "failed"]


@pytest.mark.long
def test_a_backfill_of_which_a_service_takes_nothing_tries_each_hour_once(graph, connection, remote, stand_in, capsys):
    back = a_batch_of_each_hour(remote, mode="backfill", backfill_hours=168)
    with pytest.raises(NothingToTrain):
        train_as("backfill", graph, back, TrainArguments())
    failed = read_batches(connection)
    assert capsys.readouterr().err.count("has no trainable token") == len(failed) == 7
    assert len({batch.batch_id for batch in failed}) == 7 and stand_in.service.requests == []


def test_a_backfill_reaches_back_so_many_hours_from_the_newest_that_holds_rows(read_sample, connection, settings):
    back = settings.model_copy(update={"mode": "backfill", "backfill_hours": 9})
    batch = choose_batch(read_sample, back, TrainArguments())
    assert list(batch.windows) == ["2025-10-30T01:00", "2025-10-29T17:00"]


@pytest.mark.long
def test_a_continuous_training_is_the_daemon_with_the_automation_until_ctrl_c(sample_database, tmp_path):
    variables = {"DATABASE_URL": sample_database.url, "BABYLON_RL_HOME": str(tmp_path / "home"), "TRAIN_RL_LOCAL": "true",
                 "LOCAL_BASE_MODEL": "dry", "MODE": "continuous", "PATH": os.environ["PATH"], "HOME": str(tmp_path),
                 "AUTOMATION_STATUS": "stopped"}  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", "from babylon_rl.cli import main; main()", "train", "--max-trajectories", "50"],
        env=variables, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = [next(line for line in process.stdout if marker in line) for marker in ("The daemon runs", "start_training")]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130 and len(said) == 2


@pytest.mark.parametrize("option", [["--json"], ["--force"], ["--seed", "3"], ["--from", "2025-10-29T14:00", "--to", "2025-10-29T15:00"]])
def test_what_is_for_one_batch_does_not_go_with_a_mode_that_never_ends(option, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    assert run(["train", "--mode", "continuous", *option]) == 2
    assert "leave " in capsys.readouterr().err and not (tmp_path / "home").exists()


def test_what_pins_one_version_does_not_go_with_a_mode_that_makes_many(read_sample, connection, settings):
    pinned = settings.model_copy(update={"model_version": "v3.0.0"})
    with pytest.raises(UsageError, match="MODE=backfill makes one after the other"):
        train_as("backfill", read_sample, pinned, TrainArguments())
    with pytest.raises(UsageError, match="MODE=continuous makes one after the other"):
        train_continuously(pinned, TrainArguments())
    assert not read_batches(connection)


def test_a_pinned_hour_is_the_only_one_frozen(read_sample, settings):
    pinned = settings.model_copy(update={"window_id": "2025-10-29T14:00"})
    assert pinned_windows(pinned, None, None) == ("2025-10-29T14:00", "2025-10-29T15:00")
    batch = choose_batch(read_sample, pinned, TrainArguments(windows=pinned_windows(pinned, None, None)))
    assert list(batch.windows) == ["2025-10-29T14:00"]
    with pytest.raises(UsageError, match="its hours are frozen"):
        choose_batch(read_sample, pinned, TrainArguments(windows=pinned_windows(pinned, None, None)))


def test_the_mode_may_be_an_option(read_sample, monkeypatch, capsys, tmp_path):
    chosen = {"DATABASE_URL": read_sample.url, "BABYLON_RL_HOME": str(tmp_path), "TRAIN_RL_LOCAL": "true", "LOCAL_BASE_MODEL": "dry"}
    for variable, given in chosen.items():
        monkeypatch.setenv(variable, given)
    monkeypatch.setenv("MODE", "single")
    assert run(["train", "--mode", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["windows"]
    assert run(["train", "--mode", "often"]) == 2
    assert "MODE is 'often': it should be 'single', 'list', 'continuous' or 'backfill'" in capsys.readouterr().err


def test_a_pinned_batch_is_taken_before_an_older_one(read_sample, connection, settings):
    older = freeze(connection, settings, NOW, max_trajectories=100).batch
    newer = freeze(connection, settings, NOW).batch
    assert choose_batch(read_sample, settings, TrainArguments(newer.batch_id)).batch_id == newer.batch_id
    assert choose_batch(read_sample, settings, TrainArguments()).batch_id == older.batch_id
    cancel_batch(connection, newer.batch_id, "enough", NOW)
    assert [batch.batch_id for batch in pending_batches(connection)] == [older.batch_id]


@pytest.mark.parametrize("by_name", [False, True])
def test_options_that_a_frozen_batch_would_not_take_are_refused(read_sample, connection, settings, by_name):
    frozen = freeze(connection, settings.model_copy(update={"learning_rate": 1e-4}), NOW, seed=7).batch

    def choose(**asked: object) -> str:
        name = frozen.batch_id if by_name else None
        return choose_batch(read_sample, settings, TrainArguments(name, options=asked)).batch_id

    for asked, was in [
        ({"iterations": 4}, "--iterations 3"), ({"learning_rate": 1e-5}, "--learning-rate 0.0001"), ({"epochs": 2}, "--epochs 3"),
        ({"windows_per_iteration": 2}, "--windows-per-iteration 20"), ({"min_agents_per_window": 6}, "--min-agents 5"),
        ({"seed": 0}, "--seed 7"), ({"seed": 7, "epochs": 2, "iterations": 4}, "--iterations 3, --epochs 3"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=f"{frozen.batch_id} has not ended, and was frozen with {was}") as refused:
            choose(**asked)
        assert f"babylon-rl batches cancel {frozen.batch_id}" in str(refused.value)
    same = {"iterations": 3, "learning_rate": 1e-4, "epochs": 3, "windows_per_iteration": 20, "min_agents_per_window": 5, "seed": 7}
    assert choose(**same, lookback_hours=48) == choose() == frozen.batch_id  # the same command again goes on


def test_a_batch_holds_no_more_than_the_setting_allows_unless_the_option_says_otherwise(read_sample, connection, settings):
    few = settings.model_copy(update={"training_max_trajectories": 100})
    read_sample.prepare_dagster_schema()
    for most, expected in ((None, 100), (60, 60)):
        batch = choose_batch(read_sample, few, TrainArguments(most=most))
        assert expected - 20 < batch.trajectories <= expected
        cancel_batch(connection, batch.batch_id, "enough", NOW)


def test_a_batch_of_another_producer_is_shown_and_left_alone(read_sample, connection, settings):
    connection.execute("UPDATE training_batches SET status = 'pending' WHERE \"batchId\" = %s", [FOREIGN])
    connection.commit()
    with pytest.raises(UsageError, match="another producer's, which this pipeline leaves alone"):
        choose_batch(read_sample, settings, TrainArguments(FOREIGN))
    assert choose_batch(read_sample, settings, TrainArguments()).batch_id != FOREIGN
    assert [(row["batchId"], row["status"]) for row in read_foreign_batches(connection)] == [(FOREIGN, "pending")]


WAITING = """
    SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.mark.slow
def test_new_hours_are_looked_for_in_a_few_at_a_time(read_sample, connection, settings, monkeypatch):
    held = []

    def read(connection, some, settings):
        held.append(len(some))
        return read_windows(connection, some, settings)

    monkeypatch.setattr(windows, "HOURS_READ_AT_ONCE", 2)
    monkeypatch.setattr(training_batches, "read_windows", read)
    hours = read_new_hours(read_sample, connection, settings, NOW, ("2025-01-01T00:00", "2025-11-01T00:00"))
    assert len(hours) == sum(held) > 2 and max(held) == 2


def test_the_loser_of_two_trainings_at_once_is_told_which_batch_has_the_hours(graph, connection, settings):
    def freeze_one() -> str:
        try:
            return choose_batch(graph, settings, TrainArguments()).batch_id
        except BatchConflict as told:
            return str(told)

    read_new_hours(graph, connection, settings, utc_now(), None)
    connection.commit()
    with ThreadPoolExecutor(2) as both:
        connection.take_lock(FREEZE_LOCK)
        results = [both.submit(freeze_one) for _ in range(2)]
        while connection.execute(WAITING).fetchone() != (2,):
            time.sleep(0.01)
        connection.commit()
        said = [result.result() for result in results]
    (batch,) = pending_batches(connection)
    assert batch.batch_id in said
    (told,) = [words for words in said if words != batch.batch_id]
    assert told.startswith(f"Another run trains these hours: {batch.batch_id} was frozen from them meanwhile.")
