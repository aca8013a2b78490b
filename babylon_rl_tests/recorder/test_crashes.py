"""A process of agents that is killed at any moment: every trajectory in the database is whole, with all of its calls."""

import json
import random
import subprocess
import sys
import time

import pytest

from babylon_rl.store.database import Database
from babylon_rl_tests.recorder.builders import AGENTS

pytestmark = pytest.mark.long

AGENTS_AT_WORK = """
import sys, threading
from babylon_rl.recorder import TrajectoryRecorder
recorder = TrajectoryRecorder.connect(sys.argv[1], room=200)

def agent(name):
    turn = 0
    while True:
        turn += 1
        steps = 1 + turn % 7
        with recorder.trajectory(name, scenario=f"{steps} steps") as begun:
            for number in range(steps):
                recorder.start_step(begun, balance=1.0, pnl=0.0, open_positions=0)
                recorder.llm_call(
                    begun, model="m", messages=[{"role": "user", "content": f"{begun} {number} " + "x" * 2000}],
                    response=str(number), temperature=1.0, max_tokens=8,
                )
                recorder.complete_step(begun, "HOLD", {}, success=True, reward=0.0)

for name in sys.argv[2:]:
    threading.Thread(target=agent, args=(name,), daemon=True).start()
recorder.flush()
print("started", flush=True)
threading.Event().wait()
"""


def test_a_killed_process_leaves_whole_trajectories_alone(game: Database) -> None:
    chance, kills = random.Random(0), 8
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", AGENTS_AT_WORK, game.url, *AGENTS[:3]], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "started\n"
        time.sleep(chance.uniform(0.0, 0.3))
        child.kill()
        child.communicate()
    _wait_until_alone(game)
    with game.connect() as connection:
        rows = connection.execute('SELECT "trajectoryId", "scenarioId", "episodeLength", "stepsJson" FROM trajectories').fetchall()
        calls = connection.execute('SELECT "callId", "trajectoryId", "userPrompt" FROM llm_call_logs').fetchall()
    assert len(rows) > 10 * kills
    expected = set()
    for trajectory, scenario, length, text in rows:
        steps = json.loads(text)
        assert scenario == f"{length} steps" and length == len(steps)
        expected |= {(f"{trajectory}-call-{number}-0", trajectory, step["llmCalls"][0]["userPrompt"]) for number, step in enumerate(steps)}
    assert set(calls) == expected and len(calls) == len(expected)


def _wait_until_alone(game: Database) -> None:
    """Until the server has noticed that its clients are gone."""
    with game.connect(autocommit=True) as connection:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while connection.execute(others).fetchone() != (0,):
            time.sleep(0.05)
