"""Runs are kept as they are finished: the same bytes for the same seed, never played twice, and whatever breaks loses only itself."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.errors import UsageError
from babylon_rl.evaluation.compare_results import compare_results
from babylon_rl.evaluation.harness import harness_players
from babylon_rl.evaluation.metrics import market_result
from babylon_rl.evaluation.play import benchmark_results, scripted
from babylon_rl.evaluation.result_checks import validate_result
from babylon_rl.evaluation.results import ANSWERS, DECISIONS, gate_files, read_result, record_runs
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.market.simulation.agents import STAKE_USD, Mandate
from babylon_rl.market.simulation.strategies import NAMES
from babylon_rl.store.database import Database
from babylon_rl_tests.evaluation.endpoint import always_buy, babble, endpoint
from babylon_rl_tests.evaluation.runs import model, results, roster, rows_in, small_markets

TICKS = 12


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def times_of(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def decisions(directory: Path, name: str) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob(f"{name}-*{DECISIONS}")):
        yield from (json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines())


@pytest.mark.parametrize("mandate", ["one-tick", "free"])
def test_every_agent_of_the_roster_leaves_sound_results(tmp_path: Path, mandate: Mandate) -> None:
    found = results(tmp_path, *NAMES, mandate=mandate)
    assert [(result.agent_id, result.complete) for result in found] == [(name, True) for name in NAMES for _ in range(3)]
    assert {problem for result in found for problem in validate_result(result)} == set()
    assert all(result.metrics.total_pnl == pytest.approx(result.equity[-1] - result.equity[0]) for result in found)
    assert all(result.trajectory.window_id == f"benchmark-{result.benchmark_id}" for result in found)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for directory in ("one", "other"):
        results(tmp_path / directory, "random", "balanced", "oracle", repeats=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other") and len(files_of(tmp_path / "one")) == 3 * 3 * 2 * 2


def test_repeats_have_other_luck(tmp_path: Path) -> None:
    found = results(tmp_path, "random", markets=1, repeats=4)
    assert len({result.metrics.total_pnl for result in found}) == 4 and [result.repeat for result in found] == [0, 1, 2, 3]


def test_finished_runs_are_not_played_again(tmp_path: Path) -> None:
    results(tmp_path, "balanced", "momentum")
    before = times_of(tmp_path)
    lost = next(tmp_path.glob("momentum-*[0-9a-f].json"))
    lost.unlink()
    again = benchmark_results(roster("balanced", "momentum", "nothing"), small_markets(), tmp_path)
    assert (again.played, again.known) == (1 + 3, 5) and lost.is_file()
    untouched = {name for name in before if lost.stem not in name}
    assert {name: when for name, when in times_of(tmp_path).items() if name in untouched} == {name: before[name] for name in untouched}


def test_asked_again_runs_are_played_anew_and_nothing_else_is(tmp_path: Path) -> None:
    with endpoint(m=always_buy) as served, model(served.url) as one:
        old = benchmark_results([one], small_markets(2), tmp_path).results
        served.rules = {"m": babble}
        kept = benchmark_results([one], small_markets(2), tmp_path)
        assert kept.results == old and served.asked["m"] == 2 * TICKS
        anew = benchmark_results([one], small_markets(1), tmp_path, again=True)
        assert (anew.played, anew.known, served.asked["m"]) == (1, 0, 3 * TICKS)
        assert anew.results[0].metrics.invalid_rate == 1.0 and anew.results[0].id == old[0].id
        assert benchmark_results([one], small_markets(2), tmp_path).results == [anew.results[0], old[1]]


def test_another_engine_asks_a_model_anew_and_its_results_stand_beside_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(m=always_buy) as served, model(served.url) as one:
        old = benchmark_results([one], small_markets(2), tmp_path).results
        served.rules = {"m": babble}
        with monkeypatch.context() as other:
            other.setattr("babylon_rl.evaluation.play.engine_version", lambda: "other fees")
            new = benchmark_results([one], small_markets(2), tmp_path).results
        assert served.asked["m"] == 4 * TICKS
        assert benchmark_results([one], small_markets(2), tmp_path).results == old and served.asked["m"] == 4 * TICKS
    found = compare_results([*new, *old], reference="m")
    assert [(row.agent, row.invalid_rate) for row in found.agents] == [("m", 0.0)]  # of the engine that runs now
    assert [one.file for one in found.refused] == [result.id for result in new]


def test_for_one_tick_everybody_has_the_same_stake(tmp_path: Path) -> None:
    everybody = [*roster(*NAMES), *harness_players(10)[5:]]
    stakes: dict[str, set[float]] = {}
    for result in benchmark_results(everybody, small_markets(), tmp_path).results:
        stakes.setdefault(result.agent_id, set()).update(one["usd"] for one in result.trajectory.actions if one["action"] == "open_perp")
    assert all(stakes[name] for name in ("conservative", "aggressive", "conservative-2", "aggressive-2"))
    assert set.union(*stakes.values()) == {STAKE_USD}


def test_a_file_that_cannot_be_read_is_played_again(tmp_path: Path) -> None:
    (first, *_) = results(tmp_path, "random")
    broken = tmp_path / f"random-{first.id.removeprefix('result-')}.json"
    broken.write_bytes(broken.read_bytes()[:100])
    again = benchmark_results(roster("random"), small_markets(), tmp_path)
    assert again.played == 1 and read_result(broken) == first


def test_every_decision_prompt_and_fill_of_a_model_is_kept(tmp_path: Path) -> None:
    with endpoint(m=always_buy) as served, model(served.url) as one:
        runs = benchmark_results([one], small_markets(), tmp_path)
    kept = list(decisions(tmp_path, "m"))
    assert runs.played == 3 and len(kept) == served.asked["m"] == 3 * TICKS
    assert all(line["call"]["messages"][0]["role"] == "system" and '"buy"' in line["call"]["response"] for line in kept)
    assert all(line["outcome"]["outcome"] == "filled" and line["outcome"]["price"] > 0 and line["closed"] for line in kept)
    assert all(result.metrics.timing.avg_response_time > 0 and not validate_result(result) for result in runs.results)
    assert not list(tmp_path.glob(f"*{ANSWERS}"))


def test_nonsense_is_counted_and_costs_the_turn(tmp_path: Path) -> None:
    with endpoint(m=babble) as served, model(served.url) as one:
        (result,) = benchmark_results([one], small_markets(1), tmp_path).results
    assert result.complete and sum(result.metrics.invalid.values()) == TICKS and result.metrics.invalid_rate == 1.0
    assert result.metrics.action_shares == {"invalid": 1.0} and result.metrics.total_pnl == 0.0 and not validate_result(result)


def test_an_endpoint_that_breaks_off_loses_nothing_else_and_the_next_call_goes_on(tmp_path: Path) -> None:
    markets = small_markets()
    with endpoint(m=always_buy) as served, model(served.url) as one:
        players = [one, *roster("balanced")]
        served.breaks_after = TICKS + 5
        broken = benchmark_results(players, markets, tmp_path, concurrency=1)
        assert [result.agent_id for result in broken.results] == ["m", "balanced", "balanced", "balanced"]
        assert [(left.agent, left.ticks_processed, left.ticks) for left in broken.unfinished] == [("m", 5, TICKS), ("m", 0, TICKS)]
        assert "Stopped at tick 5 of 12" in broken.unfinished[0].reason and "Not begun" in broken.unfinished[1].reason
        partial = read_result(next(tmp_path.glob("*.partial.json")))
        assert (partial.complete, partial.ticks_processed, validate_result(partial)) == (False, 5, [])
        served.breaks_after = None
        whole = benchmark_results(players, markets, tmp_path)
        assert served.asked["m"] == 3 * TICKS  # the answers from before the break were not asked for again
    assert (whole.played, whole.known, whole.unfinished) == (2, 4, []) and not list(tmp_path.glob("*.partial.json"))


def test_a_run_that_was_broken_off_ends_like_one_that_was_not(tmp_path: Path) -> None:
    with endpoint(m=always_buy) as served, model(served.url) as one:
        straight = benchmark_results([one], small_markets(1), tmp_path / "straight").results[0]
        served.breaks_after = TICKS + 7
        benchmark_results([one], small_markets(1), tmp_path / "broken")
        (answers,) = (tmp_path / "broken").glob(f"*{ANSWERS}")
        with answers.open("ab") as file:
            file.write(b'{"key": "cut o')  # as a kill leaves it
        served.breaks_after = None
        resumed = benchmark_results([one], small_markets(1), tmp_path / "broken").results[0]
        assert served.asked["m"] == 2 * TICKS
    assert resumed.trajectory == straight.trajectory and resumed.metrics.total_pnl == straight.metrics.total_pnl


def test_a_model_that_is_down_from_the_start_has_runs_that_were_not_begun(tmp_path: Path) -> None:
    with model("http://127.0.0.1:9/v1") as one:
        runs = benchmark_results([one, *roster("nothing")], small_markets(), tmp_path, concurrency=1)
    assert len(runs.results) == 3 and [left.ticks_processed for left in runs.unfinished] == [0, 0, 0]
    assert "does not answer" in runs.unfinished[0].reason


def test_progress_counts_decisions_of_what_is_missing(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    benchmark_results(roster("nothing"), small_markets(), tmp_path, on_progress=lambda *one: told.append(one))
    assert told[-1] == ("decisions", 3 * TICKS, 3 * TICKS) and [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    told.clear()
    benchmark_results(roster("nothing"), small_markets(), tmp_path, on_progress=lambda *one: told.append(one))
    assert told == []


def test_the_row_that_the_gate_stores_is_a_view_of_the_result_that_it_keeps(tmp_path: Path) -> None:
    snapshots = benchmark_snapshots(3)
    for name in ("balanced", "nothing"):
        rows = rows_in(scripted(name), snapshots, home=tmp_path)
        kept = [read_result(gate_files(tmp_path, name, snapshot.id).path(".json")) for snapshot in snapshots]
        assert [market_result(result, snapshot) for result, snapshot in zip(kept, snapshots, strict=True)] == rows
        assert [row.pnl_usd for row in rows] == pytest.approx([result.pnl_usd for result in kept])
        assert [list(row.pnl_path) for row in rows] == [result.pnl_path for result in kept]
        assert [validate_result(result) for result in kept] == [[], [], []]


def test_two_agents_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="each agent once"):
        benchmark_results(roster("nothing", "nothing"), small_markets(1), tmp_path)


def test_a_run_is_recorded_once_with_its_prompts_and_never_as_training_data(database: Database, tmp_path: Path) -> None:
    markets = small_markets(1)
    with endpoint(m=always_buy) as served, model(served.url) as one:
        runs = benchmark_results([one, *roster("oracle")], markets, tmp_path)
    with database.connect() as connection:
        assert (record_runs(connection, runs.files), record_runs(connection, runs.files)) == (2, 0)
        rows = connection.execute(
            'SELECT "agentId", "scenarioId", "windowId", "isEvaluation", "isTrainingData", "episodeLength", "finalPnL",'
            ' jsonb_array_length("stepsJson"::jsonb) FROM trajectories ORDER BY "agentId"'
        ).fetchall()
        calls = connection.execute("SELECT count(*) FROM llm_call_logs").fetchone()
    name = f"benchmark-{markets[0].id}"
    pnls = [round(result.metrics.total_pnl, 6) for result in runs.results]
    assert [(*row[:6], round(row[6], 6), row[7]) for row in rows] == [
        ("benchmark-m", name, name, True, False, 12, pnls[0], 12),
        ("benchmark-oracle", name, name, True, False, 12, pnls[1], 12),
    ]
    assert calls == (12,)
