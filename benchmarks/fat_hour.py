"""One hour of 50,000 rows by 500 agents: `python -m benchmarks.fat_hour [--rows N] [--agents N]`.

On an embedded server of its own, each hourly asset in a process of its own: seconds by the clock, its own processor seconds, peak memory.
Every row has five steps of 1 KB, a trade in each. In the last two steps a scripted language model judges the hour: as the asset
scored_groups, and in a process without Dagster (judged_hour.py). The exit code is 1 when a process holds more than the bound.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.windows import window_of
from babylon_rl_tests.many_rows import ManyRows, insert_many
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.scripted_judge.server import running
from benchmarks.ten_million_rows import END

BY_MODEL, JUDGED = "scored_groups by a model", "judged"
STEPS = ("window_groups", "market_outcomes", "hindsight", "scored_groups", BY_MODEL, JUDGED)


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
            commands = {step: asked if step == JUDGED else [*words, f"fat {step}", url, home] for step in given.steps}
            by_model = os.environ | {"JUDGE_MODEL": "openai/scripted", "JUDGE_BASE_URL": judge}
            return max(
                subprocess.run(command, env=by_model if step == BY_MODEL else None, check=False).returncode
                for step, command in commands.items()
            )


if __name__ == "__main__":
    sys.exit(main())
