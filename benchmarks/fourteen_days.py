"""Fourteen days of a game that runs by itself: python -m benchmarks.fourteen_days writes docs/evidence/fourteen-days.md and its plot."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from babylon_rl.models.base_model import base_model_dir
from babylon_rl.reporting.plots import line_plot
from babylon_rl.settings import Settings
from babylon_rl_tests.e2e.fortnight_days import Outcome, fortnight, judge_outcome, live
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.tiny_model import make_base

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evidence" / "fourteen-days.md"
PLOT = PAGE.with_suffix(".png")


def page(outcome: Outcome, days: int, minutes: float, load: float) -> str:
    """The page in Markdown: what was asked of the days, what came of it, and the log."""
    held = [
        (
            "hours that the plain reading of the rows (babylon_rl_tests/oracle.py) calls wrong",
            f"{len(outcome.wrong_hours)} of {outcome.hours}",
        ),
        ("ready hours without scores", outcome.unscored),
        ("trajectories in more than one batch", f"{outcome.used_twice} of {outcome.trajectories}"),
        ("trajectories whose mark disagrees with their batch", outcome.marked_otherwise),
        ("trajectories that trained", outcome.used),
        ("the deployed version", outcome.deployed),
        ("the best version that passed and was not rolled back", outcome.best),
    ]
    lines = [f"| {what} | {value} |" for what, value in held]
    decisions = [f"| {version} | {decision} |" for version, decision in outcome.decisions.items()]
    fell = any("rolled back" in sentence for _, sentence in outcome.story)
    rolled_back = "One on trial is rolled back." if fell else "None was on trial when endpoints failed: no rollback."
    log = [f"| {moment:%d, %H:%M} | {sentence.replace('|', '/')} |" for moment, sentence in outcome.story]
    return "\n".join(
        [
            f"# {days} days that run by themselves",
            "",
            f"`python -m benchmarks.fourteen_days --days {days}` lives {days} days of a game in {minutes:.0f} minutes",
            f"(two cores, load {load:.0f}):",
            "eight scripted agents play two hours a day, and the sensors, schedules, conditions and the run queue of Dagster's daemon tick",
            "with a clock of their own. Nobody touches anything. Rows come late, the judge is down for hours, its budget is spent on",
            "another, the database stops and starts, a training crashes, and one version reads the news wrongly. " + rolled_back,
            "",
            "The judge is scripted and answers over HTTP; the CPU trainer trains a tiny model; how well a version plays is scripted, and",
            "the gate has to find it out. The second reading is `babylon_rl_tests/oracle.py`; `babylon_rl_tests/e2e/test_fortnight.py`",
            "lives the first two days with every run of the tests.",
            "",
            "| at the end | |", "|---|---|", *lines, "",
            "![Trajectories recorded and trained, day by day](fourteen-days.png)", "",
            "| version | gate |", "|---|---|", *decisions, "",
            "## What happened", "", "| day and time | what |", "|---|---|", *log, "",
        ]
    )  # fmt: skip


def main() -> None:
    """Live the days, write the page, and fail where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=14)
    days = parser.parse_args().days
    began = time.monotonic()
    values = {name: field.default for name, field in Settings.model_fields.items()}
    settings = Settings(_env_file=None, **values)
    with tempfile.TemporaryDirectory() as temporary, quick_directory(Path(temporary)) as directory:
        tokenizer = AutoTokenizer.from_pretrained(base_model_dir(settings))
        base = make_base(Path(temporary) / "base", tokenizer=tokenizer, positions=2048)
        with fortnight(directory, base, settings) as (running, cluster, skills, judge_url):
            outcome = judge_outcome(running, skills, live(running, cluster, judge_url, days))
    series = {"recorded": [float(number) for number, _ in outcome.by_day], "trained": [float(used) for _, used in outcome.by_day]}
    PLOT.write_bytes(line_plot("Trajectories by day", "trajectories", series, x_label="day").png)
    PAGE.write_text(page(outcome, days, (time.monotonic() - began) / 60, os.getloadavg()[2]))
    right = not outcome.wrong_hours and not (outcome.unscored or outcome.used_twice or outcome.marked_otherwise)
    print(f"{PAGE}: {'all holds' if right and outcome.deployed == outcome.best else 'SOMETHING DOES NOT HOLD'}")
    sys.exit(0 if right and outcome.deployed == outcome.best else 1)


if __name__ == "__main__":
    main()
