"""``judge calibrate``: the result is kept, and nothing of what was played for it touches the game's database."""

import json
from pathlib import Path

import psycopg
import pytest

from babylon_rl.cli import run
from babylon_rl.errors import BabylonError, UsageError
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.judge_report import judge_agreements
from babylon_rl.store.scratch import scratch_database

pytestmark = pytest.mark.long


def databases(home: Path) -> set[str]:
    with use_server(home) as url, psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'babylon_rl_scratch%'")}


def test_it_is_measured_beside_the_game_and_kept_in_it(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BABYLON_RL_HOME", str(home))
    monkeypatch.setenv("DATABASE_URL", database.url)
    with use_server(home):  # one start for all
        assert run(["judge", "calibrate", "--hours", "3", "--markets", "10", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["judge"], document["hours"], document["skillMarkets"]) == ("heuristic", 3, 10)
        assert document["expected"]["low"] <= document["expected"]["mean"] <= document["expected"]["high"]
        with database.connect() as connection:
            (kept,) = judge_agreements(connection)
            assert kept.document == document
            assert connection.execute("SELECT count(*) FROM trajectories").fetchone() == (0,)
        assert databases(home) == set()
        assert run(["judge", "calibrate", "--hours", "2", "--markets", "4"]) == 0
        told = capsys.readouterr().out
        assert "heuristic 1: 2 hours of 8 agents" in told and "what counting money alone reaches" in told

        with pytest.raises(BabylonError, match="on the way"), scratch_database(home, "kept") as scratch:
            with scratch.database.connect(autocommit=True) as connection:
                connection.execute("CREATE TABLE public.paid (x INT)")
            with pytest.raises(UsageError, match="Another process works"), scratch_database(home, "kept"):
                pass
            raise BabylonError("on the way")
        assert databases(home) == {"babylon_rl_scratch_kept"}
        with scratch_database(home, "kept") as scratch, scratch.database.connect() as connection:
            assert connection.execute("SELECT count(*) FROM public.paid").fetchone() == (0,)
        assert databases(home) == set()
