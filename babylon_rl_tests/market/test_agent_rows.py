"""What agents did as the game's rows: a trajectory per agent tick, with the call as it was served."""

import json
from datetime import timedelta
from functools import cache
from typing import Any

import msgspec
import pytest

from babylon_rl.llm.client import ChatClient
from babylon_rl.market.game_rows import Ids, recordings
from babylon_rl.market.simulation.actions import BuyPrediction, Hold, Invalid, OpenPerp
from babylon_rl.market.simulation.games import ONE_TICK_GAME
from babylon_rl.market.simulation.ledger import Fill, Refusal
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.record import Turn
from babylon_rl.market.simulation.run import Run, play
from babylon_rl.market.simulation.scenario import opening
from babylon_rl.market.simulation.strategies import STRATEGIES, factory
from babylon_rl.recorder import Recording
from babylon_rl.windows import window_start
from babylon_rl_tests.market.builders import WINDOW, make_scenario
from babylon_rl_tests.market.stand_in import stand_in

START = window_start(WINDOW)
EARLIER = {"balanced": -250.0}


def run_of(ticks: int = 12, **changes: Any) -> Run:
    scenario = opening(make_scenario(), ticks)
    return play(scenario, {name: factory(name, scenario) for name in STRATEGIES}, game=ONE_TICK_GAME, **changes)


def rows_of(run: Run) -> list[tuple[str, Turn, Recording]]:
    turns = [(agent, record.turn(tick)) for tick in range(run.ticks_played) for agent, record in run.records.items()]
    recorded = recordings(run, {"Q7": "market-7"}, Ids(START), earlier_pnl_usd=EARLIER)
    return [(*turn, row) for turn, row in zip(turns, recorded, strict=True)]


@cache
def played() -> list[tuple[str, Turn, Recording]]:
    return rows_of(run_of())


def only_step(recording: Recording) -> dict[str, Any]:
    (step,) = json.loads(recording.columns["stepsJson"])
    return dict(step)


def test_each_agent_tick_is_one_trajectory_within_its_hour() -> None:
    assert len(played()) == 12 * len(STRATEGIES)
    for agent, turn, recording in played():
        row = recording.columns
        assert (row["agentId"], row["windowId"], row["scenarioId"], row["windowHours"]) == (agent, WINDOW, WINDOW, 1)
        assert START + timedelta(minutes=5 * turn.tick) <= row["startTime"] < row["endTime"] < START + timedelta(minutes=5 * turn.tick + 5)
        earned = EARLIER.get(agent, 0.0) - 10_000.0
        assert row["finalPnL"] == pytest.approx(earned + turn.equity_after, abs=1e-6)
        state = only_step(recording)["environmentState"]
        assert (state["agentPnL"], state["agentBalance"]) == pytest.approx((earned + turn.equity, turn.balance), abs=0.006)
        assert (state["openPositions"], state["activeMarkets"]) == (0, 4)


def test_the_step_says_what_was_done_as_the_games_agents_say_it() -> None:
    kinds = set()
    names = {asset.ticker: asset.name for asset in make_scenario().assets}
    for _, turn, recording in played():
        action, done = only_step(recording)["action"], turn.action
        if isinstance(done, Hold):
            assert (action["actionType"], action["success"], action["result"]) == ("HOLD", True, {"held": True})
            continue
        assert isinstance(turn.outcome, Fill) and (action["actionType"], action["success"]) == ("TRADING_DECISION", True)
        parameters = action["parameters"]
        assert parameters["finalPnL"] - parameters["initialPnL"] == pytest.approx(parameters["pnlChange"], abs=2e-6)
        assert parameters["pnlChange"] == pytest.approx(sum(fill.profit or 0.0 for fill in turn.closed)) == action["result"]["pnl"]
        assert only_step(recording)["reward"] == pytest.approx(parameters["pnlChange"] / 1000)
        kinds.add(parameters["marketType"])
        if isinstance(done, BuyPrediction):
            assert (parameters["marketId"], parameters["side"]) == ("market-7", done.side.upper())
        elif isinstance(done, OpenPerp):
            assert (parameters["ticker"], parameters["side"]) == (names[done.ticker], done.side)
    assert kinds == {"prediction", "perp"}


def test_the_markets_are_recorded_as_the_prompt_shows_them() -> None:
    for _, turn, recording in played():
        (access,) = only_step(recording)["providerAccesses"]
        assert turn.call is not None
        lines = turn.call.messages[-1]["content"].splitlines()
        for market, line in zip(access["data"]["markets"], lines, strict=False):
            if market["question"] is None:
                assert line == f"{market['market']} ${market['price']:.0f} {market['change']:+.1f}%"
            else:
                assert line == f"{market['market']} YES {market['price'] * 100:.0f}% {market['change']:+.0f}: {market['question']}"


def test_the_call_is_recorded_as_it_was_served_and_once_more_as_a_log() -> None:
    for agent, turn, recording in played()[:10]:
        (call,) = only_step(recording)["llmCalls"]
        assert turn.call is not None
        assert [call["systemPrompt"], call["userPrompt"]] == [message["content"] for message in turn.call.messages]
        assert (call["response"], call["responseFormat"], call["purpose"]) == (turn.call.response, turn.call.response_format, "action")
        assert call["model"] == f"scripted/{agent}" and "modelVersion" not in call and "latencyMs" not in call
        assert call["maxTokens"] == 48
        (log,) = recording.calls
        assert log["trajectoryId"] == recording.columns["trajectoryId"]
        assert log["response"] == call["response"]


@pytest.mark.parametrize(("model", "version"), [("v1.0.0", "v1.0.0"), ("v12.3.45", "v12.3.45"), ("base", None), ("vicuna-7b", None)])
def test_only_a_version_is_recorded_as_one(model: str, version: str | None) -> None:
    run = run_of(1)
    for record in run.records.values():
        record.calls[0] = msgspec.structs.replace(record.calls[0], model=model)
    assert only_step(rows_of(run)[0][2])["llmCalls"][0].get("modelVersion") == version


def test_why_an_answer_ended_is_recorded() -> None:
    answers = iter(['{"action": "hold"}', '{"action": "hold", "why": "nothing that I read moves any price"'])
    with stand_in(lambda _: next(answers)) as endpoint, ChatClient(endpoint.url, None, "m", attempts=1) as client:
        run = play(opening(make_scenario(), 2), {"agent-0": model_agent(client)}, seed=0)
    reasons = [json.loads(call["metadata"])["finishReason"] for _, _, row in rows_of(run) for call in row.calls]
    assert reasons == ["stop", "length"]


def test_an_answer_that_could_not_be_used_is_a_failed_step() -> None:
    run = run_of(1)
    run.records["conservative"].outcomes[0] = Invalid("not JSON")
    recording = rows_of(run)[0][2]
    assert only_step(recording)["action"] == {"actionType": "HOLD", "parameters": {}, "success": False, "error": "not JSON"}
    assert recording.columns["finalStatus"] == "completed_with_errors"


def test_who_cannot_pay_trades_nothing_loses_nothing_and_is_told_why() -> None:
    run = run_of(start_balance=300.0)
    refused = 0
    for agent, turn, recording in rows_of(run):
        if isinstance(turn.outcome, Refusal):
            refused += 1
            action = only_step(recording)["action"]
            assert not action["success"] and "more than the balance of 300.00 $" in action["error"]
            assert recording.columns["finalPnL"] == EARLIER.get(agent, 0.0) and recording.columns["finalBalance"] == 300.0
    assert refused > 12 and set(run.pnl_usd.values()) == {0.0}
