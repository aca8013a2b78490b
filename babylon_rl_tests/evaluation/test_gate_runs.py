"""Why a version failed can be looked at: the gate keeps every decision, prompt and fill of whom it plays, in files that `compare` reads."""

import gzip
import itertools
import json
import os
import shutil
from datetime import timedelta

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.cli import run
from babylon_rl.evaluation.benchmark import gate_rows, sources_named
from babylon_rl.evaluation.compare_results import compare_results, result_files, sound_results
from babylon_rl.evaluation.gate import BASE
from babylon_rl.evaluation.results import DIRECTORY, KEPT, forget_old_runs, runs_directory
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.market.simulation.games import POSTS
from babylon_rl.store.registry import read_models
from babylon_rl_tests.evaluation.conftest import NOW, write_tensors
from babylon_rl_tests.evaluation.endpoint import alternates, endpoint, hold, reads_news

pytestmark = pytest.mark.slow

SNAPSHOTS = benchmark_snapshots(12)
TICKS = SNAPSHOTS[0].scenario.ticks


@pytest.fixture
def play(connection, settings):
    """``play("v1.0.0", base=rule, ...)``: the version and the base in every market, answering by their rules, with settings ``by``."""
    times = itertools.count()

    def entered(version: str, by=settings, snapshots=SNAPSHOTS, **rules) -> None:
        models = {model.version: model for model in read_models(connection)}
        sources, now = sources_named([version, BASE], models, by), NOW + timedelta(hours=next(times))
        with endpoint(**rules) as served:
            gate_rows(connection, by, sources, snapshots, len, clock=lambda: now, serving=served.serving)

    return entered


def decisions(home, name: str, snapshot) -> list[dict]:
    lines = gzip.decompress((runs_directory(home, name) / f"{snapshot.id}-gate.decisions.jsonl.gz").read_bytes())
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.long
def test_every_decision_of_the_gate_is_kept_with_its_prompt_answer_and_fill(play, make_version, connection, settings):
    make_version("v1.0.0")
    play("v1.0.0", base=alternates, **{"v1.0.0": reads_news})
    for name in ("v1.0.0", "base"):
        for snapshot in SNAPSHOTS:
            kept = decisions(settings.home, name, snapshot)
            assert len(kept) == TICKS
            for turn in kept:
                assert turn["call"]["messages"][-1]["role"] == "user"
                assert json.loads(turn["call"]["response"])["action"] in ("buy", "sell", "hold")
                assert turn["outcome"]["outcome"] == "filled"
    traded = [turn for turn in decisions(settings.home, "v1.0.0", SNAPSHOTS[0]) if "price" in turn["outcome"]]
    assert traded and all(turn["closed"] or turn["settled"] or turn["tick"] == TICKS - 1 for turn in traded)

    files = [file for name in ("v1.0.0", "base") for file in result_files(runs_directory(settings.home, name))]
    sound, refused = sound_results(files)
    assert (len(sound), refused) == (2 * len(SNAPSHOTS), [])
    rows = connection.execute('SELECT "snapshot", "pnlUsd" FROM babylon_rl.benchmark_results WHERE "model" = %s', ["v1.0.0"]).fetchall()
    assert {one.benchmark_id: one.metrics.total_pnl for one in sound if one.agent_id == "v1.0.0"} == pytest.approx(dict(rows))
    assert [(pair.snapshots, pair.winner) for pair in compare_results(sound, refused).pairs] == [(len(SNAPSHOTS), "v1.0.0")]


def test_decisions_that_cannot_be_written_lose_no_market(play, make_version, connection, settings, caplog):
    make_version("v1.0.0")
    (settings.home / DIRECTORY).write_bytes(b"a file where the directory should be")
    play("v1.0.0", base=alternates, **{"v1.0.0": reads_news})
    rows = connection.execute('SELECT "model", COUNT(*) FROM babylon_rl.benchmark_results GROUP BY "model" ORDER BY "model"').fetchall()
    assert rows == [("base", len(SNAPSHOTS)), ("v1.0.0", len(SNAPSHOTS))]
    assert f"The decisions of v1.0.0 in {SNAPSHOTS[0].id} are not kept" in caplog.text


@pytest.mark.long
def test_other_weights_under_a_name_take_the_place_of_the_former(play, make_version, settings, base_dir):
    make_version("v1.0.0")
    play("v1.0.0", base=hold, **{"v1.0.0": reads_news})
    before = sorted(runs_directory(settings.home, "base").iterdir())
    write_tensors(base_dir / "model.safetensors", 1.0, 3.0)
    play("v1.0.0", base=alternates, **{"v1.0.0": reads_news})
    assert sorted(runs_directory(settings.home, "base").iterdir()) == before and len(before) == 2 * len(SNAPSHOTS)
    assert any(turn["action"]["action"] != "hold" for turn in decisions(settings.home, "base", SNAPSHOTS[0]))


def test_the_runs_of_those_compared_last_stay(tmp_path):
    names = [f"v1.0.{number}" for number in range(KEPT + 3)]
    for age, name in enumerate(["base", *reversed(names)]):
        runs_directory(tmp_path, name).mkdir(parents=True)
        os.utime(runs_directory(tmp_path, name), (1e9 - age, 1e9 - age))
    (tmp_path / "benchmarks" / "v1.0.0.png").write_bytes(b"a picture of a report")
    forget_old_runs(tmp_path, ["v1.0.0", "v2.0.0"])
    kept = {path.name for path in (tmp_path / "benchmarks").iterdir()}
    assert kept == {"base", "v1.0.0", "v1.0.0.png", *names[-(KEPT - 2) :]}


@pytest.mark.long
def test_the_page_of_the_report_links_to_the_decisions(play, make_version, database, settings):
    batch, settings = make_version("v1.0.0"), settings.model_copy(update={"min_improvement": 1e6})  # decided at the first look
    play("v1.0.0", base=alternates, **{"v1.0.0": reads_news})
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(batches.name), [batch])
        job = job_definition("train", Babylon(settings, database, lambda: NOW))
        key = dg.AssetKey("benchmark_report")
        made = job.execute_in_process(instance=instance, partition_key=batch, run_config=QUIET, asset_selection=[key])
    [report] = made.asset_materializations_for_node("benchmark_report")
    assert report.metadata["decisions"].value == str(runs_directory(settings.home, "v1.0.0"))
    assert report.metadata["look_at_decisions"].value == "babylon-rl benchmark compare v1.0.0 base --gate --report page"


@pytest.fixture
def compared(database, settings, monkeypatch, capsys):
    """``compared(home, *options)``: what ``benchmark compare v1.0.0 base --gate`` gives there.

    Its document, or its error where it ends with another ``code``.
    """
    monkeypatch.setenv("DATABASE_URL", database.url)

    def compare(home, *options: str, code: int = 0):
        monkeypatch.setenv("BABYLON_RL_HOME", str(home))
        assert run(["benchmark", "compare", "v1.0.0", "base", "--gate", *options, "--json"]) == code
        told = capsys.readouterr()
        return told.err if code else json.loads(told.out)

    return compare


def test_the_runs_behind_the_rows_are_compared_where_they_were_played_or_copied_to(play, make_version, settings, compared, tmp_path):
    make_version("v1.0.0")
    play("v1.0.0", base=alternates, **{"v1.0.0": reads_news})
    found = compared(settings.home, "--report", str(tmp_path / "page"))
    [pair] = found["pairs"]
    assert (pair["a"], pair["snapshots"], pair["winner"]) == ("v1.0.0", len(SNAPSHOTS), "v1.0.0")
    assert (tmp_path / "page" / "index.html").is_file()
    told = compared(tmp_path / "elsewhere", code=2)
    for name in ("v1.0.0", "base"):
        assert (
            f"{name}: the decisions in 12 of 12 markets are not on this machine: copy {tmp_path}/elsewhere/benchmarks/{name} from" in told
        )
    shutil.copytree(settings.home / DIRECTORY, tmp_path / "elsewhere" / DIRECTORY)
    assert compared(tmp_path / "elsewhere")["pairs"] == [pair]


def test_runs_of_former_weights_are_not_taken_for_those_behind_the_rows(play, make_version, settings, base_dir, compared, tmp_path):
    make_version("v1.0.0")
    play("v1.0.0", base=alternates, **{"v1.0.0": reads_news})
    write_tensors(base_dir / "model.safetensors", 1.0, 3.0)
    away = settings.model_copy(update={"babylon_rl_home": tmp_path / "away"})
    play("v1.0.0", by=away, base=reads_news, **{"v1.0.0": reads_news})
    assert "v1.0.0: the decisions in 12 of 12 markets are not on this machine" in compared(settings.home, code=2)
    assert [(row["agent"], row["snapshots"]) for row in compared(away.home)["agents"]] == [("v1.0.0", 12), ("base", 12)]


def test_runs_of_two_games_under_a_name_are_kept_and_compared_apart(play, make_version, settings, compared, capsys):
    make_version("v1.0.0")
    rules = {"base": hold, "v1.0.0": reads_news}
    play("v1.0.0", snapshots=SNAPSHOTS[:3], **rules)
    play("v1.0.0", snapshots=benchmark_snapshots(4, POSTS), base=reads_news, **{"v1.0.0": hold})
    files = {file.name for file in result_files(runs_directory(settings.home, "v1.0.0"))}
    assert {"benchmark-0000-gate.json", "benchmark-0000-gate-posts.json"} <= files and len(files) == 3 + 4
    [first], [posts] = compared(settings.home)["pairs"], compared(settings.home, "--game", "posts")["pairs"]
    assert (first["snapshots"], first["difference"]["mean"] > 0) == (3, True)
    assert (posts["snapshots"], posts["difference"]["mean"] < 0) == (4, True)
    for options, markets, held in ([], 3, False), (["--game", "posts"], 4, True):
        assert run(["benchmark", "errors", "v1.0.0", *options, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        shares = {kind["name"]: kind["hold"] for kind in document["kinds"]}
        assert document["markets"] == markets and (shares["stock report"] == 1.0) == held
    assert "'v1.0.0' has not played amounts in the gate's markets as they are now" in compared(settings.home, "--game", "amounts", code=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["v9.0.0"], "'v9.0.0' has not played in the gate's markets: name a version that was compared, or base."),
        (["v1.0.0", "--results", "r"], "--results is for runs of your own: leave it out with --gate."),
    ],
)
def test_a_name_without_decisions_is_refused(arguments, sentence, database, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", database.url)
    assert run(["benchmark", "compare", *arguments, "--gate"]) == 2
    assert sentence in capsys.readouterr().err
