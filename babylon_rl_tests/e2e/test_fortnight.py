"""The first days of the simulated fortnight; `python -m benchmarks.fourteen_days` lives all of them."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from babylon_rl.settings import Settings
from babylon_rl_tests.e2e.fortnight_days import fortnight, judge_outcome, live
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.tiny_model import make_base

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
DAYS = 2


def test_two_days_pass_without_a_hand_and_everything_is_right(settings: Settings, packaged_base: Path, tmp_path: Path):
    base = make_base(tmp_path / "base", tokenizer=AutoTokenizer.from_pretrained(packaged_base), positions=2048)
    with quick_directory(tmp_path) as directory, fortnight(directory, base, settings) as (days, cluster, skills, judge_url):
        outcome = judge_outcome(days, skills, live(days, cluster, judge_url, DAYS))
    assert (outcome.hours, outcome.wrong_hours, outcome.unscored) == (4, [], 0)
    assert (outcome.used_twice, outcome.marked_otherwise) == (0, 0) and outcome.used >= 150
    assert outcome.deployed == outcome.best == "v1.0.0"
    assert any("late rows arrive" in sentence for _, sentence in outcome.story)
