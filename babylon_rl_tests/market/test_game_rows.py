"""A played hour as the game's rows: prices twice, one question with its pool, events, a trajectory per agent tick."""

import json
import math
from datetime import timedelta
from typing import Any

import pytest

from babylon_rl.market.game_rows import Ids, event_rows, question_rows, recordings, slug, stock_rows
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.play import Tick, play_hour
from babylon_rl.market.world import MINUTES, TICKS, generate_hour
from babylon_rl.recorder import Recording
from babylon_rl.windows import HOUR, window_start
from babylon_rl_tests.market.builders import QUESTION, STOCK, WINDOW, make_event, make_hour, make_players

START = window_start(WINDOW)
HOUR_PLAYED = generate_hour(TRAINING, WINDOW, 0, question_number=7)
PLAYERS = make_players("conservative", "balanced", "aggressive", "momentum", "contrarian")


def played(ticks: int = TICKS) -> list[tuple[Tick, Recording]]:
    done = play_hour(HOUR_PLAYED, PLAYERS, None, 0, ticks=ticks)
    return list(zip(done, recordings(WINDOW, "market-7", done, Ids(START)), strict=True))


def only_step(recording: Recording) -> dict[str, Any]:
    (step,) = json.loads(recording.columns["stepsJson"])
    return dict(step)


def test_ids_are_decimal_ascend_and_differ_between_hours() -> None:
    ids, later = Ids(START), Ids(START + HOUR)
    some = [ids() for _ in range(10_000)]
    assert all(one.isdigit() for one in some)
    assert some == sorted(some, key=int) and len(set(some)) == len(some)
    assert int(some[-1]) < int(later())
    assert Ids(START)() == some[0]


def test_every_price_update_is_written_twice_the_second_time_without_a_change() -> None:
    rows = stock_rows(HOUR_PLAYED, Ids(START))
    assert len(rows) == len(HOUR_PLAYED.stocks) * (MINUTES - 1) * 2
    for real, again in zip(rows[::2], rows[1::2], strict=True):
        assert (again["organizationId"], again["price"], again["change"], again["changePercent"]) == (
            real["organizationId"], real["price"], 0.0, 0.0)  # fmt: skip
        assert again["timestamp"] > real["timestamp"]
        assert real["price"] - real["change"] == pytest.approx(real["price"] / (1 + real["changePercent"] / 100))
    assert all(START <= row["timestamp"] < START + HOUR for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_question_is_also_a_market_and_its_history_starts_with_the_hour() -> None:
    prices = [0.4, 0.55, 0.7]
    rows = question_rows(make_hour(), prices, Ids(START))
    (question,), (market,), (*history, resolution) = rows["Question"], rows["Market"], rows["PredictionPriceHistory"]
    assert question["id"] == market["id"] and {row["marketId"] for row in history} == {question["id"]}
    assert (question["questionNumber"], question["outcome"], question["createdAt"]) == (7, True, START)
    assert [row["yesPrice"] for row in history] == prices and resolution["eventType"] == "resolution"
    assert history[0]["createdAt"] == START
    for row in [*history, market | {"yesPrice": prices[-1], "noPrice": 1 - prices[-1]}]:
        assert row["noShares"] / (row["yesShares"] + row["noShares"]) == pytest.approx(row["yesPrice"], abs=1e-6)
        assert row["yesPrice"] + row["noPrice"] == pytest.approx(1.0)
        assert math.sqrt(row["yesShares"] * row["noShares"]) == pytest.approx(20_000.0, rel=1e-6)


def test_a_question_is_answered_at_the_end_of_its_hour() -> None:
    rows = question_rows(make_hour(), [0.4, 0.55], Ids(START))
    (question,), (market,), resolution = rows["Question"], rows["Market"], rows["PredictionPriceHistory"][-1]
    assert (resolution["eventType"], resolution["yesPrice"], resolution["noPrice"]) == ("resolution", 1.0, 0.0)
    assert START < resolution["createdAt"] < START + HOUR
    assert question["resolvedOutcome"] is market["resolution"] is question["outcome"] is True


def test_events_say_which_way_a_question_points_and_name_the_company_otherwise() -> None:
    hour = make_hour(events=(make_event(0, STOCK, -1), make_event(3, QUESTION, -1), make_event(11, QUESTION, 1, rumour=True)))
    rows = event_rows(hour)
    assert [(row["actors"], row["relatedQuestion"], row["pointsToward"]) for row in rows] == [
        ([slug(STOCK)], None, None), ([], 7, "NO"), ([], 7, "YES")]  # fmt: skip
    assert rows[2]["eventType"] == "rumor"
    assert len({row["id"] for row in rows}) == 3
    assert all(START <= row["timestamp"] < START + HOUR for row in rows)


def test_a_companys_id_is_a_slug() -> None:
    assert slug("Gasly Motors") == "gasly-motors"
    assert slug("  Café & Söhne, Inc. ") == "caf-s-hne-inc"


def test_each_agent_tick_is_one_trajectory_within_its_hour() -> None:
    found = played()
    assert len(found) == TICKS * len(PLAYERS)
    for tick, recording in found:
        row = recording.columns
        assert (row["agentId"], row["windowId"], row["scenarioId"], row["windowHours"]) == (tick.player.agent_id, WINDOW, WINDOW, 1)
        assert START + timedelta(minutes=5 * tick.tick) <= row["startTime"] < row["endTime"] < START + timedelta(minutes=5 * tick.tick + 5)
        assert row["finalPnL"] == pytest.approx(tick.pnl_after, abs=1e-6)
        state = only_step(recording)["environmentState"]
        assert (state["agentPnL"], state["agentBalance"]) == pytest.approx((tick.pnl_before, tick.seen.balance), abs=0.006)
        assert state["openPositions"] == 0 and state["activeMarkets"] == len(tick.seen.quotes)


def test_the_step_says_what_was_done_as_the_games_agents_say_it() -> None:
    seen_kinds = set()
    for tick, recording in played():
        action = only_step(recording)["action"]
        if tick.decision.market is None:
            assert (action["actionType"], action["success"], action["result"]) == ("HOLD", True, {"held": True})
            continue
        assert (action["actionType"], action["success"]) == ("TRADING_DECISION", tick.filled)
        parameters = action["parameters"]
        assert parameters["finalPnL"] - parameters["initialPnL"] == pytest.approx(parameters["pnlChange"], abs=2e-6)
        kind, bought = parameters["marketType"], tick.decision.action == "buy"
        seen_kinds.add(kind)
        if kind == "prediction":
            assert (parameters["marketId"], parameters["side"]) == ("market-7", "YES" if bought else "NO")
        else:
            assert (parameters["ticker"], parameters["side"]) == (tick.decision.market, "long" if bought else "short")
    assert seen_kinds == {"prediction", "perp"}


def test_the_call_is_recorded_as_it_was_served_and_once_more_as_a_log() -> None:
    for tick, recording in played(ticks=2):
        (call,) = only_step(recording)["llmCalls"]
        assert [call["systemPrompt"], call["userPrompt"]] == [message["content"] for message in tick.call.messages]
        assert (call["response"], call["responseFormat"], call["purpose"]) == (tick.decision.text, tick.call.response_format, "action")
        assert call["model"].startswith("scripted/") and "modelVersion" not in call and "latencyMs" not in call
        (log,) = recording.calls
        assert log.columns["trajectoryId"] == recording.columns["trajectoryId"]
        assert log.columns["response"] == call["response"]


@pytest.mark.parametrize(("model", "version"), [("v1.0.0", "v1.0.0"), ("v12.3.45", "v12.3.45"), ("base", None), ("vicuna-7b", None)])
def test_only_a_version_is_recorded_as_one(model: str, version: str | None) -> None:
    from dataclasses import replace

    tick = play_hour(HOUR_PLAYED, PLAYERS[:1], None, 0, ticks=1)[0]
    (recording,) = recordings(WINDOW, "m", [replace(tick, call=replace(tick.call, model=model))], Ids(START))
    assert only_step(recording)["llmCalls"][0].get("modelVersion") == version


def test_an_answer_that_could_not_be_used_is_a_failed_step() -> None:
    from dataclasses import replace

    tick = play_hour(HOUR_PLAYED, PLAYERS[:1], None, 0, ticks=1)[0]
    spoilt = replace(tick, decision=replace(tick.decision, action="hold", market=None, invalid="not JSON"), filled=False, profit=None)
    (recording,) = recordings(WINDOW, "m", [spoilt], Ids(START))
    assert only_step(recording)["action"] == {"actionType": "HOLD", "parameters": {}, "success": False, "error": "not JSON"}
    assert recording.columns["finalStatus"] == "completed_with_errors"
