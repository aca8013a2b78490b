"""What a bare `babylon-rl train` does in each MODE, and what pins one run."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from babylon_rl.cli.training import choose_batch, pinned_windows
from babylon_rl.cli.training_modes import Wanted, train_as, train_on_and_on
from babylon_rl.errors import NothingToTrain, UsageError
from babylon_rl.store.batches import read_batches, read_foreign_batches
from babylon_rl.store.registry import read_models
from babylon_rl.training.batches import cancel_batch, freeze_batch, pending_batches
from babylon_rl.windows import newest_complete, utc_now, window_start
from babylon_rl_tests.rows import insert, make_group
from babylon_rl_tests.training.sample import NOW, value

FOREIGN = "batch-1761971999000"


class Enough(BaseException):
    """Stands for Ctrl-C."""


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
    train_as("list", read_sample, settings, Wanted(as_json=True))
    listed = json.loads(capsys.readouterr().out)
    assert sum(row["freezable"] for row in listed["windows"]) == 373 and len(listed["windows"]) == 7 and listed["pending"] == []
    assert listed["notTrainable"]["synthetic"] == 204
    batch = freeze_batch(connection, settings, NOW, max_trajectories=100)
    train_as("list", read_sample, settings, Wanted())
    said = capsys.readouterr().out
    assert f"`babylon-rl train` goes on with {batch.batch_id}, which is pending." in said
    assert "Not trainable: 204 synthetic" in said and f"{373 - batch.trajectories} trajectories in " in said
    assert len(read_batches(connection)) == 1


@pytest.mark.slow
def test_a_backfill_trains_batch_after_batch_until_its_hours_hold_nothing_more(graph, connection, settings, capsys):
    back = settings.model_copy(update={"mode": "backfill", "backfill_hours": 168, "iterations": 1})
    train_as("backfill", graph, back, Wanted(most=200, as_json=True))
    last = json.loads(capsys.readouterr().out)
    versions = ours(connection)
    assert versions == [f"v1.0.{11 + number}" for number in range(len(versions))] and len(versions) > 1
    assert (last["modelVersion"], last["parent"]) == (versions[-1], versions[-2])
    assert last["earlierBatches"] == [batch.batch_id for batch in read_batches(connection)][:0:-1]
    assert value(connection, 'SELECT count(*) FROM babylon_rl.batch_items WHERE "consumed"') > 300
    with pytest.raises(NothingToTrain):
        train_as("backfill", graph, back, Wanted(most=200))


def test_a_backfill_reaches_back_so_many_hours_from_the_newest_that_holds_rows(read_sample, connection, settings):
    back = settings.model_copy(update={"mode": "backfill", "backfill_hours": 9})
    batch = choose_batch(read_sample, back, None, None, None, 0, False)
    assert list(batch.windows) == ["2025-10-30T01:00", "2025-10-29T17:00"]


@pytest.mark.slow
def test_a_continuous_training_waits_for_enough_and_goes_on_when_it_comes(graph, connection, settings, capsys):
    on = settings.model_copy(update={"mode": "continuous", "training_min_trajectories": 5, "iterations": 1})
    waits = []

    def wait() -> None:
        waits.append(ours(connection))
        if len(waits) == 3:
            raise Enough
        if len(waits) == 2:  # nothing came before the first wait's look
            start = window_start(newest_complete(utc_now()))
            rows = [row | {"startTime": start + timedelta(minutes=5), "endTime": start + timedelta(minutes=6), "windowId": None}
                    for row in make_group()]  # fmt: skip
            insert(connection, "trajectories", rows)
            connection.commit()

    with pytest.raises(Enough):
        train_on_and_on(graph, on, Wanted(), wait)
    assert waits == [["v1.0.11"], ["v1.0.11"], ["v1.0.11", "v1.0.12"]]
    assert capsys.readouterr().err.count("Waiting, until Ctrl-C: ") == 2


@pytest.mark.slow
def test_ctrl_c_ends_a_continuous_training_that_waits(sample_database, tmp_path):
    variables = {"DATABASE_URL": sample_database.url, "BABYLON_RL_HOME": str(tmp_path / "home"), "TRAIN_RL_LOCAL": "true",
                 "LOCAL_BASE_MODEL": "dry", "MODE": "continuous", "PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", "from babylon_rl.cli import main; main()", "train"],
        env=variables, cwd=tmp_path, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "Waiting, until Ctrl-C: 373 of 1000 freezable trajectories" in line:
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130 and said.strip() == "Interrupted."


@pytest.mark.parametrize("mode", ["backfill", "continuous"])
def test_what_pins_one_version_does_not_go_with_a_mode_that_makes_many(read_sample, connection, settings, mode):
    pinned = settings.model_copy(update={"mode": mode, "model_version": "v3.0.0"})
    with pytest.raises(UsageError, match=f"MODE={mode} makes one after the other"):
        train_as(mode, read_sample, pinned, Wanted())
    with pytest.raises(UsageError, match="leave --json out"):
        train_on_and_on(read_sample, settings, Wanted(as_json=True))
    assert not read_batches(connection)


def test_a_pinned_hour_is_the_only_one_frozen(read_sample, settings):
    pinned = settings.model_copy(update={"window_id": "2025-10-29T14:00"})
    assert pinned_windows(pinned, None, None) == ("2025-10-29T14:00", "2025-10-29T15:00")
    batch = choose_batch(read_sample, pinned, None, pinned_windows(pinned, None, None), None, 0, False)
    assert list(batch.windows) == ["2025-10-29T14:00"]
    with pytest.raises(UsageError, match="its hours are frozen"):
        choose_batch(read_sample, pinned, None, pinned_windows(pinned, None, None), None, 0, False)


def test_a_pinned_batch_is_taken_before_an_older_one(read_sample, connection, settings):
    older = freeze_batch(connection, settings, NOW, max_trajectories=100)
    newer = freeze_batch(connection, settings, NOW)
    assert choose_batch(read_sample, settings, newer.batch_id, None, None, 0, False).batch_id == newer.batch_id
    assert choose_batch(read_sample, settings, None, None, None, 0, False).batch_id == older.batch_id
    cancel_batch(connection, newer.batch_id, "enough", NOW)
    assert [batch.batch_id for batch in pending_batches(connection)] == [older.batch_id]


def test_a_batch_of_another_producer_is_shown_and_left_alone(read_sample, connection, settings):
    connection.execute("UPDATE training_batches SET status = 'pending' WHERE \"batchId\" = %s", [FOREIGN])
    connection.commit()
    with pytest.raises(UsageError, match="another producer's, which this pipeline leaves alone"):
        choose_batch(read_sample, settings, FOREIGN, None, None, 0, False)
    assert choose_batch(read_sample, settings, None, None, None, 0, False).batch_id != FOREIGN
    assert [(row["batchId"], row["status"]) for row in read_foreign_batches(connection)] == [(FOREIGN, "pending")]
