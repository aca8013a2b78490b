"""Steps that a judge is shown in full: `python benchmarks/judge_steps.py [--model NAME] [--request-tokens N] [--database URL]`.

A line of JSON for each ready hour of the recorded game, and of a game made here in which agents act often: 6 hours of 12 agents with 35
trades, 20 posts, 10 comments and 10 holds each, in words drawn by a seed, 60 to 140 of them as the reason of every trade. Nobody is asked.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from judge_tokens import MODEL, sample
from training_rows import own_database

from babylon_rl.cli.caches import keep_caches_at_home
from babylon_rl.episodes.reading import read_windows
from babylon_rl.judge.prompt.render import render_groups
from babylon_rl.judge.prompt.request import plan_requests
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl.windows import window_of
from babylon_rl_tests.rows import START, insert, make_call, make_step, make_trajectory

HOURS, AGENTS = 6, 12
ACTIONS = {"BUY_SHARES": 20, "SELL_SHARES": 15, "CREATE_POST": 20, "CREATE_COMMENT": 10, "HOLD": 10}
TEXT = (
    "the price of this stock has moved because a report says that earnings fall and others still believe rumours while volume stays thin "
    "so risk is larger than it looks I keep cash sell into strength buy weakness wait for news compare odds with what I expect from it"
)
TICKERS = ("OPENLIE", "FACEHOOK", "DEEPMINED", "PALANTYRANT", "ANDURITALIN")
SYSTEM = "You are an autonomous trader in a prediction market. Read the feed, size positions carefully, and answer with one action as JSON."


def busy_hour(hour: int) -> Iterator[dict[str, Any]]:
    """The trajectories of one hour, one of each agent."""
    chance = random.Random(hour)
    start = START + timedelta(hours=hour)
    for agent in range(AGENTS):
        actions = [action for action, times in ACTIONS.items() for _ in range(times)]
        chance.shuffle(actions)
        steps = [_step(chance, number, action) for number, action in enumerate(actions)]
        yield make_trajectory(
            f"t{hour}-{agent}", f"agent-{agent}", steps=steps, startTime=start, endTime=start + timedelta(minutes=50),
            windowId=window_of(start), scenarioId=window_of(start), finalPnL=chance.gauss(0, 50), createdAt=start, updatedAt=start,
        )  # fmt: skip


def _step(chance: random.Random, number: int, action: str) -> dict[str, Any]:
    pnl = round(chance.gauss(0, 50), 2)
    prices = {ticker: round(chance.uniform(20, 500), 2) for ticker in TICKERS}
    feed = "\n".join(f"Poster {chance.randrange(40)}: {_words(chance, 18)}" for _ in range(3))
    prompt = f"Balance: ${1000 + pnl}\nSTOCKS:\n{json.dumps(prices)}\nFEED:\n{feed}\nDecide your next action as JSON."
    written = _words(chance, 30) if action.startswith("CREATE") else ""
    traded = {"ticker": chance.choice(TICKERS), "shares": chance.randrange(1, 40), "side": chance.choice(("long", "short"))}
    parameters = {"content": written} if written else {} if action == "HOLD" else traded
    call = make_call(systemPrompt=SYSTEM, userPrompt=prompt, response=json.dumps({"action": action, "parameters": parameters}))
    reason = _words(chance, chance.randrange(60, 140)) if parameters is traded else _words(chance, 25)
    done = {"actionType": action, "parameters": parameters, "success": True, "reasoning": reason, "result": {"executed": True}}
    return make_step(number, pnl=pnl, calls=[call]) | {"action": done}


def _words(chance: random.Random, number: int) -> str:
    return " ".join(chance.choices(TEXT.split(), k=number))


def measure(connection: Connection, game: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """What is shown of each ready hour of a database."""
    connection.execute("SET TIME ZONE 'UTC'")
    readings = read_windows(connection, windows_with_rows(connection, "2025-01-01T00:00", "2026-01-01T00:00"), settings)
    for window, reading in readings.items():
        if reading.ready:
            group = render_groups(connection, {window: reading}, settings)[window]
            requests = plan_requests(group, settings.judge_model, 0, b"0" * 32, settings)
            yield {
                "game": game, "window": window, "episodes": len(group.episodes), "steps": group.steps, "shortened": group.shortened,
                "decisions": sum(episode.trades for episode in reading.usable_episodes), "decisions_shortened": group.decisions_shortened,
                "left_out": group.left_out, "requests": [request.tokens for request in requests],
            }  # fmt: skip


def total(hours: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sums over a game's hours, with the shares."""
    counts = ("steps", "shortened", "decisions", "decisions_shortened", "left_out")
    sums: dict[str, Any] = {name: sum(hour[name] for hour in hours) for name in counts}
    tokens = [tokens for hour in hours for tokens in hour["requests"]]
    return {
        "game": hours[0]["game"], "hours": len(hours), **sums, "share": round(sums["shortened"] / sums["steps"], 3),
        "share_of_decisions": round(sums["decisions_shortened"] / sums["decisions"], 3), "requests": len(tokens),
        "tokens": sum(tokens), "longest": max(tokens),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="the judge, a litellm model name")
    parser.add_argument("--request-tokens", type=int, help="JUDGE_REQUEST_TOKENS")
    parser.add_argument("--database", help="a migrated database with a recorded game instead of the sample")
    arguments = parser.parse_args()
    keep_caches_at_home()
    settings = Settings(
        _env_file=None, judge_model=arguments.model, judge_base_url="http://127.0.0.1:9", judge_request_tokens=arguments.request_tokens
    )
    with sample(arguments.database) as url, Connection.connect(url) as connection:
        recorded = list(measure(connection, "recorded", settings))
    with own_database("benchmark_judge_steps") as database, database.connect() as connection:
        for hour in range(HOURS):
            insert(connection, "trajectories", busy_hour(hour))
        busy = list(measure(connection, "busy", settings))
    for line in (*recorded, *busy, *(total(game) for game in (recorded, busy) if game)):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
