"""A language model's scores through the asset graph, in batches, and by command."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from psycopg.pq import TransactionStatus

from babylon_rl.assets.partitions import AS_LOADED
from babylon_rl.assets.resources import ENDED_TAG, WAITS
from babylon_rl.automation.batch_runs import JUDGE_ASKED_EVERY
from babylon_rl.automation.sensors import start_training
from babylon_rl.cli import run
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.errors import BatchConflict, JudgeRefused, JudgeUnavailable
from babylon_rl.judge.group_judge import score_with_model
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, read_batch
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.training.batches import QUARANTINED_REASON, prepare_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.lifecycle import MAX_DEAD_RUNS
from babylon_rl.windows import next_window, utc_now
from babylon_rl_tests.assets.conftest import Bench, make_bench
from babylon_rl_tests.judge.model_judge import MODEL, NOW, asking, filled
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.scored import score_windows

pytestmark = pytest.mark.slow

__all__ = ["make_bench"]

DRY = {
    "train_rl_local": True, "local_base_model": "dry", "iterations": 1, "training_min_trajectories": 5, "training_min_groups": 1,
    "training_min_group_size": 1, "data_quality_threshold": 0.0,
}  # fmt: skip


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging() as running:
        yield running


def metadata_of(entry: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: value.value for name, value in entry.metadata.items()}


def said_by(failed: dg.ExecuteInProcessResult) -> str:
    """Why the first step of a run that failed did."""
    reasons = (event.step_failure_data.error for event in failed.all_events if event.is_step_failure)
    return next((str(reason.cause or reason) for reason in reasons if reason is not None), "nothing failed")


def read_and_frozen(connection: Connection, windows: list[str], settings: Settings) -> Batch:
    sync_windows(connection, windows, settings, NOW)
    batch = freeze(connection, settings, NOW).batch
    assert batch is not None
    connection.commit()
    return batch


@pytest.mark.long
def test_an_hours_page_says_what_it_cost_and_why_it_has_no_scores(
    make_bench: Callable[..., Bench], database: Database, settings: Settings, judge: Judge
) -> None:
    first, second, third = filled(database, 3)
    chosen = asking(settings, judge.url, judge_model="openai/gpt-4o-mini", judge_timeout_seconds=2.0)
    names = ("judge_model", "judge_base_url", "judge_timeout_seconds", "judge_disagreement")
    bench = make_bench(database, NOW, **{name: getattr(chosen, name) for name in names})
    bench.run("score", first)
    judge.reset(faults={"missing-id": 1.0})
    bench.run("score", second)
    judge.reset(faults={"unavailable": 1.0})
    bench.run("score", first, third)
    found = {window: metadata_of(entry) for window, entry in bench.materializations("scored_groups").items()}
    judged = found[first]
    assert (judged["judge"], judged["orders"], judged["requests"], judged["asked_now"], judged["cache_hits"]) == (
        "openai/gpt-4o-mini", 2, 2, 0, 2,
    )  # fmt: skip
    assert (judged["steps"], judged["shortened_steps"], judged["shortened_share"], judged["shortened_decisions"]) == (25, 0, 0.0, 0)
    assert judged["usd"] > 0 and judged["prompt_tokens"] > 0 and judged["kendall_tau"] == 1.0 and judged["disagreement"] == 0.0
    assert found[second]["judged"] == "no: quarantined" and "is missing" in found[second]["reason"]
    assert found[third]["judged"].startswith("pending") and "gpt-4o-mini" in found[third]["reason"]


@pytest.mark.long
def test_a_batch_waits_for_its_judge_and_goes_on_from_what_was_judged(database: Database, settings: Settings, judge: Judge) -> None:
    windows = filled(database, 3)
    chosen = asking(settings.model_copy(update=DRY), judge.url, judge_timeout_seconds=2.0)
    with database.connect() as connection:
        batch = read_and_frozen(connection, windows, chosen)
        score_windows(connection, windows[:1], chosen, NOW)
        judge.reset(faults={"unavailable": 1.0})
        with pytest.raises(JudgeUnavailable):
            prepare_batch(connection, batch.batch_id, chosen, NOW)
        waiting = read_batch(connection, batch.batch_id)
        assert waiting is not None and waiting.live and waiting.state == "scoring"
        assert waiting.error is not None and waiting.error.startswith(f"{batch.batch_id} waits: 2 of its hours are not judged yet")
        judge.reset(faults={"unavailable": 0.0})
        prepared = prepare_batch(connection, batch.batch_id, chosen, NOW)
        assert prepared.batch.error is None and judge.stats()["requests"] == 4
    assert len(prepared.remaining) == 15 and all(episode.score is not None for episode in prepared.remaining)


def test_a_judge_that_refuses_everybody_fails_the_batch_and_what_was_judged_is_kept(
    database: Database, settings: Settings, judge: Judge
) -> None:
    windows = filled(database, 2)
    chosen = asking(settings.model_copy(update=DRY), judge.url)
    with database.connect() as connection:
        batch = read_and_frozen(connection, windows, chosen)
        score_windows(connection, windows[:1], chosen, NOW)
        judge.reset(faults={"bad-key": 1.0})
        with pytest.raises(JudgeRefused, match="OPENAI_API_KEY"):
            prepare_batch(connection, batch.batch_id, chosen, NOW)
        failed = read_batch(connection, batch.batch_id)
        assert failed is not None and failed.state == "failed" and failed.error is not None
        assert "refused a request (status 401" in failed.error and "OPENAI_API_KEY" in failed.error
        judge.reset(faults={"bad-key": 0.0})
        again = freeze(connection, chosen, NOW).batch
        assert again is not None and again.trajectories == batch.trajectories
        prepare_batch(connection, again.batch_id, chosen, NOW)
        assert judge.stats()["requests"] == 2  # of the hour that had no scores


def test_a_batch_says_that_it_lives_while_it_is_judged_and_stops_when_it_has_ended(
    database: Database, settings: Settings, judge: Judge
) -> None:
    windows = filled(database, 2)
    chosen = asking(settings.model_copy(update=DRY), judge.url)
    judge.reset(latency_s=0.2)
    beats: list[int] = []
    with database.connect(autocommit=True) as connection:

        def beat() -> None:
            assert connection.info.transaction_status == TransactionStatus.IDLE
            beats.append(threading.get_ident())
            if len(beats) == 4:
                raise BatchConflict("It was cancelled.")

        with pytest.raises(BatchConflict):
            score_with_model(connection, windows, chosen, NOW, force=False, on_beat=beat, beat_s=0.01)
        assert len(beats) == 4 and len(set(beats)) == 1
        sync_windows(connection, windows, chosen, NOW)
        batch = freeze(connection, chosen, NOW).batch
        assert batch is not None
        prepare_batch(connection, batch.batch_id, chosen, NOW)
        judged = read_batch(connection, batch.batch_id)
    assert judged is not None and judged.heartbeat_at > NOW


@pytest.mark.parametrize("fault", ["empty", "bad-request"])  # the provider refuses this hour alone, now and for ever
def test_a_quarantined_hour_leaves_its_batch_and_the_others_train(database: Database, settings: Settings, fault: str) -> None:
    windows = filled(database, 2)
    chosen = asking(settings.model_copy(update=DRY), "http://127.0.0.1:9/v1")
    with judging() as judge, database.connect() as connection:
        chosen = chosen.model_copy(update={"judge_base_url": judge.url})
        batch = read_and_frozen(connection, windows, chosen)
        score_windows(connection, windows[:1], chosen, NOW)
        judge.reset(faults={fault: 1.0})
        prepared = prepare_batch(connection, batch.batch_id, chosen, NOW)
    assert {episode.window for episode in prepared.remaining} == {windows[0]}
    assert dict(prepared.dropped_groups) == {windows[1]: QUARANTINED_REASON}


@pytest.mark.long
def test_automation_asks_a_judge_that_is_down_again_after_a_while_and_never_gives_the_batch_up(
    make_bench: Callable[..., Bench], database: Database, settings: Settings
) -> None:
    windows = filled(database, 2)
    down = {"judge_model": MODEL, "judge_base_url": "http://127.0.0.1:9/v1", "judge_timeout_seconds": 0.2}
    moment = utc_now()  # when a run ended Dagster says by its own clock
    bench = make_bench(database, moment, **DRY, **down)
    with database.connect(autocommit=True) as connection:
        sync_windows(connection, windows, bench.babylon.settings, moment)
    for _ in range(MAX_DEAD_RUNS + 1):
        bench = make_bench(database, moment, **DRY, **down)
        context = dg.build_sensor_context(instance=bench.instance, resources={"babylon": bench.babylon})
        asked = start_training(context)
        assert isinstance(asked, dg.SensorResult) and asked.run_requests
        batch = str(asked.run_requests[0].partition_key)
        bench.instance.add_dynamic_partitions("batch", [batch])
        failed = bench.run("train", batch, raise_on_error=False)
        # Whatever else ended the run, a time limit of the tests included, must not look like a judge that was forgotten.
        assert "not judged yet" in said_by(failed)
        assert bench.instance.get_run_records()[0].dagster_run.tags[ENDED_TAG] == WAITS
        soon = start_training(context)
        assert isinstance(soon, dg.SkipReason) and "waits for its judge" in str(soon.skip_message)
        moment += JUDGE_ASKED_EVERY + timedelta(minutes=10)
    with database.connect() as connection:
        held = read_batch(connection, batch)
    assert held is not None and held.live and held.error is not None and "not judged yet" in held.error


@pytest.fixture
def command(
    database: Database, judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """``command("score", ...)``: exit code, the JSON document, what was said besides."""
    for name, value in {
        "DATABASE_URL": database.url, "BABYLON_RL_HOME": str(tmp_path / "home"), "JUDGE_MODEL": MODEL, "JUDGE_BASE_URL": judge.url,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Settings, "judge_disagreement", 1.0)
    monkeypatch.setattr(Settings, "judge_timeout_seconds", 2.0)
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = run([*arguments, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out.strip() else {}, said.err

    return ask


@pytest.mark.long
def test_score_by_command_pays_once_and_says_what_waits(
    database: Database, judge: Judge, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    first, second, third = filled(database, 3)
    code, plan, _ = command("score", "--window", first, "--dry-run")
    assert (code, plan["requests"], plan["cached"], plan["usd"], plan["windows"]) == (0, 2, 0, None, [first])
    assert (plan["requestsMost"], plan["usdMost"]) == (3, None), "one of twenty answers may be unusable"
    code, done, _ = command("score", "--window", first)
    assert (code, len(done["windows"]), done["pending"], done["windows"][0]["judge"]) == (0, 1, [], MODEL)
    assert command("score", "--window", first)[0] == 0 and judge.stats()["requests"] == 2
    assert command("score", "--window", first, "--force")[0] == 0 and judge.stats()["requests"] == 2
    judge.reset(faults={"unavailable": 1.0})
    code, done, said = command("score", "--from", first, "--to", third)
    assert (code, [group["window"] for group in done["windows"]], [row["window"] for row in done["pending"]]) == (3, [first], [second])
    assert "1 hour waits" in said
    judge.reset(faults={"unavailable": 0.0, "empty": 1.0})
    code, done, said = command("score", "--window", second)
    assert (code, [row["window"] for row in done["quarantined"]], done["pending"]) == (0, [second], []) and second in said
    code, shown, _ = command("judge", "quarantine")
    assert code == 0 and shown["quarantined"][0]["transcript"] and shown["quarantined"][0]["window"] == second
    judge.reset(faults={"empty": 0.0})
    code, done, said = command("judge", "retry", second, first)
    assert (code, done) == (
        0,
        {"released": [second], "notQuarantined": [first]},
    ) and f"Not in quarantine, nothing to retry: {first}." in said
    code, done, _ = command("score", "--from", first, "--to", third)
    assert (code, len(done["windows"]), done["quarantined"]) == (0, 2, [])
    assert command("judge", "retry")[0] == 2


@pytest.mark.parametrize("options", [["--force"], ["--stale"], []])
def test_hours_before_the_first_partition_are_refused_before_a_judge_is_paid(
    options: list[str],
    database: Database,
    judge: Judge,
    command: Callable[..., tuple[int, dict[str, Any], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = filled(database, 2)
    monkeypatch.setattr("babylon_rl.automation.launch.AS_LOADED", AS_LOADED.model_copy(update={"first_window": second}))
    code, _, said = command("score", "--from", first, "--to", next_window(second), *options)
    assert code == 2 and f"{first} lies before FIRST_WINDOW ({second})" in said and judge.stats()["requests"] == 0


@pytest.mark.long
def test_score_says_of_every_hour_whether_it_was_judged_and_whose_scores_it_keeps(
    database: Database, judge: Judge, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    first, second, third = filled(database, 3)
    code, done, _ = command("score", "--window", first)
    assert (code, done["hours"]) == (0, [{"window": first, "outcome": "judged", "keptScoresOf": None, "reason": None}])
    code, done, _ = command("score", "--from", first, "--to", third)
    assert (code, [(hour["outcome"], hour["keptScoresOf"]) for hour in done["hours"]]) == (0, [("unchanged", MODEL), ("judged", None)])
    judge.reset(faults={"unavailable": 1.0})
    code, done, said = command("score", "--window", first, "--judge", "openai/bad")
    (hour,) = done["hours"]
    assert (code, hour["outcome"], hour["keptScoresOf"]) == (3, "waiting", MODEL) and "503" in hour["reason"]
    assert f"Scores that openai/bad did not replace are kept: {first} those of {MODEL}." in said
    code, done, said = command("score", "--window", first)
    assert (code, done["hours"][0]["outcome"], said) == (0, "unchanged", ""), "another judge's waiting is not this one's"
    judge.reset(faults={"unavailable": 0.0, "empty": 1.0})
    code, done, said = command("score", "--window", second, "--judge", "openai/bad")
    assert (code, done["hours"][0]["outcome"], done["hours"][0]["keptScoresOf"]) == (0, "quarantined", MODEL)
    assert f"In quarantine, not scored by openai/bad: {second}." in said


@pytest.mark.long
def test_scores_of_the_heuristic_stand_until_somebody_wants_the_judge_to_replace_them(
    database: Database, settings: Settings, command: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    (window,) = filled(database, 1)
    assert command("score", "--window", window, "--judge", "heuristic")[1]["windows"][0]["judge"] == "heuristic"
    code, kept, said = command("score", "--window", window)
    assert (code, kept["windows"][0]["judge"], kept["hours"][0]["outcome"]) == (0, "heuristic", "unchanged") and "--stale" in said
    assert command("score", "--window", window, "--stale", "--dry-run")[1]["requests"] == 2
    assert command("score", "--window", window, "--stale")[1]["windows"][0]["judge"] == MODEL


@pytest.mark.long
def test_the_address_of_openais_own_client_is_where_the_judge_is_asked(
    database: Database,
    judge: Judge,
    command: Callable[..., tuple[int, dict[str, Any], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (window,) = filled(database, 1)
    monkeypatch.delenv("JUDGE_BASE_URL")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("OPENAI_BASE_URL", judge.url)
    code, done, said = command("score", "--window", window)
    assert (code, len(done["windows"]), judge.stats()["requests"]) == (0, 1, 2), said
    address = f"{MODEL} at {judge.url} (OPENAI_BASE_URL)"
    assert f"Judged by {address}." in said
    assert address in command("settings")[2]
    checks = command("verify-system")[1]["checks"]
    assert [address in check["detail"] for check in checks if check["name"] == "judge"] == [True]
