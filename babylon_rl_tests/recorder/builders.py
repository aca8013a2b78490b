"""What the recorder's tests record: a recorder that writes into a list, and whole trajectories of a few steps."""

import itertools
import json
import time
from datetime import timedelta
from typing import Any

from babylon_rl.market.simulation.prompting import format_of
from babylon_rl.recorder import Recording, TrajectoryRecorder
from babylon_rl.recorder.core import RecorderCalls
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.recording import copy_rows
from babylon_rl_tests.rows import START, insert

MESSAGES = [{"role": "system", "content": "You trade."}, {"role": "user", "content": "What now?"}]
AGENTS = tuple(f"agent-{number}" for number in range(8))
ASKED: dict[str, Any] = {
    "model": "v1.0.0", "messages": MESSAGES, "response": '{"action": "hold"}', "temperature": 0.7, "max_tokens": 300,
}  # fmt: skip
SCHEMA = format_of(("OPENLIE", "Q7"))
LOGPROBS = [{"token": '{"', "logprob": -0.5, "tokenId": 17}, {"token": "…", "logprob": 0.0, "tokenId": 2}]


class Recorded:
    """A recorder that writes into a list, with a clock that a test moves."""

    def __init__(self, sampling_rate: float = 1.0) -> None:
        self.now = START + timedelta(minutes=5)
        self.kept: list[Recording] = []
        numbers = itertools.count(248_027_329_408_794_624)
        self.recorder = TrajectoryRecorder(self.kept.append, lambda: str(next(numbers)), lambda: self.now, sampling_rate)

    def trajectory(self, steps: int = 1, **ending: Any) -> str:
        begun = self.recorder.start_trajectory("agent-1")
        for _ in range(steps):
            self.step(begun)
        self.recorder.end_trajectory(begun, **({"balance": 9_950.0, "pnl": 125.5} | ending))
        return begun

    def step(self, trajectory: str, action: str = "TRADING_DECISION", *, success: bool = True, reward: float = 0.1, **call: Any) -> None:
        self.recorder.start_step(trajectory, balance=10_000.0, pnl=125.5, open_positions=2)
        self.recorder.llm_call(trajectory, **(ASKED | call))
        self.now += timedelta(seconds=2)
        self.recorder.complete_step(trajectory, action, {"side": "YES"}, success=success, reward=reward)

    @property
    def columns(self) -> dict[str, Any]:
        return self.kept[-1].columns

    @property
    def steps(self) -> list[dict[str, Any]]:
        return list(json.loads(self.columns["stepsJson"]))


def record_steps(recorder: RecorderCalls, trajectory: str, steps: int, prompt: str = "What now?") -> None:
    """Whole steps with a call each, into any recorder."""
    messages = [{"role": "system", "content": "You trade."}, {"role": "user", "content": prompt}]
    for number in range(steps):
        recorder.start_step(trajectory, balance=1000.0 + number, pnl=float(number), open_positions=1)
        recorder.llm_call(trajectory, **(ASKED | {"messages": messages, "response": f"answer {number}"}))
        recorder.complete_step(trajectory, "BUY_SHARES", {"ticker": "$BTC", "shares": 1}, success=True, reward=0.5)


def add_users(connection: Connection, *agents: str) -> None:
    """The agents as the game's users."""
    insert(connection, "User", [{"id": agent, "updatedAt": START} for agent in agents])


def store(connection: Connection, recorded: Recorded) -> None:
    """Write what was recorded, agents included."""
    add_users(connection, *sorted({one.columns["agentId"] for one in recorded.kept}))
    copy_rows(connection, "trajectories", [one.columns for one in recorded.kept])
    copy_rows(connection, "llm_call_logs", [call for one in recorded.kept for call in one.calls])


def connected(url: str, settings: Settings, **options: Any) -> TrajectoryRecorder:
    """A recorder into a database, at START."""
    return TrajectoryRecorder.connect(url, settings=settings, clock=lambda: START, **options)


def stored(database: Database) -> dict[str, tuple[str, int, int]]:
    """(agent, steps, calls) of every trajectory in the database, by its id."""
    with database.connect() as connection:
        rows = connection.execute(
            """
            SELECT "trajectoryId", "agentId", "stepsJson", (SELECT count(*) FROM llm_call_logs AS log
                WHERE log."trajectoryId" = trajectories."trajectoryId") FROM trajectories
            """
        ).fetchall()
    return {trajectory: (agent, len(json.loads(steps)), calls) for trajectory, agent, steps, calls in rows}


def until(true: Any, seconds: float = 30) -> None:
    """Wait for a condition of another thread."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
