"""A result that was changed, or cannot be, is found out by its own parts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.result_checks import validate_result
from babylon_rl.evaluation.results import Result, decode_result
from babylon_rl_tests.evaluation.runs import results

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Result:
    found = results(tmp_path_factory.mktemp("runs"), "oracle", mandate="free", markets=1)[0]
    assert validate_result(found) == [] and found.metrics.prediction_metrics.total_positions and found.metrics.perp_metrics.total_trades
    return found


def changed(result: Result, change: Change) -> Result:
    document = json.loads(msgspec.json.encode(result))
    change(document)
    return decode_result(json.dumps(document).encode())


def put(*path: str | int) -> Callable[[Any], Change]:
    """``put("metrics", "totalPnl")(value)`` changes that part."""

    def to(value: Any) -> Change:
        def change(document: dict[str, Any]) -> None:
            part: Any = document
            for step in path[:-1]:
                part = part[step]
            part[path[-1]] = value

        return change

    return to


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("metrics", "totalPnl")(1e6), "totalPnl is 1000000.0, worked out again"),
        (put("metrics", "return")(0.5), "return is 0.5, worked out again"),
        (put("metrics", "sharpe")(9.0), "sharpe is 9.0"),
        (put("metrics", "maxDrawdownShare")(0.9), "maxDrawdownShare is 0.9"),
        (put("metrics", "optimalityScore")(99.5), "optimalityScore is 99.5"),
        (put("metrics", "winRate")(1.5), "winRate is 1.5"),
        (put("metrics", "predictionMetrics", "correctPredictions")(50), "correctPredictions is 50"),
        (put("metrics", "predictionMetrics", "accuracy")(None), "accuracy is None"),
        (put("metrics", "predictionMetrics", "pnl")(0.0), "predictions and perpetuals together"),
        (put("metrics", "perpMetrics", "profitableTrades")(-1), "profitableTrades is -1"),
        (put("metrics", "perpMetrics", "totalTrades")(900), "totalTrades is 900"),
        (put("metrics", "actionShares")({"hold": 0.7}), "actionShares.hold is 0.7"),
        (put("metrics", "actionEntropy")(0.0), "actionEntropy is 0.0"),
        (put("metrics", "invalid")({"not JSON": 3}), "invalid.not JSON is 3"),
        (put("metrics", "socialMetrics", "postsCreated")(10**400), "postsCreated is 1000"),
        (put("metrics", "brier")(0.0), "brier is 0.0"),
        (put("metrics", "calibration")([]), "calibration"),
        (put("metrics", "timing", "avgResponseTime")(3.0), "avgResponseTime is 3.0"),
        (put("ticksProcessed")(11), "for 11 ticks processed"),
        (put("ticks")(13), "called complete with 12 of 13 ticks"),
        (put("complete")(False), "called not complete"),
        (put("actions", 3, "tick")(4), "The action number 3 is of tick 4"),
        (put("actions", 0, "timestamp")(1), "The action number 0"),
        (put("endTime")(5), "It ends at 5"),
        (put("trajectory", "windowId")("2025-01-01T00:00"), "Its window"),
        (put("trajectory", "rewards", 0)(77.0), "rewards' sum"),
        (put("trajectory", "states", 0, "equity")(9_000.0), "equity at the start is 9000.0"),
        (put("trajectory", "states", 4, "balance")(-3.0), "neither can be below 0"),
        (lambda document: document["actions"].pop(), "11 actions for 12 ticks"),
        (lambda document: document["trajectory"]["states"].pop(), "12 trajectory.states for 12 ticks processed, not 13"),
        (lambda document: document["forecasts"].pop(), "forecasts for"),
    ],
)
def test_doctored_results_are_refused(sound: Result, change: Change, said: str) -> None:
    wrong = validate_result(changed(sound, change))
    assert any(said in sentence for sentence in wrong), wrong


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_a_number_that_is_not_finite_is_no_result(sound: Result, number: bytes) -> None:
    raw = msgspec.json.encode(sound).replace(b'"totalPnl":', b'"totalPnl":%b,"other":' % number, 1)
    with pytest.raises(MarketError, match="not JSON|Number out of range"):
        decode_result(raw)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON, or breaks off"),
        (b'{"id": "x"', "not JSON, or breaks off"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "shape of a result"),
        (b'{"id": "x"}', "agentId"),
    ],
)
def test_what_is_no_result_is_a_sentence(raw: bytes, said: str) -> None:
    with pytest.raises(MarketError, match=said):
        decode_result(raw)


def test_a_result_has_the_names_of_the_games_own(tmp_path: Path) -> None:
    document = json.loads(msgspec.json.encode(results(tmp_path, "balanced", markets=1)[0]))
    wanted = {"id", "agentId", "benchmarkId", "startTime", "endTime", "ticksProcessed", "actions", "metrics", "trajectory"}
    assert wanted <= set(document)
    assert {"totalPnl", "predictionMetrics", "perpMetrics", "socialMetrics", "timing", "optimalityScore"} <= set(document["metrics"])
    assert {"totalPositions", "correctPredictions", "incorrectPredictions", "accuracy", "avgPnlPerPosition"} <= set(
        document["metrics"]["predictionMetrics"]
    )
    assert {"totalTrades", "profitableTrades", "winRate", "avgPnlPerTrade", "maxDrawdown"} <= set(document["metrics"]["perpMetrics"])
    assert set(document["metrics"]["socialMetrics"]) == {"postsCreated", "groupsJoined", "messagesReceived", "reputationGained"}
    assert set(document["metrics"]["timing"]) == {"avgResponseTime", "maxResponseTime", "totalDuration"}
    assert {"tick", "timestamp", "type", "data", "duration"} <= set(document["actions"][0])
    assert set(document["trajectory"]) == {"states", "actions", "rewards", "windowId"}
