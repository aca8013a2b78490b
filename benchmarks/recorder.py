"""Steps a second that the recorder writes, beside a plain COPY of the same rows: `python benchmarks/recorder.py [trajectories]`.

Trajectories of 10 steps with one call of a 2 KB prompt each, end to end into an embedded Postgres of its own (rows of both tables
committed); prints JSON. The bound is 1,000 steps a second. `agent_microseconds` is what a step costs its agent, nothing written.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from babylon_rl.recorder import AsyncTrajectoryRecorder, Recording, TrajectoryRecorder
from babylon_rl.recorder.core import RecorderCalls
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.store.recording import add_agents, copy_rows
from babylon_rl.windows import utc_now

STEPS, AGENTS, ROUNDS = 10, 8, 3
BOUND_STEPS_A_SECOND = 1_000
SYSTEM = "You trade on a market of companies and questions. Answer with JSON. " * 6
USER = "OPENLIE 101.25 (+0.4 %), 12 posts, 3 events; balance $10,000. " * 26


def record(recorder: RecorderCalls, trajectory: str) -> None:
    """The steps of one trajectory, each with texts of its own."""
    for number in range(STEPS):
        recorder.start_step(trajectory, balance=1000.0 + number, pnl=0.5 * number, open_positions=2, activeMarkets=14)
        recorder.provider_access(trajectory, "BABYLON_MARKETS", {"price": 100.0 + number}, "Get current market prices")
        recorder.llm_call(
            trajectory, model="v1.0.3", model_version="v1.0.3", response=f'{{"action": "buy", "amount": {number}}}', temperature=0.7,
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{trajectory} {number} {USER}"}],
            max_tokens=300, latency_ms=812.5, tokens=(560, 12),
        )  # fmt: skip
        recorder.complete_step(trajectory, "BUY_SHARES", {"ticker": "OPENLIE", "shares": number}, success=True, reward=0.1)


def by_threads(url: str, settings: Settings, trajectories: int, threads: int) -> None:
    """Agents in threads; leaves when everything is in the database."""

    def agent(number: int) -> None:
        for _ in range(trajectories // threads):
            with recorder.trajectory(f"agent-{number}") as begun:
                record(recorder, begun)

    with TrajectoryRecorder.connect(url, settings=settings) as recorder, ThreadPoolExecutor(threads) as pool:
        list(pool.map(agent, range(threads)))


async def by_tasks(url: str, settings: Settings, trajectories: int) -> None:
    """Agents in tasks of one loop."""

    async def agent(number: int) -> None:
        for _ in range(trajectories // AGENTS):
            async with recorder.trajectory(f"agent-{number}") as begun:
                record(recorder, begun)

    async with await AsyncTrajectoryRecorder.connect(url, settings=settings) as recorder:
        await asyncio.gather(*(agent(number) for number in range(AGENTS)))


def finished(trajectories: int) -> list[Recording]:
    """The same rows, not written."""
    kept: list[Recording] = []
    recorder = TrajectoryRecorder(kept.append)
    for number in range(trajectories):
        with recorder.trajectory(f"agent-{number % AGENTS}") as begun:
            record(recorder, begun)
    return kept


def copy(database: Database, rows: list[Recording]) -> None:
    """The limit: finished rows, one COPY a table, one transaction."""
    with database.connect() as connection:
        copy_rows(connection, "trajectories", [one.columns for one in rows])
        copy_rows(connection, "llm_call_logs", [call for one in rows for call in one.calls])


def seconds(work: Callable[[], object]) -> float:
    """How long it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(trajectories: int) -> None:
    """Measure in turn, so that what the machine does otherwise falls on all of them."""
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home, use_server(Path(home)) as url:
        database, settings = Database(url, url), Settings(record_agent_trajectories=True, trajectory_sampling_rate=1.0)
        migrate(database)
        with database.connect() as connection:
            add_agents(connection, [(f"agent-{number}", f"Agent {number}") for number in range(AGENTS)], utc_now())
        rows: list[Recording] = []
        runs: dict[str, Callable[[], object]] = {
            "in_memory": lambda: rows.extend(finished(trajectories)),
            "plain_copy": lambda: copy(database, rows),
            "one_thread": lambda: by_threads(url, settings, trajectories, 1),
            "eight_threads": lambda: by_threads(url, settings, trajectories, AGENTS),
            "eight_tasks": lambda: asyncio.run(by_tasks(url, settings, trajectories)),
        }
        for _ in range(ROUNDS):
            rows.clear()
            for name, work in runs.items():
                took.setdefault(name, []).append(seconds(work))
        with database.connect() as connection:
            (written,) = connection.execute("SELECT count(*) FROM llm_call_logs").fetchone() or (0,)
    assert written == 4 * ROUNDS * trajectories * STEPS
    steps = trajectories * STEPS
    rates = {name: round(steps / statistics.median(found)) for name, found in took.items()}
    print(json.dumps({
        "steps": steps, "kb_a_trajectory": round(rows[0].size / 1000), "steps_a_second": rates,
        "agent_microseconds": round(1e6 / rates["in_memory"]), "bound_steps_a_second": BOUND_STEPS_A_SECOND,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
