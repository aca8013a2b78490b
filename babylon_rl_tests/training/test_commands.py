"""The commands as scripts run them: a process of their own, on the recorded game, through the asset graph."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.training.sample import NOW

MAIN = "from babylon_rl.cli import main; main()"


@pytest.fixture
def variables(sample_database: Database, tmp_path: Path) -> dict[str, str]:
    """The environment of a command on the recorded game with the dry trainer."""
    return {
        "DATABASE_URL": sample_database.url,
        "BABYLON_RL_HOME": str(tmp_path / "home"),
        "TRAIN_RL_LOCAL": "true",
        "LOCAL_BASE_MODEL": "dry",
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
    }


@pytest.fixture
def command(variables: dict[str, str], tmp_path: Path):
    """``command(*arguments)``: run babylon-rl to its end."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, environment=variables | environment, directory=tmp_path, timeout_s=110)

    return run


@pytest.fixture
def started(variables: dict[str, str], tmp_path: Path):
    """``started(*arguments)``: babylon-rl as a process that goes on."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments],
            env=variables, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    return start


@pytest.mark.long
def test_a_training_prints_what_it_promises_and_is_listed(command):
    before = command("ready", "--json")
    assert before.returncode == 1
    assert json.loads(before.stdout)["reason"] == "Need 1000 more trajectories"
    assert "quality of the newest" not in command("ready").stdout, "no row has been read yet"
    trained = command("train", "--iterations", "10", "--epochs", "10", "--seed", "3")
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout
    assert lines.count("simultaneous agents") == 7
    assert len(re.findall(r"Heuristic scores: min 0\.\d{3}, max 0\.\d{3}, avg 0\.\d{3}", lines)) == 7
    assert len(re.findall(r"Best: \S+ \(0\.\d{3}, P&L [+-]\d+\.\d\d\)", lines)) == 7
    assert re.findall(r"Iteration \d+/10: checkpoint step (\d+)", lines) == [str(number) for number in range(1, 11)]
    for promised in ("Final step: 10", "Checkpoints: 10", "Inference endpoint: http://localhost:8000/v1, model name v1.0.11"):
        assert promised in lines
    models = json.loads(command("models", "--json").stdout)["models"]
    assert [(m["version"], m["foreign"]) for m in models] == [("v1.0.11", False), ("v1.0.10", True), ("v1.0.9", True)]
    listed = json.loads(command("batches", "--json").stdout)["batches"]
    assert [(b["status"], b["foreign"]) for b in listed] == [("completed", False), ("completed", True)]
    shown = json.loads(command("batches", "show", listed[0]["batchId"], "--json").stdout)
    assert len(shown["episodes"]) == 48 and len(shown["iterations"]) == 10
    assert shown["avgReward"] == pytest.approx(models[0]["avgReward"]) and models[0]["avgReward"] is not None
    kept = [Path(iteration["checkpoint"]) for iteration in shown["iterations"]]
    assert [path.name for path in kept] == [str(number) for number in range(1, 11)]
    assert all((path / "adapter_model.safetensors").is_file() for path in kept)
    again = command("train")
    assert again.returncode == 1
    assert "freezable trajectories" in again.stderr


@pytest.mark.long
def test_a_command_that_was_killed_goes_on_at_the_iteration_where_it_stopped(command, started):
    with started("train", "--iterations", "50", "--epochs", "50") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Iteration 2/50"):
                break
        process.kill()
    resumed = command("train")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"Going on with batch-\d+, which is (training|uploading|completed)\.", resumed.stderr)
    assert re.findall(r"Iteration \d+/50: checkpoint step (\d+)", resumed.stdout) == [str(number) for number in range(1, 51)]
    (batch, _) = json.loads(command("batches", "--json").stdout)["batches"]
    assert (batch["status"], batch["modelVersion"], batch["trajectories"]) == ("completed", "v1.0.11", 373)
    begun = [iteration["step"] for iteration in json.loads(command("batches", "show", batch["batchId"], "--json").stdout)["iterations"]]
    assert sorted(set(begun)) == list(range(1, 51)) and len(begun) <= 51


@pytest.mark.long
def test_a_training_outlives_a_database_that_is_away_for_some_seconds(variables, sample_database, tmp_path):
    with Proxy(sample_database.url) as proxy:
        away = variables | {"DATABASE_URL": proxy.url, "ITERATIONS": "30", "EPOCHS": "30"}
        with subprocess.Popen(
            [sys.executable, "-c", MAIN, "train"],
            env=away, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                if line.startswith("Iteration 1/30"):
                    break
            proxy.cut(away=True)
            time.sleep(6)
            proxy.away = False
            # Not communicate(), which would lose the lines that came with the one read last.
            said, complained = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0, complained
    assert "Iteration 30/30" in said and "Final step: 30" in said
    assert "The database does not answer. The training goes on when it does" in complained and "undone" not in complained
    assert "The database answers again." in complained


@pytest.mark.long
def test_scores_and_outcomes_are_written_through_the_graph(command):
    first = command("score", "--window", "2025-10-29T14:00", "--json")
    assert first.returncode == 0, first.stderr
    (group,) = json.loads(first.stdout)["windows"]
    assert group["groupSize"] == 17 and group["judge"] == "heuristic"
    synced = json.loads(command("sync-outcomes", "--from", "2025-10-29T13:00", "--to", "2025-10-29T15:00", "--json").stdout)
    assert [(row["window"], row["changed"]) for row in synced["windows"]] == [("2025-10-29T13:00", True), ("2025-10-29T14:00", False)]


@pytest.mark.slow
def test_a_batch_that_has_not_ended_takes_no_other_options(command, sample_database):
    settings = Settings(_env_file=None, train_rl_local=True, local_base_model="dry")
    with sample_database.connect() as connection:
        sync_windows(connection, ["2025-10-29T13:00", "2025-10-29T14:00"], settings, NOW)
        batch = freeze(connection, settings, NOW).batch
    for options, was in ((["--iterations", "4"], "--iterations 10"), (["--seed", "3", "--epochs", "2"], "--epochs 1, --seed 0")):
        refused = command("train", *options)
        assert refused.returncode == 2 and f"{batch.batch_id} has not ended, and was frozen with {was}" in refused.stderr
        assert f"`babylon-rl batches cancel {batch.batch_id}`" in refused.stderr


@pytest.mark.slow
def test_a_batch_is_one_screen_and_its_episodes_are_in_the_document(command, sample_database):
    settings = Settings(_env_file=None, train_rl_local=True, local_base_model="dry")
    with sample_database.connect() as connection:
        sync_windows(connection, ["2025-10-29T13:00", "2025-10-29T14:00"], settings, NOW)
        batch = freeze(connection, settings, NOW).batch
    screen = command("batches", "show", batch.batch_id).stdout.splitlines()
    assert len(screen) < 25 and any(line.startswith("trainingLoss") for line in screen)
    assert len(json.loads(command("batches", "show", batch.batch_id, "--json").stdout)["episodes"]) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["train"], {"TRAIN_RL_LOCAL": "false"}, "TRAIN_RL_LOCAL=true"),
        (["train", "--from", "2025-10-29T13:00"], {}, "belong together"),
        (["train", "--batch", "batch-0"], {}, "no batch batch-0"),
        (["batches", "show", "batch-0"], {}, "no batch batch-0"),
        (["batches", "cancel", "batch-1761971999000", "--reason", "x"], {}, "no batch batch-1761971999000 of this pipeline"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(command, arguments, environment, message):
    failed = command(*arguments, **environment)
    assert failed.returncode in (2, 3)
    assert message.lower() in failed.stderr.lower()
    assert "Traceback" not in failed.stderr and "secret" not in failed.stderr
