"""The job ``train`` with the dry trainer: its checkpoint, checks, preflight and curves."""

import re
from datetime import timedelta
from statistics import fmean

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches, embedded
from babylon_rl.automation.checks_batches import CHECKPOINT_CHECKS
from babylon_rl.automation.sensors import start_training
from babylon_rl.reporting.plots import line_plot
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.assets.conftest import HOURS, NOW, TRAINING, Bench, a_batch, ask, run_into


@pytest.mark.slow
def test_a_frozen_batch_is_trained_by_the_job(ready: Bench):
    batch = a_batch(ready)
    result = ready.run("train", batch, asset_selection=TRAINING)
    checkpoint = ready.materializations("trained_checkpoint")[batch].metadata
    assert checkpoint["version"].value.startswith("v1.0.")
    assert HOURS[0] in checkpoint["upstream_windows"].value
    assert re.findall(r"!\[(\w+) ", checkpoint["pictures"].value) == ["Loss", "Training"]
    assert "WANDB_API_KEY is not set" in checkpoint["weights_and_biases"].value
    measured = {"checkpoint_whole", "iterations_complete", "scores_spread", "no_leakage"}  # of a dry run
    checks = result.get_asset_check_evaluations()
    assert {check.check_name: check.passed for check in checks} == {name: name in measured for name in CHECKPOINT_CHECKS}
    assert {check.severity for check in checks if not check.passed} == {dg.AssetCheckSeverity.WARN}
    assert isinstance(ask(ready, start_training), dg.SkipReason)


@pytest.mark.slow
def test_preflight_is_said_before_the_first_step_and_kept_with_the_checkpoint(ready: Bench):
    batch = a_batch(ready)
    result = ready.run("train", batch, asset_selection=TRAINING)
    logged = [record.event_log_entry.user_message for record in ready.instance.get_records_for_run(result.run_id).records]
    said = [message for message in logged if message.startswith(("Training on ", "  Spread of scores", "iteration 1, optimizer step 1"))]
    assert [message.split(" of ")[0] for message in said] == [said[0].split(" of ")[0], "  Spread", "iteration 1, optimizer step 1"]
    assert re.match(r"Training on \d+ sequences of \d+ episodes in 5 groups", said[0])
    kept = ready.materializations("trained_checkpoint")[batch].metadata["preflight"].value
    assert kept.splitlines()[0] == f"* {said[0]}" and "* Spread of scores in a group: " in kept


@pytest.mark.slow
def test_preflight_of_a_training_that_is_refused_is_said_too(ready: Bench):
    batch = a_batch(ready)
    ready.run("train", batch, asset_selection=TRAINING[:1])
    ready.execute("DELETE FROM llm_call_logs")
    ready.execute("""UPDATE trajectories SET "stepsJson" = regexp_replace("stepsJson", '"llmCalls"', '"calls"', 'g')""")
    with pytest.raises(dg.Failure, match="no training sequence"):
        ready.run("train", batch, asset_selection=TRAINING[1:])
    logged = [record.event_log_entry.user_message for run in ready.instance.get_runs(limit=1)
              for record in ready.instance.get_records_for_run(run.run_id).records]  # fmt: skip
    assert sum(message.startswith("Training on 0 sequences") for message in logged) == 1


@pytest.mark.slow
def test_the_curves_of_a_resumed_training_show_every_optimizer_step(ready: Bench):
    batch = a_batch(ready)

    def stop(what: str) -> None:
        if what == "training, iteration 9":
            raise KeyboardInterrupt

    run_into(ready, batch, stop)
    ready.run("train", batch, asset_selection=TRAINING)
    found = ready.materializations("trained_checkpoint")[batch].metadata
    version = found["version"].value
    losses = [1.0 / (1 + iteration) for iteration in range(1, 11) for _ in range(2)]
    curves = {"loss": losses, "mean of 10 steps": [fmean(losses[max(0, last - 10) : last]) for last in range(1, 21)]}
    (loss,) = embedded([line_plot(f"Loss of {version}", "loss", curves, x_label="step")]).values()
    assert found["pictures"].value.startswith(f"{loss.value}\n\n![Training")


@pytest.mark.slow
def test_a_checkpoint_s_page_draws_its_training_over_its_parent_s(ready: Bench):
    version = ""
    for number in range(2):
        with ready.babylon.database.connect(autocommit=True) as connection:
            batch = freeze(connection, ready.babylon.settings, NOW + timedelta(seconds=number), max_trajectories=60).batch
        assert batch is not None
        ready.instance.add_dynamic_partitions(batches.name, [batch.batch_id])
        ready.run("train", batch.batch_id, asset_selection=TRAINING)
        found, parent = ready.materializations("trained_checkpoint")[batch.batch_id].metadata, version
        version = found["version"].value
    assert f"Training of {version}, over that of {parent}, by optimizer step" in found["pictures"].value
