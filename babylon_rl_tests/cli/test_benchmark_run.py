"""``benchmark run`` and ``benchmark compare`` as scripts use them, and what is left when the process is killed or an endpoint goes away."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.evaluation.snapshot_file import benchmark_scenario, from_scenario, save
from babylon_rl.market.simulation.config import ScenarioConfig
from babylon_rl.store.database import Database
from babylon_rl_tests.evaluation.endpoint import always_buy, endpoint

SMALL = "preset:quick:minutes=12:predictions=2:perps=2"
TICKS = 12
Document = dict[str, Any]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Document]:
    """Run ``benchmark ... --json`` in an empty state directory and give its document."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))

    def get(*arguments: str, code: int = 0) -> Document:
        assert run(["benchmark", *arguments, "--json"]) == code
        document: Document = json.loads(capsys.readouterr().out)
        return document

    return get


def test_agents_play_snapshots_and_are_compared(told: Callable[..., Document], tmp_path: Path) -> None:
    config = ScenarioConfig(minutes=12, predictions=2, perps=2, seed=7, edition="held-out")
    save(from_scenario(benchmark_scenario(config)), tmp_path / "seven.json.gz")
    document = told("run", "seven.json.gz", f"{SMALL}:seeds=1-5", "--model", "oracle", "--model", "nothing", "--repeats", "2", "--out", "r")
    assert (document["played"], document["known"], document["unfinished"], len(document["runs"])) == (24, 0, [], 24)
    assert [(row["agent"], row["runs"], row["snapshots"]) for row in document["agents"]] == [("oracle", 12, 6), ("nothing", 12, 6)]
    assert (document["pairs"][0]["winner"], document["pairs"][0]["snapshots"]) == ("oracle", 6)
    again = told("run", f"{SMALL}:seeds=1-5", "seven.json.gz", "--model", "nothing", "--repeats", "2", "--out", "r")
    assert (again["played"], again["known"]) == (0, 12)
    anew = told("run", f"{SMALL}:seeds=1-5", "--model", "nothing", "--again", "--out", "r")
    assert (anew["played"], anew["known"]) == (5, 0)
    compared = told("compare", "r")
    assert set(compared) == {"runs", "comparison", "agents", "pairs", "analyses", "refused", "notes"}
    by_name = told("compare", "oracle", "nothing", "--results", "r")
    assert by_name["pairs"] == document["pairs"]


def test_a_fresh_database_is_migrated_on_the_way(
    told: Callable[..., Document], empty_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database.url)
    assert run(["benchmark", "run", f"{SMALL}:seeds=1", "--model", "v1.0.0"]) == 2
    assert "There is no version or agent 'v1.0.0'" in capsys.readouterr().err
    told("run", f"{SMALL}:seeds=1", "--model", "nothing", "--record", "--out", "r")
    with empty_database.connect() as connection:
        assert connection.execute('SELECT count(*) FROM trajectories WHERE "isEvaluation"').fetchone() == (1,)


def test_directories_and_files_are_compared_by_the_runs_they_share(told: Callable[..., Document]) -> None:
    told("run", f"{SMALL}:seeds=1-4", "--model", "random", "--out", "a")
    told("run", f"{SMALL}:seeds=3-6", "--model", "oracle", "--out", "b")
    document = told("compare", "a", "b")
    assert document["pairs"][0]["snapshots"] == 2 and "share 2 of 4 runs" in " ".join(document["notes"])
    one = next(str(path) for path in Path("a").glob("*.json"))
    assert [row["runs"] for row in told("compare", one, "b")["agents"]] == [1, 4]


def test_a_doctored_result_is_left_out_and_said(told: Callable[..., Document]) -> None:
    told("run", f"{SMALL}:seeds=1-3", "--model", "random", "--model", "nothing", "--out", "r")
    path = next(iter(sorted(Path("r").glob("random-*.json"))))
    changed = json.loads(path.read_text())
    changed["metrics"]["totalPnl"] += 500.0
    path.write_text(json.dumps(changed))
    document = told("compare", "r")
    assert [one["file"] for one in document["refused"]] == [str(path)] and "totalPnl" in document["refused"][0]["reasons"][0]
    assert {row["agent"]: row["runs"] for row in document["agents"]} == {"random": 2, "nothing": 3}


def test_people_read_tables(told: object, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "run", f"{SMALL}:seeds=1-6", "--model", "oracle", "--model", "nothing", "--report", "page"]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert (
        "6 markets, mean P&L of one" in out
        and "oracle - nothing" in out
        and "<!doctype html>" in Path("page/index.html").read_text().lower()
    )


@pytest.mark.slow
def test_an_endpoint_that_is_down_leaves_partial_results_and_exit_code_3(
    told: Callable[..., Document], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with endpoint(mine=always_buy) as served:
        served.breaks_after = TICKS + 4
        arguments = ["run", f"{SMALL}:seeds=1-2", "--model", f"mine={served.url}", "--model", "nothing", "--out", "r", "--concurrency", "1"]
        assert run(["benchmark", *arguments, "--json"]) == 3
        shown = capsys.readouterr()
        document = json.loads(shown.out)
        assert [(one["agent"], one["ticksProcessed"], one["ticks"]) for one in document["unfinished"]] == [("mine", 4, TICKS)]
        assert len(document["runs"]) == 3 and "1 of 4 runs are not complete" in shown.err and "run the same command again" in shown.err
        assert [one for one in told("compare", "r")["refused"] if "ended at tick 4 of 12" in one["reasons"][0]]
        served.breaks_after = None
        whole = told(*arguments)
        assert (whole["played"], whole["known"], whole["unfinished"]) == (1, 3, []) and served.asked["mine"] == 2 * TICKS
    kept = b"".join(path.read_bytes() for path in Path("r").iterdir())
    assert b"very-secret" not in kept and "very-secret" not in shown.out + shown.err


@pytest.mark.slow
def test_an_endpoint_that_never_answered_is_a_sentence(told: object, capsys: pytest.CaptureFixture[str]) -> None:
    model = "gone=http://127.0.0.1:9/v1"
    assert run(["benchmark", "run", SMALL, "--model", model, "--out", "r", "--attempts", "1"]) == 3
    assert "1 of 1 runs are not complete. gone in snapshot-" in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_benchmark_goes_on_where_it_was(told: Callable[..., Document], tmp_path: Path) -> None:
    def slow(prompt: str, markets: list[str]) -> str:
        time.sleep(0.01)
        return always_buy(prompt, markets)

    with endpoint(slow=slow) as served:
        arguments = ["run", f"{SMALL}:seeds=1-6", "--model", f"slow={served.url}", "--out", "r", "--concurrency", "2"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen([sys.executable, "-m", "babylon_rl", "benchmark", *arguments], cwd=tmp_path, env=environment,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + 60
        while served.asked.get("slow", 0) < 3 * TICKS and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        time.sleep(0.1)  # requests that the child had under way are counted by now
        before = served.asked["slow"]
        assert 3 * TICKS <= before < 6 * TICKS
        document = told(*arguments)
        asked = served.asked["slow"] - before
    assert document["known"] >= 1 and document["played"] + document["known"] == 6 and document["unfinished"] == []
    assert 6 * TICKS <= before + asked <= 6 * TICKS + 2  # at most the two requests that were under way are asked twice


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.json", "--model", "nothing"], "There is no snapshot nowhere.json"),
        (["run", "preset:month", "--model", "nothing"], "There is no preset 'month'"),
        (["run", "preset:quick:seeds=a-b", "--model", "nothing"], "The seeds 'a-b'"),
        (["run", "preset:quick:colour=3", "--model", "nothing"], "'colour=3'"),
        (["run", "preset:quick:perps=1000", "--model", "nothing"], "perps is 1000"),
        (["run", "preset:quick:edition=mine", "--model", "nothing"], "edition is 'mine'"),
        (["run", SMALL, "--model", "x=ftp://y"], "write NAME=URL"),
        (["run", SMALL, "--model", "nothing", "--model", "nothing"], "each agent once"),
        (["run", SMALL, "--model", "nothing", "--mandate", "both"], "--mandate is 'both'"),
        (["run", SMALL, "--model", "nothing", "--game", "posts", "--mandate", "free"], "--game says mandate and prompt"),
        (["run", SMALL, "--model", "nothing", "--game", "chess"], "There is no game 'chess'"),
        (["compare", "a", "--game", "posts"], "--game is for the gate's markets: give --gate too."),
        (["compare", "here", "there"], "holds no results"),
        (["compare", "nobody", "--results", "."], "holds no results"),
    ],
)
def test_bad_usage_is_a_sentence(told: object, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert run(["benchmark", *arguments]) in (2, 3)
    shown = capsys.readouterr()
    assert said in " ".join(shown.err.split()) and "Traceback" not in shown.err
