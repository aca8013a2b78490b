"""Episodes and groups that leave a batch for lack of anything to train: told by pre-flight, and kept out of others only if it trained."""

import pytest

from babylon_rl.errors import Diverged, NothingToTrain
from babylon_rl.store.batches import read_batch, read_batch_episodes
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.backends.protocol import TrainPlan
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import count_freezable, freeze
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.training.test_batches import DivergedTrainer

UNTRAINABLE, SILENT = "2025-10-29T14:00", "2025-10-29T13:00"


class PickyTrainer(DryTrainer):
    """Finds no trainable token in one hour."""

    def prepare(self, run, sequences):
        return TrainPlan({one.window: int(one.window != UNTRAINABLE) for one in sequences})


class PickyAndDiverging(PickyTrainer, DivergedTrainer):
    """Nor does it train the others."""


@pytest.fixture
def batch(connection, settings):
    """A batch of whose hours one has lost the text of its answers since."""
    frozen = freeze(connection, settings, NOW, seed=5).batch
    prepare_batch(connection, frozen.batch_id, settings, NOW)
    ids = [i for e in read_batch_episodes(connection, frozen.batch_id) if e.window == SILENT for i in e.trajectory_ids]
    connection.execute("UPDATE llm_call_logs SET response = ' ' WHERE \"trajectoryId\" = ANY(%s)", [ids])
    connection.execute(
        """UPDATE trajectories SET "stepsJson" = regexp_replace("stepsJson", '"response": ?"([^"\\\\]|\\\\.)*"', '"response":" "', 'g')
           WHERE "trajectoryId" = ANY(%s)""",
        [ids],
    )
    connection.commit()
    return frozen


@pytest.mark.slow
def test_hours_that_train_nothing_are_counted_among_the_groups_that_were_dropped(connection, settings, batch):
    trained = train_batch(connection, batch.batch_id, settings, NOW, PickyTrainer())
    found = read_batch(connection, batch.batch_id).preflight
    assert found["groupsDropped"] == {"no training sequence": 1, "no trainable token": 1}
    assert found["groups"] == len(trained.model.windows) == 5
    assert {e.window: e.dropped for e in read_batch_episodes(connection, batch.batch_id) if e.dropped} == {
        UNTRAINABLE: "no trainable token", SILENT: "no training sequence",
    }  # fmt: skip
    assert count_freezable(connection, settings, NOW).trajectories == 0  # else they would come back for ever


def test_what_left_a_batch_that_fails_may_be_frozen_again(connection, settings, batch):
    with pytest.raises(Diverged):
        train_batch(connection, batch.batch_id, settings, NOW, PickyAndDiverging())
    assert read_batch(connection, batch.batch_id).state == "failed"
    assert count_freezable(connection, settings, NOW).trajectories == 373


@pytest.mark.slow
def test_settings_that_leave_nothing_to_train_bar_nothing(connection, settings):
    narrow = settings.model_copy(update={"train_purposes": "nothing"})
    frozen = freeze(connection, narrow, NOW).batch
    prepare_batch(connection, frozen.batch_id, narrow, NOW)
    with pytest.raises(NothingToTrain, match="no training sequence"):
        train_batch(connection, frozen.batch_id, narrow, NOW)
    assert read_batch(connection, frozen.batch_id).preflight["groupsDropped"] == {"no training sequence": 7}
    again = freeze(connection, settings, NOW).batch
    assert again.trajectories == 373
    prepare_batch(connection, again.batch_id, settings, NOW)
    train_batch(connection, again.batch_id, settings, NOW)
