"""The page of evidence: everybody in one table, generations that came to nothing told as such, seeds of other markets refused."""

import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from babylon_rl.cli.demo_stages import player_after
from babylon_rl.errors import UsageError
from babylon_rl.evaluation.benchmark import base_source
from babylon_rl.evaluation.snapshots import benchmark_snapshots, confirmation_snapshots
from babylon_rl.market.simulation.games import AMOUNTS, POSTS, Game
from babylon_rl.market.simulation.strategies import NAMES
from babylon_rl.settings import load_settings
from babylon_rl.store.benchmarks import Errors, read_results
from babylon_rl.store.database import open_database
from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence.page import page, stakes, table
from benchmarks.evidence.pictures import learning_curve, players
from benchmarks.evidence.results import base_of, goes_on_otherwise, over_seeds, require_comparable, scripts

MARKETS = 24
COLLAPSED = "One action has 99% of the policy: it collapsed, and nothing was published."
PNL = np.random.default_rng(5).normal(0, 30, MARKETS)
PNL -= PNL.mean()


def row(model: str, role: str, pnl: float) -> dict[str, Any]:
    pnls = [round(pnl + float(usd), 4) for usd in PNL * (1 if role == "strategy" else 1 + pnl / 1000)]
    compared = model != "base"
    return {
        "expecteds": [pnl - 5 + usd / 10 for usd in pnls], "expected": pnl - 5,
        "ofCeiling": pnl / 300, "ofCeilingLow": pnl / 300 - 0.05, "ofCeilingHigh": pnl / 300 + 0.05,
        "model": model, "role": role, "markets": MARKETS, "pnl": pnl, "low": pnl - 40, "high": pnl + 40, "pnls": pnls,
        "improvement": pnl + 50 if compared else None, "improvementLow": pnl + 10 if compared else None,
        "improvementHigh": pnl + 90 if compared else None, "winRate": 0.6, "accuracy": None, "invalid": 0, "holdShare": 0.2,
    }  # fmt: skip


def generation(number: int, version: str | None, parent: str | None, decision: str = "pass") -> dict[str, Any]:
    about = {"generation": number, "player": parent or "base", "hours": ["2026-01-01T00:00", "2026-01-01T23:00"], "modelVersion": version}
    if version is None:
        return about | {"failure": COLLAPSED, "batchId": None, "released": False}
    return about | {
        "failure": None, "parentVersion": parent, "decision": decision, "released": decision == "pass", "sequences": 1700,
        "reason": f"{version} earns something.", "scriptedShare": 0.8,
        "reference": parent or "base", "gateMarkets": 2 * MARKETS if number == 1 else MARKETS,
    }  # fmt: skip


def result(seed: int, *, collapsed: int | None = None, refused: int | None = None) -> dict[str, Any]:
    generations, rows, parent = [], [row("base", "base", -50.0)], None
    for number in (1, 2, 3):
        version = None if number == collapsed else f"v1.0.{len(rows) - 1}"
        generations.append(generation(number, version, parent, "fail" if number == refused else "pass"))
        if version is not None:
            rows.append(row(version, "version", 60.0 * number + seed))
            parent = version
    rows += [row(name, "strategy", 30.0 * place - 100) for place, name in enumerate((*NAMES, "best-by-prompt"))]
    return {"seed": seed, "windows": 24, "generations": generations, "standings": rows, "seconds": 900.0, "processorSeconds": 1500.0}


RESULTS = [result(0), result(1, collapsed=2), result(2, refused=3)]


def test_base_every_version_and_every_script_stand_in_one_table() -> None:
    lines = table(RESULTS).splitlines()
    assert len(lines) == 2 + 1 + 3 * 3 + len(NAMES) + 1
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    for name in (*NAMES, "best-by-prompt", "base", "v1.0.0", "v1.0.1", "v1.0.2"):
        assert any(f"| {name} |" in line for line in lines), name
    assert "| 0 | 2 | v1.0.1 | +120 (+80 to +160) | +170 (+130 to +210) | +60 (" in table(RESULTS)
    assert "| +115 | 40 % (35 % to 45 %) | 20 % | pass, 24 |" in next(line for line in lines if line.startswith("| 0 | 2 |"))


def test_results_from_before_the_ceiling_have_no_share_of_it() -> None:
    old = result(0)
    old["standings"] = [
        {name: value for name, value in row.items() if not name.startswith(("expected", "ofCeiling"))}
        for row in old["standings"]
        if row["model"] != "best-by-prompt"
    ]
    assert "| - | - | 20 % | pass, 24 |" in table([old])
    assert "* Over conservative: " in (text := page([old], "a.png", "b.png", "one-tick")) and "Expected: +" not in text
    assert learning_curve([old]).startswith(b"\x89PNG")


def test_a_generation_without_a_version_and_one_that_the_gate_refused_are_shown() -> None:
    text = page(RESULTS, "evidence.png", "evidence-learning.png", "one-tick")
    assert "| 1 | 2 | no version |" in text
    assert f"* Seed 1, generation 2, played by v1.0.0: no version. {COLLAPSED}" in text
    assert "| fail, 24 |" in next(line for line in table(RESULTS).splitlines() if line.startswith("| 2 | 3 | v1.0.2 |"))
    assert "with 3 of 3 seeds" in text
    assert "Mean of 2 seeds" in text, "one seed has no second version"
    assert "Mean of 3 seeds" in text


def test_released_versions_stand_beside_ceiling_scripts_parents_and_a_loop_without_the_gate() -> None:
    refused_early = result(3, refused=2)
    ungated = result(3)
    text = page([*RESULTS, refused_early], "a.png", "b.png", "posts", {3: ungated})
    assert "* The last released version stands at 90 % of the ceiling or more with 0 of 4 seeds." in text, "180 of 300"
    over = r"[+-]\d+ \([+-]\d+ to [+-]\d+\) over markets, [+-]\d+ to [+-]\d+ over seeds; above it with 4 of 4 seeds\."
    assert re.search(rf"\* Over conservative: {over} Expected: {over}\n", text)
    assert "* At most, by the best play from the prompt, over contrarian: +150 (+150 to +150), expected +165 (+165 to +165).\n" in text
    assert "* Of 9 released versions 0 are worse than their parent beyond the interval." in text
    assert "* Not released: seed 2, generation 3 (fail, 24), seed 3, generation 2 (fail, 24)." in text
    assert "| 2 | v1.0.1, +122 (+82 to +162) | +117 | 41 % (36 % to 46 %) | v1.0.2, +182" in text
    assert "| not run | - | - |" in page([refused_early], "a.png", "b.png", "posts")
    assert goes_on_otherwise(refused_early) and not any(goes_on_otherwise(one) for one in RESULTS)


def test_a_verdict_says_over_how_many_markets_it_is() -> None:
    lines = table(RESULTS).splitlines()
    assert lines[3].startswith("| 0 | 1 | v1.0.0 |") and lines[3].endswith("| pass, 48 |")
    assert lines[4].endswith("| pass, 24 |")


def pairs_that_earn(*usd: float) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    base = row("base", "base", 0.0)
    return {seed: ({"pnls": [pnl + mean for pnl in base["pnls"]]}, base) for seed, mean in enumerate(usd)}


def test_a_mean_over_seeds_is_as_uncertain_as_the_seeds_differ() -> None:
    found = over_seeds(pairs_that_earn(279.0, 329.0, 95.0))
    assert [round(one.mean) for one in found.each.values()] == [279, 329, 95]
    assert (round(found.markets.mean), round(found.seeds.mean)) == (234, 234)
    assert (round(found.markets.low), round(found.markets.high)) == (234, 234), "every market tells the same of these three"
    assert (round(found.seeds.low), round(found.seeds.high)) == (-72, 540), "Student's with two degrees of freedom"


def test_the_page_gives_every_seed_and_both_intervals_of_their_mean() -> None:
    results = [result(seed) for seed in range(3)]
    for each, usd in zip(results, (279.0, 329.0, 95.0), strict=True):
        newest = next(row for row in each["standings"] if row["model"] == "v1.0.2")
        newest["pnls"] = [pnl + usd for pnl in base_of(each)["pnls"]]
        newest |= {"improvement": usd, "improvementLow": usd - 60, "improvementHigh": usd + 60}
    text = page(results, "a.png", "b.png", "one-tick")
    assert "seed 0 +279 (+219 to +339), seed 1 +329 (+269 to +389), seed 2 +95 (+35 to +155). Mean of 3 seeds +234: " in text
    assert "over markets, -72 to +540 over seeds: it holds 0" in text
    alone = page(results[:1], "a.png", "b.png", "one-tick")
    assert "One seed says nothing of another training." in alone and "with seed 0, up to" in alone and "inf" not in alone


def test_the_page_names_the_game_of_the_first_generations() -> None:
    told = page(RESULTS, "players.png", "curve.png", "amounts", first=("posts", 2))
    assert "--game amounts --generations 3 --begin posts:2`" in told and "The first 2 generations play posts" in told
    assert "--begin" not in page(RESULTS, "players.png", "curve.png", "amounts")
    with pytest.raises(ArgumentTypeError, match="posts:2"):
        evidence.beginning("posts")


def test_the_page_says_how_many_markets_a_wanted_improvement_needs() -> None:
    varied = result(0)
    newest = next(row for row in varied["standings"] if row["model"] == "v1.0.2")
    newest["pnls"] = [float(usd) for usd in 5 * PNL]
    text = page([varied], "a.png", "b.png", "one-tick")
    told = re.search(r"needs so many paired markets: (\d+) for \$50, (\d+) for \$100, (\d+) for \$200 an hour", text)
    assert told is not None
    assert int(told[1]) > int(told[2]) > int(told[3]) >= 2


def test_a_version_after_one_that_did_not_come_is_compared_with_its_parent() -> None:
    third = next(line for line in table(RESULTS).splitlines() if line.startswith("| 1 | 3 "))
    assert "+120 (" in third, "181 an hour, its parent of generation 1 earns 61"


@pytest.mark.slow
def test_nothing_is_claimed_when_no_seed_brought_a_version() -> None:
    empty = result(0)
    for one in empty["generations"]:
        one |= {"modelVersion": None, "failure": COLLAPSED, "released": False}
    empty["standings"] = [row for row in empty["standings"] if row["role"] != "version"]
    text = page([empty], "a.png", "b.png", "one-tick")
    assert "**No generation of any seed brought a version.**" in text
    assert players([empty]).startswith(b"\x89PNG")
    assert learning_curve([empty]).startswith(b"\x89PNG")


@pytest.mark.long
def test_pictures_are_the_same_bytes_for_the_same_results() -> None:
    assert players(RESULTS) == players(RESULTS)
    assert learning_curve(RESULTS) == learning_curve(RESULTS)


@pytest.mark.parametrize("change", [{"markets": 12}, {"pnls": [0.0] * MARKETS}])
def test_seeds_that_were_played_in_other_markets_are_not_put_side_by_side(change: dict[str, Any]) -> None:
    other = result(1)
    other["standings"][-1] = other["standings"][-1] | change
    with pytest.raises(UsageError, match="not played in the same markets"):
        require_comparable([result(0), other])


def at_a_stake(seed: int, usd: str) -> dict[str, Any]:
    one = result(seed)
    for each in one["standings"]:
        each |= {"meanStake": 1500.0, "hourlySharpe": 0.4, "worstHour": -300.0, "maxDrawdown": 90.0 + seed}
    one["standings"] += [
        row(f"{name} at ${usd}", "strategy", 40.0 + seed)
        | {"meanStake": float(usd.replace(",", "")), "hourlySharpe": 0.5, "worstHour": -310.0, "maxDrawdown": 80.0}
        for name in ("conservative", "news-reader")
    ]
    return one


def test_scripts_at_a_stake_stand_beside_the_version_of_their_own_seed() -> None:
    results = [at_a_stake(0, "1,847"), at_a_stake(1, "2,000")]
    require_comparable(results)
    assert {row["model"] for row in scripts(results)} == set(NAMES)
    assert " at $" not in table(results)
    lines = stakes(results).splitlines()
    own = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(("| 0 ", "| 1 "))]
    assert [cells[:2] for cells in own] == [
        ["0", "v1.0.2"], ["0", "conservative at $1,847"], ["0", "news-reader at $1,847"],
        ["1", "v1.0.2"], ["1", "conservative at $2,000"], ["1", "news-reader at $2,000"],
    ]  # fmt: skip
    assert own[1][2:] == ["+40 (+0 to +80)", "1847", "+0.50", "-310", "80"]
    assert stakes(results) in page(results, "a.png", "b.png", "amounts")
    assert stakes(RESULTS) == "", "one fixed stake"
    told = ", with $1,500 an order as in the plots; at each version's own stake they stand below."
    assert told in page(results, "a.png", "b.png", "amounts") and told not in page(RESULTS, "a.png", "b.png", "posts")


def test_the_page_has_errors_by_kind_of_the_last_released_version_and_names_a_hold_floor() -> None:
    told = result(0, refused=3)
    told["generations"][2] |= {"decision": "pass", "warning": "HOLD floor: v1.0.2 holds in 92% of its decisions."}
    told |= {"begunAt": "0123abcd", "commit": "4567cdef", "numbers": "bfloat16"}
    released = next(row for row in told["standings"] if row["model"] == "v1.0.1")
    released["errors"] = [Errors("stock report", 0, Counter(follows=3, against=1), 40.0, 80.0).document]
    text = page([told], "a.png", "b.png", "posts")
    assert "| 0 | v1.0.1 | stock report | 4 | 75% | 0% | 25% | 0% | 0% | 0% | +10.0 | +20.0 |" in text
    assert "* Not released: seed 0, generation 3 (pass, 24, not confirmed)." in text
    assert "* Seed 0: HOLD floor: v1.0.2 holds in 92% of its decisions." in text
    assert "(begun at 0123abcd, ended at 4567cdef)" in text and "minutes of processor time a seed, in bfloat16." in text
    assert "by kind of headline" not in page(RESULTS, "a.png", "b.png", "posts"), "decisions were not at hand"


def test_the_deployed_version_plays_next() -> None:
    released = generation(1, "v1.0.0", None) | {"released": True}
    refused = generation(2, "v1.0.1", "v1.0.0", "fail") | {"released": False}
    assert player_after([]) == "base"
    assert player_after([generation(1, None, None) | {"released": False}]) == "base"
    assert player_after([released, refused]) == "v1.0.0"


def test_a_database_in_the_settings_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://localhost/game\n")
    with pytest.raises(UsageError, match="each seed needs a database of its own"):
        evidence.evidence(1, 2, 2, tmp_path / "docs")


@pytest.mark.slow
def test_finished_seeds_are_read_and_nothing_is_played(packaged_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(packaged_base.parent, target_is_directory=True)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    (tmp_path / "docs").mkdir()
    for run in ("posts-3-generations-of-12-hours", "posts-3-generations-of-24-hours"):
        finished = evidence.Finished(tmp_path / "docs" / "evidence-posts.jsonl", run)
        for each in RESULTS:
            of_machine = {"checkpoint": str(tmp_path), "plot": str(tmp_path)}
            finished.add(f"seed-{each['seed']}", each | of_machine | {"generations": [one | of_machine for one in each["generations"]]})
    assert str(tmp_path) not in (tmp_path / "docs" / "evidence-posts.jsonl").read_text()
    found = evidence.evidence(3, 3, 24, tmp_path / "docs")["seeds"]
    about = {"run": "posts-3-generations-of-24-hours", **{name: found[0][name] for name in ("commit", "numbers")}}
    assert found == [about | {"name": f"seed-{one['seed']}"} | one for one in RESULTS]
    assert f" (at {about['commit']})" in (tmp_path / "docs" / "evidence-posts.md").read_text() or not about["commit"]
    assert not (tmp_path / "evidence").exists(), "nothing was played"
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {
        "evidence-posts.jsonl",
        "evidence-posts.md",
        "evidence-posts.png",
        "evidence-posts-learning.png",
    }


def test_runs_that_begin_alike_go_on_from_what_posts_kept(tmp_path: Path) -> None:
    begin = evidence.Beginning(POSTS, 2)
    posts, amounts = (tmp_path / evidence.run_name(*run) / "seed-0" for run in ((POSTS, 5, 24), (AMOUNTS, 5, 24, begin)))
    finished = evidence.Finished(tmp_path / "evidence.jsonl", posts.parent.name)
    for name, one in (("seed-0", result(0)), ("seed-1", result(1, refused=2))):
        finished.add(name, one)

    def found(seed: Path, game: Game, after: evidence.Beginning | None = None) -> Path | None:
        return evidence.beginning_of(seed, finished, game, after, 5, 24)

    assert found(amounts, AMOUNTS, begin) is None, "posts kept nothing, so it plays both generations itself"
    kept = [evidence.kept_copy(posts.with_name(name), 2) for name in ("seed-0", "seed-1")]
    for each in kept:
        each.mkdir(parents=True)
    assert found(amounts, AMOUNTS, begin) == kept[0] and found(posts, POSTS) is None
    assert found(posts.with_name("seed-0-without-gate"), POSTS) == kept[0]
    assert found(amounts.with_name("seed-0-without-gate"), AMOUNTS, begin) == kept[0]
    assert found(posts.with_name("seed-1-without-gate"), POSTS) is None, "the gate refused its second version"


def test_a_state_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "seed-0" / "checkpoints").mkdir(parents=True)
    interrupted = tmp_path / ".seed-0-after-2"
    interrupted.mkdir()
    (interrupted / "half.txt").touch()
    evidence.copy_state(tmp_path / "seed-0", tmp_path / "seed-0-after-2")
    assert [path.name for path in (tmp_path / "seed-0-after-2").iterdir()] == ["checkpoints"] and not interrupted.exists()


@pytest.mark.long
def test_an_interrupted_evidence_ends_all_its_seeds_and_keeps_what_the_base_played(packaged_base: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(packaged_base.parent, target_is_directory=True)
    few_markets = "import sys, benchmarks.evidence.__main__ as e; e.FEWEST_MARKETS = e.CONFIRMATION_MARKETS = 1; sys.exit(e.main())"
    command = [sys.executable, "-c", few_markets, "--seeds", "2", "--generations", "2", "--windows", "2", "--at-once", "1"]
    environment = os.environ | {"BABYLON_RL_HOME": str(tmp_path), "DATABASE_URL": "", "BENCHMARK_MARKETS": "2"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    seed = tmp_path / "evidence" / "posts-2-generations-of-2-hours" / "seed-0"
    while process.poll() is None and not list((seed / "children").glob("*.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 130 and b"Interrupted" in said, said.decode()
    assert not list((seed / "children").glob("*.json")), "its program is ended"
    assert not (seed.with_name("seed-1")).exists(), "the seed that waited is not begun"
    settings = load_settings(babylon_rl_home=seed, database_url=None)
    markets = {snapshot.id: snapshot.fingerprint for snapshot in (*benchmark_snapshots(2, POSTS), *confirmation_snapshots(0, 1, POSTS))}
    with open_database(settings) as database, database.connect() as connection:
        known = read_results(connection, "base", base_source(settings).identity, markets)
    assert known.keys() == markets.keys(), "the seed's gate finds what the base played"
