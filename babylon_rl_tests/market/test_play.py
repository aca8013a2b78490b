"""An hour played: everybody sees the same, orders last a tick, money adds up, and the same seed plays the same."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from babylon_rl.errors import ModelUnavailable
from babylon_rl.market.agents import QUESTION_STAKE, response_format
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.model_agent import ask_model, decision_seed, model_player
from babylon_rl.market.play import Tick, play_hour
from babylon_rl.market.trading import FEE, START_BALANCE, Account
from babylon_rl.market.world import TICKS, generate_hour
from babylon_rl.models.client import ChatClient
from babylon_rl.models.grammar import language
from babylon_rl_tests.market.builders import OTHER, QUESTION, STOCK, WINDOW, make_event, make_hour, make_players
from babylon_rl_tests.market.stand_in import Answer, by_seed, stand_in

SCRIPTED = make_players("conservative", "balanced", "aggressive", "momentum", "contrarian")
HOUR = generate_hour(TRAINING, WINDOW, 0)


def of(ticks: list[Tick], agent: str) -> list[Tick]:
    return [tick for tick in ticks if tick.player.agent_id == agent]


def prompt(tick: Tick) -> str:
    return tick.call.messages[-1]["content"]


def texts(tick: Tick) -> tuple[str, ...]:
    return language(response_format(tick.seen.markets)["json_schema"]["schema"])


def play_models(answer: Answer, agents: int = 1, window: str = WINDOW) -> tuple[list[Tick], list[dict[str, Any]]]:
    players = [*SCRIPTED[:2], *(model_player(f"model-{number}") for number in range(agents))]
    with stand_in(answer) as served, ChatClient(served.url, None, "v1.0.0") as client:
        return play_hour(replace(HOUR, window=window), players, ask_model(client, 1.0, 0), 0), served.seen


def test_the_same_seed_plays_the_same_and_another_one_does_not() -> None:
    once, again, other = (repr(play_hour(HOUR, SCRIPTED, None, seed)) for seed in (0, 0, 1))
    assert once == again
    assert once != other


def test_every_player_has_one_tick_each_five_minutes_in_order() -> None:
    ticks = play_hour(HOUR, SCRIPTED, None, 0)
    assert [(tick.tick, tick.player) for tick in ticks] == [(tick, player) for tick in range(TICKS) for player in SCRIPTED]
    assert len(play_hour(HOUR, SCRIPTED, None, 0, ticks=3)) == 3 * len(SCRIPTED)


def test_all_see_the_same_markets_and_the_news_of_their_tick() -> None:
    hour = make_hour(change=60.0, events=(make_event(0), make_event(2, QUESTION, -1)))
    ticks = play_hour(hour, SCRIPTED, None, 0)
    for tick in ticks:
        assert tick.seen.quotes == ticks[tick.tick * len(SCRIPTED)].seen.quotes
        assert [news.market for news in tick.seen.news] == {0: [STOCK], 2: [QUESTION]}.get(tick.tick, [])
    prices = [tick.seen.quotes[0] for tick in of(ticks, "test-agent-1")]
    assert [quote.price for quote in prices] == pytest.approx([100.0 + 5 * tick for tick in range(TICKS)])
    assert prices[0].change == 0 and prices[1].change == pytest.approx(5.0)


def test_news_reach_agents_before_the_market_moves() -> None:
    for event in HOUR.events:
        stock = next((stock for stock in HOUR.stocks if stock.name == event.market), None)
        if stock is not None:
            seen = play_hour(HOUR, SCRIPTED[:1], None, 0, ticks=event.tick + 1)[-1].seen
            assert [news.text for news in seen.news] == [event.text]
            assert next(q.price for q in seen.quotes if q.market == event.market) == stock.prices[event.tick * 5]


def test_profits_balances_and_lifetime_profit_agree() -> None:
    accounts = {"test-agent-1": Account(balance=5_000.0, pnl=250.0)}
    ticks = play_hour(HOUR, SCRIPTED, None, 0, accounts)
    for player in SCRIPTED:
        own = of(ticks, player.agent_id)
        first = 250.0 if player.agent_id == "test-agent-1" else 0.0
        assert own[0].pnl_before == first
        assert accounts[player.agent_id].pnl == own[-1].pnl_after == pytest.approx(first + sum(tick.profit or 0.0 for tick in own))
        assert all(later.pnl_before == earlier.pnl_after for earlier, later in pairwise(own))
        assert all(tick.filled == (tick.profit is not None) for tick in own)
    assert accounts["test-agent-2"].balance == pytest.approx(START_BALANCE + accounts["test-agent-2"].pnl)


def test_who_cannot_pay_trades_nothing_and_loses_nothing() -> None:
    accounts = {"test-agent-1": Account(balance=100.0)}
    ticks = play_hour(HOUR, make_players("aggressive"), None, 0, accounts)
    assert not any(tick.filled for tick in ticks)
    assert accounts["test-agent-1"] == Account(balance=100.0)


def test_scripts_are_recorded_with_what_a_model_would_have_been_asked() -> None:
    tick = play_hour(HOUR, SCRIPTED, None, 0)[0]
    assert tick.call.model == "scripted/conservative"
    assert tick.call.response == tick.decision.text
    assert HOUR.events[0].text in tick.call.messages[-1]["content"]
    assert tick.call.logprobs is None


def test_a_model_is_asked_once_a_tick_with_the_schema_of_the_markets_shown() -> None:
    ticks, seen = play_models(by_seed)
    own = of(ticks, "model-0")
    assert len(seen) == len(own) == TICKS
    assert all(tick.decision.invalid is None and tick.decision.text == tick.call.response for tick in own)
    asked = {request["messages"][-1]["content"]: request for request in seen}
    for tick in own:
        request = asked[prompt(tick)]
        trade = request["response_format"]["json_schema"]["schema"]["anyOf"][0]
        assert trade["properties"]["market"]["enum"] == list(tick.seen.markets)
        assert request["response_format"] == tick.call.response_format
        assert (request["temperature"], request["max_tokens"]) == (tick.call.temperature, tick.call.max_tokens)
        assert tick.call.logprobs is not None and "".join(entry["token"] for entry in tick.call.logprobs) == tick.call.response


def test_an_invalid_answer_costs_the_turn_and_says_why() -> None:
    ticks, _ = play_models(lambda request: '{"action": "buy", "market": "Atlantis"}')
    own = of(ticks, "model-0")
    assert all(tick.decision.invalid == "unknown market 'Atlantis'" and not tick.filled for tick in own)
    assert own[-1].pnl_after == 0.0 and own[-1].balance == START_BALANCE


def test_models_asked_at_once_are_told_apart() -> None:
    ticks, seen = play_models(by_seed, agents=3)
    assert len(seen) == 3 * TICKS
    assert len({request["seed"] for request in seen}) == 3 * TICKS
    assert len({tuple(tick.call.response for tick in of(ticks, f"model-{number}")) for number in range(3)}) == 3
    for tick in ticks:
        if tick.player.strategy == "llm":
            assert tick.call.response == texts(tick)[decision_seed(0, tick.player.agent_id, tick.tick, prompt(tick)) % len(texts(tick))]
    again, _ = play_models(by_seed, agents=3)
    assert [(tick.decision, tick.pnl_after) for tick in again] == [(tick.decision, tick.pnl_after) for tick in ticks]


def test_other_hours_draw_other_numbers_for_the_same_agent_and_tick() -> None:
    other = generate_hour(TRAINING, "2025-11-15T11:00", 0)
    seeds = []
    for hour in (HOUR, other):
        with stand_in() as served, ChatClient(served.url, None, "m") as client:
            play_hour(hour, [model_player("model-0")], ask_model(client, 1.0, 0), 0)
        seeds.append([request["seed"] for request in served.seen])
    assert not set(seeds[0]) & set(seeds[1])


def test_a_seed_is_the_same_on_every_platform_and_fits_what_endpoints_take() -> None:
    assert decision_seed(0, "model-0", 3) == decision_seed(0, "model-0", 3) == 1873442111
    assert 0 <= decision_seed("x") < 2**31


def test_an_endpoint_that_stays_down_stops_the_hour() -> None:
    with ChatClient("http://127.0.0.1:9", None, "m", attempts=1) as client, pytest.raises(ModelUnavailable):
        play_hour(HOUR, [model_player("model-0"), model_player("model-1")], ask_model(client, 1.0, 0), 0)


def test_orders_of_one_tick_share_the_pool() -> None:
    hour = make_hour(events=tuple(make_event(tick, QUESTION) for tick in range(TICKS)))
    alone = play_hour(hour, make_players("conservative"), None, 3)
    crowd = play_hour(hour, make_players(*["conservative"] * 4), None, 3)
    fees = 2 * FEE * QUESTION_STAKE * 1500.0
    assert [tick.profit for tick in alone if tick.filled] == pytest.approx([-fees] * sum(tick.filled for tick in alone), rel=0.01)
    total, filled = sum(tick.profit or 0.0 for tick in crowd), sum(tick.filled for tick in crowd)
    assert total == pytest.approx(-fees * filled, rel=0.01)  # what one gains by closing first another loses
    assert OTHER in crowd[0].seen.markets
