"""The rows that reading is measured on: an hour as games record it, good rows and every malformed kind, the same for the same seed.

``mixture``: three rows in four are those of agents that ask a model (two calls with long prompts a step), the others those of test agents
(thirty short steps with a call each). ``test agents``: these alone, the most to decode in a row of its size. ``logged``: production
agents, three steps without calls and with all that the agent saw in the providers' data; the calls are in llm_call_logs.
"""

import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal

from babylon_rl.store.connection import Connection

Kind = Literal["mixture", "test agents", "logged"]

START = datetime(2025, 11, 15, 10)
WINDOW = "2025-11-15T10:00"
BAD_SHARE = 0.05
AGENTS = 50
_EPOCH = datetime(1970, 1, 1)

_NAMES = ("OpenLIE", "Anthropimp", "DeepMined", "FaceHook", "Palantyrant", "Anduritalin", "Elon's Husk", "Scam Altman", "Peter Thief")
_TOPICS = ("announce a merger", "release a limited edition", "launch a subscription plan", "deny every rumour", "split its shares")
_SYSTEM = (
    "You are Yes Yara, an autonomous yes trader in the Babylon satirical prediction market game. You read the feed, judge whether a "
    "rumour is a real signal, size positions carefully and never risk more than you can lose."
)

_TRAJECTORIES = """COPY public.trajectories (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "windowHours",
    "scenarioId", "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus",
    "finalPnL", "createdAt", "updatedAt") FROM STDIN"""
_LOGS = """COPY public.llm_call_logs (id, "trajectoryId", "stepId", "callId", "timestamp", model, purpose, "systemPrompt", "userPrompt",
    response, temperature, "maxTokens", "createdAt") FROM STDIN"""


def fill(connection: Connection, good: int, kilobytes: float, kind: Kind, seed: int = 0) -> None:
    """Write ``good`` eligible rows of about that size and BAD_SHARE of each malformed kind into WINDOW, mixed."""
    rng = random.Random(seed)
    connection.cursor().executemany(
        'INSERT INTO public."User" (id, "updatedAt") VALUES (%s, %s)', [(f"test-agent-{number}", START) for number in range(AGENTS)]
    )
    with connection.cursor().copy(_TRAJECTORIES) as copy:
        for row in _rows(rng, good, kilobytes, kind):
            copy.write_row(row)
    if kind == "logged":
        with connection.cursor().copy(_LOGS) as copy:
            for number in range(good):
                for row in _logs(number):
                    copy.write_row(row)
    connection.commit()
    connection.autocommit = True
    connection.execute("VACUUM (ANALYZE, FREEZE)")


def _rows(rng: random.Random, good: int, kilobytes: float, kind: Kind) -> Iterator[tuple[Any, ...]]:
    makers = {"mixture": (_agent_run, _model_run, _model_run, _model_run), "test agents": (_agent_run,), "logged": (_agent_tick,)}[kind]
    every = round(1 / BAD_SHARE)
    for number in range(good):
        began = START + timedelta(seconds=3000 * number / good)
        text = json.dumps(makers[number // every % len(makers)](rng, began, kilobytes), separators=(",", ":"))
        yield _row(f"t{number:06}", number, began, text)
        if number % every == 0:
            yield _row(f"j{number:06}", number, began, _broken(text, number // every))
            yield _row(f"s{number:06}", number, began, _misshapen(text, number // every))
            yield _row(f"n{number:06}", number, began, text.replace('"actionType":"', '"actionType":"pending","was":"'))


def _row(name: str, number: int, began: datetime, text: str) -> tuple[Any, ...]:
    ended = began + timedelta(seconds=100)
    return (
        name, name, f"test-agent-{number % AGENTS}", began, ended, 100_000, WINDOW, 1, WINDOW, text, '{"environmentReward":0}',
        '{"episodeLength":3,"finalStatus":"completed"}', '{"isTrainingData":true}', 0.0, 3, "completed", 12.5, ended, ended,
    )  # fmt: skip


def _agent_run(rng: random.Random, began: datetime, kilobytes: float) -> list[dict[str, Any]]:
    return [_run_step(rng, number, began) for number in range(round(kilobytes * 1000 / 860))]


def _run_step(rng: random.Random, number: int, began: datetime) -> dict[str, Any]:
    action, ticker = rng.choice(("BUY_SHARES", "SELL_SHARES", "HOLD")), rng.choice(("$BTC", "$ETH", "$SOL"))
    price = rng.uniform(50, 150)
    system = "You are a momentum trading agent with risk tolerance 0.6"
    call = {
        "model": "gpt-4o-mini", "systemPrompt": system, "userPrompt": f"Current price: {ticker} at ${price:.2f}. Should you trade?",
        "response": action, "reasoning": f"Market sentiment and my momentum strategy suggests: {action}", "temperature": 0.7,
        "maxTokens": 150, "latencyMs": rng.uniform(200, 900), "purpose": "action", "actionType": action,
    }  # fmt: skip
    seen = {"ticker": ticker, "price": price, "volume": rng.uniform(1e5, 1e6), "sentiment": rng.choice(("BULLISH", "BEARISH"))}
    return _step(number, began + timedelta(seconds=2 * number), seen, [call], action, {"ticker": ticker, "shares": 3, "price": price})


def _model_run(rng: random.Random, began: datetime, kilobytes: float) -> list[dict[str, Any]]:
    return [_model_step(rng, number, began) for number in range(max(1, round(kilobytes / 6.5)))]


def _model_step(rng: random.Random, number: int, began: datetime) -> dict[str, Any]:
    markets = _markets(rng, 6)
    feed = "\n".join(f"{rng.choice(_NAMES)}: take {rng.randrange(1000)} on {rng.choice(_NAMES)}, {rng.choice(_TOPICS)}." for _ in range(18))
    call = {
        "model": "qwen/qwen3-32b", "modelVersion": "v1.0.9", "systemPrompt": _SYSTEM,
        "userPrompt": f"Balance: $9939.00\nOpen positions: 1\n\nMARKETS:\n{json.dumps(markets)}\n\nFEED:\n{feed}\n\nDecide as JSON.",
        "response": '{"action": "buy_yes", "amount": 50}', "temperature": 0.7, "maxTokens": 300, "latencyMs": rng.uniform(200, 900),
    }  # fmt: skip
    calls = [call | {"purpose": purpose} for purpose in ("reasoning", "action")]
    parameters = {"marketId": markets[0]["id"], "side": "YES"}
    return _step(number, began + timedelta(seconds=9 * number), {"markets": markets}, calls, "TRADING_DECISION", parameters)


def _markets(rng: random.Random, number: int) -> list[dict[str, Any]]:
    return [
        {"id": str(rng.getrandbits(58)), "question": f"Will {rng.choice(_NAMES)} {rng.choice(_TOPICS)} before the {rng.randrange(28)}th?",
         "yesShares": round(rng.uniform(100, 900), 6), "noShares": round(rng.uniform(100, 900), 6), "liquidity": 1000}
        for _ in range(number)
    ]  # fmt: skip


def _agent_tick(rng: random.Random, began: datetime, kilobytes: float) -> list[dict[str, Any]]:
    markets = _markets(rng, round(kilobytes * 1000 / 3 / 178))
    kinds = ("TRADING_DECISION", "CREATE_POST", "CREATE_COMMENT")
    return [
        _step(number, began + timedelta(seconds=2 * number), {"markets": markets}, [], kind, {"method": "database", "pnlChange": 0})
        for number, kind in enumerate(kinds)
    ]


def _step(
    number: int, moment: datetime, seen: dict[str, Any], calls: list[dict[str, Any]], action: str, parameters: dict[str, Any]
) -> dict[str, Any]:
    return {
        "stepNumber": number,
        "timestamp": (moment - _EPOCH) // timedelta(milliseconds=1),
        "environmentState": {"agentBalance": 10_000, "agentPnL": 12.5, "openPositions": 3, "activeMarkets": 12},
        "providerAccesses": [{"providerName": "market_data", "data": seen, "purpose": "get_market_data"}],
        "llmCalls": calls,
        "action": {"actionType": action, "parameters": parameters, "success": True, "result": {"held": True}},
        "reward": 0,
    }


def _broken(text: str, number: int) -> str:
    """Not JSON, in one of four ways, early and late in the text."""
    middle = text.index('"reward":0', len(text) // 2)
    return (
        text[: len(text) * (number % 10 + 1) // 11],
        text[:middle] + '"reward":NaN' + text[middle + 10 :],
        text[:middle] + '"note":"\\ud83d",' + text[middle:],
        text + "]",
    )[number % 4]


def _misshapen(text: str, number: int) -> str:
    """JSON of a wrong shape, in one of four ways, early and late in the text."""
    place = text.rindex if number % 8 < 4 else text.index
    wanted, given = (
        ('"agentPnL":12.5', '"agentPnL":"12.5"'),
        ('"agentBalance":10000', '"agentBalance":1e400'),
        ('"openPositions":3', '"openPositions":true'),
        ('"action":{"actionType":"', '"action":{"actionType":"","was":"'),
    )[number % 4]
    at = place(wanted)
    return text[:at] + given + text[at + len(wanted) :]


def _logs(number: int) -> Iterator[tuple[Any, ...]]:
    began = START + timedelta(seconds=number % 3000)
    name = f"t{number:06}"
    yield (
        f"log-{name}", name, f"{name}-step-0", f"{name}-call-0-0", began, "qwen/qwen3-32b", "action",
        "You are a disciplined trading agent who answers with JSON only, and says why.",
        "Balance $10000, three positions. " + "Market 17: YES at 0.48, liquidity 1000, closes soon. " * 40, '{"action": "hold"}',
        0.7, 300, began,
    )  # fmt: skip
