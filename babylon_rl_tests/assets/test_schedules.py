"""The schedules that look after hours, the note of a failed run, and the default status of all automation."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from babylon_rl.alerts import send_alerts
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.schedules import follow_answers, score_settled
from babylon_rl.automation.sensors import note_failed_runs
from babylon_rl.episodes.reading import sync_windows
from babylon_rl_tests.assets.conftest import NOW, Bench
from babylon_rl_tests.serving.test_status import completed

HOURS = [f"2025-10-29T{hour:02}:00" for hour in (13, 14, 15, 16, 17)]


def tick(bench: Bench, schedule: dg.ScheduleDefinition) -> list[dg.RunRequest] | dg.RunRequest | str:
    with dg.build_schedule_context(bench.instance, resources={"babylon": bench.babylon}) as context:
        found = schedule(context)
    return str(found.skip_message) if isinstance(found, dg.SkipReason) else found


def start(bench: Bench, job: str, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
    return bench.instance.create_run_for_job(job_definition(job, bench.babylon), tags=tags, status=status)


@pytest.fixture
def kept(bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    """The bench with an instance on disk, which schedules may look into."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield replace(bench, instance=instance)


@pytest.mark.slow
def test_settled_hours_without_scores_are_scored_every_hour_unless_a_run_scores_or_they_wait(kept: Bench):
    bench = kept
    assert tick(bench, score_settled) == "Every settled hour has scores, or waits for its judge."  # none has been read
    with bench.babylon.database.connect(autocommit=True) as connection:
        sync_windows(connection, HOURS, bench.babylon.settings, NOW)
    (request,) = tick(bench, score_settled)
    assert request.tags == {"dagster/asset_partition_range_start": HOURS[0], "dagster/asset_partition_range_end": HOURS[-1]}
    live = start(bench, "hours", dg.DagsterRunStatus.STARTED)
    assert tick(bench, score_settled) == "A run scores hours now."
    bench.instance.report_run_failed(live)
    bench.execute("INSERT INTO babylon_rl.judge_pending VALUES (%s, 'heuristic', 'It is down.', %s)", HOURS[0], NOW)
    (request,) = tick(bench, score_settled)
    assert request.tags["dagster/asset_partition_range_start"] == HOURS[1]


def test_an_old_question_that_is_answered_makes_all_hours_looked_at(bench: Bench):
    bench.execute('UPDATE "Question" SET "updatedAt" = %s', NOW - timedelta(days=1))
    bench.execute('UPDATE "Market" SET "updatedAt" = %s', NOW - timedelta(days=1))
    assert str(tick(bench, follow_answers)).startswith("No question from before the last 7 days")
    answered = """UPDATE "Question" SET "resolvedOutcome" = TRUE, "updatedAt" = %s, "createdDate" = %s
        WHERE id = (SELECT min(id) FROM "Question")"""
    bench.execute(answered, NOW - timedelta(minutes=50), NOW - timedelta(days=3))
    assert str(tick(bench, follow_answers)).startswith("No question")  # observe_changes sees it
    bench.execute(answered, NOW - timedelta(minutes=50), NOW - timedelta(days=30))
    assert tick(bench, follow_answers) == dg.RunRequest()


@pytest.mark.slow
def test_a_failed_run_is_noted_once_a_day_and_job_unless_something_runs_it_again(bench: Bench):
    def fail(job: str, **tags: str) -> str:
        run = start(bench, job, dg.DagsterRunStatus.STARTED, **tags)
        event = bench.instance.report_run_failed(run, "The disk is full.")
        context = dg.build_run_status_sensor_context(
            "note_failed_runs", event, bench.instance, bench.instance.get_run_by_id(run.run_id), resources={"babylon": bench.babylon}
        )
        return str(note_failed_runs(context.for_run_failure()).skip_message)

    first = fail("hours", **{"dagster/partition": HOURS[0]})
    assert first.startswith("Noted ") and fail("hours", **{"dagster/partition": HOURS[1]}).startswith("Noted ")
    assert fail("hours", **{"dagster/will_retry": "true"}).endswith("is run again.")
    assert fail("score", **{"babylon_rl/ended": "waits"}).endswith("is run again.")
    # Lost, and not retried any more; or the retry of a lost run, which has its tags and failed otherwise.
    assert fail("score", **{"babylon_rl/ended": "lost"}).startswith("Noted ")
    assert fail("train", **{"dagster/partition": "batch-1"}).endswith("or has failed.")
    with bench.babylon.database.connect(autocommit=True) as connection:
        rows = connection.execute("SELECT cause, says, advice FROM babylon_rl.alerts").fetchall()
        assert sorted(cause for cause, *_ in rows) == ["run_failed/hours 2025-10-31", "run_failed/score 2025-10-31"]
        assert "The disk is full." in rows[0][1]
        assert rows[0][2].endswith("Its hours are tried again every hour by themselves; they can be materialized at once.")
        completed(connection, "batch-2", 1, 1)
        assert send_alerts(connection, bench.babylon.settings, NOW).sentence == "Nothing to send."  # no channel is set
    # finish_evidence asks for the evidence of a completed batch three times.
    trained = {"dagster/partition": "batch-2"}
    tries = [fail("train", **trained, **{"dagster/run_key": f"batch-2/benchmark/{number}"}) for number in (1, 2, 3)]
    assert tries[:2] == ["The evidence of batch-2 is run again."] * 2 and tries[2].startswith("Noted ")
    fail("cleanup")
    with bench.babylon.database.connect() as connection:
        rows = connection.execute("SELECT cause, advice FROM babylon_rl.alerts WHERE cause LIKE 'run_failed/%%'").fetchall()
    ends = {cause.split("/")[1].split()[0]: advice.split(". ", 1)[1] for cause, advice in rows}
    assert ends["train"] == "Its batch is trained: then materialize benchmark_report, released_model, leaderboard of the batch."
    assert ends["cleanup"] == "The job runs again next night by itself; it can be launched at once."


@pytest.mark.long
def test_one_setting_says_whether_sensors_and_schedules_run_by_default_but_dead_runs_are_looked_for_always():
    program = (
        "from babylon_rl.definitions import defs; r = defs.get_repository_def(); "
        "s = {i.name: i for i in [*r.sensor_defs, *r.schedule_defs]}; lives = s.pop('end_dead_runs'); "
        "print({i.default_status.value for i in s.values()}, lives.default_status.value, lives.minimum_interval_seconds)"
    )
    environment = dict(os.environ) | {"AUTOMATION_STATUS": "stopped", "AUTOMATION_SECONDS": "600"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True).stdout
    assert said.strip() == "{'STOPPED'} RUNNING 30"  # whether runs live is no automation
