"""Every game: an hour is spawned, its calls are read back, and answers are legal under their own schema."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from babylon_rl.episodes.reading import read_window, trajectories_with_texts
from babylon_rl.errors import MarketError
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.game_rows import CLOSING
from babylon_rl.market.replay import gains
from babylon_rl.market.simulation.actions import Invalid, OpenPerp
from babylon_rl.market.simulation.agents import FREE, HOLDING, ONE_TICK, SIZES_USD, Decision, closing
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import AMOUNTS, GAMES, ONE_TICK_GAME, POSITIONS, POSTS, Game, game_asked, game_named, game_of
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.prompting import labels, ordered, version_of
from babylon_rl.market.simulation.record import HOLD
from babylon_rl.market.simulation.run import GameTable, play
from babylon_rl.market.simulation.strategies import STRATEGIES, player
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.grammar import language
from babylon_rl.settings import Settings
from babylon_rl.store.batches import BatchEpisode
from babylon_rl.store.database import Database
from babylon_rl.store.recording import read_sources
from babylon_rl.training.backends.protocol import TrainPlan
from babylon_rl.training.conversion import convert, preflight_document
from babylon_rl.training.publishing import action_grammar, prompt_version
from babylon_rl_tests.market.stand_in import by_seed, stand_in

NOW, START = datetime(2025, 11, 16, 9, 30), "2025-11-15T10:00"
EACH = pytest.mark.parametrize("game", GAMES.values(), ids=list(GAMES))


def spawned(database: Database, game: Game, windows: int = 1) -> list[tuple[Any, ...]]:
    """Trajectories of hours with five scripts and one agent that asks a model."""
    with stand_in(by_seed) as served, ChatClient(served.url, None, "m") as client, database.connect() as connection:
        spawn(connection, SpawnRequest(6, 1, windows, 0, start=START, game=game), NOW, model_agent(client, game=game))
        return connection.execute("SELECT * FROM trajectories ORDER BY id").fetchall()


@EACH
def test_an_hour_of_a_game_reads_back_with_answers_that_are_legal_under_their_own_schema(
    game: Game, copy_of: Callable[[str], Database], settings: Settings
) -> None:
    database = copy_of("migrated")
    rows = spawned(database, game)
    with database.connect() as connection:
        ids = [row[0] for row in connection.execute('SELECT "trajectoryId" FROM trajectories').fetchall()]
        read = trajectories_with_texts(connection, ids, settings)
        assert {window: source and source.game for window, (*_, source) in read_sources(connection, [START]).items()} == {START: game.name}
    calls = [call for trajectory in read.values() for call in trajectory.sequences]
    assert len(calls) == len(rows) == 6 * 12 and sum(not call.model.startswith("scripted/") for call in calls) == 12
    for call in calls:
        assert call.response_format is not None and version_of(call.messages) == game.prompt_version
        assert call.response in language(call.response_format["json_schema"]["schema"])
    names = (prompt_version(calls), action_grammar(calls))
    assert names == (game.prompt_version, game.grammar) and game_of([names[0]], [names[1]]) == game
    answers = [json.loads(call.response) for call in calls]
    trades = [answer for answer in answers if answer["action"] in ("buy", "sell")]
    assert {answer.get("size") for answer in trades} <= set(SIZES_USD if game.names_size else [None])
    assert any(answer["action"] == "close" for answer in answers) == (game == POSITIONS)
    assert spawned(copy_of("migrated"), game) == rows  # the same seed gives the same rows


def test_closing_a_winner_earns_nothing_by_itself_and_the_next_hour_begins_with_all_that_is_held(
    copy_of: Callable[[str], Database], settings: Settings
) -> None:
    database = copy_of("migrated")
    spawned(database, POSITIONS, windows=2)
    with database.connect() as connection:
        steps = connection.execute("""SELECT "agentId", "stepsJson"::jsonb->0, "finalPnL" FROM trajectories ORDER BY id""").fetchall()
        hours = [read_window(connection, window, settings) for window in (START, "2025-11-15T11:00")]
        held = {agent: float(balance) for agent, balance in connection.execute('SELECT id, "virtualBalance" FROM "User"').fetchall()}
    assert {step["action"]["actionType"] for _, step, _ in steps} >= {CLOSING, "TRADING_DECISION", "HOLD"}
    assert max(step["environmentState"]["openPositions"] for _, step, _ in steps) > 1
    # P&L is equity: a tick's change is that of everything held, whatever was closed in it.
    for agent in {agent for agent, _, _ in steps}:
        own = [(step, end) for name, step, end in steps if name == agent]
        starts = [step["environmentState"]["agentPnL"] for step, _ in own]
        assert [end for _, end in own][:-1] == pytest.approx(starts[1:], abs=0.01)  # balances have cents
        assert held[agent] == pytest.approx(10_000 + own[-1][1], abs=0.01)
        earned = [next(one.window_pnl for one in hour.usable_episodes if one.agent_id == agent) for hour in hours]
        assert sum(earned) == pytest.approx(own[-1][1], abs=0.02)


def test_a_batch_knows_whether_the_average_trade_of_its_own_agents_lost_money(
    copy_of: Callable[[str], Database], settings: Settings
) -> None:
    database = copy_of("migrated")
    spawned(database, AMOUNTS)
    with database.connect() as connection:
        hour = read_window(connection, START, settings).episodes
        episodes = [BatchEpisode(START, one.agent_id, one.trajectory_ids, 0.5, 1, 1.5, None, None) for one in hour]
        found = convert(connection, episodes, settings)
    own = max(hour, key=lambda one: int(one.agent_id.rsplit("-", 1)[1]))  # the last seat asks the model
    assert own.trades > 3 and (found.own_trades, round(found.own_pnl_usd, 4)) == (own.trades, round(own.window_pnl, 4))
    document = preflight_document(found, episodes, {}, TrainPlan())
    assert document["ownTradePnl"] == pytest.approx(own.window_pnl / own.trades) and document["ownTrades"] == own.trades


def test_equity_does_not_change_when_a_position_is_closed() -> None:
    scenario = generate(preset("hour", seed=3))
    record = play(scenario, {"a": player("aggressive", scenario, POSITIONS)}, game=POSITIONS).records["a"]
    closings = [turn for turn in map(record.turn, range(12)) if type(turn.action).__name__ in ("ClosePerp", "SellPrediction")]
    assert closings
    for turn in closings:
        # At the moment of closing; what follows is the change of what is still held.
        profit = getattr(turn.outcome, "profit", None)
        assert profit is not None and (turn.held > 1 or turn.equity_after == pytest.approx(turn.equity, abs=0.01))


def test_closing_gains_what_the_position_would_have_lost() -> None:
    scenario = generate(preset("hour", seed=3))
    table = GameTable(scenario, {name: player("news-reader", scenario, POSITIONS) for name in "ab"}, seed=3, game=POSITIONS)
    compared = 0
    while not table.exchange.over:
        seen = table.look()
        decisions = {name: table.seats[name].decide(seen[name], lambda: 0.0) for name in "ab"}
        own = {market.market: Decision(closing(market)) for market in seen["a"].positions} | {HOLDING.action: Decision(HOLD)}
        gained = {name: usd for name, (usd,) in gains(table, decisions, "a", own, [{}]).items()}
        before, worth = table.exchange.tick, {position.market: position.worth for position in seen["a"].positions}
        table.play(decisions | {"a": Decision(HOLD)} if before % 2 else decisions)
        assert gained.pop("hold") == 0.0
        if before % 2:
            after = {position.market: position.worth for position in table.look()["a"].positions}
            assert gained == pytest.approx({market: worth[market] - after[market] for market in worth}, abs=0.05)
            compared += len(gained)
    assert compared > 3


@EACH
def test_scripts_play_what_an_answer_of_the_game_can_name(game: Game) -> None:
    scenario = generate(preset("hour", seed=5))
    run = play(scenario, {name: player(name, scenario, game) for name in STRATEGIES}, game=game)
    for record in run.records.values():
        for call in record.calls.values():
            assert call.response_format is not None
            assert call.response in language(call.response_format["json_schema"]["schema"])


def test_a_game_is_found_by_its_name_its_mandate_and_its_calls() -> None:
    assert [game_named(name) for name in GAMES] == list(GAMES.values()) == [ONE_TICK_GAME, POSTS, AMOUNTS, POSITIONS]
    with pytest.raises(MarketError, match="no game 'chess'; there are one-tick, posts, amounts, positions"):
        game_named("chess")
    assert [game_asked(ONE_TICK), game_asked(ONE_TICK, "trader-v2"), game_asked(FREE)] == [ONE_TICK_GAME, POSTS, POSITIONS]
    with pytest.raises(MarketError, match="no prompt 'trader-v9'; there are trader-v1, trader-v2"):
        game_asked(ONE_TICK, "trader-v9")
    with pytest.raises(MarketError, match="trader-v1 asks for orders that last one tick"):
        game_asked(FREE, "trader-v1")
    assert game_of([], []) == ONE_TICK_GAME and game_of(["trader-v2"], []) == POSTS
    assert game_of(["trader-v2"], ["trade-size", "action"]) == AMOUNTS and game_of(["trader-v1"], ["action"]) is None


@pytest.mark.parametrize("stake", [{}, {"usd": 1500}, {"size": "huge"}, {"size": 1500}], ids=["none", "dollars", "huge", "a number"])
def test_an_answer_without_one_of_the_sizes_costs_the_turn_and_says_which_there_are(stake: dict[str, object]) -> None:
    scenario = generate(preset("hour", seed=3))
    table = GameTable(scenario, {"a": player("balanced", scenario, AMOUNTS)}, seed=3, game=AMOUNTS)
    seen = table.look()["a"]
    answer = {"action": "buy", "market": next(iter(labels(seen)))}
    assert ordered(json.dumps(answer | stake), seen, AMOUNTS) == Invalid("a size other than small, medium, large")
    found = ordered(json.dumps(answer | {"size": "large"}), seen, AMOUNTS)
    assert isinstance(found, OpenPerp) and found.usd * found.leverage == 5000
