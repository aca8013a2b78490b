"""A line is one chain: one of its batches trains at a time, and each version continues from, and is numbered above, the one before."""

from dataclasses import replace
from datetime import timedelta

import pytest

from babylon_rl.errors import BatchConflict, TrainingError, TrainingPaused
from babylon_rl.models.checkpoints import MANIFEST, verify
from babylon_rl.store.batches import claim_batch, read_batch
from babylon_rl.store.registry import parent_of_line
from babylon_rl.store.write_ahead import read_steps
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.backends.protocol import TrainPlan, trainer_choice
from babylon_rl.training.batches import batch_settings, cancel_batch, pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.training.test_batches import Killed, KilledTrainer

pytestmark = pytest.mark.slow


def prepared(connection, settings, now=NOW, **given):
    batch = freeze(connection, settings, now, seed=5, **given).batch
    prepare_batch(connection, batch.batch_id, settings, now)
    return batch


@pytest.fixture
def two(connection, settings):
    """Two batches of one line, frozen one after the other as by `train --force`."""
    return prepared(connection, settings, max_trajectories=100), prepared(connection, settings)


def test_a_batch_waits_for_another_of_its_line_that_has_begun_and_continues_from_it(connection, settings, two):
    first, second = two
    with pytest.raises(Killed):
        train_batch(connection, first.batch_id, settings, NOW, KilledTrainer(2))
    waits = KilledTrainer(at=99)
    with pytest.raises(TrainingPaused, match=f"{second.batch_id} waits for {first.batch_id}.*`babylon-rl train --batch {first.batch_id}`"):
        train_batch(connection, second.batch_id, settings, NOW, waits)
    found = read_batch(connection, second.batch_id)
    assert (found.state, waits.trained, read_steps(connection, second.batch_id)) == ("scoring", [], [])
    assert found.error.startswith(f"{second.batch_id} waits for {first.batch_id}")
    assert train_batch(connection, first.batch_id, settings, NOW).model.version == "v1.0.11"
    model = train_batch(connection, second.batch_id, settings, NOW).model
    assert (model.version, model.parent_version) == ("v1.0.12", "v1.0.11")


def test_it_waits_from_the_moment_at_which_the_other_chose_its_parent(connection, settings, two, read_sample):
    first, second = two

    class AtTheSameTime(DryTrainer):
        def prepare(self, run, sequences):  # the first batch has no iteration on record yet
            with read_sample.connect() as other, pytest.raises(TrainingPaused, match=first.batch_id):
                train_batch(other, second.batch_id, settings, NOW)
            return super().prepare(run, sequences)

    train_batch(connection, first.batch_id, settings, NOW, AtTheSameTime())
    assert train_batch(connection, second.batch_id, settings, NOW).model.parent_version == "v1.0.11"


@pytest.mark.parametrize("otherwise", ["cancelled", "another line"])
def test_nothing_waits_for_a_batch_that_ended_or_is_of_another_line(connection, settings, two, otherwise):
    first, second = two
    with pytest.raises(Killed):
        train_batch(connection, first.batch_id, settings, NOW, KilledTrainer(2))
    if otherwise == "cancelled":
        cancel_batch(connection, first.batch_id, "enough", NOW)
    else:
        connection.execute('UPDATE babylon_rl.batches SET "baseModel" = \'other\' WHERE "batchId" = %s', [first.batch_id])
        connection.commit()
    assert train_batch(connection, second.batch_id, settings, NOW).model.parent_version is None


def test_a_batch_that_is_trained_after_one_frozen_later_is_numbered_above_it(connection, settings, two):
    first, second = two
    assert train_batch(connection, second.batch_id, settings, NOW).model.version == "v1.0.12"
    model = train_batch(connection, first.batch_id, settings, NOW).model
    assert (model.version, model.parent_version) == ("v1.0.13", "v1.0.12")
    assert parent_of_line(connection, "dry").version == "v1.0.13"  # else what it learned would be lost to the line


def test_a_run_that_takes_over_goes_on_from_the_parent_that_the_other_chose(connection, settings, two, read_sample):
    first, second = two
    train_batch(connection, first.batch_id, settings, NOW)  # so that the parent is not the one that the batch was frozen with
    with read_sample.connect() as other, pytest.raises(Killed):
        train_batch(other, second.batch_id, settings, NOW, KilledTrainer(2))
    trained = train_batch(connection, second.batch_id, settings, NOW)
    assert trained.steps[0].attempt < trained.steps[-1].attempt
    assert trained.model.parent_version == verify(trained.checkpoint).parent == "v1.0.11"


def test_a_run_that_was_taken_over_after_pre_flight_begins_nothing(connection, settings, two, read_sample):
    asked = []

    class Overtaken(TrainPlan):
        def cost(self, iterations):
            asked.append(iterations)
            if len(asked) == 2:  # the first time is for pre-flight, the second for the budget
                with read_sample.connect() as other:
                    claim_batch(other, two[0].batch_id, NOW)
            return 1.0

    class Paid(DryTrainer):
        def prepare(self, run, sequences):
            return Overtaken({one.window: 1 for one in sequences}, paid=True)

    with pytest.raises(BatchConflict, match="taken the batch over"):
        train_batch(connection, two[0].batch_id, settings.model_copy(update={"training_budget_usd": 5.0}), NOW, Paid())
    assert len(asked) == 2 and not read_steps(connection, two[0].batch_id)  # the run that took over may let another batch train first


def test_a_batch_is_trained_by_the_backend_that_it_was_frozen_for(connection, settings, two):
    connection.execute('UPDATE babylon_rl.batches SET "backend" = \'serverless\' WHERE "batchId" = %s', [two[0].batch_id])
    connection.commit()
    with pytest.raises(TrainingError, match="frozen for the backend serverless .* the settings choose dry"):
        train_batch(connection, two[0].batch_id, settings, NOW)
    assert read_batch(connection, two[0].batch_id).state == "scoring" and not read_steps(connection, two[0].batch_id)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_batch_keeps_its_backend_on_a_machine_for_which_local_means_another(settings, two, backend):
    local = settings.model_copy(update={"trainer": "local", "local_base_model": None})
    elsewhere = replace(two[0], backend=backend)  # frozen where there is a GPU, or where there is none
    assert trainer_choice(batch_settings(elsewhere, local)).backend == backend
    assert trainer_choice(batch_settings(elsewhere, settings)).backend == "dry"  # LOCAL_BASE_MODEL names one


@pytest.mark.long
def test_two_databases_that_share_a_state_directory_keep_their_checkpoints(connection, settings, read_sample, copy_of):
    first = prepared(connection, settings, max_trajectories=100)
    theirs = train_batch(connection, first.batch_id, settings, NOW).checkpoint
    going_on = prepared(connection, settings)
    with pytest.raises(Killed):
        train_batch(connection, going_on.batch_id, settings, NOW, KilledTrainer(3))
    before = (theirs / MANIFEST).read_bytes()
    with copy_of("read_sample").connect() as another:
        batch = prepared(another, settings, NOW + timedelta(seconds=1))
        assert batch.version == "v1.0.11"  # of the other database it knows nothing
        trained = train_batch(another, batch.batch_id, settings, NOW)
        assert (trained.model.version, trained.checkpoint.name) == ("v1.0.12", "v1.0.12")
        assert trained.batch.version == "v1.0.12" and not pending_batches(another)
    assert (theirs / MANIFEST).read_bytes() == before and verify(theirs).batch_id == first.batch_id
    trainer = KilledTrainer(at=99)
    model = train_batch(connection, going_on.batch_id, settings, NOW, trainer).model
    assert trainer.trained == [3]  # its numbered checkpoints are where they were
    assert model.version == "v1.0.13" and verify(trained.checkpoint).batch_id == batch.batch_id


def test_a_trainer_knows_its_generation_and_the_version_that_it_continues_from(connection, settings, two):
    seen = []

    class Watching(DryTrainer):
        def train(self, iteration, parent, out, on_step):
            seen.append((iteration.step, iteration.generation, iteration.origin and iteration.origin.name))
            return super().train(iteration, parent, out, on_step)

    first, second = two
    train_batch(connection, first.batch_id, settings, NOW, Watching())
    with pytest.raises(Killed):
        train_batch(connection, second.batch_id, settings, NOW, KilledTrainer(2))
    train_batch(connection, second.batch_id, settings, NOW, Watching())
    assert seen == [(1, 1, None), (2, 1, None), (3, 1, None), (2, 2, "v1.0.11"), (3, 2, "v1.0.11")]
