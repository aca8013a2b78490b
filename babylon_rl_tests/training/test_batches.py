import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from babylon_rl.errors import BatchConflict, CheckpointError, Diverged, NothingToTrain, TrainingError, TrainingPaused
from babylon_rl.models.checkpoints import verify
from babylon_rl.store.batches import claim_batch, read_batch, read_batch_episodes
from babylon_rl.store.registry import read_models
from babylon_rl.store.write_ahead import read_steps
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.backends.protocol import IterationResult
from babylon_rl.training.batches import cancel_batch, pending_batches, prepare_batch, train_batch
from babylon_rl.training.freezing import count_freezable, freeze
from babylon_rl_tests.training.sample import NOW, WITHOUT_SPREAD, value


@contextmanager
def server_lost_while_registering(connection) -> Iterator[None]:
    """A training in the block publishes its checkpoint and loses the database in the transaction that registers it."""
    connection.execute("CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the server went away'; END $$")
    connection.execute("CREATE TRIGGER die BEFORE INSERT ON babylon_rl.model_lineage FOR EACH ROW EXECUTE FUNCTION die()")
    connection.commit()
    with pytest.raises(Exception, match="the server went away"):
        yield
    connection.rollback()
    connection.execute("DROP TRIGGER die ON babylon_rl.model_lineage; DROP FUNCTION die()")
    connection.commit()


class Killed(BaseException):
    """Stands for the death of the process: nothing in the package handles it."""


class KilledTrainer(DryTrainer):
    """Trains until iteration ``at``, then dies before or after writing its adapter; counts what it trained."""

    def __init__(self, at: int, after: bool = False) -> None:
        super().__init__()
        self.at, self.after = at, after
        self.trained: list[int] = []

    def train(self, iteration, parent, out, on_step):
        if iteration.step == self.at and not self.after:
            raise Killed
        result = super().train(iteration, parent, out, on_step)
        self.trained.append(iteration.step)
        if iteration.step == self.at:
            raise Killed
        return result


class DivergedTrainer(DryTrainer):
    """Its loss is not finite."""

    def train(self, iteration, parent, out, on_step):
        result = super().train(iteration, parent, out, on_step)
        return IterationResult(result.metrics, result.trainable_tokens, float("nan"))


class AnotherBase(DryTrainer):
    """Its base has the parent's name, and other files."""

    def base_identity(self):
        return structs.replace(super().base_identity(), tokenizer_sha256="1" * 64)


class FullDisk(DryTrainer):
    """Cannot write from iteration ``at`` on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def train(self, iteration, parent, out, on_step):
        if iteration.step >= self.at:
            raise OSError(28, "No space left on device", str(out))
        return super().train(iteration, parent, out, on_step)


@pytest.fixture
def batch(connection, settings):
    frozen = freeze(connection, settings, NOW, seed=5).batch
    prepare_batch(connection, frozen.batch_id, settings, NOW)
    return frozen


def used(connection) -> int:
    return value(connection, 'SELECT count(*) FROM trajectories WHERE "usedInTraining" AND "trainedInBatch" <> \'batch-1761971999000\'')


def assert_nothing_was_marked(connection, batch) -> None:
    assert used(connection) == 0
    assert not [model for model in read_models(connection) if not model.foreign]
    assert value(connection, 'SELECT count(*) FROM babylon_rl.batch_items WHERE "consumed"') == 0


def assert_registered_once(connection, batch, home: Path) -> None:
    ours = [model for model in read_models(connection) if not model.foreign]
    assert [model.version for model in ours] == ["v1.0.11"]
    assert verify(home / "checkpoints" / "v1.0.11").batch_id == batch.batch_id
    assert used(connection) == 373
    assert read_batch(connection, batch.batch_id).state == "completed"


@pytest.mark.slow
def test_a_batch_becomes_a_registered_version(connection, settings, batch):
    before = value(connection, 'SELECT max("updatedAt") FROM trajectories')
    seen = []
    trained = train_batch(connection, batch.batch_id, settings, NOW, on_step=seen.append)
    assert_registered_once(connection, batch, settings.home)
    assert value(connection, 'SELECT max("updatedAt") FROM trajectories') == before
    assert [step.iteration for step in trained.steps] == [1, 2, 3]
    assert [(s.iteration, s.step) for s in seen] == [(i, s) for i in (1, 2, 3) for s in (1, 2)]
    model = trained.model
    assert (model.model_id, model.status, model.base_model, model.parent_version) == ("babylon-agent-v1.0.11", "ready", "dry", None)
    assert set(model.windows) == set(batch.windows)
    assert model.storage_path == str(settings.home / "checkpoints" / "v1.0.11")
    episodes = [e for e in read_batch_episodes(connection, batch.batch_id) if e.dropped is None]
    row = connection.execute(
        'SELECT "trajectoryIds", "rewardsJson", "rankingsJson", status, "modelVersion", "trainingLoss" FROM training_batches'
        ' WHERE "batchId" = %s',
        [batch.batch_id],
    ).fetchone()
    assert json.loads(row[0]) == [trajectory for e in episodes for trajectory in e.trajectory_ids]
    assert json.loads(row[1]) == [e.score for e in episodes for _ in e.trajectory_ids]
    assert json.loads(row[2]) == [e.rank for e in episodes for _ in e.trajectory_ids]
    assert row[3:] == ("completed", "v1.0.11", trained.steps[-1].loss)
    assert model.avg_reward == pytest.approx(sum(e.score for e in episodes) / len(episodes))
    assert count_freezable(connection, settings, NOW).trajectories == 0


@pytest.mark.slow
def test_the_preflight_counts_what_the_trainer_gets(connection, settings, batch):
    class Receiver(DryTrainer):
        def train(self, iteration, parent, out, on_step):
            self.sequences = iteration.sequences
            return super().train(iteration, parent, out, on_step)

    trainer = Receiver()
    train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert len({(sequence.window, sequence.agent_id) for sequence in trainer.sequences}) == 48
    preflight = read_batch(connection, batch.batch_id).preflight
    assert preflight["sequences"] == len(trainer.sequences) and preflight["groups"] == 7
    assert preflight["logprobShare"] == 0.0


@pytest.mark.slow
def test_a_completed_batch_is_not_trained_again(connection, settings, batch):
    train_batch(connection, batch.batch_id, settings, NOW)
    trainer = KilledTrainer(at=1)
    again = train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert again.model.version == "v1.0.11" and not trainer.trained


@pytest.mark.long
@pytest.mark.parametrize(("at", "after"), [(1, False), (1, True), (2, False), (2, True), (3, False), (3, True)])
def test_a_killed_training_goes_on_where_it_stopped(connection, settings, batch, at, after):
    with pytest.raises(Killed):
        train_batch(connection, batch.batch_id, settings, NOW, KilledTrainer(at, after))
    assert_nothing_was_marked(connection, batch)
    assert [b.batch_id for b in pending_batches(connection)] == [batch.batch_id]
    trainer = KilledTrainer(at=99)
    train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert trainer.trained == list(range(at, 4))
    assert_registered_once(connection, batch, settings.home)
    starts = [(step.iteration, step.finished_at is not None) for step in read_steps(connection, batch.batch_id)]
    assert starts == sorted([(n, True) for n in (1, 2, 3)] + [(at, False)])


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(connection, settings, batch, read_sample):
    with pytest.raises(Killed):
        train_batch(connection, batch.batch_id, settings, NOW, KilledTrainer(2, True))
    resumed = train_batch(connection, batch.batch_id, settings, NOW)
    connection.execute("DELETE FROM babylon_rl.model_lineage")
    connection.execute("DELETE FROM trained_models WHERE version = 'v1.0.11'")
    connection.execute("DELETE FROM babylon_rl.training_steps")
    connection.execute("UPDATE babylon_rl.batches SET \"state\" = 'training'")
    connection.commit()
    elsewhere = settings.model_copy(update={"babylon_rl_home": settings.home / "other"})
    whole = train_batch(connection, batch.batch_id, elsewhere, NOW)
    weights = "adapter_model.safetensors"
    assert (resumed.checkpoint / weights).read_bytes() == (whole.checkpoint / weights).read_bytes()


@pytest.mark.slow
def test_a_crash_after_an_iterations_directory_completes_its_row(connection, settings, batch):
    with pytest.raises(Killed):
        train_batch(connection, batch.batch_id, settings, NOW, KilledTrainer(3))
    connection.execute('UPDATE babylon_rl.training_steps SET "finishedAt" = NULL, "loss" = NULL WHERE "iteration" = 2')
    connection.commit()
    trainer = KilledTrainer(at=99)
    trained = train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert trainer.trained == [3]
    assert all(step.loss is not None for step in trained.steps) and len(trained.steps) == 3


def test_a_crash_between_publishing_and_registering_only_registers(connection, settings, batch):
    with server_lost_while_registering(connection):
        train_batch(connection, batch.batch_id, settings, NOW)
    assert_nothing_was_marked(connection, batch)
    assert verify(settings.home / "checkpoints" / "v1.0.11").batch_id == batch.batch_id
    trainer = KilledTrainer(at=1)
    train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert trainer.trained == []
    assert_registered_once(connection, batch, settings.home)


@pytest.mark.slow
def test_what_was_begun_is_not_judged_again(connection, settings, batch):
    with pytest.raises(Killed):
        train_batch(connection, batch.batch_id, settings, NOW, KilledTrainer(1))
    before = read_batch_episodes(connection, batch.batch_id)
    connection.execute('UPDATE babylon_rl.episode_scores SET "score" = 1 - "score", "advantage" = -"advantage"')
    connection.commit()
    prepare_batch(connection, batch.batch_id, settings, NOW)
    assert read_batch_episodes(connection, batch.batch_id) == before


def test_the_rewards_of_a_batch_stand_in_the_order_of_its_trajectories_whatever_becomes_of_it(connection, settings, batch):
    cancel_batch(connection, batch.batch_id, "enough", NOW)
    ids, rewards, rankings, status, completed_at = connection.execute(
        'SELECT "trajectoryIds", "rewardsJson", "rankingsJson", status, "completedAt" FROM training_batches WHERE "batchId" = %s',
        [batch.batch_id],
    ).fetchone()
    scored = {t: (e.score, e.rank) for e in read_batch_episodes(connection, batch.batch_id) for t in e.trajectory_ids}
    assert list(zip(json.loads(rewards), json.loads(rankings), strict=True)) == [scored[one] for one in json.loads(ids)]
    assert (status, completed_at) == ("failed", NOW)


@pytest.mark.slow
def test_a_parent_that_is_gone_fails_the_batch_with_a_cure(connection, settings):
    first = freeze(connection, settings, NOW, max_trajectories=100).batch
    prepare_batch(connection, first.batch_id, settings, NOW)
    shutil.rmtree(train_batch(connection, first.batch_id, settings, NOW).checkpoint)
    second = freeze(connection, settings, NOW).batch
    prepare_batch(connection, second.batch_id, settings, NOW)
    with pytest.raises(CheckpointError, match=r"The parent v1\.0\.11 is gone: .* mark v1\.0\.11 as failed"):
        train_batch(connection, second.batch_id, settings, NOW)
    failed = read_batch(connection, second.batch_id)
    assert failed.state == "failed" and failed.error.startswith("The parent v1.0.11 is gone")
    assert value(connection, 'SELECT count(*) FROM trajectories WHERE "trainedInBatch" = %s', second.batch_id) == 0


@pytest.mark.slow
def test_the_next_version_continues_from_the_newest_of_its_line(connection, settings):
    first = freeze(connection, settings, NOW, max_trajectories=100).batch
    prepare_batch(connection, first.batch_id, settings, NOW)
    train_batch(connection, first.batch_id, settings, NOW)
    second = freeze(connection, settings, NOW).batch
    assert second.parent_version == "v1.0.11"
    prepare_batch(connection, second.batch_id, settings, NOW)

    parents = []

    class Parents(DryTrainer):
        def train(self, iteration, parent, out, on_step):
            parents.append(parent)
            return super().train(iteration, parent, out, on_step)

    trained = train_batch(connection, second.batch_id, settings, NOW, Parents())
    assert trained.model.parent_version == "v1.0.11"
    assert parents[0] == settings.home / "checkpoints" / "v1.0.11"
    assert [path.name for path in parents[1:]] == ["1", "2"]
    third = freeze(connection, settings, NOW).batch
    assert third is None


@pytest.mark.slow
def test_a_damaged_parent_or_another_base_fails_the_batch_with_a_cure(connection, settings):
    first = freeze(connection, settings, NOW, max_trajectories=100).batch
    prepare_batch(connection, first.batch_id, settings, NOW)
    parent = train_batch(connection, first.batch_id, settings, NOW).checkpoint
    second = freeze(connection, settings, NOW).batch
    prepare_batch(connection, second.batch_id, settings, NOW)
    with pytest.raises(CheckpointError, match=r"another tokenizer\. Put the base back"):
        train_batch(connection, second.batch_id, settings, NOW, AnotherBase())
    second = freeze(connection, settings, NOW).batch
    prepare_batch(connection, second.batch_id, settings, NOW)
    (parent / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"mark v1\.0\.11 as failed"):
        train_batch(connection, second.batch_id, settings, NOW)
    assert read_batch(connection, second.batch_id).state == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "error", "message"),
    [
        (DivergedTrainer(), Diverged, "Lower LEARNING_RATE"),
        (DryTrainer("other"), TrainingError, "line"),
    ],
)
def test_a_training_that_fails_frees_what_it_held(connection, settings, batch, trainer, error, message):
    with pytest.raises(error, match=message):
        train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert_nothing_was_marked(connection, batch)
    failed = trainer.base_model == "dry"
    assert read_batch(connection, batch.batch_id).state == ("failed" if failed else "scoring")
    assert not list((settings.home / "checkpoints").rglob("*.safetensors"))
    assert count_freezable(connection, settings, NOW).trajectories == (373 if failed else 0)
    if failed:
        with pytest.raises(BatchConflict, match="freeze a new batch"):
            train_batch(connection, batch.batch_id, settings, NOW)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_keeps_what_is_finished_and_the_next_run_goes_on(connection, settings, batch, at):
    with pytest.raises(TrainingPaused, match="could not be written: No space left on device .*What is finished is kept: make room"):
        train_batch(connection, batch.batch_id, settings, NOW, FullDisk(at))
    waiting = read_batch(connection, batch.batch_id)
    assert waiting.state == "training" and "make room" in waiting.error
    assert_nothing_was_marked(connection, batch)
    trainer = KilledTrainer(at=99)
    train_batch(connection, batch.batch_id, settings, NOW, trainer)
    assert trainer.trained == list(range(at, 4))
    assert_registered_once(connection, batch, settings.home)


def test_a_cancelled_batch_stops_at_its_next_step(connection, settings, batch, read_sample):
    def cancel(metrics):
        with read_sample.connect() as other:
            cancel_batch(other, batch.batch_id, "enough", NOW)

    with pytest.raises(BatchConflict, match="Cancelled: enough"):
        train_batch(connection, batch.batch_id, settings, NOW, DryTrainer(optimizer_steps=1), on_step=cancel)
    assert_nothing_was_marked(connection, batch)
    assert read_batch(connection, batch.batch_id).error == "Cancelled: enough"


@pytest.mark.slow
def test_a_newer_run_shuts_the_older_one_out(connection, settings, batch, read_sample):
    def take_over(metrics):
        with read_sample.connect() as other:
            claim_batch(other, batch.batch_id, NOW)

    with pytest.raises(BatchConflict, match="taken the batch over"):
        train_batch(connection, batch.batch_id, settings, NOW, DryTrainer(optimizer_steps=1), on_step=take_over)
    assert read_batch(connection, batch.batch_id).state == "training"
    assert_nothing_was_marked(connection, batch)
    train_batch(connection, batch.batch_id, settings, NOW)
    assert_registered_once(connection, batch, settings.home)


def test_a_batch_that_was_not_judged_is_not_trained(connection, settings):
    frozen = freeze(connection, settings, NOW).batch
    with pytest.raises(TrainingError, match="judged first"):
        train_batch(connection, frozen.batch_id, settings, NOW)
    with pytest.raises(BatchConflict, match="no batch batch-0"):
        prepare_batch(connection, "batch-0", settings, NOW)


def test_preparing_gives_every_episode_the_advantage_of_its_group(connection, settings, batch):
    prepared = prepare_batch(connection, batch.batch_id, settings, NOW)
    stored = dict(connection.execute('SELECT "window" || "agentId", "advantage" FROM babylon_rl.episode_scores').fetchall())
    assert len(prepared.remaining) == 48 and not prepared.dropped_groups
    assert all(e.advantage == stored[e.window + e.agent_id] for e in prepared.remaining)


@pytest.mark.parametrize("credit", WITHOUT_SPREAD)
def test_groups_without_spread_leave_the_batch(connection, settings, credit):
    settings = settings.model_copy(update={"credit": credit})
    frozen = freeze(connection, settings, NOW, windows=("2025-10-29T13:00", "2025-10-29T15:00")).batch
    prepare_batch(connection, frozen.batch_id, settings, NOW)
    connection.execute(f"{WITHOUT_SPREAD[credit]} WHERE \"window\" = '2025-10-29T14:00'")
    connection.commit()
    prepared = prepare_batch(connection, frozen.batch_id, settings, NOW)
    assert prepared.dropped_groups == {"2025-10-29T14:00": "no spread of scores"}
    assert list(prepared.batch.windows) == ["2025-10-29T13:00"] and prepared.batch.trajectories == 53
    assert count_freezable(connection, settings, NOW).windows.get("2025-10-29T14:00") is None  # flat: it would come back for ever
    connection.execute(WITHOUT_SPREAD[credit])
    connection.commit()
    with pytest.raises(NothingToTrain, match="no spread of scores"):
        prepare_batch(connection, frozen.batch_id, settings, NOW)
    failed = read_batch(connection, frozen.batch_id)
    assert failed.state == "failed" and failed.completed_at > failed.started_at >= NOW  # it ended after it was judged


@pytest.mark.slow
def test_settings_are_those_that_were_frozen(connection, settings, batch):
    trained = train_batch(connection, batch.batch_id, settings.model_copy(update={"iterations": 9}), NOW)
    assert len(trained.steps) == 3
