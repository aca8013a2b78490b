"""Comparisons pair what can be paired, correct for how much is compared, and say what they leave out."""

import json
from pathlib import Path

import msgspec
import pytest

from babylon_rl.errors import UsageError
from babylon_rl.evaluation.compare_results import compare_results, result_files, sound_results
from babylon_rl.evaluation.html_report import write_report
from babylon_rl.evaluation.html_report.page import summarized
from babylon_rl.evaluation.play import benchmark_results
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.snapshot_file import benchmark_scenario, from_scenario
from babylon_rl.evaluation.snapshots import snapshot_of
from babylon_rl.market.headlines import TRAINING_EDITIONS
from babylon_rl.market.simulation.agents import STAKE_USD
from babylon_rl.market.simulation.config import preset
from babylon_rl_tests.evaluation.runs import results, roster

MARKETS = 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    results(path, "oracle", "random", "nothing", markets=MARKETS, repeats=2)
    return path


@pytest.fixture(scope="module")
def sound(directory: Path) -> list[Result]:
    found, refused = sound_results(result_files(directory))
    assert len(found) == 3 * MARKETS * 2 and not refused
    return found


def of(found: list[Result], *names: str) -> list[Result]:
    return [result for name in names for result in found if result.agent_id == name]


def test_pairs_are_of_the_same_market_and_repeat_and_markets_count_once(sound: list[Result]) -> None:
    comparison = compare_results(of(sound, "oracle", "nothing"))
    (pair,) = comparison.pairs
    assert (pair.a, pair.b, pair.snapshots, pair.runs, pair.winner) == ("oracle", "nothing", MARKETS, 2 * MARKETS, "oracle")
    mean = sum(result.metrics.total_pnl for result in of(sound, "oracle")) / (2 * MARKETS)
    assert pair.difference.mean == pytest.approx(mean) and pair.difference.low is not None and 0 < pair.difference.low < mean
    assert pair.p == pair.adjusted_p == pytest.approx(2 / 2**MARKETS) and pair.better_share.mean == 1.0


def test_with_more_than_two_all_pairs_are_corrected_for(sound: list[Result]) -> None:
    comparison = compare_results(of(sound, "random", "oracle", "nothing"))
    assert [(pair.a, pair.b) for pair in comparison.pairs] == [("random", "oracle"), ("random", "nothing"), ("oracle", "nothing")]
    by_p = sorted(comparison.pairs, key=lambda pair: pair.p)
    assert by_p[0].adjusted_p == pytest.approx(3 * by_p[0].p) and all(pair.adjusted_p >= pair.p for pair in comparison.pairs)
    against = compare_results(sound, reference="nothing")
    assert {(pair.a, pair.b) for pair in against.pairs} == {("random", "nothing"), ("oracle", "nothing")}


def test_nobody_wins_by_chance_or_in_one_market(sound: list[Result]) -> None:
    only = [result for result in of(sound, "oracle", "nothing") if result.snapshot == sound[0].snapshot]
    (pair,) = compare_results(only).pairs
    assert (pair.snapshots, pair.winner, pair.difference.low, pair.effect_size) == (1, None, None, None)


def test_a_row_has_the_worst_market_and_the_mean_stake_of_opening_orders(sound: list[Result]) -> None:
    rows = {row.agent: row for row in compare_results(sound).agents}
    assert rows["random"].worst == min(result.metrics.total_pnl for result in of(sound, "random"))
    assert rows["nothing"].mean_stake is None
    assert rows["oracle"].mean_stake == pytest.approx(STAKE_USD), "of a question before its factor"


def test_the_shape_is_that_of_the_games_own(sound: list[Result]) -> None:
    document = compare_results(sound).document
    assert {"runs", "comparison"} <= set(document) and len(document["runs"]) == len(sound)
    assert set(document["comparison"]) == {"avgPnl", "avgAccuracy", "avgOptimality", "bestRun", "worstRun"}
    pnls = {run["id"]: run["metrics"]["totalPnl"] for run in document["runs"]}
    best, worst = document["comparison"]["bestRun"], document["comparison"]["worstRun"]
    assert pnls[best] == max(pnls.values()) and pnls[worst] == min(pnls.values())
    json.dumps(document, allow_nan=False)


def test_the_order_of_files_changes_nothing_but_the_order_of_agents(sound: list[Result]) -> None:
    one = compare_results(of(sound, "oracle", "random"))
    other = compare_results(of(sound, "oracle", "random")[::-1], reference="random")
    assert one.pairs == other.pairs


def test_unsound_and_unfinished_results_stay_out_and_are_named(directory: Path, tmp_path: Path) -> None:
    for path in directory.glob("nothing-*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    doctored, cut, *_ = result_files(tmp_path)
    changed = json.loads(doctored.read_bytes())
    changed["metrics"]["totalPnl"] = 5_000.0
    doctored.write_text(json.dumps(changed))
    cut.write_bytes(cut.read_bytes()[:50])
    found, refused = sound_results(result_files(tmp_path))
    assert len(found) == 2 * MARKETS - 2 and {one.file for one in refused} == {str(doctored), str(cut)}
    comparison = compare_results(found, refused)
    assert comparison.agents[0].runs == len(found) and "2 results are left out" in " ".join(comparison.notes)
    assert "totalPnl is 5000.0" in " ".join(reason for one in refused for reason in one.reasons)


def test_what_cannot_be_paired_is_said(sound: list[Result]) -> None:
    few = [result for result in of(sound, "random") if result.repeat == 0]
    comparison = compare_results([*of(sound, "oracle"), *few])
    assert comparison.pairs[0].runs == MARKETS and f"share {MARKETS} of {2 * MARKETS} runs" in " ".join(comparison.notes)
    other_seed = [msgspec.structs.replace(result, seed=9) for result in few]
    assert "share no run" in " ".join(compare_results([*of(sound, "oracle"), *other_seed]).notes)


def test_one_name_with_two_identities_is_two_agents(sound: list[Result]) -> None:
    later = [msgspec.structs.replace(result, identity="fedcba987654") for result in of(sound, "random")]
    comparison = compare_results([*of(sound, "random"), *later])
    before = of(sound, "random")[0].identity[:6]
    assert [row.agent for row in comparison.agents] == [f"random (one-tick, {before})", "random (one-tick, fedcba)"]
    assert len(comparison.pairs) == 1
    free = [msgspec.structs.replace(result, mandate="free") for result in later]
    assert [row.agent for row in compare_results([*of(sound, "random"), *free]).agents] == ["random (one-tick)", "random (free)"]


def test_results_of_another_engine_are_left_out_and_named_and_names_stay_plain(sound: list[Result], tmp_path: Path) -> None:
    older = [msgspec.structs.replace(result, engine="0", id=f"old-{result.id}") for result in sound]
    now, both = compare_results(sound, reference="oracle"), compare_results([*older, *sound], reference="oracle")
    assert (both.agents, both.pairs, both.runs) == (now.agents, now.pairs, now.runs)  # no row twice, nothing more to correct for
    assert [one.file for one in both.refused] == [result.id for result in older]
    assert f"{len(older)} results of another version of the engine are left out" in " ".join(both.notes)
    assert len(summarized([*older, *sound]).agents) == 3 and write_report([*older, *sound], tmp_path)[0].is_file()
    with pytest.raises(UsageError, match="no result of 'oracle'; there are results of nothing.*of another version of the engine"):
        compare_results([*of(older, "oracle"), *of(sound, "nothing")], reference="oracle")


def test_of_former_engines_the_one_with_most_results_is_compared(sound: list[Result]) -> None:
    former = [msgspec.structs.replace(result, engine="8" if result.repeat else "9") for result in sound]
    fewer = [result for result in former if result.engine == "8" or result.agent_id != "random"]
    assert {run.engine for run in compare_results(fewer).runs} == {"8"}


@pytest.mark.parametrize("edition", TRAINING_EDITIONS)
def test_a_market_with_the_words_of_training_hours_is_warned_of(sound: list[Result], tmp_path: Path, edition: str) -> None:
    assert "training edition" not in " ".join(compare_results(sound).notes)
    market = snapshot_of(from_scenario(benchmark_scenario(preset("quick", edition=edition, seed=3, minutes=12))))
    (seen,) = benchmark_results(roster("nothing"), [market], tmp_path / "runs").results
    assert "training edition: they are not unseen" in " ".join(compare_results([*sound, seen]).notes)
    assert "training edition" in write_report([seen], tmp_path / "report")[0].read_text()


def test_nothing_to_compare_is_a_sentence(sound: list[Result], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sound result"):
        compare_results([])
    with pytest.raises(UsageError, match="no result of 'me'; there are results of oracle"):
        compare_results(of(sound, "oracle"), reference="me")
    with pytest.raises(UsageError, match="holds no results"):
        result_files(tmp_path)
