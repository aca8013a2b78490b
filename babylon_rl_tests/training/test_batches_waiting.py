"""A batch whose runs pause or die: it is taken up again, given up only for deaths, and what it trained stays its own."""

from dataclasses import replace
from datetime import timedelta

import pytest

from babylon_rl.errors import ModelUnavailable, NothingToTrain, NoTrainer, TrainingError, TrainingPaused
from babylon_rl.store.batches import advance_batch, claim_batch, note_waiting, read_batch, read_batch_episodes
from babylon_rl.store.write_ahead import begin_step, read_steps
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.batches import fail_stuck, prepare_batch, train_batch
from babylon_rl.training.freezing import count_freezable, freeze
from babylon_rl.training.lifecycle import MAX_LOST_RUNS, TRAIN
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.training.test_batches import Killed, KilledTrainer, assert_nothing_was_marked, used


@pytest.fixture
def batch(connection, settings):
    frozen = freeze(connection, settings.model_copy(update={"windows_per_iteration": 1}), NOW, seed=5).batch
    prepare_batch(connection, frozen.batch_id, settings, NOW)
    return frozen


@pytest.mark.parametrize("waits_for", [None, "the service does not answer"])
def test_a_batch_is_left_to_its_next_run_for_a_week_and_failed_then(connection, settings, batch, waits_for):
    attempt = claim_batch(connection, batch.batch_id, NOW)
    with connection.transaction():
        advance_batch(connection, batch.batch_id, attempt, TRAIN, NOW)
        if waits_for is not None:
            note_waiting(connection, batch.batch_id, attempt, waits_for)
    connection.commit()
    fail_stuck(connection, NOW + timedelta(days=7))
    assert read_batch(connection, batch.batch_id).live
    fail_stuck(connection, NOW + timedelta(days=7, minutes=1))
    stuck = read_batch(connection, batch.batch_id)
    assert stuck.error == "Stuck: no heartbeat since 2025-10-30 12:00 UTC."
    assert count_freezable(connection, settings, NOW).trajectories == 373  # free again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "raised", "said"),
    [
        ({"local_base_model": "/no/such/base"}, ModelUnavailable, "no such directory"),
        ({"train_rl_local": False}, NoTrainer, "No trainer is chosen"),
        ({"trainer": "serverless"}, NoTrainer, "WANDB_API_KEY is not set"),
    ],
)
def test_settings_that_were_lost_let_a_batch_wait_and_keep_what_it_trained(connection, settings, batch, changed, raised, said):
    class PausesAfterOne(DryTrainer):
        def train(self, iteration, parent, out, on_step):
            if iteration.step > 1:
                raise ModelUnavailable("The hub answers 503.")  # the base model of a replaced container
            return super().train(iteration, parent, out, on_step)

    with pytest.raises(ModelUnavailable):
        train_batch(connection, batch.batch_id, settings, NOW, PausesAfterOne())
    with pytest.raises(raised, match=said):
        train_batch(connection, batch.batch_id, settings.model_copy(update=changed), NOW)
    waiting = read_batch(connection, batch.batch_id)
    assert waiting.state == "training" and said in (waiting.error or "") and len(read_steps(connection, batch.batch_id)) >= 1
    trained = train_batch(connection, batch.batch_id, settings, NOW)
    assert trained.batch.state == "completed" and trained.batch.error is None


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "dies"), [(TrainingPaused("nobody answers"), False), (Killed(), True)])
def test_only_starts_that_ended_in_a_death_count(connection, settings, batch, ends, dies):
    class Ends(DryTrainer):
        def train(self, iteration, parent, out, on_step):
            raise ends

    with pytest.raises(type(ends)):
        train_batch(connection, batch.batch_id, settings, NOW, Ends())
    (step,) = read_steps(connection, batch.batch_id)
    assert step.paused != dies
    for _ in range(MAX_LOST_RUNS - 1):
        begin_step(connection, batch.batch_id, replace(step, attempt=claim_batch(connection, batch.batch_id, NOW)))
    connection.commit()
    if dies:
        with pytest.raises(TrainingError, match="was started 25 times and never ended"):
            train_batch(connection, batch.batch_id, settings, NOW)
    else:
        train_batch(connection, batch.batch_id, settings, NOW)
        assert read_batch(connection, batch.batch_id).state == "completed"
        assert [one.paused for one in read_steps(connection, batch.batch_id)] == [True] + [False] * (MAX_LOST_RUNS + 2)


@pytest.mark.parametrize("all_of_it", [False, True])
def test_what_trained_is_marked_though_its_calls_are_gone_when_it_is_resumed(connection, settings, batch, all_of_it):
    at = 3 if all_of_it else 2
    with pytest.raises(Killed):
        train_batch(connection, batch.batch_id, settings, NOW, KilledTrainer(at))
    trained = {window for step in read_steps(connection, batch.batch_id) for window in step.windows}
    episodes = [e for e in read_batch_episodes(connection, batch.batch_id) if all_of_it or e.window in trained]
    before = read_batch(connection, batch.batch_id)
    assert episodes and all(episode.dropped is None and episode.sequences for episode in episodes)
    ids = [trajectory for episode in episodes for trajectory in episode.trajectory_ids]
    connection.execute('DELETE FROM llm_call_logs WHERE "trajectoryId" = ANY(%s)', [ids])
    connection.execute('UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = ANY(%s)', ["[]", ids])
    connection.commit()
    trainer = KilledTrainer(at=99)
    if all_of_it:  # nothing is left to go on with
        with pytest.raises(NothingToTrain):
            train_batch(connection, batch.batch_id, settings, NOW, trainer)
        assert_nothing_was_marked(connection, batch)
        return
    train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert trainer.trained == [2, 3]
    assert used(connection) == batch.trajectories == 150
    after = read_batch(connection, batch.batch_id)
    assert (after.preflight, after.windows, after.trajectories) == (before.preflight, before.windows, before.trajectories)


@pytest.mark.slow
def test_at_the_time_limit_a_training_here_waits_with_its_finished_iterations_and_goes_on_under_a_higher_one(connection, settings, batch):
    with pytest.raises(TrainingPaused, match="nobody answers"):
        train_batch(connection, batch.batch_id, settings, NOW, EndsAfterTheFirst())
    limited = settings.model_copy(update={"training_time_limit_hours": 1e-9})
    sentence = r"has trained for 1e-09 hours \(TRAINING_TIME_LIMIT_HOURS\) and stops in iteration 2 of 3\..*raise the limit and run"
    for _ in range(2):
        with pytest.raises(TrainingPaused, match=sentence):
            train_batch(connection, batch.batch_id, limited, NOW)
    waiting = read_batch(connection, batch.batch_id)
    assert (waiting.state, "TRAINING_TIME_LIMIT_HOURS" in waiting.error) == ("training", True)
    trained = train_batch(connection, batch.batch_id, settings, NOW)
    assert read_batch(connection, batch.batch_id).state == "completed"
    assert trained.steps[0].attempt < trained.steps[1].attempt  # the first iteration was kept


def test_time_that_the_limit_cut_off_counts_so_that_no_run_trains_it_again(connection, settings, batch):
    limited = settings.model_copy(update={"training_time_limit_hours": 1e-9})
    for starts in (1, 1):
        with pytest.raises(TrainingPaused, match="stops in iteration 1 of 3"):
            train_batch(connection, batch.batch_id, limited, NOW)
        begun = read_steps(connection, batch.batch_id)
        assert (len(begun), begun[0].paused, begun[0].metrics["seconds"] > 0) == (starts, True, True)


class EndsAfterTheFirst(DryTrainer):
    """Waits for somebody from the second iteration on."""

    def train(self, iteration, parent, out, on_step):
        if iteration.step > 1:
            raise TrainingPaused("nobody answers")
        return super().train(iteration, parent, out, on_step)
