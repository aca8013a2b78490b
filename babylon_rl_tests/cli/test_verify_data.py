"""verify-data, clause by clause: what fails, what warns, what passes."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.cli.verify_data import data_checks
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import trajectory_rows
from babylon_rl.training.readiness import measure_quality
from babylon_rl_tests.cli.test_data import Ask, asker
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_call, make_log, make_step, make_trajectory

Row = dict[str, Any]
Checks = dict[str, tuple[str, str]]
LONG = {"systemPrompt": "You trade stocks. " * 4, "userPrompt": "The prices of the hour are these. " * 4}


def steps(**changes: Any) -> list[Row]:
    """One step that has all that a person would want recorded, but for ``changes``."""
    began = (START - datetime(1970, 1, 1)) // timedelta(milliseconds=1) + 300_000
    action = {"actionType": "BUY_SHARES", "parameters": {}, "success": True, "result": {"executed": True}}
    whole = {"timestamp": began, "providerAccesses": [{"providerName": "markets", "data": {}, "purpose": "prices"}], "action": action}
    step = make_step(calls=[make_call(**LONG)]) | whole | changes
    return [{name: value for name, value in step.items() if value is not ...}]


def row(name: str = "t1", **columns: Any) -> Row:
    return make_trajectory(name, **({"steps": steps(), "aiJudgeReward": 0.5} | columns))


@pytest.fixture
def verified(database: Database, settings: Settings) -> Callable[..., Checks]:
    """``verified(rows, logs)``: (status, detail) by check, an hour after WINDOW."""

    def verify(rows: list[Row], logs: list[Row] | None = None, now: datetime = AFTER) -> Checks:
        with database.connect() as connection:
            insert(connection, "trajectories", rows)
            insert(connection, "llm_call_logs", logs or [])
            return {check.name: (check.status, check.detail) for check in data_checks(connection, settings, now)}

    return verify


def test_whole_rows_pass_every_check(verified: Callable[..., Checks]) -> None:
    assert {status for status, _ in verified([row()]).values()} == {"PASS"}


@pytest.mark.parametrize(
    ("broken", "check", "status"),
    [
        ({"steps": "[]"}, "steps", "FAIL"),
        ({"steps": "{"}, "readable", "FAIL"),
        ({"steps": steps(environmentState=...)}, "environment state", "FAIL"),
        ({"steps": steps(llmCalls=[])}, "LLM calls", "FAIL"),
        ({"steps": steps(llmCalls=[make_call(**LONG, response="")])}, "first LLM call", "FAIL"),
        ({"steps": steps(llmCalls=[make_call(**LONG, temperature=...)])}, "first LLM call", "FAIL"),
        ({"steps": steps(llmCalls=[make_call(**LONG, temperature=0)])}, None, "PASS"),
        ({"steps": steps(providerAccesses=[])}, "provider accesses", "WARN"),
        ({"steps": steps(action={"actionType": "HOLD", "parameters": {}, "success": True})}, "action results", "WARN"),
        ({"steps": steps(action={"actionType": "HOLD", "parameters": {}, "success": False, "error": "no money"})}, None, "PASS"),
        ({"aiJudgeReward": None}, "scores", "WARN"),
        ({"steps": steps(llmCalls=[make_call()])}, "prompt lengths", "WARN"),
        ({"endTime": START}, "clocks", "WARN"),
        ({"finalPnL": 1e6}, "P&L jumps", "WARN"),
        ({"windowHours": 4}, "window hours", "WARN"),
    ],
)
def test_each_fault_is_told_by_its_check_alone(verified: Callable[..., Checks], broken: Row, check: str | None, status: str) -> None:
    found = verified([row("whole"), row("t2", agent="agent-2", **broken)])
    assert {name: said[0] for name, said in found.items() if said[0] != "PASS"} == ({} if check is None else {check: status})


@pytest.mark.parametrize("prompt", ["systemPrompt", "userPrompt"])
@pytest.mark.parametrize("value", ["", None, ...])
def test_a_first_call_without_a_prompt_fails_and_is_short_too(verified: Callable[..., Checks], prompt: str, value: Any) -> None:
    found = verified([row(steps=steps(llmCalls=[make_call(**LONG | {prompt: value})]))])
    assert {name: said[0] for name, said in found.items() if said[0] != "PASS"} == {"first LLM call": "FAIL", "prompt lengths": "WARN"}


def test_the_rows_are_named(verified: Callable[..., Checks]) -> None:
    found = verified([row(f"t{n}", agent=f"agent-{n}", steps="[]") for n in range(5)])
    assert found["steps"][1] == "5 of 5 rows: no steps (t0, t1, t2 and 2 more)"


def test_copies_are_told(verified: Callable[..., Checks]) -> None:
    found = verified([row("a"), row("b", minute=6), row("c", minute=7)])
    assert found["duplicates"] == ("WARN", "2 rows repeat the steps of another row of their agent in the hour (b, c)")


def test_calls_in_the_log_count_and_their_first_must_be_whole(verified: Callable[..., Checks]) -> None:
    silent = [row(name, agent=name, steps=steps(llmCalls=[])) for name in ("logged", "torn", "silent")]
    logs = [make_log("logged", **LONG), make_log("torn", 0, **LONG | {"userPrompt": ""}), make_log("torn", 1, **LONG)]
    found = verified(silent, logs)
    assert found["LLM calls"] == ("FAIL", "1 of 3 rows: no LLM call, in its steps or in llm_call_logs (silent)")
    assert found["first LLM call"][0] == "FAIL" and found["first LLM call"][1].endswith("(torn)")


def test_provider_accesses_of_logged_calls_count(verified: Callable[..., Checks], database: Database) -> None:
    names = ("accessed", "empty", "words")
    given = ('{"providerAccesses":[{"providerName":"markets"}]}', '{"providerAccesses": []}', '{"x": "\\"providerAccesses\\":[{"}')
    logs = [make_log(name, **LONG, metadata=metadata) for name, metadata in zip(names, given, strict=True)]
    found = verified([row(name, agent=name, steps=steps(llmCalls=[], providerAccesses=[])) for name in names], logs)
    assert found["provider accesses"] == (
        "WARN", "2 of 3 rows: no provider access, in its steps or in llm_call_logs (empty, words)",
    )  # fmt: skip
    with database.connect() as connection:
        assert measure_quality(connection, list(trajectory_rows(connection, [WINDOW]))).provider_accesses == pytest.approx(1 / 3)


def test_rows_that_no_training_sees_are_left_out(verified: Callable[..., Checks]) -> None:
    found = verified([row("t1", steps="[]", isEvaluation=True), row("t2", steps="[]", isTrainingData=False)])
    assert {name: status for name, (status, _) in found.items()} == {"rows": "FAIL"}
    assert "nothing but evaluation and benchmark rows" in found["rows"][1]


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "20000-01-01"])
def test_rows_that_belong_to_no_hour_are_counted(verified: Callable[..., Checks], moment: str) -> None:
    lost = [row("lost", agent="agent-2", windowId=None, startTime=moment), row("odd", agent="agent-3", windowId="then", startTime=moment)]
    assert verified(lost)["hours"][0] == "FAIL"
    found = verified([row("whole"), row("named", agent="agent-4", startTime=moment)])
    said = "2 rows have neither a window id nor a start time that names an hour, and count nowhere (lost, odd)"
    assert found["hours"] == ("FAIL", said)


def test_nothing_recorded_fails_and_so_do_old_rows(verified: Callable[..., Checks]) -> None:
    assert verified([]) == {"rows": ("FAIL", "no complete hour holds a trajectory")}
    status, detail = verified([row()], now=AFTER + timedelta(days=4))["rows"]
    assert (status, detail) == ("FAIL", "1 rows in the 24 hours up to 2025-11-15T11:00, 4 days ago")
    assert verified([], now=AFTER + timedelta(hours=23))["rows"][0] == "PASS"
    assert verified([], now=AFTER + timedelta(hours=24))["rows"][0] == "FAIL"


def test_the_recorded_game_fails_by_exit_code_1(
    sample_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    verify: Ask = asker(sample_database, monkeypatch, capsys, tmp_path)
    checks = {check["name"]: check["status"] for check in verify("verify-data", code=1)["checks"]}
    assert {"readable": "FAIL", "LLM calls": "FAIL", "first LLM call": "PASS", "scores": "WARN"}.items() <= checks.items()


def test_warnings_alone_end_with_exit_code_0(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    with database.connect() as connection:
        insert(connection, "trajectories", [row(aiJudgeReward=None)])
    verify: Ask = asker(database, monkeypatch, capsys, tmp_path)
    assert {check["status"] for check in verify("verify-data", "--as-of", "2025-11-15T12:00")["checks"]} == {"PASS", "WARN"}
    # Without the option the database's clock counts, by which the rows are old.
    assert [check["name"] for check in verify("verify-data", code=1)["checks"] if check["status"] == "FAIL"] == ["rows"]


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"trajectoryId": "t1-step-0"}, True),
        ({"trajectoryId": "step-5f3a"}, True),
        ({"trajectoryId": "agent-1"}, True),
        ({"trajectoryId": "T1"}, True),
        ({"trajectoryId": "log-t1-0-0", "metadata": "{}"}, True),
        ({"trajectoryId": "log-t1-0-0", "metadata": None}, True),
        # A call through the gateway outside of every trajectory.
        ({"trajectoryId": "log-t1-0-0", "metadata": '{"arm":"base","agentId":"a"}'}, False),
        ({}, False),
        # Of a trajectory that may still run.
        ({"trajectoryId": "t2", "timestamp": AFTER - timedelta(minutes=30)}, False),
    ],
)
def test_calls_logged_under_another_id_are_counted_with_an_example(
    changes: Row, counted: bool, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setattr("babylon_rl.cli.data.utc_now", lambda: AFTER)
    monkeypatch.setattr("babylon_rl.cli.training.utc_now", lambda: AFTER)
    with database.connect() as connection:
        insert(connection, "trajectories", [row(steps=steps(llmCalls=[]))])
        insert(connection, "llm_call_logs", [make_log("t1") | changes])
    asker(database, monkeypatch, capsys, tmp_path)
    said = {}
    for command in (["windows"], ["verify-data", "--as-of", f"{AFTER:%Y-%m-%dT%H:%M}"], ["ready"]):
        run(command)
        said[command[0]] = "".join(capsys.readouterr())
    example = f"such as those under {changes.get('trajectoryId')!r}"
    assert {name: "belong to no trajectory" in text and example in text for name, text in said.items()} == dict.fromkeys(said, counted)


def test_calls_without_any_trajectory_are_said(verified: Callable[..., Checks]) -> None:
    status, detail = verified([], [make_log("t9")])["logged calls"]
    assert status == "WARN" and detail.startswith("1 logged calls belong to no trajectory")
