"""One hour of 50,000 rows by 500 agents: `python -m benchmarks.fat_hour [--rows N] [--agents N]`.

On an embedded server of its own, each hourly asset in a process of its own: seconds by the clock, its own processor seconds, peak memory.
Every row has five steps of 1 KB, a trade in each. In the last step a scripted language model judges the hour (judged_hour.py). The exit
code is 1 when a process holds more than the bound.
"""

import argparse
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from babylon_rl.judge.scripted.judge import ScriptedJudge
from babylon_rl.judge.scripted.server import running
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.windows import window_of
from babylon_rl_tests.many_rows import ManyRows, insert_many
from benchmarks.ten_million_rows import END

JUDGED = "judged"
STEPS = ("window_groups", "market_outcomes", "hindsight", "scored_groups", JUDGED)


def main() -> int:
    """Fill, and measure each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    given = parser.parse_args()
    many = ManyRows(
        given.rows, END - timedelta(hours=1), END, agents=given.agents, steps=5, prompt_characters=600, organizations=5, trades=True
    )
    with tempfile.TemporaryDirectory(prefix="babylon-rl-fat-") as home, use_server(Path(home)) as url:
        migrate(Database(url, url))
        with connect(url, autocommit=True) as connection:
            insert_many(connection, many)
            connection.execute("VACUUM ANALYZE")
        words = [sys.executable, "-m", "benchmarks.year_of_hours", "--work"]
        with running(ScriptedJudge(noise=0.1)) as judge:
            asked = [sys.executable, "-m", "benchmarks.judged_hour", url, home, window_of(many.start), judge]
            commands = [asked if step == JUDGED else [*words, f"fat {step}", url, home] for step in given.steps]
            return max(subprocess.run(command, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
