"""The ceiling: best play by the prompt, expected dollars of decisions, errors by kind of headline."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.ceiling import KINDS, ceiling_usd, errors, expected_usd
from babylon_rl.evaluation.compare_results import compare_results
from babylon_rl.evaluation.gate import compare
from babylon_rl.evaluation.metrics import result_id
from babylon_rl.evaluation.play import appraised_row, benchmark_results, gate_job, gate_key, gate_script, market_rows, script_rows, scripted
from babylon_rl.evaluation.report import AGENTS, CEILING, ceiling_words, gate_columns
from babylon_rl.evaluation.results import Result, gate_files
from babylon_rl.evaluation.snapshots import benchmark_snapshots, snapshots_named
from babylon_rl.evaluation.statistics.intervals import linearised, mean_interval
from babylon_rl.market.simulation.agents import Mandate
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import AMOUNTS, POSITIONS, POSTS
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.prompt_reader import CEILINGS, WITH_POSITIONS, appraised, course_usd
from babylon_rl.market.simulation.record import HOLD
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.strategies import factory, player
from babylon_rl.store.benchmarks import Errors

MARKETS = benchmark_snapshots(24)


def ran(name: str) -> list[Result]:
    return [gate_job(scripted(name), snapshot).result(lambda done, of: None) for snapshot in MARKETS]


@pytest.mark.parametrize(("name", "usd"), [("best-by-prompt", 257.5), ("best-with-posts", 269.3), ("best-with-amounts", 874.2)])
def test_expected_dollars_of_the_best_play_are_what_it_earns_on_average(name: str, usd: float) -> None:
    hours = [generate(preset("hour", seed=f"ceiling/{number}", edition="training")) for number in range(300)]
    earned = [play(hour, {"p": factory(name, hour, stake_usd=1500.0)}, seed=str(hour.config.seed)).pnl_usd["p"] for hour in hours]
    expected = [sum(appraised(hour, CEILINGS[name])[1]) for hour in hours]
    luck = [a - b for a, b in zip(earned, expected, strict=True)]
    assert abs(fmean(luck)) < 3 * stdev(luck) / math.sqrt(len(luck))
    assert abs(fmean(expected) - usd) < 3 * stdev(expected) / math.sqrt(len(expected)), "as over 3,000 held-out markets"


@pytest.mark.parametrize("name", CEILINGS)
def test_the_best_play_has_a_mandate(name: str) -> None:
    other: Mandate = "free" if CEILINGS[name].mandate == "one-tick" else "one-tick"
    with pytest.raises(MarketError, match=f"under the mandate {CEILINGS[name].mandate}: it has none under {other}"):
        factory(name, MARKETS[0].scenario, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best-with-positions", "aggressive"])
def test_expected_dollars_of_positions_that_last_are_earned_on_average(name: str) -> None:
    luck = []
    for number in range(150):
        hour = generate(preset("hour", seed=f"positions/{number}", edition="training"))
        record = play(hour, {"p": player(name, hour, POSITIONS)}, game=POSITIONS).records["p"]
        filled = iter(
            [action if isinstance(outcome, Fill) else HOLD for action, outcome in zip(record.actions, record.outcomes, strict=True)]
        )
        expected = course_usd(hour, WITH_POSITIONS, lambda _, filled=filled: next(filled))
        luck.append(record.pnl_usd - expected)
        assert name == "aggressive" or expected == pytest.approx(course_usd(hour, WITH_POSITIONS))
    assert abs(fmean(luck)) < 3 * stdev(luck) / math.sqrt(len(luck))


def test_a_course_begins_with_the_snapshots_balance() -> None:
    hour = benchmark_snapshots(1, POSITIONS)[0].scenario
    poor, rich = (course_usd(hour, WITH_POSITIONS, start_balance=usd) for usd in (1_000.0, 100_000.0))
    assert 0 < poor < rich and course_usd(hour, WITH_POSITIONS, start_balance=100.0) == 0.0


def test_no_script_comes_near_the_best_answers_of_positions_that_last() -> None:
    compared = compare(script_rows(benchmark_snapshots(24, POSITIONS)), None, None, game=POSITIONS)
    shares = {row.player: row.of_ceiling.mean for row in compared.rows if row.of_ceiling is not None}
    assert shares.pop("best-with-positions") == pytest.approx(1.0) and max(shares.values()) < 0.6 and shares["nothing"] == 0.0


def test_no_player_expects_more_than_the_ceiling_and_the_ceiling_is_all_of_it() -> None:
    compared = compare(script_rows(MARKETS), None, None)
    shares = {row.player: row.of_ceiling.mean for row in compared.rows if row.of_ceiling is not None}
    assert shares.pop("best-by-prompt") == pytest.approx(1.0)
    # What the news reader and the oracle know more than the prompt shows is no reason by it.
    assert not {"news-reader", "oracle"} & set(shares)
    document = compared.row("oracle").document
    assert document["expected"] is document["ofCeiling"] is document["ofCeilingLow"] is None
    staked = compare(script_rows(MARKETS, ["news-reader", "balanced"], 3000.0), None, None)
    assert [row.expected is None for row in staked.rows] == [True, False]
    assert max(shares.values()) < 1.0 and shares["nothing"] == 0.0 and 0.95 < shares["conservative"] < 1.0
    assert shares["contrarian"] < 0.0
    document = compared.row("conservative").document
    assert document["expected"] == pytest.approx(fmean(result.expected_usd or 0.0 for result in compared.row("conservative").results))
    assert document["ofCeilingLow"] < document["ofCeiling"] < document["ofCeilingHigh"]


def test_a_stored_row_has_expected_dollars_where_its_decisions_are(tmp_path: Path) -> None:
    player, snapshot = scripted("balanced"), MARKETS[3]
    (row,) = market_rows([gate_job(player, snapshot, tmp_path)])
    stored = replace(row, expected_usd=None, ceiling_usd=None)
    assert appraised_row(stored, player.name, player.identity, snapshot, tmp_path) == row
    assert appraised_row(stored, player.name, "other weights", snapshot, tmp_path) == stored
    assert appraised_row(stored, player.name, player.identity, snapshot, tmp_path / "elsewhere") == stored
    assert result_id(gate_key(player.identity, snapshot.fingerprint)) == gate_job(player, snapshot, tmp_path).result(lambda *_: None).id


def test_decisions_of_a_game_are_found_under_the_name_that_all_games_once_had(tmp_path: Path) -> None:
    snapshot, player = benchmark_snapshots(1, POSTS)[0], gate_script("balanced", POSTS)
    (row,) = market_rows([gate_job(player, snapshot, tmp_path)])
    stored = replace(row, expected_usd=None, ceiling_usd=None)
    assert appraised_row(stored, player.name, player.identity, snapshot, tmp_path) == row
    gate_files(tmp_path, player.name, snapshot.id, "posts").path(".json").rename(
        gate_files(tmp_path, player.name, snapshot.id).path(".json")
    )
    assert appraised_row(stored, player.name, player.identity, snapshot, tmp_path) == row


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"ofCeiling": None}, "its expected dollars are not known, as its decisions are not on this machine."),
        ({"ofCeiling": None, "game": "posts"}, "its expected dollars are not known, as its decisions are not on this machine."),
        ({"game": "posts"}, "its report is from before expected dollars were computed."),
        ({}, "its report is from before expected dollars were computed."),
    ],
)
def test_unknown_expected_dollars_have_their_own_reason(row: dict[str, object], why: str) -> None:
    assert ceiling_words({"model": "v1.0.0", **row}).endswith(why)


def test_errors_stand_by_kind_and_by_text() -> None:
    markets = {snapshot.id: snapshot for snapshot in MARKETS}
    (kinds, texts), (wrong, misread) = (errors(ran(name), markets) for name in ("conservative", "contrarian"))
    assert [one.name for one in kinds] == list(KINDS)
    assert sum(one.decisions for one in kinds) == 24 * 12
    by_name = {one.name: one.document for one in kinds}
    assert by_name["stock report"]["follows"] == 1.0 and by_name["rumour"]["hold"] == 1.0
    assert by_name["stock report"]["usd"] == pytest.approx(by_name["stock report"]["followingUsd"])
    assert all(not one.lost_usd for one in texts if one.found["follows"] == one.decisions)
    against = next(one.document for one in wrong if one.name == "stock report")
    assert against["against"] > 0.3 and against["usd"] < 0 < against["followingUsd"]
    assert misread[0].lost_usd == max(one.lost_usd for one in misread) > 100
    assert all("{c}" in one.name or "{question}" in one.name for one in misread)
    total = sum(expected_usd(result, markets[result.benchmark_id]) for result in ran("contrarian"))
    assert sum(one.usd for one in wrong) == pytest.approx(total) and total < sum(ceiling_usd(snapshot) for snapshot in MARKETS)


@pytest.mark.parametrize("stake", [500.0, 5000.0])
def test_following_stakes_what_the_decision_staked(stake: float) -> None:
    snapshots = benchmark_snapshots(12, AMOUNTS)
    markets = {snapshot.id: snapshot for snapshot in snapshots}

    def found(name: str) -> tuple[list[Errors], list[Errors]]:
        player = gate_script(name, AMOUNTS, stake)
        return errors([gate_job(player, snapshot).result(lambda done, of: None) for snapshot in snapshots], markets)

    kinds, texts = found("conservative")
    reports = next(one for one in kinds if one.name == "stock report")
    assert reports.document["follows"] == 1.0 and reports.usd == reports.following_usd > 0
    assert not any(one.lost_usd for one in texts if one.found["follows"] == one.decisions)
    # The other way loses by the same stake.
    against = next(
        one for one in found("contrarian")[1] if one.found["against"] == one.decisions and one.name in {text.name for text in texts}
    )
    followed = next(text for text in texts if text.name == against.name)
    assert against.following_usd / against.decisions == pytest.approx(followed.following_usd / followed.decisions, rel=0.2)


def test_a_ratio_of_sums_is_paired_by_market() -> None:
    whole = [100.0 + 20 * number for number in range(24)]
    same = mean_interval(linearised([0.8 * usd for usd in whole], whole))
    assert (round(same.mean, 6), round(same.low, 6), round(same.high, 6)) == (0.8, 0.8, 0.8)
    varied = mean_interval(linearised([usd * (0.7 if number % 2 else 0.9) for number, usd in enumerate(whole)], whole))
    assert varied.low < 0.8 < varied.high


@pytest.mark.slow
def test_tables_of_runs_have_the_columns_of_the_gates(tmp_path: Path) -> None:
    markets = snapshots_named(["preset:quick:seeds=1-2"])
    players = [scripted(name) for name in ("best-by-prompt", "nothing", "oracle")] + [replace(scripted("balanced", "free"), name="lasts")]
    runs = benchmark_results(players, markets, tmp_path, repeats=2)
    rows = {row.agent: row for row in compare_results(runs.results).agents}
    best, nothing = rows["best-by-prompt"], rows["nothing"]
    assert best.expected is not None and best.expected.mean > 0 and best.of_ceiling is not None and best.of_ceiling.mean == pytest.approx(1)
    assert nothing.expected is not None and nothing.expected.mean == 0
    # Positions that last until a question is answered, and a player that knows more than the prompt shows, have neither.
    assert [(rows[name].expected, rows[name].of_ceiling) for name in ("oracle", "lasts")] == [(None, None)] * 2
    cells = {column.title: column.cell(best) for column in AGENTS}
    assert cells["of the ceiling"] == "100% [100%, 100%]" and str(cells["expected, $"]).startswith("+")
    assert all(column in AGENTS and column.title in [one.title for one in gate_columns("base")] for column in CEILING)
