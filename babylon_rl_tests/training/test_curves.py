"""Curves of trainings: every optimizer step on record, as the commands, the frame and the plots have it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.write_ahead import TrainingStep, begin_step, note_optimizer_steps, read_steps
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.backends.protocol import IterationResult, OnStep, StepMetrics, TrainIteration
from babylon_rl.training.batches import Trained, train_batch
from babylon_rl.training.curves import CURVES, optimizer_steps, overlaid, training_curves
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.training.test_registry import prepared

PNG = b"\x89PNG"


class Measuring(DryTrainer):
    """A dry trainer that tells numbers at every optimizer step, one of them not finite."""

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        def measured(step: StepMetrics) -> None:
            numbers = {"entropy": 1.0 / step.step, "ratio": 1.0 + iteration.step, "learningRate": 0.003, "gradientNorm": math.nan}
            on_step(StepMetrics(step.iteration, step.step, step.steps, step.loss, step.trainable_tokens, numbers))

        return super().train(iteration, parent, out, measured)


@pytest.fixture
def two(connection: Connection, settings: Settings) -> list[Trained]:
    """Two versions of one line, of 3 iterations with 2 and 4 optimizer steps."""
    made = []
    for steps in (2, 4):
        batch = prepared(connection, settings, max_trajectories=60)
        made.append(train_batch(connection, batch.batch_id, settings, NOW, Measuring(optimizer_steps=steps)))
    connection.commit()
    return made


def test_every_optimizer_step_is_on_record_with_its_numbers(connection: Connection, two: list[Trained]) -> None:
    trained = two[0]
    rows = optimizer_steps(connection, trained.batch)
    assert [(row["iteration"], row["step"]) for row in rows] == [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (3, 6)]
    assert {row["version"] for row in rows} == {trained.model.version}
    assert [row["loss"] for row in rows] == [1 / 2] * 2 + [1 / 3] * 2 + [1 / 4] * 2
    assert [(row["entropy"], row["ratio"], row["learningRate"]) for row in rows[:3]] == [(1, 2, 0.003), (0.5, 2, 0.003), (1, 3, 0.003)]
    # Nobody measured these, or not as a number.
    assert {row[name] for row in rows for name in ("kl", "servedKl", "clipFraction", "gradientNorm")} == {None}
    assert all(0 < row["rewardMean"] < 1 and row["rewardSpread"] > 0 for row in rows)
    assert [row["trainableTokens"] for row in rows[1::2]] == [step.trainable_tokens for step in trained.steps]


def test_an_iteration_that_was_begun_again_counts_once(connection: Connection, two: list[Trained]) -> None:
    batch = two[0].batch
    before = optimizer_steps(connection, batch)
    for attempt, losses in ((2, [9.0]), (3, [])):
        begin_step(connection, batch.batch_id, TrainingStep(4, attempt, "dry", 3, [], 1, NOW, None, None, None, None, None))
        note_optimizer_steps(connection, batch.batch_id, 4, attempt, [{"loss": loss} for loss in losses], 9)
    rows = optimizer_steps(connection, batch)
    assert rows[:-1] == before and (rows[-1]["iteration"], rows[-1]["step"], rows[-1]["loss"]) == (4, 7, 9.0)
    assert [step.losses for step in read_steps(connection, batch.batch_id)][-2:] == [[9.0], []]


def test_two_trainings_lie_over_each_other(connection: Connection, two: list[Trained]) -> None:
    first, second = (trained.model.version for trained in two)
    panels = overlaid(training_curves(connection, [trained.model for trained in two]))
    assert {len(values) for values in panels[CURVES["loss"].title].values()} == {6, 12}
    assert list(panels[CURVES["entropy"].title]) == [first, second] and CURVES["kl"].title not in panels
    assert two[1].model.parent_version == first


def test_the_commands_give_the_steps_and_the_picture(
    read_sample: Database, two: list[Trained], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", read_sample.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    batch_id, (first, second) = two[0].batch.batch_id, (trained.model.version for trained in two)

    def document(*arguments: str) -> dict[str, Any]:
        assert run([*arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    steps = document("batches", "steps", batch_id)["steps"]
    assert len(steps) == 6 and set(CURVES) < set(steps[0])
    compared = document("models", "compare", first, second)
    assert compared["steps"][:6] == steps and [row["version"] for row in compared["steps"]] == [first] * 6 + [second] * 12
    assert Path(compared["plot"]).read_bytes().startswith(PNG) and Path(compared["plot"]).parent == tmp_path / "plots"
    assert run(["models", "compare", first, second, "--plot", str(tmp_path / "own.png")]) == 0
    shown = capsys.readouterr().out
    assert f"{first} 6, {second} 12" in shown and "learningRate" in shown and "kl " not in shown
    assert (tmp_path / "own.png").read_bytes().startswith(PNG)
    assert run(["batches", "steps", batch_id]) == 0 and "grad norm" in capsys.readouterr().out
    assert run(["models", "compare", first, "v1.0.10"]) == 2
    assert "No optimizer step of v1.0.10 is on record" in " ".join(capsys.readouterr().err.split())


def test_a_batch_of_before_has_no_steps(connection: Connection, two: list[Trained]) -> None:
    connection.execute("""UPDATE babylon_rl.training_steps SET "optimizerSteps" = '[]'""")
    batch = read_batch(connection, two[0].batch.batch_id)
    assert batch is not None and optimizer_steps(connection, batch) == []
