import json

import pytest

from babylon_rl.cli import run


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


def test_bad_usage_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "standings", "nothing", "--against", "nothing"]) == 2
    assert "cannot be compared with itself" in capsys.readouterr().err
    assert run(["benchmark", "standings", "nothing", "--markets", "1"]) == 2
