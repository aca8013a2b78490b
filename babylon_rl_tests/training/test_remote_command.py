"""`babylon-rl train` with a key and the stand-in's address: what a user of serverless training sees."""

import json
from datetime import timedelta

import pytest

from babylon_rl.cli import run
from babylon_rl.store.registry import read_models
from babylon_rl.training.backends.serverless import trainer
from babylon_rl_tests.training.remote_play import HOURS

pytestmark = pytest.mark.slow


@pytest.fixture
def serverless(monkeypatch, tmp_path, stand_in, base_directory):
    """The environment of a serverless training on a database."""

    def choose(database) -> None:
        for name, value in {
            "DATABASE_URL": database.url, "BABYLON_RL_HOME": str(tmp_path), "WANDB_API_KEY": "x", "SERVERLESS_BASE_URL": stand_in.url,
            "BASE_MODEL": str(base_directory), "WANDB_MODE": "disabled",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)

    return choose


@pytest.mark.long
def test_recorded_play_trains_by_command(played_database, serverless, stand_in, capsys):
    serverless(played_database)
    assert run(["train", "--iterations", "1", "--from", HOURS[0], "--to", "2025-11-15T12:00"]) == 0
    said = capsys.readouterr().out
    for line in (
        "Training on 120 sequences of 10 episodes in 2 groups (40% scripted, 60% with logprobs)",
        "Not trained: 48 sequences recorded without logprobs",
        "Iteration 1/1: checkpoint step 1",
        f"Inference endpoint: {stand_in.url}, model name wandb-artifact:///stand-in/babylon-rl-training/babylon-agent:step1",
    ):
        assert line in said
    with played_database.connect() as connection:
        (model,) = read_models(connection)
        assert model.storage_path == "wandb-artifact:///stand-in/babylon-rl-training/babylon-agent:step1"
    assert [job.step for job in stand_in.service.trained()] == [1]
    assert run(["models"]) == 0 and run(["batches"]) == 0
    capsys.readouterr()
    assert run(["batches", "show", model.training_batch, "--json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)["remoteJobs"]
    assert (job["state"], job["stepBefore"], job["stepAfter"], job["jobId"]) == ("trained", 0, 1, stand_in.service.jobs[0].id)
    assert run(["serve", "model", model.version]) == 3
    assert "nothing needs to be started" in capsys.readouterr().err


@pytest.mark.long
def test_the_recorded_game_is_refused_by_command_with_the_cure(sample_database, serverless, stand_in, capsys):
    serverless(sample_database)
    assert run(["train", "--iterations", "1"]) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    for words in ("has no trainable token, and nothing was posted", "Record the answers with their logprobs", "TRAIN_RL_LOCAL=true"):
        assert words in said
    assert "Not trained:" in said and stand_in.service.requests == []
    assert run(["batches", "--json"]) == 0
    assert '"failed"' in capsys.readouterr().out


@pytest.mark.long
def test_a_job_that_never_ends_is_given_up_by_command(played_database, serverless, stand_in, monkeypatch, capsys):
    serverless(played_database)
    monkeypatch.setattr(trainer, "LONGEST_JOB", timedelta(seconds=0.06))
    stand_in.service.job_faults = ["stalls"]
    train = ["train", "--iterations", "1", "--from", HOURS[0], "--to", "2025-11-15T12:00"]
    assert run(train) != 0
    (job,) = stand_in.service.jobs
    assert f"babylon-rl batches give-up-job {job.id} --reason" in " ".join(capsys.readouterr().err.split())
    assert run(["batches", "give-up-job", job.id, "--reason", "its machine is gone"]) == 0
    assert run(["batches", "give-up-job", job.id, "--reason", "its machine is gone"]) == 2
    assert f"No job {job.id} is running" in " ".join(capsys.readouterr().err.split())
    assert run(["train"]) != 0
    assert "given up: its machine is gone" in " ".join(capsys.readouterr().err.split())
    assert run(train) == 0
