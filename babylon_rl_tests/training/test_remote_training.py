"""Serverless training through the stand-in: what becomes a version, what does not, and what is told."""

import platform
from dataclasses import replace
from datetime import timedelta

import pytest

from babylon_rl.errors import CheckpointError, Diverged, NothingToTrain, TrainingError, TrainingPaused
from babylon_rl.models.checkpoints import read_remote, verify
from babylon_rl.store.batches import read_batch, read_batch_episodes
from babylon_rl.store.registry import read_models
from babylon_rl.store.write_ahead import read_jobs
from babylon_rl.training.backends.serverless.runner import Times
from babylon_rl.training.backends.serverless.trainer import ServerlessTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.conversion import preflight_lines, refused_lately
from babylon_rl.training.freezing import count_freezable, freeze
from babylon_rl_tests.training.remote_play import HOURS, PLAYED_NOW, SEQUENCES, TRAINABLE
from babylon_rl_tests.training.sample import NOW, value
from babylon_rl_tests.training.serverless_stand_in.base import base_tokenizer

SHORT = Times(
    timedelta(seconds=20), timedelta(hours=1), poll_s=0.02, longest_poll_s=0.05, list_lag_s=0.5, timeout_s=0.5, first_job=timedelta(0)
)


@pytest.fixture
def batch(played, remote):
    frozen = freeze(played, remote, PLAYED_NOW).batch
    prepare_batch(played, frozen.batch_id, remote, PLAYED_NOW)
    return frozen


def train(connection, batch, settings, times=SHORT, **changes):
    settings = settings.model_copy(update=changes)
    return train_batch(connection, batch.batch_id, settings, PLAYED_NOW, ServerlessTrainer(settings, times))


def used(connection) -> int:
    return value(connection, 'SELECT count(*) FROM trajectories WHERE "usedInTraining"')


def assert_trained_once(connection, batch, stand_in) -> None:
    ours = [job for job in stand_in.service.trained() if not job.deleted]
    assert len(ours) == 1 and len(set(ours[0].trajectories)) == len(ours[0].trajectories) == TRAINABLE
    assert {mark[:2] for mark in ours[0].trajectories} == {(batch.batch_id, 1)}
    assert read_batch(connection, batch.batch_id).state == "completed"
    assert used(connection) == TRAINABLE
    assert len(read_models(connection)) == 1


@pytest.mark.slow
def test_recorded_play_becomes_a_version_that_agents_call(played, remote, stand_in, batch):
    from transformers import AutoTokenizer

    seen = []
    trained = train_batch(played, batch.batch_id, remote, PLAYED_NOW, on_step=seen.append)
    assert_trained_once(played, batch, stand_in)
    model = trained.model
    assert model.storage_path == "wandb-artifact:///stand-in/babylon-rl-training/babylon-agent:step1"
    assert (model.backend, model.base_model, model.version) == ("serverless", remote.base_model, "v1.0.0")
    manifest, pointer = verify(trained.checkpoint), read_remote(trained.checkpoint)
    assert {"README.md", "remote_checkpoint.json", "tokenizer.json"} <= set(manifest.files) and not list(trained.checkpoint.glob("*.safe*"))
    assert AutoTokenizer.from_pretrained(trained.checkpoint).chat_template == base_tokenizer().chat_template
    assert manifest.windows == tuple(HOURS[::-1])
    assert (pointer.step, pointer.inference_name) == (1, model.storage_path) and pointer.inference_url.startswith("http")
    (job,) = read_jobs(played, batch.batch_id)
    assert (job.state, job.step_before, job.step_after, job.sequences, job.job_id) == ("trained", 0, 1, TRAINABLE, pointer.job_id)
    assert [step.step for step in seen] == list(range(1, TRAINABLE + 1)) and {step.steps for step in seen} == {TRAINABLE}
    assert trained.steps[0].loss == job.loss == trained.batch.loss
    assert "x" not in str(read_jobs(played, batch.batch_id)[0].metrics)


@pytest.mark.slow
def test_preflight_says_what_would_train(played, remote, batch):
    train(played, batch, remote)
    found = read_batch(played, batch.batch_id).preflight
    assert (found["groups"], found["sequences"], found["trainableSequences"], found["logprobShare"]) == (2, SEQUENCES, TRAINABLE, 0.6)
    assert found["untrained"] == {"recorded without logprobs": SEQUENCES - TRAINABLE} and found["trainableTokens"] > TRAINABLE
    assert 0 < found["spread"]["min"] <= found["spread"]["mean"] <= found["spread"]["max"] < 1
    lines = preflight_lines(found, "base")
    assert lines[0].startswith("Training on 120 sequences of 10 episodes in 2 groups (40% scripted, 60% with logprobs)")
    assert "  Not trained: 48 sequences recorded without logprobs" in lines
    assert any("KL_PENALTY" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "drop_after", "500_after", "garbled_after"])
def test_a_faulty_post_trains_once(played, remote, stand_in, batch, fault):
    stand_in.service.post_faults = [fault]
    stand_in.service.lag_s = 0.1
    train(played, batch, remote)
    assert_trained_once(played, batch, stand_in)
    assert len(stand_in.service.jobs) == 1


@pytest.mark.long
@pytest.mark.parametrize(("fault", "why"), [("500", "status 500"), ("503", "status 503"), ("drop_before", "disconnected without")])
def test_a_post_that_is_cut_or_answered_with_an_error_is_posted_again_after_a_short_look(played, remote, stand_in, batch, fault, why):
    stand_in.service.post_faults = [fault]
    train(played, batch, remote, replace(SHORT, longest_job=timedelta(hours=3)))
    assert_trained_once(played, batch, stand_in)
    lost, trained = read_jobs(played, batch.batch_id)
    assert (lost.state, trained.state) == ("lost", "trained") and why in lost.error
    assert timedelta(seconds=SHORT.list_lag_s) <= trained.posted_at - lost.posted_at


@pytest.mark.slow
def test_a_service_that_answers_with_errors_alone_is_left_for_the_next_run(played, remote, stand_in, batch):
    stand_in.service.post_faults = ["500"] * 5
    with pytest.raises(TrainingPaused, match="took no job in 5 posts .*status 500"):
        train(played, batch, remote, replace(SHORT, longest_job=timedelta(hours=3), list_lag_s=0.05))
    assert read_batch(played, batch.batch_id).state == "training" and not stand_in.service.jobs
    train(played, batch, remote)
    assert_trained_once(played, batch, stand_in)


@pytest.mark.parametrize(("announces", "sequences_a_step"), [(False, 1), (True, 5), (False, 0)])
def test_a_job_that_does_not_count_its_sequences_is_not_waited_for(played, remote, stand_in, batch, announces, sequences_a_step):
    stand_in.service.announces, stand_in.service.sequences_a_step = announces, sequences_a_step
    patient = replace(SHORT, longest_job=timedelta(hours=3), list_lag_s=3600.0)  # the test's time limit is shorter
    train(played, batch, remote, patient)
    assert_trained_once(played, batch, stand_in)
    (job,) = read_jobs(played, batch.batch_id)
    assert job.sequences == TRAINABLE and (job.loss is None) == (sequences_a_step == 0)


@pytest.mark.slow
def test_slow_jobs_lagging_lists_and_events_out_of_order_train_once(played, remote, stand_in, batch):
    stand_in.service.job_s, stand_in.service.lag_s = 0.4, 0.3
    stand_in.service.job_faults = ["out_of_order"]
    train(played, batch, remote, replace(SHORT, longest_job=timedelta(seconds=10), list_lag_s=5.0))
    assert_trained_once(played, batch, stand_in)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("zero", TrainingError, "without training a sequence"),
        ("fails", TrainingError, "the trainer's machine went away"),
        ("nan", Diverged, "not finite"),
        ("no_step", TrainingError, "step stayed at 0"),
        ("steps_but_fails", TrainingError, "failed"),
    ],
)
def test_a_job_that_does_not_count_fails_its_batch_and_the_next_batch_trains(played, remote, stand_in, batch, fault, error, said):
    stand_in.service.job_faults = [fault]
    with pytest.raises(error, match=said):
        train(played, batch, remote)
    assert said in read_batch(played, batch.batch_id).error
    assert used(played) == 0 and not read_models(played)
    again = freeze(played, remote, PLAYED_NOW).batch
    prepare_batch(played, again.batch_id, remote, PLAYED_NOW)
    trained = train(played, again, remote)
    assert_trained_once(played, again, stand_in)
    assert read_remote(trained.checkpoint).step == (2 if fault in ("nan", "steps_but_fails") else 1)


@pytest.mark.long
def test_a_service_that_takes_no_job_leaves_the_batch_for_the_next_run(played, remote, stand_in, batch):
    stand_in.service.post_faults = ["429"] * 7
    with pytest.raises(TrainingPaused, match="took no job in 5 posts .*status 429"):
        train(played, batch, remote)
    assert read_batch(played, batch.batch_id).state == "training"
    train(played, batch, remote)
    assert_trained_once(played, batch, stand_in)
    assert [job.state for job in read_jobs(played, batch.batch_id)] == ["refused"] * 7 + ["trained"]


def test_a_wrong_key_is_said_and_costs_nothing(played, remote, stand_in, batch):
    wrong = remote.model_copy(update={"wandb_api_key": type(remote.wandb_api_key)("wrong")})
    with pytest.raises(TrainingError, match=r"the key \(the key\) is not known. Check WANDB_API_KEY"):
        train(played, batch, wrong)
    assert read_batch(played, batch.batch_id).state == "failed" and not stand_in.service.jobs


@pytest.mark.slow
def test_a_service_that_does_not_answer_leaves_the_batch_for_the_next_run(played, remote, stand_in, batch):
    stand_in.service.job_s = 0.2
    stand_in.service.read_faults = [503] * 60
    with pytest.raises(TrainingPaused, match="goes on with its next run"):
        train(played, batch, remote)
    assert read_batch(played, batch.batch_id).state == "training"
    stand_in.service.read_faults = []
    train(played, batch, remote)
    assert_trained_once(played, batch, stand_in)


@pytest.mark.slow
def test_versions_continue_from_each_other_and_iterations_are_jobs(played, remote, stand_in):
    two = remote.model_copy(update={"iterations": 2, "epochs": 2})
    for number, hours in enumerate([(HOURS[0], HOURS[1]), None]):
        frozen = freeze(played, two, PLAYED_NOW, windows=hours).batch
        prepare_batch(played, frozen.batch_id, two, PLAYED_NOW)
        trained = train_batch(played, frozen.batch_id, two, PLAYED_NOW, ServerlessTrainer(two, SHORT))
        assert trained.model.version == f"v1.0.{number}"
    assert trained.model.parent_version == "v1.0.0" and len(stand_in.service.models) == 1
    steps = [read_remote(trained.checkpoint).step, len(stand_in.service.trained())]
    assert steps[0] == steps[1] == sum(len(read_jobs(played, model.training_batch)) for model in read_models(played))


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "jobs"), [(1, 1), (2, 2)])
def test_one_hour_is_one_job_a_pass_whatever_the_iterations(played, remote, stand_in, epochs, jobs):
    ten = remote.model_copy(update={"iterations": 10, "epochs": epochs, "serverless_usd_per_million_tokens": 10.0})
    frozen = freeze(played, ten, PLAYED_NOW, windows=(HOURS[0], HOURS[1])).batch
    prepare_batch(played, frozen.batch_id, ten, PLAYED_NOW)
    train_batch(played, frozen.batch_id, ten, PLAYED_NOW, ServerlessTrainer(ten, SHORT))
    assert len(stand_in.service.jobs) == jobs
    found = read_batch(played, frozen.batch_id).preflight
    assert (found["iterations"], found["timesTrained"]) == (jobs, {"min": epochs, "max": epochs})
    once = found["estimatedUsd"] / epochs
    assert [job.estimated_usd for job in read_jobs(played, frozen.batch_id)] == pytest.approx([once] * jobs)
    assert any(f"each trajectory trains {'once' if epochs == 1 else '2 times'}" in line for line in preflight_lines(found, "base"))


def test_what_each_trajectory_contributed_is_stored_and_decides_what_is_marked(played, remote, batch):
    trained = train(played, batch, remote)
    counted = dict(played.execute('SELECT "contribution", count(*) FROM babylon_rl.batch_items GROUP BY 1').fetchall())
    assert counted == {"trained": TRAINABLE, "baseline": SEQUENCES - TRAINABLE}
    marked = """SELECT count(*) FROM trajectories t JOIN babylon_rl.batch_items i USING ("trajectoryId")
    WHERE t."usedInTraining" = (i."contribution" = 'trained') AND i."consumed" = t."usedInTraining" AND NOT i."live" """
    assert value(played, marked) == SEQUENCES
    assert trained.model.metrics["baselineTrajectories"] == SEQUENCES - TRAINABLE
    assert {episode.contributes for episode in read_batch_episodes(played, batch.batch_id)} == {"trained", "baseline"}
    lines = preflight_lines(read_batch(played, batch.batch_id).preflight, "base")
    assert "  Baseline only: 48 trajectories of 4 episodes; nothing of them trains, and they are not marked as used" in lines
    left = count_freezable(played, remote, PLAYED_NOW)
    assert (left.trajectories, left.not_trainable) == (0, {"used as baseline alone": 48})


def test_the_recorded_game_is_refused_before_anything_is_paid(connection, settings, remote, stand_in):
    frozen = freeze(connection, remote.model_copy(update={"lookback_hours": 168}), NOW).batch
    with pytest.raises(NothingToTrain) as refused:
        prepare_batch(connection, frozen.batch_id, remote, NOW)
    for said in (
        "no trainable token",
        "recorded without logprobs",
        f"openpipe-art 0.5.18 on Python {platform.python_version()}",
        "upgrade to Python 3.12",
        "TRAIN_RL_LOCAL",
    ):
        assert said in str(refused.value)
    batch = read_batch(connection, frozen.batch_id)
    assert (batch.state, batch.error) == ("failed", str(refused.value))
    assert batch.preflight["trainableTokens"] == 0 and batch.preflight["untrained"]
    assert value(connection, 'SELECT count(*) FROM babylon_rl.batch_items WHERE "live" OR "consumed"') == 0
    assert stand_in.service.requests == []
    assert "Automation tries again at 2025-10-31 12:00 UTC" in refused_lately(connection, remote, NOW)
    assert refused_lately(connection, remote, NOW + timedelta(hours=24, minutes=1)) is None  # and another backend may try at once
    assert refused_lately(connection, settings, NOW) is None


def test_a_budget_is_kept_before_the_post(played, remote, stand_in, batch):
    dear = {"training_budget_usd": 0.01, "serverless_usd_per_million_tokens": 10.0}
    with pytest.raises(TrainingError, match="would cost about .* Nothing was posted"):
        train(played, batch, remote, **dear)
    assert read_batch(played, batch.batch_id).state == "failed" and not stand_in.service.jobs


def test_a_budget_without_a_price_is_refused(played, remote, stand_in, batch):
    with pytest.raises(TrainingError, match="the limit cannot be kept"):
        train(played, batch, remote, training_budget_usd=5.0)
    assert not stand_in.service.jobs


def test_a_model_that_somebody_else_trained_is_not_touched(played, remote, stand_in, batch):
    model = stand_in.service.create_model({"project": remote.wandb_project, "name": "babylon-agent", "base_model": "b"})
    stand_in.service.foreign_step(model.id)
    with pytest.raises(CheckpointError, match="somebody else trained it"):
        train(played, batch, remote)
    assert len(stand_in.service.checkpoints(model.id)) == 1 and not stand_in.service.jobs
