"""spawn-agents as a script uses it, and what the demo says of its result."""

from typing import Any

import pytest

from babylon_rl.cli import demo, run
from babylon_rl.evaluation.report import demo_columns
from babylon_rl.market.simulation.strategies import STRATEGIES
from babylon_rl.store.database import Database
from babylon_rl_tests.cli.test_data import Ask, asker
from babylon_rl_tests.market.stand_in import stand_in

START = ["--start", "2025-11-15T10:00"]


@pytest.fixture
def ask(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> Ask:
    """Run a command with --json on a migrated, empty database and give its document."""
    return asker(database, monkeypatch, capsys, tmp_path)


def test_the_document_has_the_shape_of_the_contract(ask: Ask) -> None:
    document = ask("spawn-agents", "--agents", "6", "--windows", "2", *START)
    assert [hour["window"] for hour in document["windows"]] == ["2025-11-15T10:00", "2025-11-15T11:00"]
    for hour in document["windows"]:
        assert set(hour) == {"window", "agents", "trajectories"} and hour["trajectories"] == 72
        assert [agent["agentId"] for agent in hour["agents"]] == [f"test-agent-{number}" for number in range(1, 7)]
        assert all(set(agent) == {"agentId", "strategy", "pnl"} for agent in hour["agents"])
    assert {agent["strategy"] for agent in hour["agents"]} == {"conservative", "balanced", "aggressive", "momentum", "contrarian"}


@pytest.mark.slow
def test_a_model_at_any_endpoint_can_play(ask: Ask) -> None:
    with stand_in() as served:
        # --model alone means one agent that asks it.
        document = ask("spawn-agents", "--agents", "2", "--model", f"my-model@{served.url}", *START)
    assert document["windows"][0]["agents"][1]["strategy"] == "llm"
    assert {request["model"] for request in served.seen} == {"my-model"} and len(served.seen) == 12


def test_three_runs_of_five_minutes_are_ready_for_training(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """The documents' own first command: each call takes the next free hour, whatever the duration."""
    for _ in range(3):
        assert run(["spawn-agents", "--agents=5", "--duration=5"]) == 0
        table = capsys.readouterr().out
        assert all(f"test-agent-{number} " in table for number in range(1, 6)) and "P&L" in table
    document = ask("windows")
    assert document["verdict"].startswith("READY FOR TRAINING") and len(document["windows"]) == 3
    for row in document["windows"]:
        assert (row["eligible"], row["usableEpisodes"], row["ready"]) == (60, 5, True)
        assert row["messageSources"] == {"embedded": 60, "llm_call_logs": 0, "synthetic": 0}


def test_without_options_five_scripted_agents_play_and_no_model_is_fetched(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_BASE_MODEL", "/nowhere")
    (hour,) = ask("spawn-agents")["windows"]
    assert [agent["strategy"] for agent in hour["agents"]] == list(STRATEGIES)


def test_the_table_has_the_pnl_of_each_agent(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["spawn-agents", "--windows", "2", *START]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "test-agent-" in line]
    assert sorted(line[0] for line in lines) == [f"test-agent-{number}" for number in range(1, 6)]
    assert all(line[1] in STRATEGIES for line in lines)
    pnls = [float(line[2]) for line in lines]
    assert pnls == sorted(pnls, reverse=True) and len(set(pnls)) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--agents", "0"], 2, "at least 1 agent"),
        (["--duration", "61"], 2, "1 to 60"),
        (["--start", "noon"], 2, "'noon' is not a window"),
        (["--start", "2999-01-01T00:00"], 2, "is not over yet"),
        (["--model", "v9.9.9", *START], 3, "There is no checkpoint v9.9.9"),
    ],
)
def test_bad_input_is_a_sentence_and_an_exit_code(
    ask: Ask, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert run(["spawn-agents", *arguments]) == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_an_hour_that_was_played_is_refused_with_a_sentence(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    ask("spawn-agents", "--agents", "1", *START)
    assert run(["spawn-agents", "--agents", "1", *START]) == 3
    assert "have already played" in " ".join(capsys.readouterr().err.split())


def make_row(model: str = "v1.0.0", improvement: float | None = 120.0, low: float = 30.0) -> dict[str, Any]:
    compared = {} if improvement is None else {"improvement": improvement, "improvementLow": low, "improvementHigh": 210.0}
    return {
        "model": model,
        "pnl": 80.0,
        "low": 10.0,
        "high": 150.0,
        "winRate": 0.61,
        "accuracy": None,
        "holdShare": 0.2,
        "markets": 24,
    } | compared


def make_result(row: dict[str, Any]) -> dict[str, Any]:
    return {"modelVersion": "v1.0.0", "reference": "base", "reason": "the rival has no endpoint", "rows": [make_row("base", None), row]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (make_row(), "v1.0.0 is better: +120 dollars an hour against base (95 % interval +30 to +210)."),
        (make_row(low=-5.0), "v1.0.0 is not shown to be better: +120 dollars an hour against base (95 % interval -5 to +210). "
         "Nothing is claimed from this run."),
        (make_row(low=0.0, improvement=0.0), "v1.0.0 is not shown to be better: +0 dollars"),
        (make_row("another"), "v1.0.0 was not compared: the rival has no endpoint"),
    ],
)  # fmt: skip
def test_the_verdict_claims_an_improvement_only_when_its_interval_excludes_zero(row: dict[str, Any], said: str) -> None:
    assert demo.verdict(make_result(row)).startswith(said)


def test_a_line_of_the_table_leaves_empty_what_is_not_known() -> None:
    cells = [column.cell(make_row("base", None)) for column in demo_columns("base")]
    assert cells == ["base", "+80", "+10 to +150", None, None, None, None, "61 %", None, None, "20 %"]
