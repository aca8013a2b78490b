"""Both recorded games through the command line: windows, episodes, rejected, outcomes and scores say what their answers say.

The commands run as a script would run them (``score`` and ``sync-outcomes`` through the asset graph); every field that the answers and
the commands share is compared, money to 1e-6 and the database's decimals to their rounding.
"""

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.store.database import Database
from babylon_rl_tests.expected import SAMPLES, expected

ALL = ("--from", "2025-01-01T00:00", "--to", "2025-11-01T00:00")
RECORDED = ("--from", "2025-10-29T00:00", "--to", "2025-10-31T00:00")

WINDOW_FIELDS = {
    "rows": "n_rows_any", "eligible": "n_eligible", "newTrainable": "n_new_trainable", "agents": "n_agents", "episodes": "n_episodes",
    "usableEpisodes": "n_episodes_min5",
}  # fmt: skip
EPISODE_FIELDS = {
    "trajectoryIds": "trajectory_ids", "steps": "n_steps", "startPnl": "start_pnl", "endPnl": "end_pnl", "windowPnl": "window_pnl",
    "wins": "wins", "losses": "losses", "winRate": "win_rate", "trades": "trades_executed", "posts": "posts_created",
}  # fmt: skip
STOCK_FIELDS = {
    "organizationId": "org_id", "startPrice": "start_price", "endPrice": "end_price", "changePercent": "change_percent",
    "sentiment": "sentiment",
}  # fmt: skip
PREDICTION_FIELDS = {
    "questionNumber": "question_number", "question": "question", "startProbability": "start_probability",
    "endProbability": "end_probability", "outcome": "outcome_now",
}  # fmt: skip

Answers = dict[str, Any]
Game = tuple[Database, Answers, Callable[..., Any]]


@pytest.fixture(params=list(SAMPLES))
def game(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> Game:
    """A recorded game, its answers, and ``ask(command...)``, which gives the command's document."""
    database: Database = request.getfixturevalue(request.param)
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: str) -> Any:
        capsys.readouterr()
        assert run([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return database, expected(request.param), ask


def same(ours: dict[str, Any], theirs: dict[str, Any], names: dict[str, str]) -> None:
    for name, answer in names.items():
        given, right = ours[name], theirs[answer]
        assert given == (pytest.approx(right, abs=1e-6) if isinstance(right, float) else right), (name, ours)


@pytest.mark.slow
def test_windows(game: Game) -> None:
    _, answers, ask = game
    document = ask("windows", *ALL)
    assert [row["window"] for row in document["windows"]] == sorted(answers["windows"])
    for row in document["windows"]:
        theirs = answers["windows"][row["window"]]
        same(row, theirs, WINDOW_FIELDS)
        assert row["ready"] == theirs["ready"]["5"]
        sources = Counter()
        for episode in theirs["episodes"].values():
            sources.update(episode["message_source"])
        assert {name: count for name, count in row["messageSources"].items() if count} == sources
        pnls = [episode["window_pnl"] for episode in theirs["episodes"].values()]
        assert row["avgPnl"] == pytest.approx(sum(pnls) / len(pnls), abs=1e-6)
    rejected = Counter()
    for row in document["windows"]:
        rejected.update(row["rejected"])
    assert rejected == answers["trajectories"]["excluded"]
    assert document["readyAt"] == {agents: len(windows) for agents, windows in answers["ready_windows"].items()}
    totals = [sum(row[name] for row in document["windows"]) for name in ("rows", "eligible", "newTrainable")]
    assert totals == [answers["trajectories"][name] for name in ("total", "eligible", "new_trainable")]


def test_episodes(game: Game) -> None:
    _, answers, ask = game
    for window, theirs in answers["windows"].items():
        episodes = ask("episodes", window)["episodes"]
        assert {row["agentId"] for row in episodes} == set(theirs["episodes"])
        assert [row["agentId"] for row in sorted(episodes, key=lambda row: -row["windowPnl"])] == theirs["ranking_by_window_pnl"] or (
            theirs["pnl_ties"]
        )
        for row in episodes:
            answer = theirs["episodes"][row["agentId"]]
            same(row, answer, EPISODE_FIELDS)
            assert {name: count for name, count in row["messageSources"].items() if count} == answer["message_source"]
            assert row["usable"] == (row["agentId"] in theirs["agents_min5"])


def test_rejected(game: Game) -> None:
    _, answers, ask = game
    rejected = ask("rejected", *ALL)["rejected"]
    assert {row["trajectoryId"]: row["reason"] for row in rejected} == answers["trajectories"]["excluded_ids"]
    assert all(row["window"] in answers["windows"] and row["detail"] for row in rejected)


@pytest.mark.long
def test_outcomes_and_what_is_written_of_them(game: Game) -> None:
    database, answers, ask = game
    synced = {row["window"]: row for row in ask("sync-outcomes", *ALL)["windows"]}
    with database.connect() as connection:
        for window, theirs in answers["windows"].items():
            document = ask("outcomes", window)
            stocks = {row["ticker"]: row for row in document["stocks"]}
            predictions = {row["marketId"]: row for row in document["predictions"]}
            assert set(stocks) == set(theirs["stocks"]) and set(predictions) == set(theirs["predictions"])
            for ticker, row in stocks.items():
                same(row, theirs["stocks"][ticker], STOCK_FIELDS)
            for market, row in predictions.items():
                same(row, theirs["predictions"][market], PREDICTION_FIELDS)
            _market_as_a_whole(document["market"], theirs)
            assert (synced[window]["stocks"], synced[window]["predictions"]) == (len(stocks), len(predictions))
            _written(connection, window, theirs)


def _market_as_a_whole(market: dict[str, Any], theirs: Answers) -> None:
    changes = [stock["change_percent"] for stock in theirs["stocks"].values()]
    if not changes:
        assert market == {"meanChange": None, "volatility": None}
        return
    mean = sum(changes) / len(changes)
    assert market["meanChange"] == pytest.approx(mean, abs=1e-6)
    assert market["volatility"] == pytest.approx((sum((change - mean) ** 2 for change in changes) / len(changes)) ** 0.5, abs=1e-6)


def _written(connection: Any, window: str, theirs: Answers) -> None:
    query = """SELECT "stockTicker", "startPrice", "endPrice", "changePercent", sentiment FROM market_outcomes
               WHERE "windowId" = %s AND "stockTicker" IS NOT NULL"""
    stocks = {row[0]: row[1:] for row in connection.execute(query, (window,)).fetchall()}
    assert set(stocks) == set(theirs["stocks"])
    for ticker, (start, end, change, sentiment) in stocks.items():
        answer = theirs["stocks"][ticker]
        _close(start, answer["start_price"], "0.01")
        _close(end, answer["end_price"], "0.01")
        _close(change, answer["change_percent"], "0.01")
        assert sentiment == answer["sentiment"]
    query = """SELECT "predictionMarketId", question, outcome, "finalProbability" FROM market_outcomes
               WHERE "windowId" = %s AND "predictionMarketId" IS NOT NULL"""
    predictions = {row[0]: row[1:] for row in connection.execute(query, (window,)).fetchall()}
    assert set(predictions) == set(theirs["predictions"])
    for market, (question, outcome, probability) in predictions.items():
        answer = theirs["predictions"][market]
        assert (question, outcome) == (answer["question"], answer["outcome_now"])
        _close(probability, answer["end_probability"], "0.0001")


def _close(stored: Decimal, right: float, unit: str) -> None:
    assert abs(stored - Decimal(repr(right))) <= Decimal(unit) / 2 + Decimal("1e-9")


@pytest.mark.long
def test_scores_of_the_heuristic(game: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    _, answers, ask = game
    monkeypatch.setenv("CREDIT", "hour")  # the answers are those of whole hours
    scored = {row["window"] for row in ask("score", *RECORDED)["windows"]}
    ready = set(answers["ready_windows"]["5"])
    assert ready <= scored
    for window in ready:
        document, theirs = ask("scores", window), answers["windows"][window]
        right = {agent: theirs["heuristic_window"][agent] for agent in theirs["agents_min5"]}
        assert (document["judge"], document["groupSize"]) == ("heuristic", len(right))
        assert {row["agentId"]: row["score"] for row in document["scores"]} == pytest.approx(right, abs=1e-6)
        in_group = [agent for agent in theirs["ranking_heuristic_window"] if agent in right]
        assert [row["agentId"] for row in document["scores"]] == in_group
        mean = sum(right.values()) / len(right)
        spread = (sum((score - mean) ** 2 for score in right.values()) / len(right)) ** 0.5
        assert (document["mean"], document["spread"]) == (pytest.approx(mean, abs=1e-6), pytest.approx(spread, abs=1e-6))
        for row in document["scores"]:
            assert row["advantage"] == pytest.approx((right[row["agentId"]] - mean) / spread, abs=1e-4)
            assert row["rank"] == 1 + sum(score > right[row["agentId"]] + 1e-9 for score in right.values())
