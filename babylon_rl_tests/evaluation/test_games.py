"""A version is compared in the game of its training calls; where it chooses dollars, beside scripts at its size."""

from dataclasses import replace
from typing import Any

import pytest

from babylon_rl.evaluation.benchmark import evaluate_batch
from babylon_rl.evaluation.gate import BASE, CANDIDATE, HOLD_FLOOR, STRATEGY, compare, decide, hold_floor
from babylon_rl.evaluation.leaderboard import leaderboard
from babylon_rl.evaluation.leaderboard import markdown as leaderboard_markdown
from babylon_rl.evaluation.play import gate_job, gate_script, market_rows, script_rows
from babylon_rl.evaluation.report import demo_columns, gate_columns, markdown, rows_of, stored_standing
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.evaluation.stakes import AT_THE_STAKE, game_of_report, scripts_at_stake
from babylon_rl.market.simulation.games import AMOUNTS, GAMES, ONE_TICK_GAME, POSITIONS, POSTS, Game
from babylon_rl.market.simulation.prompt_reader import WITH_AMOUNTS
from babylon_rl.types import BenchmarkReport
from babylon_rl_tests.evaluation.conftest import NOW, simulated
from babylon_rl_tests.evaluation.endpoint import at_size, endpoint, hold, reads_fresh, reads_news
from babylon_rl_tests.evaluation.results import result

EACH = pytest.mark.parametrize("game", GAMES.values(), ids=list(GAMES))


@pytest.mark.long
def test_a_version_trained_on_amounts_is_compared_in_amounts_beside_scripts_at_its_stake(connection, settings, make_version) -> None:
    batch = make_version("v1.0.0", game=AMOUNTS)
    with endpoint(base=hold, **{"v1.0.0": at_size(reads_news, "large")}) as served:
        report = evaluate_batch(connection, batch, settings, lambda line: None, clock=lambda: NOW, serving=served.serving)
        asked = dict(served.asked)
        again = evaluate_batch(connection, batch, settings, lambda line: None, clock=lambda: NOW, serving=served.serving)
        assert served.asked == asked and again == report  # stored results are those of the game
        rows = {row["model"]: row for row in report.rows}
        ours, reader = rows["v1.0.0"], rows["news-reader at $5,000"]
        assert game_of_report(report) == "amounts" and ours["meanStake"] == pytest.approx(5000) and ours["invalid"] == 0
        assert set(rows) >= {f"{name} at $5,000" for name in AT_THE_STAKE} and rows["news-reader"]["meanStake"] == pytest.approx(1500)
        assert reader["meanStake"] == pytest.approx(5000) and reader["pnl"] > 2 * rows["news-reader"]["pnl"]
        words = stored_standing(ours)
        assert "the best script at its mean stake of $5,000 (" in words and "the news reader at $5,000 (" in words
        assert "Sharpe of hours +" in words and "worst hour" in words and "drawdown" in words
        assert "all playing amounts" in report.table_markdown and "mean stake, $" in report.table_markdown
        # The same weights in another game are asked anew: their results have other keys.
        other = make_version("v1.0.1")
        served.rules = {**served.rules, "v1.0.1": reads_news}
        before = served.asked["base"]
        plain = evaluate_batch(connection, other, settings, lambda line: None, clock=lambda: NOW, serving=served.serving)
    assert served.asked["base"] > before and game_of_report(plain) == "one-tick"
    assert not any(" at $" in row["model"] for row in plain.rows) and "mean stake" not in plain.table_markdown
    board = leaderboard(connection, settings)
    assert list(board.unranked.items()) == [("v1.0.0", "It plays amounts; the newest version, and this leaderboard, one-tick.")]
    assert not board.sized and not any(" at $" in line.row.player for line in board.lines)


@pytest.mark.long
def test_a_leaderboard_of_amounts_has_scripts_at_the_best_versions_stake(connection, settings, make_version) -> None:
    batch = make_version("v1.0.0", game=AMOUNTS)
    with endpoint(base=hold, **{"v1.0.0": at_size(reads_news, "large")}) as served:
        evaluate_batch(connection, batch, settings, lambda line: None, clock=lambda: NOW, serving=served.serving)
    board = leaderboard(connection, settings)
    assert {line.row.player for line in board.lines} >= {f"{name} at $5,000" for name in AT_THE_STAKE}
    shown = leaderboard_markdown(board)
    assert "mean stake, $" in shown and "worst hour, $" in shown and "news-reader at $5,000" in shown


@pytest.mark.long
def test_the_deployed_version_of_another_game_is_the_reference_in_the_candidates(connection, settings, make_version) -> None:
    make_version("v1.0.0", status="deployed", game=ONE_TICK_GAME)
    batch = make_version("v1.0.1", parent="v1.0.0", game=POSTS)
    decided_at_once = settings.model_copy(update={"benchmark_markets": 2})
    with endpoint(base=hold, **{"v1.0.0": reads_news, "v1.0.1": hold}) as served:
        report = evaluate_batch(connection, batch, decided_at_once, lambda line: None, clock=lambda: NOW, serving=served.serving)
    assert (report.reference, game_of_report(report)) == ("v1.0.0", "posts")
    assert "v1.0.0 was trained in one-tick and plays posts here." in report.reason


@pytest.mark.long
def test_a_version_that_is_refused_before_the_gate_keeps_its_game(connection, settings, make_version) -> None:
    parent, batch = make_version("v1.0.0", game=POSTS), make_version("v1.0.1", parent="v1.0.0", game=POSTS)
    simulated(connection)
    few = settings.model_copy(update={"benchmark_markets": 2})

    def evaluated(batch: str) -> BenchmarkReport:
        with endpoint(base=hold, **{"v1.0.0": reads_fresh(0.0), "v1.0.1": hold}) as served:
            return evaluate_batch(connection, batch, few, lambda line: None, clock=lambda: NOW, serving=served.serving)

    evaluated(parent)
    refused = evaluated(batch)
    assert refused.decision == "fail" and refused.reference is None and game_of_report(refused) == "posts"
    assert {row["game"] for row in refused.rows} == {"posts"} and "all playing posts" in refused.table_markdown
    # Nothing says in which game a version is that is not here: it does not choose the leaderboard's.
    absent = evaluated(make_version("v1.0.2", base_model="dry"))
    assert absent.decision == "not_compared" and game_of_report(absent) is None
    board = leaderboard(connection, few)
    assert {"v1.0.0", "base", "best-with-posts"} <= {line.row.player for line in board.lines}
    assert board.unranked["v1.0.1"] == refused.reason


def test_a_stake_is_what_the_name_says_whatever_was_played_before() -> None:
    snapshots = benchmark_snapshots(2, AMOUNTS)
    played = [script_rows(snapshots, ["conservative"], stake)["conservative at $2,718"] for stake in (2717.6, 2718.4)]
    ((_, first), (_, second)) = played
    assert first == second
    mean = sum(one.staked_usd for one in first) / sum(one.predictions for one in first)
    assert mean == pytest.approx(2718.0, abs=1e-6)


@EACH
def test_scripts_play_the_gates_markets_of_every_game(game: Game) -> None:
    snapshots = benchmark_snapshots(3, game)
    rows = script_rows(snapshots)
    assert len({snapshot.fingerprint for snapshot in (*snapshots, *benchmark_snapshots(3, POSTS))}) == (3 if game == POSTS else 6)
    assert all(role == STRATEGY and len(results) == 3 for role, results in rows.values())
    stakes = {name: sum(r.staked_usd for r in results) / max(1, sum(r.predictions for r in results)) for name, (_, results) in rows.items()}
    assert stakes["nothing"] == 0 and stakes["oracle"] > 0
    # Only the best play of a game with amounts chooses its own.
    best = {WITH_AMOUNTS.name: 5000} if game == AMOUNTS else {}
    fixed = {round(stake) for name, stake in stakes.items() if name not in best}
    assert game == POSITIONS or (fixed == {0, 1500} and {name: round(stakes[name]) for name in best} == best)
    reader = rows["news-reader"][1]
    staked = scripts_at_stake(snapshots, reader)
    assert bool(staked) == game.names_size and market_rows([gate_job(gate_script("news-reader", game), snapshots[0])]) == reader[:1]


def played(held: int, own_trade_usd: float | None) -> Any:
    """A comparison whose candidate holds in ``held`` of twelve decisions of every market."""
    acted = {"trades": 12 - held, "actions": {"buy": 12 - held, "sell": 0, "hold": held}, "predictions": 12 - held}
    ours = [result(index, 1.0 + index, wins=0, losses=0, predictions_right=0, **acted) for index in range(4)]
    theirs = [result(index, 0.5 * index) for index in range(4)]
    rows = {"v1.0.0": (CANDIDATE, ours), BASE: (BASE, theirs)}
    return replace(compare(rows, "v1.0.0", BASE), own_trade_usd=own_trade_usd, learned_from=())


def test_a_version_that_learned_to_do_nothing_is_named() -> None:
    comparison = played(11, -3.1)
    warning = hold_floor(comparison)
    assert warning is not None and HOLD_FLOOR < 11 / 12
    assert warning.startswith("HOLD floor: v1.0.0 holds in 92% of its decisions, and the average trade") and "lost $3.10" in warning
    assert "Train from a version that reads, offer fewer amounts, or set CREDIT=answers." in warning
    verdict = decide(comparison)
    assert warning in markdown(comparison, verdict) and rows_of(comparison, verdict)[0]["holdFloor"] == warning
    # One that trades, or holds though trades won, or of which nothing is known, is not warned of.
    for other in (played(9, -3.1), played(11, 3.1), played(11, None)):
        assert hold_floor(other) is None and rows_of(other, decide(other))[0]["holdFloor"] is None


@pytest.mark.parametrize(
    ("game", "best", "same_stake"),
    [
        (ONE_TICK_GAME, "(best-by-prompt)", True), (POSTS, "(best-with-posts)", True), (AMOUNTS, "(best-with-amounts)", False),
        (POSITIONS, "(best-with-positions)", False),
    ],
)  # fmt: skip
def test_a_reports_last_words_are_of_its_game(game: Game, best: str, same_stake: bool) -> None:
    comparison = compare(script_rows(benchmark_snapshots(2, game), ["nothing", "oracle"]), None, None, game=game)
    words = markdown(comparison, decide(comparison)).splitlines()[-1]
    assert ("with the same stake. " in words) == same_stake and ("players stake different dollars. " in words) != same_stake
    assert "The ceiling is" in words and best in words and ("one tick ahead" in words) == (game == POSITIONS)


def test_tables_of_games_with_a_fixed_stake_stay_as_they_are() -> None:
    plain, more = [column.title for column in gate_columns("base")], [column.title for column in gate_columns("base", sized=True)]
    assert more[: len(plain)] == plain and more[len(plain) :] == ["mean stake, $", "Sharpe of hours", "worst hour, $"]
    row = {"meanStake": 1234.4, "hourlySharpe": 0.517, "worstHour": -310.2, "maxDrawdown": 88.0}
    cells = [column.cell(row) for column in demo_columns("base", sized=True)[-4:]]
    assert cells == ["1234", "+0.52", "-310", "88"] and ONE_TICK_GAME.names_size is False


@pytest.mark.parametrize("game", [AMOUNTS, POSITIONS], ids=["amounts", "positions"])
def test_scripts_at_a_stake_stake_that_much(game: Game) -> None:
    rows = script_rows(benchmark_snapshots(6, game), AT_THE_STAKE, 3000.0)
    for name, (_, results) in rows.items():
        mean = sum(one.staked_usd for one in results) / sum(one.predictions for one in results)
        assert name.endswith(" at $3,000") and mean == pytest.approx(3000.0, rel=0.01), name
