"""The whole loop in small, through the command line: real database, real Dagster, real HTTP, the real 135M-parameter model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_rl.market.simulation.strategies import NAMES
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.store.servers import ROOT
from benchmarks.demo import KEPT

# Two hours are few: at the usual rate the policy of some hours collapses, and is rightly not published.
SMALL = {"LEARNING_RATE": "0.0001", "BENCHMARK_MARKETS": "3"}
WINDOWS = 2


@pytest.fixture
def state(packaged_base: Path, tmp_path: Path) -> Path:
    """An empty state directory that shares the converted weights with the project's."""
    home = tmp_path / "state"
    (home / "models").mkdir(parents=True)
    (home / "models" / packaged_base.name).symlink_to(packaged_base, target_is_directory=True)
    return home


def environment(state: Path) -> dict[str, str]:
    """Variables of commands on the state directory, without the user's services."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith(("_URL", "_KEY"))}
    return inherited | SMALL | {"BABYLON_RL_HOME": str(state)}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_demo_goes_from_nothing_to_a_compared_checkpoint_and_then_only_shows_it(state: Path) -> None:
    demo = [sys.executable, "-m", "babylon_rl", "demo", "--windows", str(WINDOWS), "--json"]
    first = subprocess.run(demo, env=environment(state), capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["modelVersion"] == "v1.0.0"
    assert [row["model"] for row in result["rows"]] == ["v1.0.0", "base", *NAMES, "best-by-prompt"]
    assert all(row["markets"] == 3 and row["invalid"] == 0 for row in result["rows"])
    kept = json.loads(KEPT.read_text())
    assert result.keys() == kept.keys(), "`python benchmarks/demo.py --write` keeps the run that the pages show"
    assert [row.keys() for row in result["rows"]] == [row.keys() for row in kept["rows"]]
    assert result["decision"] in ("fail", "inconclusive"), "a pass needs 48 markets"
    checkpoint = Path(result["checkpoint"])
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "manifest.json"} <= {
        path.name for path in checkpoint.iterdir()
    }
    assert Path(result["plot"]).read_bytes().startswith(b"\x89PNG")

    def run_again(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, "--json", environment=environment(state), directory=ROOT)

    again = run_again("demo", "--windows", str(WINDOWS))
    assert again.returncode == 0, again.stderr
    assert {**json.loads(again.stdout), "seconds": 0} == {**result, "seconds": 0}

    models = json.loads(run_again("models").stdout)["models"]
    assert [(model["version"], model["status"]) for model in models] == [("v1.0.0", "ready")]
    windows = json.loads(run_again("windows").stdout)["windows"]
    assert [hour["state"] for hour in windows] == ["trained"] * WINDOWS
    assert not (state / "postgres" / "postmaster.pid").exists(), "the embedded server outlived its last user"

    batch = json.loads(run_again("batches", "show", result["batchId"]).stdout)
    card = (checkpoint / "README.md").read_text()
    assert "| Scores by | heuristic, version " in card
    assert all(hour["window"] in card and hour["window"] in json.dumps(batch) for hour in windows), "the version is traced to its hours"
