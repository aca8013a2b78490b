"""windows, episodes, rejected, outcomes, scores: shapes of CLI.md on the recorded game, and sentences for bad input."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from babylon_rl.cli import data, run
from babylon_rl.episodes.reading import read_windows
from babylon_rl.settings import Settings
from babylon_rl.store import windows
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.types import WindowReading
from babylon_rl_tests.expected import SAMPLES, expected
from babylon_rl_tests.scored import score_windows

WINDOW = "2025-10-29T16:00"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(sample_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> Ask:
    """Run a command with --json on the recorded game and give its document."""
    return asker(sample_database, monkeypatch, capsys, tmp_path)


def asker(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> Ask:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert run([*arguments, "--json"]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return run_it


@pytest.mark.slow
@pytest.mark.parametrize("fixture", SAMPLES)
def test_windows_agree_with_the_sample(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any, fixture: str
) -> None:
    document = asker(request.getfixturevalue(fixture), monkeypatch, capsys, tmp_path)("windows")
    answers = expected(fixture)
    names = {
        "rows": "n_rows_any", "eligible": "n_eligible", "newTrainable": "n_new_trainable", "agents": "n_agents", "episodes": "n_episodes",
        "usableEpisodes": "n_episodes_min5",
    }  # fmt: skip
    assert [row["window"] for row in document["windows"]] == sorted(answers["windows"])
    for row in document["windows"]:
        answer = answers["windows"][row["window"]]
        assert {ours: row[ours] for ours in names} == {ours: answer[theirs] for ours, theirs in names.items()}
        assert row["ready"] == answer["ready"]["5"]
        assert sum(row["rejected"].values()) == row["rows"] - row["eligible"]
    assert document["readyAt"] == {agents: len(windows) for agents, windows in answers["ready_windows"].items()}
    assert document["verdict"].startswith("READY FOR TRAINING")


def test_windows_beyond_the_look_back_are_named_in_the_verdict(sample_database: Database, ask: Ask) -> None:
    before = ask("windows")["verdict"]
    with sample_database.connect() as connection:
        connection.execute(
            """INSERT INTO trajectories SELECT (jsonb_populate_record(t, jsonb_build_object(
                   'id', 'late', 'trajectoryId', 'late', 'windowId', '2025-12-01T00:00', 'startTime', '2025-12-01T00:10'))).*
               FROM trajectories t LIMIT 1"""
        )
    ready = before.removeprefix("READY FOR TRAINING: ").partition(" ")[0]
    assert ask("windows")["verdict"] == f"{before} Beyond LOOKBACK_HOURS (168): {ready} of them, which only --from and --to train."


def test_state_of_each_window(sample_database: Database, settings: Settings, ask: Ask) -> None:
    with sample_database.connect() as connection:
        score_windows(connection, [WINDOW], settings, datetime(2026, 1, 1))
    states = {row["window"]: row["state"] for row in ask("windows", "--from", "2025-01-15T14:00")["windows"]}
    assert states["2025-01-15T14:00"] == "thin"
    assert states["2025-10-29T04:00"] == "trained"
    assert states["2025-10-29T15:00"] == "ready"
    assert states[WINDOW] == "scored"


def test_an_hour_that_has_changed_since_it_was_judged_is_not_shown_as_scored(
    sample_database: Database, settings: Settings, ask: Ask
) -> None:
    with sample_database.connect() as connection:
        score_windows(connection, [WINDOW], settings, datetime(2026, 1, 1))
        first = read_windows(connection, [WINDOW], settings)[WINDOW].usable_episodes[0]
        connection.execute('DELETE FROM trajectories WHERE "trajectoryId" = %s', [first.trajectory_ids[0]])
    (row,) = ask("windows", "--from", WINDOW, "--to", "2025-10-29T17:00")["windows"]
    assert row["state"] == "ready"


def test_windows_carry_the_quality_of_their_rows(ask: Ask) -> None:
    found = {row["window"]: row["quality"] for row in ask("windows")["windows"]}
    assert found[WINDOW] == {
        "shortPrompts": 0, "prompts": 92, "duplicates": [], "duplicateRows": 0, "clockSkew": [], "skewedRows": 0, "pnlJumps": [],
        "jumpingAgents": 0, "otherLengths": 0,
    }  # fmt: skip
    assert found["2025-01-15T10:00"]["skewedRows"] == 4, "recorded in October, and named after an hour in January"


def test_ranges_and_look_back_count_from_the_rows(ask: Ask) -> None:
    between = ask("windows", "--from", "2025-10-29T14:00", "--to", "2025-10-29T16:00")
    assert [row["window"] for row in between["windows"]] == ["2025-10-29T14:00", "2025-10-29T15:00"]
    back = ask("windows", "--lookback-hours", "10")
    assert [row["window"] for row in back["windows"]] == [WINDOW, "2025-10-29T17:00", "2025-10-30T01:00"]
    assert {row["window"]: row["ready"] for row in ask("windows", "--min-agents", "12")["windows"]}["2025-10-29T04:00"] is False


def test_episodes_have_the_shape_that_scripts_rely_on(ask: Ask) -> None:
    document = ask("episodes", WINDOW)
    answer = expected("sample_database")["windows"][WINDOW]["episodes"]
    assert document["window"] == WINDOW and len(document["episodes"]) == 12
    for row in document["episodes"]:
        theirs = answer[row["agentId"]]
        assert (row["trajectoryIds"], row["steps"], row["usable"]) == (theirs["trajectory_ids"], theirs["n_steps"], True)
        assert (row["wins"], row["losses"]) == (theirs["wins"], theirs["losses"])
        assert (row["trades"], row["posts"]) == (theirs["trades_executed"], theirs["posts_created"])
        assert row["windowPnl"] == pytest.approx(theirs["window_pnl"], abs=1e-6)
        assert set(row["messageSources"]) == {"embedded", "llm_call_logs", "synthetic"}


def test_rejected_holds_the_trajectories_of_few_hours_at_a_time(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, held = ask("rejected"), list[int]()

    def read(connection: Connection, some: list[str], settings: Settings) -> dict[str, WindowReading]:
        held.append(len(some))
        return read_windows(connection, some, settings)

    monkeypatch.setattr(windows, "HOURS_READ_AT_ONCE", 2)
    monkeypatch.setattr(data, "read_windows", read)
    assert ask("rejected") == whole
    assert sum(held) == 12 and max(held) == 2


def test_rejected_names_every_row(ask: Ask) -> None:
    rejected = ask("rejected")["rejected"]
    assert {row["trajectoryId"]: row["reason"] for row in rejected} == expected("sample_database")["trajectories"]["excluded_ids"]
    assert all(row["detail"] and row["window"] for row in rejected)
    hour = ask("rejected", "--from", WINDOW, "--to", "2025-10-29T17:00")
    assert (len(hour["rejected"]), hour["rows"]) == (8, 146)
    assert hour["byReason"] == {
        "evaluation": 1, "not_training_data": 1, "benchmark": 2, "malformed_json": 1, "malformed_shape": 2, "no_steps": 1
    }  # fmt: skip


def test_outcomes_of_an_hour(ask: Ask) -> None:
    document = ask("outcomes", WINDOW)
    assert set(document) == {"window", "market", "stocks", "predictions"}
    assert (len(document["stocks"]), len(document["predictions"])) == (32, 16)
    openlie = next(stock for stock in document["stocks"] if stock["ticker"] == "OPENLIE")
    assert (openlie["organizationId"], openlie["sentiment"], openlie["changePercent"]) == (
        "openlie",
        "BEARISH",
        pytest.approx(-1.774441852),
    )


def test_scores_of_an_hour(sample_database: Database, settings: Settings, ask: Ask) -> None:
    with sample_database.connect() as connection:
        # The expected ranking is that of whole hours.
        score_windows(connection, [WINDOW], settings.model_copy(update={"credit": "hour"}), datetime(2026, 1, 1))
    document = ask("scores", WINDOW)
    theirs = expected("sample_database")["windows"][WINDOW]
    assert (document["judge"], document["groupSize"]) == ("heuristic", 12)
    assert [row["agentId"] for row in document["scores"]] == theirs["ranking_heuristic_window"]
    assert [row["rank"] for row in document["scores"]] == list(range(1, 13))


def test_people_get_tables(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["windows"], ["episodes", WINDOW], ["rejected"], ["outcomes", WINDOW], ["scores", WINDOW]):
        assert run(command) == 0
        assert "2025-10-29" in "".join(capsys.readouterr()) or command[0] in ("episodes", "outcomes")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["episodes", "2025-10-29T16:30"], "is not a window"),
        (["outcomes", "2025-13-45T99:00"], "is not a window"),
        (["scores", "yesterday"], "is not a window"),
        (["windows", "--from", "x"], "is not a window"),
        (["rejected", "--from", WINDOW, "--to", "2025-10-29T15:00"], "runs backwards"),
        (["episodes", "2999-01-01T00:00"], "lies in the future"),
        (["outcomes", "2999-01-01T00:00"], "lies in the future"),
        (["windows", "--from", "2999-01-01T00:00"], "lies in the future"),
        (["windows", "--from", WINDOW, "--lookback-hours", "3"], "not both"),
        (["windows", "--lookback-hours", "0"], "--lookback-hours"),
        (["windows", "--to", "2025-13-45T99:00"], "is not a window"),
        (["windows", "--from", WINDOW, "--to", "2025-10-29T15:00"], "runs backwards"),
        (["rejected", "--from", "2025-13-45T99:00"], "is not a window"),
        (["rejected", "--from", "2999-01-01T00:00"], "lies in the future"),
        (["episodes", "2025-13-45T99:00"], "is not a window"),
        (["outcomes", "2025-10-29t16:00"], "is not a window"),
        (["scores", "2999-01-01T00:00"], "lies in the future"),
        (["episodes"], "Missing argument"),
        (["verify-data", WINDOW], "unexpected extra argument"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], words: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    for arguments in (command, [*command, "--json"]):
        assert run(arguments) == 2
        said = capsys.readouterr()
        assert words in said.err and said.out == ""
        assert "Traceback" not in said.err


def test_hour_without_rows_is_empty_lists_and_a_sentence(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("episodes", "2025-10-29T05:00")["episodes"] == []
    assert ask("outcomes", "2025-10-29T05:00")["stocks"] == []
    assert ask("scores", "2025-10-29T05:00")["scores"] == []
    assert run(["episodes", "2025-10-29T05:00"]) == 0
    assert "No trajectory has been recorded in 2025-10-29T05:00." in capsys.readouterr().err
    for command, name in (("windows", "windows"), ("rejected", "rejected")):
        assert ask(command, "--from", "2025-10-29T05:00", "--to", "2025-10-29T07:00")[name] == []
        assert run([command, "--from", "2025-10-29T05:00", "--to", "2025-10-29T07:00"]) == 0
        assert "No trajectory has been recorded in these hours." in capsys.readouterr().err


def test_reading_needs_no_table_of_ours(
    raw_sample_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    unmigrated = asker(raw_sample_database, monkeypatch, capsys, tmp_path)
    assert len(unmigrated("windows")["windows"]) == 12
    assert len(unmigrated("outcomes", WINDOW)["stocks"]) == 32
    assert unmigrated("scores", WINDOW)["scores"] == []
