"""Runs by hand on a persistent instance, in the Babylon database."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.launch import observe_hours, run_batch, run_hours
from babylon_rl.errors import BatchConflict, SettingsError, UsageError
from babylon_rl.interrupts import handling
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import window_stretches
from babylon_rl_tests.assets.conftest import NOW


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


@pytest.fixture
def in_background() -> Iterator[Any]:
    """This process as a background job of a script, which ignores SIGINT; its handler of SIGTERM."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    with handling({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: end}):
        yield end


@pytest.mark.long
def test_hours_run_by_hand_are_runs_like_any_other(sample_database: Database, settings: Settings, in_background: Any):
    sample_database.prepare_dagster_schema()
    environment = dict(os.environ)
    observe_hours(sample_database, settings, now=lambda: NOW)
    assert signal.getsignal(signal.SIGTERM) is in_background
    windows = ["2025-10-29T13:00", "2025-10-29T14:00", "2025-10-29T16:00"]
    runs = run_hours(sample_database, settings, windows, now=lambda: NOW)
    assert dict(os.environ) == environment
    with open_instance(sample_database, settings) as instance:
        first, second = (instance.get_run_by_id(run) for run in runs)
        assert (first.job_name, first.status) == ("hours", dg.DagsterRunStatus.SUCCESS)
        assert first.tags["dagster/asset_partition_range_start"] == windows[0]
        assert first.tags["dagster/asset_partition_range_end"] == windows[1]
        assert second.tags["dagster/partition"] == windows[2]
        # The start page shows runs by their origin, a job's page by this tag.
        assert {run.remote_job_origin.repository_origin.get_label() for run in instance.get_runs()} == {"__repository__@babylon_rl"}
        assert len(instance.get_runs(dg.RunsFilter(job_name="hours", tags={".dagster/repository": "__repository__@babylon_rl"}))) == 2
        for asset in ("window_groups", "market_outcomes", "scored_groups"):
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == set(windows)


def test_what_cannot_be_run_is_refused_before_anything_runs(sample_database: Database, settings: Settings):
    with pytest.raises(UsageError, match="has not ended"):
        run_hours(sample_database, settings, ["2025-10-31T12:00"], now=lambda: NOW)
    with pytest.raises(UsageError, match="before FIRST_WINDOW"):
        run_hours(sample_database, settings, ["2024-12-31T23:00"], now=lambda: NOW)


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
