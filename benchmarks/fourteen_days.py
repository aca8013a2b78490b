"""Fourteen days of a game that runs by itself: `make fourteen-days`, which fails where something does not hold.

`python -m benchmarks.fourteen_days --write` writes docs/evidence/fourteen-days.md with its plot and picture, which takes a Chromium.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

from transformers import AutoTokenizer

from babylon_rl.models.base_model import base_model_dir
from babylon_rl.reporting.plots import line_plot
from babylon_rl.settings import Settings
from babylon_rl_tests.e2e.admin_page_picture import take
from babylon_rl_tests.e2e.browser import browser_page, find_browser
from babylon_rl_tests.e2e.fortnight import Fortnight
from babylon_rl_tests.e2e.fortnight_days import Outcome, fortnight, judge_outcome, live, unmet
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.serving.admin_server import running_admin
from babylon_rl_tests.tiny_model import make_base

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evidence" / "fourteen-days.md"
PLOT = PAGE.with_suffix(".png")
PICTURE, WIDTH, HEIGHT = PAGE.parents[1] / "images" / "fourteen-days-admin.png", 1100, 2500


def page(outcome: Outcome, days: int, minutes: float, load: float) -> str:
    """The page in Markdown: the simulation, its facts at the end, and its events day by day."""
    held = [
        (
            "hours that a second reading of the rows (`babylon_rl_tests/oracle.py`) calls wrong",
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
    by_day: dict[str, list[str]] = {}
    for moment, sentence in outcome.story:
        if not re.search(r"is completed\.$| is superseded ", sentence):  # the lines of gate and release show both
            by_day.setdefault(f"{moment:%d}", []).append(_short(sentence))
    log = [f"| {day} | {' '.join(sentences)} |" for day, sentences in by_day.items()]
    return "\n".join(
        [
            f"# {days} days that run by themselves",
            "",
            f"`make fourteen-days` simulates {days} days of a game, here in {minutes:.0f} minutes (two cores, load {load:.0f}):",
            "eight scripted agents play two hours a day, and the sensors, schedules, conditions and run queue of Dagster's daemon run",
            "with a simulated clock. Nobody touches anything. The judge and the versions' skills are scripted; the gate has to find them.",
            "The command fails where an hour is wrong or without scores, a trajectory is used twice, or a fault was not put right.",
            "",
            "| at the end | |", "|---|---|", *lines, "",
            "![Trajectories recorded and trained, day by day](fourteen-days.png)", "",
            "The admin page at the end (it calls the daemon dead, as a daemon inside another program writes no heartbeat):", "",
            "![Readiness, hours, lineage, releases and alerts after the last day](../images/fourteen-days-admin.png)", "",
            "| day | events |", "|---|---|", *log, "",
        ]
    )  # fmt: skip


def _short(sentence: str) -> str:
    """A sentence of the log for a table; of the gate's the decision alone."""
    if sentence.startswith("Gate, "):
        sentence = sentence.split(". ")[0]
    return sentence.replace("|", "/").rstrip(".") + "."


def picture(running: Fortnight, scratch: Path) -> None:
    """Write a picture of the admin page as it is at the simulation's present moment."""
    program = find_browser()
    assert program is not None, "No Chromium was found."
    with (
        patch("babylon_rl.serving.admin_page.app.utc_now", lambda: running.now),
        running_admin(running.settings, running.database) as server,
        browser_page(program, scratch / "profile", WIDTH, 900) as page,
    ):
        take(page, f"{server.url}/admin", PICTURE, WIDTH, "light", HEIGHT)


def main() -> None:
    """Live the days, and fail where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--write", action="store_true", help="write the page with its plot and picture")
    options = parser.parse_args()
    days = options.days
    began = time.monotonic()
    values = {name: field.default for name, field in Settings.model_fields.items()}
    settings = Settings(_env_file=None, **values)
    with tempfile.TemporaryDirectory() as temporary, quick_directory(Path(temporary)) as directory:
        tokenizer = AutoTokenizer.from_pretrained(base_model_dir(settings))
        base = make_base(Path(temporary) / "base", tokenizer=tokenizer, positions=2048)
        with fortnight(directory, base, settings) as (running, cluster, skills, judge_url):
            outcome = judge_outcome(running, skills, live(running, cluster, judge_url, days, partial(print, flush=True)))
            if options.write:
                picture(running, Path(temporary))
    for sentence in (wrong := unmet(outcome)):
        print(f"Does not hold: {sentence}")
    if wrong:
        print(*(f"{moment:%d, %H:%M} {sentence}" for moment, sentence in outcome.story), sep="\n")
        sys.exit(1)
    if options.write:
        series = {"recorded": [float(number) for number, _ in outcome.by_day], "trained": [float(used) for _, used in outcome.by_day]}
        PLOT.write_bytes(line_plot("Trajectories by day", "trajectories", series, x_label="day").png)
        PAGE.write_text(page(outcome, days, (time.monotonic() - began) / 60, os.getloadavg()[2]))
    print(f"{days} days, {outcome.hours} hours, {len(outcome.decisions)} versions: all holds; {outcome.deployed} is deployed.")


if __name__ == "__main__":
    main()
