"""An interrupted and resumed training of the recorded game, on the CPU line, ends with the registry of one that nobody interrupted."""

from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.write_ahead import read_steps
from babylon_rl.training.backends.cpu.trainer import CpuTrainer
from babylon_rl.training.backends.protocol import StepMetrics
from babylon_rl.training.batches import pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.faults.world import World, registry
from babylon_rl_tests.training.sample import NOW

pytestmark = pytest.mark.long


class Killed(BaseException):
    """Stands for the death of the process."""


def dies_in(iteration: int):
    def watch(step: StepMetrics) -> None:
        if step.iteration == iteration:
            raise Killed

    return watch


def train(database: Database, settings: Settings, home: Path, deaths: list[int]) -> dict[str, object]:
    """Train a few episodes of the recorded game, dying once in each of the given iterations; what the registry then holds."""
    chosen = settings.model_copy(update={"babylon_rl_home": home, "iterations": 3, "learning_rate": 1e-4})
    with database.connect() as connection:
        batch = freeze(connection, chosen, NOW, max_trajectories=12, seed=4).batch
        prepare_batch(connection, batch.batch_id, chosen, NOW)
        for iteration in deaths:
            with pytest.raises(Killed):
                train_batch(connection, batch.batch_id, chosen, NOW, CpuTrainer(chosen, threads=1), on_step=dies_in(iteration))
            connection.rollback()
            assert [b.batch_id for b in pending_batches(connection)] == [batch.batch_id]
        train_batch(connection, batch.batch_id, chosen, NOW, CpuTrainer(chosen, threads=1))
        begun = [step.iteration for step in read_steps(connection, batch.batch_id)]
        assert begun == sorted([1, 2, 3, *deaths])
        assert sorted(path.name for path in (home / "checkpoints" / ".work" / batch.batch_id).iterdir()) == ["1", "2", "3"]
        found = registry(World(database.url, chosen, connection))
    found["models"] = [[str(value).replace(str(home), "") for value in model] for model in found["models"]]
    return found


def test_an_interrupted_training_on_the_processor_ends_with_the_same_registry(copy_of, cpu_settings, tmp_path):
    whole = train(copy_of("read_sample"), cpu_settings, tmp_path / "whole", [])
    assert list(whole["weights"]) == ["v1.0.11"] and len(whole["steps"]) == 3
    assert train(copy_of("read_sample"), cpu_settings, tmp_path / "resumed", [1, 2, 2, 3]) == whole
