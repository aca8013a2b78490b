"""Hours to be judged, and settings that ask a scripted judge about them."""

from datetime import timedelta
from typing import Any

from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, connect
from babylon_rl.store.database import Database
from babylon_rl.store.judge_inputs import keep_secret
from babylon_rl.windows import HOUR, window_of
from babylon_rl_tests.rows import AFTER, START, insert, make_call, make_step, make_trajectory
from babylon_rl_tests.scored import read_hours

MODEL = "openai/scripted"
PRICED = "openai/gpt-4o-mini"
NOW = AFTER + timedelta(days=5)


def asking(settings: Settings, url: str, **changes: Any) -> Settings:
    """``settings`` with a judge at ``url`` that is given up on soon."""
    values = {"judge_model": MODEL, "judge_base_url": url, "judge_timeout_seconds": 10.0, "judge_disagreement": 1.0}
    return settings.model_copy(update=values | changes)


def add_hours(connection: Connection, hours: int, agents: int = 5, *, wordy: bool = False) -> list[str]:
    """Hours of as many agents, of whom each earns more than the one before, and no two hours are alike; returns their windows.

    ``wordy``: some agents say much more than others, who changes by the hour and has nothing to do with profit.

    The database has one and the same secret in each run of the tests, as what the judge is shown, in which order, and so its noise, its
    bias and its faults are drawn from it.
    """
    keep_secret(connection, bytes(32), NOW)
    windows = [window_of(START + number * HOUR) for number in range(hours)]
    rows = []
    for number, window in enumerate(windows):
        for agent in range(agents):
            said = [f'{{"action": "hold", "because": "{number}/{agent}"}}'] * 5
            if wordy:
                words = 10 * (3 * number + 5 * agent * agent + 1) % 130
                said = [f"{text} {' '.join(f'{step}/{word}' for word in range(words))}" for step, text in enumerate(said)]
            calls = [make_call(userPrompt=f"Hour {number}, what now?", response=text) for text in said]
            steps = [make_step(step, calls=[call]) for step, call in enumerate(calls)]
            moment = START + number * HOUR + timedelta(minutes=5 + agent)
            rows.append(
                make_trajectory(
                    f"t{number}-{agent}", f"agent-{agent}", steps=steps, finalPnL=100.0 * agent + number, windowId=window,
                    scenarioId=window, startTime=moment, endTime=moment + timedelta(seconds=30), createdAt=moment, updatedAt=moment,
                )
            )  # fmt: skip
    insert(connection, "trajectories", rows)
    return windows


def filled(database: Database, hours: int, agents: int = 5, *, wordy: bool = False) -> list[str]:
    """``add_hours``, read as the graph does, and committed."""
    with database.connect() as connection:
        windows = add_hours(connection, hours, agents, wordy=wordy)
        read_hours(connection, windows, Settings(_env_file=None), NOW)
    return windows


def count(url: str, query: str) -> int:
    """A number that the database says."""
    with connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
