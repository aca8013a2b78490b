"""Scripts for rare hours: a few of their steps run here with a tiny base, so that they are whole when the time comes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_rl_tests.tiny_model import make_base

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(home: Path, script: str, *arguments: str) -> str:
    own = {"BABYLON_RL_HOME": str(home), "LOCAL_BASE_MODEL": str(home / "base"), "DATABASE_URL": "", "PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    ended = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False, cwd=home)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_base(tmp_path / "base")
    return tmp_path


def test_the_cures_of_the_trust_region_are_compared_over_two_generations(home: Path) -> None:
    few = ["--seeds", "1", "--generations", "2", "--hours", "2", "--markets", "2", "--arms", "on", "off"]
    told = run(home, "trust_region.py", *few)
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert [(one["arm"], one["generation"]) for one in lines] == [("first", 1), ("on", 2), ("off", 2)]
    assert all({"klParent", "stepBack"} <= one.keys() for one in lines[1:]) and "| off | 2 | 1 | 0 |" in told
    assert run(home, "trust_region.py", *few).splitlines() == told.splitlines()[3:], "what is kept is not trained again"


def test_methods_train_on_one_frozen_batch(home: Path) -> None:
    few = ["--hours", "2", "--markets", "2", "--methods", "product", "art-loss", "imitation-once", "--json"]
    rows = json.loads(run(home, "methods.py", *few))["runs"]
    assert [row["method"] for row in rows][:3] == ["product", "art-loss", "imitation-once"]
