"""Hours that hold one odd thing each, as a person would see them: rows in a real database, then the commands.

What changes data goes through the asset graph, as it does for people; the names of the tests are the names of the cases.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.store.database import Database
from babylon_rl_tests.market_rows import event, fill, history, market, organization, price, question
from babylon_rl_tests.rows import START, WINDOW, make_call, make_group, make_log, make_step, make_trajectory

NEXT = "2025-11-15T11:00"
AN_HOUR = ("--from", WINDOW, "--to", NEXT)


class Game:
    """A game's database and the command line pointed at it."""

    def __init__(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        self.database, self._capsys = database, capsys

    def rows(self, **tables: list[dict[str, Any]]) -> None:
        with self.database.connect() as connection:
            fill(connection, **tables)

    def execute(self, statement: str, *parameters: Any) -> list[Any]:
        with self.database.connect(autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def ask(self, *arguments: str) -> Any:
        self._capsys.readouterr()
        assert run([*arguments, "--json"]) == 0
        return json.loads(self._capsys.readouterr().out)

    def refused(self, *arguments: str) -> str:
        self._capsys.readouterr()
        assert run(list(arguments)) == 2
        return self._capsys.readouterr().err

    def hour(self) -> dict[str, Any]:
        (window,) = self.ask("windows", *AN_HOUR)["windows"]
        return dict(window)

    def rejection(self) -> tuple[str, str]:
        """Reason and detail of the only rejected row."""
        (found,) = self.ask("rejected", *AN_HOUR)["rejected"]
        return found["reason"], found["detail"]

    def stocks(self) -> dict[str, dict[str, Any]]:
        return {stock["ticker"]: stock for stock in self.ask("outcomes", WINDOW)["stocks"]}

    def written(self, columns: str) -> list[Any]:
        """market_outcomes of the hour, after the asset has written it."""
        self.ask("sync-outcomes", *AN_HOUR)
        return self.execute(f'SELECT {columns} FROM market_outcomes WHERE "windowId" = %s ORDER BY id', WINDOW)


@pytest.fixture
def game(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Game:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Game(database, capsys)


@pytest.mark.long
def test_an_official_resolution_days_later(game: Game) -> None:
    game.rows(Question=[question(1)], WorldEvent=[event(1, 5)], trajectories=make_group())
    game.ask("score", "--window", WINDOW)
    before = game.ask("scores", WINDOW)
    assert game.written("outcome") == [("UNRESOLVED",)]
    later = START + timedelta(days=4)
    game.execute('UPDATE "Question" SET "resolvedOutcome" = FALSE, "updatedAt" = %s WHERE id = %s', later, "q1")
    assert game.written("outcome") == [("NO",)]
    assert game.ask("scores", WINDOW) == before


@pytest.mark.slow
def test_two_organizations_with_one_engine_ticker(game: Game) -> None:
    game.rows(
        Organization=[organization("mega-corporation"), organization("mega-corporate")],
        StockPrice=[price(1, "mega-corporation", 110, 5), price(2, "mega-corporate", 90, 5)],
    )
    stocks = game.stocks()
    assert {ticker: stock["organizationId"] for ticker, stock in stocks.items()} == {
        "MEGACORPORAT": "mega-corporate", "MEGACORPORAT~2": "mega-corporation",
    }  # fmt: skip
    assert [stocks["MEGACORPORAT"]["sentiment"], stocks["MEGACORPORAT~2"]["sentiment"]] == ["BEARISH", "BULLISH"]
    assert game.written('"stockTicker"') == [("MEGACORPORAT",), ("MEGACORPORAT~2",)]


@pytest.mark.slow
def test_a_change_beyond_the_column(game: Game) -> None:
    game.rows(Organization=[organization("openlie", initial=1.0)], StockPrice=[price(1, "openlie", 5_000.0, 5)])
    (stock,) = game.stocks().values()
    assert (stock["changePercent"], stock["sentiment"], stock["flags"]) == (499_900.0, "BULLISH", ["change_clamped"])
    ((change, sentiment),) = game.written('"changePercent", sentiment')
    assert (float(change), sentiment) == (999.99, "BULLISH")


@pytest.mark.long
def test_stock_news_by_name_id_and_ticker(game: Game) -> None:
    told = ["Open Lie sues", "mood at OPEN-LIE is low", "analysts like openlie", "an actor only"]
    events = [event(number, number, text) for number, text in enumerate([*told[:3], "OpenLies, another one", "nothing at all"], start=1)]
    events.append(event(6, 6, told[3], actors=["Open Lie"]))
    game.rows(Organization=[organization("open-lie", "Open Lie")], StockPrice=[price(1, "open-lie", 101, 1)], WorldEvent=events)
    (stock,) = game.stocks().values()
    assert stock["news"] == told
    assert game.written('"newsEvents"') == [(told,)]


def test_an_episode_with_all_three_message_sources(game: Game) -> None:
    silent = [make_step(number) for number in range(3)]
    game.rows(
        trajectories=[
            make_trajectory("embedded"), make_trajectory("logged", steps=silent, minute=6), make_trajectory("mute", steps=silent, minute=7),
        ],
        llm_call_logs=[make_log("logged", step=1)],
    )  # fmt: skip
    (episode,) = game.ask("episodes", WINDOW)["episodes"]
    assert episode["trajectoryIds"] == ["embedded", "logged", "mute"]
    assert episode["messageSources"] == {"embedded": 1, "llm_call_logs": 1, "synthetic": 1}
    assert game.hour()["messageSources"] == episode["messageSources"]


def test_initial_price_null(game: Game) -> None:
    game.rows(
        Organization=[organization("openlie", initial=None)], StockPrice=[price(1, "openlie", 50.0, 5), price(2, "openlie", 55.0, 10)]
    )
    (stock,) = game.stocks().values()
    assert (stock["startPrice"], stock["endPrice"], stock["changePercent"]) == (50.0, 55.0, pytest.approx(10.0))
    assert stock["flags"] == ["start_from_first_price"]


def test_a_market_without_a_question(game: Game) -> None:
    game.rows(
        Market=[market("m1", resolved=True, resolution=True, endDate=START + timedelta(minutes=50))],
        PredictionPriceHistory=[history(1, "m1", 0.7, 20)],
    )
    (prediction,) = game.ask("outcomes", WINDOW)["predictions"]
    assert (prediction["marketId"], prediction["questionNumber"], prediction["question"]) == ("m1", None, "Market m1?")
    assert (prediction["startProbability"], prediction["endProbability"], prediction["outcome"]) == (0.5, 0.7, "YES")


def test_nan_in_final_pnl(game: Game) -> None:
    steps = [make_step(number, pnl=3.0 * number) for number in range(5)]
    game.rows(
        trajectories=[
            make_trajectory("t1", steps=steps, finalPnL=float("nan")),
            make_trajectory("t2", "agent-2", steps=steps, finalPnL=float("nan"), metricsJson='{"finalPnL": 7.5}'),
        ]
    )
    assert [episode["windowPnl"] for episode in game.ask("episodes", WINDOW)["episodes"]] == [12.0, 7.5]
    assert game.hour()["rejected"] == {}


def test_lone_surrogates(game: Game) -> None:
    text = json.dumps([make_step(calls=[make_call(response="half \ud83d a pair")])])
    game.rows(trajectories=[make_trajectory("t1", steps=text), make_trajectory("t2", "agent-2")])
    reason, detail = game.rejection()
    assert reason == "malformed_json"
    assert "$[0].llmCalls[0].response" in detail and "lone surrogate" in detail
    assert game.hour()["eligible"] == 1


def test_1e400(game: Game) -> None:
    text = json.dumps([make_step(0), make_step(1)]).replace('"agentPnL": 0.0', '"agentPnL": 1e400', 1)
    game.rows(trajectories=[make_trajectory("t1", steps=text), make_trajectory("t2", "agent-2")])
    reason, detail = game.rejection()
    assert reason == "malformed_shape"
    assert "$[0].environmentState.agentPnL" in detail and "not a finite number" in detail


def test_a_syntax_error_after_a_wrong_shape(game: Game) -> None:
    game.rows(trajectories=[make_trajectory("t1", steps='[{"action": 7}, {"action": ]')])
    reason, detail = game.rejection()
    assert reason == "malformed_json" and "character 27" in detail


def test_window_id_2025_13_45t99_00(game: Game) -> None:
    odd = "2025-13-45T99:00"
    game.rows(trajectories=[make_trajectory("t1", windowId=odd)])
    assert game.hour()["eligible"] == 1
    assert game.ask("episodes", WINDOW)["episodes"][0]["trajectoryIds"] == ["t1"]
    assert "is not a window" in game.refused("episodes", odd)
    assert "is not a window" in game.refused("score", "--window", odd)


def test_window_hours_4(game: Game) -> None:
    game.rows(trajectories=[make_trajectory("t1", windowHours=4), make_trajectory("t2", "agent-2")])
    assert game.hour()["eligible"] == 2
    assert {episode["agentId"] for episode in game.ask("episodes", WINDOW)["episodes"]} == {"agent-1", "agent-2"}


def test_equal_timestamps(game: Game) -> None:
    game.rows(
        Organization=[organization("openlie")],
        StockPrice=[price(2, "openlie", 102, 5), price(1, "openlie", 101, 5), price(3, "openlie", 103, 0), price(4, "openlie", 104, 0)],
        trajectories=[
            make_trajectory("b", steps=[make_step(pnl=5.0)], finalPnL=6.0), make_trajectory("a", steps=[make_step(pnl=1.0)], finalPnL=5.0),
        ],
    )  # fmt: skip
    (stock,) = game.stocks().values()
    assert (stock["startPrice"], stock["endPrice"]) == (104.0, 102.0)
    (episode,) = game.ask("episodes", WINDOW)["episodes"]
    assert (episode["trajectoryIds"], episode["startPnl"], episode["endPnl"]) == (["a", "b"], 1.0, 6.0)


CONTENT = {
    "windows": '"window", "rows", "eligible", "agents", "state", "dataVersion", "groupVersion"',
    "episodes": '"window", "agentId", "trajectoryIds", "windowPnl"',
    "group_scores": '"window", "groupSize", "mean", "spread"',
    "episode_scores": '"window", "agentId", "score", "rank", "advantage"',
}


def contents(game: Game) -> dict[str, Any]:
    found = {table: game.execute(f"SELECT {columns} FROM babylon_rl.{table} ORDER BY 1, 2") for table, columns in CONTENT.items()}
    found["outcomes"] = game.execute('SELECT id, "stockTicker", "endPrice", outcome FROM market_outcomes ORDER BY id')
    found["judgments"] = game.execute('SELECT "trajectoryId", "overallScore", rank FROM reward_judgments ORDER BY 1')
    return found


@pytest.mark.long
def test_two_pipelines_on_one_hour_at_once(
    game: Game, copy_of: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {
        "Organization": [organization("openlie")], "StockPrice": [price(n, "openlie", 100 + n, n) for n in range(1, 30)],
        "Question": [question(1)], "WorldEvent": [event(1, 5)], "trajectories": make_group(8),
    }  # fmt: skip
    game.rows(**rows)
    _run_hours_job(times=2)
    alone = Game(copy_of("migrated"), capsys)
    alone.rows(**rows)
    monkeypatch.setenv("DATABASE_URL", alone.database.url)
    _run_hours_job(times=1)
    together = contents(game)
    assert together == contents(alone)
    assert len(together["episodes"]) == len(together["judgments"]) == 8


def _run_hours_job(times: int) -> None:
    job = [sys.executable, "-m", "babylon_rl", "dagster", "job", "execute", "-m", "babylon_rl.definitions", "-j", "hours"]
    command = [*job, "--tags", json.dumps({"dagster/partition": WINDOW})]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(times)]
    for process in running:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors[-2000:]
