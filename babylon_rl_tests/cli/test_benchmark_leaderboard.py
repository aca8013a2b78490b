"""``benchmark leaderboard`` on a database, and ``benchmark compare --report --snapshot``."""

import json
from pathlib import Path

import pytest

from babylon_rl.cli import run
from babylon_rl.market.simulation.strategies import NAMES
from babylon_rl.store.database import Database

SMALL = "preset:quick:minutes=12:predictions=2:perps=2"


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    return tmp_path


def test_the_order_is_told_and_drawn(
    at_home: Path, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BENCHMARK_MARKETS", "4")
    assert run(["benchmark", "leaderboard", "--plot", "board.png", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["markets"], document["reference"], document["unranked"]) == (4, None, [])
    assert [row["place"] for row in document["rows"]] == list(range(1, len(NAMES) + 2)) and document["rows"][0]["model"] == "oracle"
    assert (at_home / "board.png").read_bytes().startswith(b"\x89PNG")
    assert run(["benchmark", "leaderboard"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 unseen markets") and lines[2].split()[:2] == ["1", "oracle"]


def test_a_report_of_kept_runs_shows_what_was_published_when_the_markets_are_named(
    at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["benchmark", "run", f"{SMALL}:seeds=1-2", "--model", "balanced", "--model", "nothing", "--out", "r"]) == 0
    assert run(["benchmark", "compare", "r", "--report", "plain"]) == 0
    assert "<th>Published</th>" not in (at_home / "plain" / "index.html").read_text()
    capsys.readouterr()
    assert run(["benchmark", "compare", "r", "--report", "full", "--snapshot", f"{SMALL}:seeds=1-3"]) == 0
    assert "<th>Published</th>" in (at_home / "full" / "index.html").read_text()
    assert "No result is of snapshot-" in capsys.readouterr().err
    assert run(["benchmark", "compare", "r", "--snapshot", f"{SMALL}:seeds=1-2"]) == 2
    assert "give --report DIR too" in capsys.readouterr().err
