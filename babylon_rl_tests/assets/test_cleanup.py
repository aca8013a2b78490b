"""What cleanup removes after RETENTION_DAYS, what stays whatever its age, and what it says of a disk that refuses."""

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from babylon_rl.assets.resources import Babylon, given
from babylon_rl.automation.cleanup import CleanedPart, clean_up, cleanup_job
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.launch import run_batch
from babylon_rl.cli import run
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.live_usage import write_calls
from babylon_rl.store.scores import Quarantined, quarantine, read_quarantined
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import utc_now
from babylon_rl_tests.store.pipeline import dry
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.unremovable import unremovable

LATER = utc_now() + timedelta(days=200)
EVENTS = "SELECT dagster_event_type, count(*)::int FROM babylon_dagster.event_logs WHERE run_id = %s GROUP BY 1"


def cleaned(database: Database, settings: Settings, now: datetime = LATER, **given: bool) -> dict[str, CleanedPart]:
    with database.connect(autocommit=True) as connection:
        return {part.name: part for part in clean_up(connection, settings, now, **given)}


def old_file(path: Path, days: int = 200, content: bytes = b"cached") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    then = utc_now().timestamp() - days * 86_400
    os.utime(path, (then, then))
    return path


@pytest.mark.slow
def test_unused_caches_go_and_downloads_and_sockets_stay(database: Database, settings: Settings) -> None:
    home = settings.home
    gone = [old_file(home / "cache" / "matplotlib" / "fonts.json"), old_file(home / "tmp" / "left" / "part")]
    kept = [
        old_file(home / "cache" / "matplotlib" / "new.json", days=80), old_file(home / "cache" / "wheels" / "base.whl"),
        old_file(home / "cache" / "huggingface" / "hub" / "x"), old_file(home / "models" / "base" / "weights"),
    ]  # fmt: skip
    waiting = old_file(home / "gateway" / "spool" / "1-1-1.calls")
    gone.append(old_file(home / "gateway" / "rejected.calls.json"))
    os.mkfifo(home / "tmp" / "left" / "pipe")
    told = cleaned(database, settings, utc_now(), dry_run=True)
    assert all(path.exists() for path in gone)
    done = cleaned(database, settings, utc_now())
    assert told == done
    assert (done["caches"].count, done["caches"].bytes, done["rejected calls"].count) == (2, 12, 1)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in [*kept, waiting, home / "tmp" / "left" / "pipe"])


def test_transcripts_and_gateway_calls_go_by_age(database: Database, settings: Settings) -> None:
    with database.connect() as connection:
        for hour, age in (("2025-10-29T14:00", 200), ("2025-10-29T15:00", 1)):
            at = utc_now() - timedelta(days=age)
            quarantine(connection, Quarantined(hour, "m", "1", "no answer", [{"answer": "?"}], at))
            call = {"callId": hour, "at": at.isoformat(), "arm": "base", "status": 200, "latencyMs": 1.0, "keyName": None}
            write_calls(connection, [call], [])
        connection.commit()
    told = cleaned(database, settings, utc_now(), dry_run=True)
    done = cleaned(database, settings, utc_now())
    assert told == done
    assert (done["transcripts"].count, done["gateway calls"].count) == (1, 1)
    with database.connect() as connection:
        assert [len(entry.transcript) for entry in read_quarantined(connection).values()] == [0, 1]
        assert connection.execute('SELECT "callId" FROM babylon_rl.gateway_calls').fetchall() == [("2025-10-29T15:00",)]
    assert {part.count for part in cleaned(database, settings, utc_now()).values()} == {0}


@pytest.fixture
def trained(copy_of: Callable[[str], Database], settings: Settings) -> tuple[Database, Settings, list[str]]:
    """Two versions trained by runs of Dagster, the second from the first, which is deployed; with the ids of both runs."""
    from babylon_rl_tests.training import conftest  # noqa: F401 - registers the template

    database, chosen = copy_of("read_sample"), dry(settings)
    database.prepare_dagster_schema()
    batches = []
    for most in (60, None):
        with database.connect() as connection:
            batch = freeze(connection, chosen, NOW, max_trajectories=most).batch
            connection.commit()
        run_batch(database, chosen, batch.batch_id, ("training_batch", "trained_checkpoint"), now=lambda: NOW)
        batches.append(batch.batch_id)
    with database.connect() as connection:
        connection.execute("UPDATE trained_models SET status = 'deployed' WHERE \"trainingBatch\" = %s", [batches[0]])
    with open_instance(database, chosen) as instance:
        runs = [instance.get_run_records(dg.RunsFilter(tags={"dagster/partition": batch}))[0].dagster_run.run_id for batch in batches]
    return database, chosen, runs


@pytest.mark.long
def test_logs_of_old_runs_go_and_records_stay_and_those_of_the_deployed_version_stay_whole(
    trained: tuple[Database, Settings, list[str]],
) -> None:
    database, settings, (deployed, other) = trained
    with psycopg.connect(database.direct_url) as connection:
        before = {run: dict(connection.execute(EVENTS, [run]).fetchall()) for run in (deployed, other)}
    outputs = [old_file(settings.home / "dagster" / "storage" / run / "compute_logs" / "x.out") for run in (deployed, other)]
    told = cleaned(database, settings, dry_run=True)
    done = cleaned(database, settings)
    assert told == done
    with psycopg.connect(database.direct_url) as connection:
        after = {run: dict(connection.execute(EVENTS, [run]).fetchall()) for run in (deployed, other)}
    assert after[deployed] == before[deployed]
    passing = {name: count for name, count in before[other].items() if name not in after[other]}
    assert sum(passing.values()) == done["run logs"].count > 10
    assert {None, "STEP_START"} <= passing.keys()
    kept = {name: before[other][name] for name in after[other]}
    assert after[other] == kept
    assert {"ASSET_MATERIALIZATION", "PIPELINE_SUCCESS", "STEP_SUCCESS"} <= kept.keys()
    assert [path.exists() for path in outputs] == [True, False]
    with open_instance(database, settings) as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey("trained_checkpoint")).run_id == other
    # The parent of a version in use is an ancestor.
    with database.connect() as connection:
        connection.execute("UPDATE trained_models SET status = 'ready'")
        row = connection.execute("SELECT max(version) FROM trained_models m JOIN babylon_rl.model_lineage USING (version)").fetchone()
    assert cleaned(database, settings.model_copy(update={"rl_model_version": row[0]}), dry_run=True)["run logs"].count == 0
    assert cleaned(database, settings, dry_run=True)["run logs"].count > 10


@pytest.mark.slow
def test_a_disk_that_refuses_is_named_and_everything_else_goes(database: Database, settings: Settings) -> None:
    stuck = old_file(settings.home / "cache" / "matplotlib" / "fonts.json")
    other = old_file(settings.home / "tmp" / "part")
    database.prepare_dagster_schema()
    with unremovable(stuck.parent), open_instance(database, settings) as instance:
        resources = {"babylon": given(Babylon(settings, database))}
        run = cleanup_job.execute_in_process(instance=instance, resources=resources, raise_on_error=False)
    assert (stuck.exists(), other.exists()) == (True, False)
    (failed,) = [event for event in run.all_events if event.is_step_failure]
    assert f"{stuck} cannot be removed: " in str(failed.step_failure_data.user_failure_data or failed.step_failure_data.error)
    assert [len(part.refused) for part in cleaned(database, settings, utc_now()).values()] == [0] * 7
    assert not stuck.exists()


def test_the_command_ends_with_3_and_names_what_the_disk_refuses(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    stuck = old_file(tmp_path / "cache" / "triton" / "kernel")
    with unremovable(stuck.parent):
        assert run(["cleanup", "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["refused"] == []
        assert run(["cleanup", "--json"]) == 3
        said = capsys.readouterr()
        (refused,) = json.loads(said.out)["refused"]
        assert refused.startswith(f"{stuck} cannot be removed: ") and refused in said.err
    assert run(["cleanup"]) == 0
    assert not stuck.exists()
