"""Runs by hand on a persistent instance, in the Babylon database."""

import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import copyfile

import dagster as dg
import pytest

from babylon_rl.assets.resources import babylon
from babylon_rl.automation.instance import open_instance, prepare_instance
from babylon_rl.automation.launch import observe_hours, run_batch, run_hours
from babylon_rl.errors import BatchConflict, SettingsError, UsageError
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import window_stretches
from babylon_rl_tests.assets.conftest import NOW
from babylon_rl_tests.store.servers import ROOT, end_other_sessions


def test_stretches_of_windows_are_contiguous_and_not_too_long():
    day = [f"2025-10-29T{hour:02}:00" for hour in range(24)]
    assert list(window_stretches([], 720)) == []
    assert list(window_stretches([day[3], day[1], day[2], day[5], "2025-11-02T00:00"], 720)) == [
        (day[1], day[3]),
        (day[5], day[5]),
        ("2025-11-02T00:00", "2025-11-02T00:00"),
    ]
    assert list(window_stretches(day, 10)) == [(day[0], day[9]), (day[10], day[19]), (day[20], day[23])]
    assert list(window_stretches([day[23], "2025-10-30T00:00"], 720)) == [(day[23], "2025-10-30T00:00")]


@pytest.mark.long
def test_hours_run_by_hand_are_runs_like_any_other(sample_database: Database, settings: Settings):
    sample_database.prepare_dagster_schema()
    environment = dict(os.environ)
    observe_hours(sample_database, settings, now=lambda: NOW)
    windows = ["2025-10-29T13:00", "2025-10-29T14:00", "2025-10-29T16:00"]
    runs = run_hours(sample_database, settings, windows, now=lambda: NOW)
    assert dict(os.environ) == environment
    with open_instance(sample_database, settings) as instance:
        first, second = (instance.get_run_by_id(run) for run in runs)
        assert (first.job_name, first.status) == ("hours", dg.DagsterRunStatus.SUCCESS)
        assert first.tags["dagster/asset_partition_range_start"] == windows[0]
        assert first.tags["dagster/asset_partition_range_end"] == windows[1]
        assert second.tags["dagster/partition"] == windows[2]
        for asset in ("window_groups", "market_outcomes", "scored_groups"):
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == set(windows)


def test_what_cannot_be_run_is_refused_before_anything_runs(sample_database: Database, settings: Settings):
    with pytest.raises(UsageError, match="has not ended"):
        run_hours(sample_database, settings, ["2025-10-31T12:00"], now=lambda: NOW)
    with pytest.raises(UsageError, match="before FIRST_WINDOW"):
        run_hours(sample_database, settings, ["2024-12-31T23:00"], now=lambda: NOW)
    with pytest.raises(UsageError, match="not an hourly asset"):
        run_hours(sample_database, settings, ["2025-10-29T14:00"], ["window_group"], now=lambda: NOW)


@pytest.mark.long
def test_an_assets_error_reaches_the_caller_as_it_was(sample_database: Database, settings: Settings):
    sample_database.prepare_dagster_schema()
    odd = settings.model_copy(update={"judge_model": "ollama/llama3", "judge_private_fields": "colour"})
    with pytest.raises(SettingsError, match="JUDGE_PRIVATE_FIELDS"):
        run_hours(sample_database, odd, ["2025-10-29T14:00"], ["scored_groups"], now=lambda: NOW)
    with pytest.raises(BatchConflict, match="no batch batch-1"):
        run_batch(sample_database, settings, "batch-1", now=lambda: NOW)
    with open_instance(sample_database, settings) as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.FAILURE}


@pytest.mark.slow
def test_a_connection_that_was_lost_between_two_events_costs_nothing(sample_database: Database, settings: Settings):
    sample_database.prepare_dagster_schema()
    with open_instance(sample_database, settings) as instance:
        instance.add_dynamic_partitions("batch", ["one"])
        with sample_database.connect(autocommit=True) as connection:
            end_other_sessions(connection)
        instance.add_dynamic_partitions("batch", ["two"])
        assert set(instance.get_dynamic_partitions("batch")) == {"one", "two"}
    with sample_database.connect(autocommit=True) as connection:
        mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        deadline = time.monotonic() + 20
        while (left := connection.execute(mine).fetchone()) != (0,) and time.monotonic() < deadline:
            time.sleep(0.05)  # the server lets go a moment after the client has
        assert left == (0,)


@pytest.mark.long
def test_plain_dagster_without_the_variables_names_the_line_that_sets_them():
    unset = {"DAGSTER_HOME", "BABYLON_RL_DAGSTER_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-m", "dagster", "job", "list", "-m", "babylon_rl.definitions"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and 'eval "$(babylon-rl env)"' in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_run_in_a_process_of_dagsters_keeps_its_connections(sample_database: Database, settings: Settings):
    @dg.op(required_resource_keys={"babylon"})
    def look(context: dg.OpExecutionContext) -> str:
        return type(context.instance.run_storage._engine.pool).__name__  # type: ignore[attr-defined]

    @dg.job(resource_defs={"babylon": babylon})
    def looking() -> None:
        look()

    sample_database.prepare_dagster_schema()
    variables = prepare_instance(sample_database, settings) | {"DATABASE_URL": sample_database.url}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
            assert looking.execute_in_process(instance=instance).output_for_node("look") == "QueuePool"


@pytest.mark.long
@pytest.mark.parametrize("missing", ["DAGSTER_HOME", "BABYLON_RL_DAGSTER_URL"])
def test_a_run_of_plain_dagster_elsewhere_writes_nothing_and_names_the_line(sample_database: Database, tmp_path: Path, missing: str):
    unset = {"DAGSTER_HOME", "BABYLON_RL_DAGSTER_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"DATABASE_URL": sample_database.url}
    if missing != "DAGSTER_HOME":
        copyfile(ROOT / "dagster.yaml", tmp_path / "dagster.yaml")
        environment["DAGSTER_HOME"] = str(tmp_path)
    tags = '{"dagster/partition": "2025-10-29T14:00"}'
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "babylon_rl.definitions", "-j", "hours", "--tags", tags]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0 and f"{missing} is not set: Dagster was started without" in ended.stderr
    assert 'eval "$(babylon-rl env)"' in ended.stderr
    with sample_database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM babylon_rl.windows").fetchone() == (0,)
