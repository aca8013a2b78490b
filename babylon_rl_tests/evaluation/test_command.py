import json

import pytest

from babylon_rl.cli import run
from babylon_rl.store.database import Database


def test_two_strategies_are_compared_without_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "standings", "balanced", "nothing", "--markets", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["markets"], document["reference"]) == (4, "nothing")
    assert [row["model"] for row in document["rows"]] == ["balanced", "nothing"]
    assert document["rows"][0]["improvement"] == pytest.approx(sum(r["pnl"] for r in document["runs"] if r["model"] == "balanced") / 4)
    assert len(document["runs"]) == 8


def test_one_strategy_is_a_table_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "standings", "momentum", "--markets", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 unseen markets") and lines[2].startswith("momentum (strategy)")
    assert "against the reference" not in lines[1]


def test_any_number_of_agents_stand_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "standings", "oracle", "news-reader", "random", "--against", "nothing", "--markets", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in document["rows"]] == ["oracle", "news-reader", "random", "nothing"]
    assert document["reference"] == "nothing" and document["rows"][0]["improvement"] == document["rows"][0]["pnl"]


def test_errors_of_an_agent_stand_by_kind_of_headline_and_by_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "errors", "contrarian", "--texts", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["player"], document["markets"]) == ("contrarian", 24)
    assert [kind["name"] for kind in document["kinds"]] == ["stock report", "question report", "rumour", "neutral", "none"]
    assert len(document["texts"]) == 3 and document["texts"][0]["lostUsd"] >= document["texts"][2]["lostUsd"] > 0
    assert run(["benchmark", "errors", "conservative"]) == 0
    shown = capsys.readouterr().out
    assert "stock report" in shown and "100%" in shown and "against: an order the other way" in " ".join(shown.split())


def test_errors_of_nobody_are_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    assert run(["benchmark", "errors", "v9.9.9"]) == 2
    assert "has not played in the gate's markets" in capsys.readouterr().err


def test_errors_of_positions_that_last_are_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "errors", "conservative", "--game", "positions"]) == 2
    assert "positions is played with positions that last: choose one-tick, posts, amounts." in capsys.readouterr().err


def test_bad_usage_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "standings", "nothing", "--against", "nothing"]) == 2
    assert "cannot be compared with itself" in capsys.readouterr().err
    assert run(["benchmark", "standings", "nothing", "--markets", "1"]) == 2
